"""Semantic segmentation: DeepLabv3 from torchvision's parts, on data in PASCAL VOC's format."""

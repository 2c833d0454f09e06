"""Image classification: torchvision's and timm's networks on any folder of pictures."""

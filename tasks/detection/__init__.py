"""Detection and instance segmentation: Mask R-CNN from detectron2, on data in COCO's format."""

"""What detection takes of COCO's official archives."""

from __future__ import annotations

from pathlib import PurePosixPath

from harness.archives import Layout
from tasks.detection import coco

DOWNLOADS = (
    "COCO 2017: train2017.zip, val2017.zip and annotations_trainval2017.zip from cocodataset.org"
)


def place(name: PurePosixPath) -> PurePosixPath | None:
    """Keep the images and the instances of both splits."""
    folder, splits = name.parent.name, (coco.TRAIN, coco.VAL)
    wanted = folder in splits and name.suffix == ".jpg"
    if folder == "annotations":
        wanted = name.name in {f"instances_{split}.json" for split in splits}
    return PurePosixPath(folder, name.name) if wanted else None


LAYOUT = Layout(place, ("annotations_trainval2017.zip", "val2017.zip", "train2017.zip"), DOWNLOADS)

"""What ``normbench data check`` does for pictures in class folders: counts all, opens a few."""

from __future__ import annotations

from pathlib import Path

from harness.errors import DataError
from harness.task import DataReport, Progress
from tasks.classification import imagefolder

_OPENED = 200  # pictures of each split


def inspect(root: Path, progress: Progress, *, must_be_imagenet: bool) -> DataReport:
    """Check a folder of pictures.

    Args:
        root: the folder.
        progress: told of the pictures opened.
        must_be_imagenet: whether the official counts are required; so they are of a folder with
            ImageNet's thousand class names.

    Returns:
        Counts of each split, and every problem found in words.

    Raises:
        DataError: if the folder is not of the layout at all.
    """
    classes = imagefolder.check_layout(root)
    must_be_imagenet = must_be_imagenet or imagefolder.looks_like_imagenet(classes)
    facts = {"classes": f"{len(classes):,} (ImageNet: {imagefolder.IMAGENET_CLASSES:,})"}
    problems = []
    if must_be_imagenet and len(classes) != imagefolder.IMAGENET_CLASSES:
        problems.append(
            f"{root} holds {len(classes):,} classes, ImageNet (ILSVRC 2012) has "
            f"{imagefolder.IMAGENET_CLASSES:,}: unpack every class of ILSVRC2012_img_train.tar and "
            "ILSVRC2012_img_val.tar (image-net.org)"
        )
    for split, official in imagefolder.IMAGENET.items():
        listing = imagefolder.list_split(root, split)
        sizes = [len(files) for files in listing.files.values()]
        facts[f"{split} pictures"] = f"{len(listing):,} (ImageNet: {official:,})"
        facts[f"{split} pictures of a class"] = f"{min(sizes):,} to {max(sizes):,}"
        if must_be_imagenet and len(listing) != official:
            problems.append(
                f"{listing.folder} holds {len(listing):,} pictures, ImageNet (ILSVRC 2012) has "
                f"{official:,}: unpack ILSVRC2012_img_{split}.tar (image-net.org) again"
            )
        problems += _open_some(listing, progress)
    return DataReport(root, facts, problems)


def _open_some(listing: imagefolder.Listing, progress: Progress) -> list[str]:
    from tasks.classification.images import read_rgb

    paths = [
        listing.folder / name / file for name, files in listing.files.items() for file, _ in files
    ]
    chosen = imagefolder.spread(paths, _OPENED)
    problems = []
    for number, path in enumerate(chosen, start=1):
        try:
            read_rgb(path)
        except DataError as error:
            problems.append(str(error))
        progress(f"open {listing.folder.name}", number, len(chosen))
    return problems

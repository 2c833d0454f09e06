"""What segmentation takes of PASCAL VOC 2012 and of the augmented masks, and where it goes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from harness import archives
from harness.errors import DataError
from harness.paths import write_atomic
from harness.task import Progress
from tasks.segmentation import voc

DOWNLOADS = (
    "PASCAL VOC 2012: VOCtrainval_11-May-2012.tar from the PASCAL VOC 2012 site, and for train_aug "
    "SegmentationClassAug.zip from the data links of github.com/chenxi116/DeepLabv3.pytorch"
)
_SUFFIXES = {
    "JPEGImages": ".jpg",
    "SegmentationClass": ".png",
    "SegmentationClassAug": ".png",
    "list": ".txt",
}
_LISTS = ("ImageSets", "Segmentation")


def place(name: PurePosixPath) -> PurePosixPath | None:
    """Keep images, masks and lists of segmentation."""
    if name.parent.parts[-2:] == _LISTS and name.suffix == ".txt":
        return PurePosixPath(*_LISTS, name.name)
    folder = name.parent.name
    return PurePosixPath(folder, name.name) if _SUFFIXES.get(folder) == name.suffix else None


LAYOUT = archives.Layout(
    place,
    ("VOCtrainval_11-May-2012.tar", "SegmentationClassAug.zip", "list.zip"),
    DOWNLOADS,
    # As torchvision pins it (torchvision/datasets/voc.py).
    md5={"VOCtrainval_11-May-2012.tar": "6cd6e144f989b92b3379bac3b3de84fd"},
)


def unpack(given: Path, sources: Sequence[Path], progress: Progress) -> None:
    """Fill the ``VOC2012`` folder that ``given`` is, holds or will hold.

    Raises:
        DataError: as ``harness.archives.unpack``.
    """
    root = voc.find(given)
    if not any((root / name).is_dir() for name in ("JPEGImages", "ImageSets")):
        below = {"VOC2012": (), "VOCdevkit": ("VOC2012",)}
        root = given.joinpath(*below.get(given.name, ("VOCdevkit", "VOC2012")))
    archives.unpack(sources, root, LAYOUT, progress)
    _write_lists(root)


def _write_lists(root: Path) -> None:
    """Write the augmented layout's lists where no list.zip was given.

    The authors' ``train_aug`` is every augmented mask that is not one of VOC's ``val``.
    """
    masks = root / "SegmentationClassAug"
    official = voc.list_files(root, "train")["val"]
    if not masks.is_dir() or not official.is_file():
        return
    val = {pair.name for pair in voc.read_list(root, official)}
    names = {voc.AUGMENTED: [p.stem for p in masks.glob("*.png") if p.stem not in val], "val": val}
    for name, path in voc.list_files(root, voc.AUGMENTED).items():
        if path.is_file() or not names[name]:
            continue
        lines = [f"/JPEGImages/{n}.jpg /{masks.name}/{n}.png\n" for n in sorted(names[name])]
        try:
            path.parent.mkdir(exist_ok=True)
            write_atomic(path, "".join(lines))
        except OSError as error:
            raise DataError(f"{path} cannot be written: {error.strerror}") from None


def download(folder: Path) -> None:
    """Let torchvision fetch VOC 2012, without the augmented masks, into ``folder``."""
    from torchvision.datasets import VOCSegmentation

    VOCSegmentation(folder, year="2012", image_set="train", download=True)

"""What classification takes of ImageNet's official archives, or of any folder of pictures."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path, PurePosixPath

from harness import archives
from harness.errors import DataError
from harness.task import Progress
from tasks.classification import imagefolder

_TRAIN, _VAL = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
_DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
_IMAGENETTE = "imagenette2.tgz"
DOWNLOADS = (
    f"ImageNet (ILSVRC 2012): {_TRAIN}, {_VAL} and {_DEVKIT} from image-net.org; or pictures as "
    "train/CLASS/*.jpg and val/CLASS/*.jpg, such as Imagenette"
)
_TRAIN_PICTURE = re.compile(r"(n\d{8})_\d+\.JPEG")
_VAL_PICTURE = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")


def unpack(root: Path, sources: Sequence[Path], progress: Progress) -> None:
    """Sort pictures into ``root/{train,val}/CLASS``.

    Raises:
        DataError: as ``harness.archives.unpack``; or if the classes of ImageNet's validation
            pictures are not known, for want of the development kit.
    """
    kits = [path / _DEVKIT if path.is_dir() else path for path in sources]
    kit = next((path for path in kits if path.name == _DEVKIT and path.is_file()), None)

    @cache
    def val_classes() -> list[str]:
        if kit is None:
            raise DataError(
                f"{_VAL} does not tell the classes of its pictures: give {_DEVKIT} "
                "(image-net.org) with --from too"
            )
        return read_devkit(kit)

    def place(name: PurePosixPath) -> PurePosixPath | None:
        sorted_already = _sorted_place(name)
        if sorted_already is not None:
            return sorted_already
        if match := _TRAIN_PICTURE.fullmatch(name.name):
            return PurePosixPath(imagefolder.TRAIN, match[1], name.name)
        if match := _VAL_PICTURE.fullmatch(name.name):
            number, classes = int(match[1]), val_classes()
            if not 1 <= number <= len(classes):
                raise DataError(f"{name.name}: {kit} knows {len(classes):,} validation pictures")
            return PurePosixPath(imagefolder.VAL, classes[number - 1], name.name)
        return None

    layout = archives.Layout(
        place,
        (_TRAIN, _VAL, _IMAGENETTE),
        DOWNLOADS,
        md5=_checksums(),
        inner=re.compile(r"n\d{8}\.tar"),
    )
    archives.unpack([path for path in sources if path != kit], root, layout, progress)


def _sorted_place(name: PurePosixPath) -> PurePosixPath | None:
    """Return split, class and the rest of a picture's path, where it has them."""
    if name.suffix.lower() not in imagefolder.SUFFIXES:
        return None
    for start in range(len(name.parts) - 3, -1, -1):
        if name.parts[start] in imagefolder.SPLITS:
            return PurePosixPath(*name.parts[start:])
    return None


def _checksums() -> dict[str, str]:
    from torchvision.datasets.imagenet import ARCHIVE_META

    return {name: md5 for name, md5 in ARCHIVE_META.values() if name != _DEVKIT}


def read_devkit(path: Path) -> list[str]:
    """Return the class (WordNet id) of each validation picture, as torchvision reads it.

    Raises:
        DataError: if the archive is not the official one.
    """
    from torchvision.datasets.imagenet import load_meta_file, parse_devkit_archive

    # torchvision leaves its findings beside the archive, which may not be writable.
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, _DEVKIT).symlink_to(path.resolve())
        try:
            parse_devkit_archive(folder)
        except RuntimeError:  # its checksum
            raise DataError(
                f"{path} is damaged, or not the official file: download it again"
            ) from None
        except OSError as error:
            raise DataError(f"{path} cannot be unpacked: {error}") from None
        classes: list[str] = load_meta_file(folder)[1]
    return classes


def download(folder: Path) -> None:
    """Let torchvision fetch Imagenette, ten classes of ImageNet, into ``folder``."""
    from torchvision.datasets import Imagenette

    Imagenette(folder, size="full", download=True)

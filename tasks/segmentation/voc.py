"""PASCAL VOC's format on disk without heavy libraries: where things lie, what they are, what lacks.

Two layouts live side by side in a ``VOC2012`` folder (Everingham et al. 2010, "The PASCAL Visual
Object Classes Challenge"; the augmented masks are those of Hariharan et al. 2011, "Semantic
Contours from Inverse Detectors", as the DeepLab authors pass them on)::

    JPEGImages/*.jpg
    official    ImageSets/Segmentation/{train,trainval,val}.txt    SegmentationClass/*.png
    augmented   list/{train_aug,val}.txt                           SegmentationClassAug/*.png

An official list holds one name a line, an augmented one the paths of image and mask. The classes
are VOC's 21, unless a ``labels.txt`` in the folder names others, one a line from class 0 on.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from harness.errors import DataError
from harness.paths import cache_dir, write_atomic

IGNORE = 255
"""Mask value of pixels that count neither in the loss nor in a metric."""
CLASSES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
AUGMENTED = "train_aug"
LABELS = "labels.txt"
OFFICIAL_COUNTS = {"train": 1_464, "trainval": 2_913, AUGMENTED: 10_582, "val": 1_449}
"""Pairs of each list: VOC 2012's own statistics, and the lists of the DeepLab authors."""

_TAR = "VOCtrainval_11-May-2012.tar from the PASCAL VOC 2012 site"
_AUG = "from the data links of github.com/chenxi116/DeepLabv3.pytorch"
_OFFICIAL_LISTS = Path("ImageSets", "Segmentation")
_NUM_NAMED = 3


class Pair(NamedTuple):
    """An image and its mask."""

    name: str
    image: Path
    mask: Path


def find(given: Path) -> Path:
    """Return the ``VOC2012`` folder that ``given`` is or holds, or ``given`` if there is none."""
    inner = ("", "VOC2012", "VOCdevkit/VOC2012", "voc", "voc/VOC2012", "voc/VOCdevkit/VOC2012")
    for path in (given / name for name in inner):
        if (path / "JPEGImages").is_dir() or (path / "ImageSets").is_dir():
            return path
    return given


def list_files(root: Path, train_set: str) -> dict[str, Path]:
    """Return the list file of ``train_set`` and that of ``val`` in the same layout."""
    folder = root / ("list" if train_set == AUGMENTED else _OFFICIAL_LISTS)
    return {name: folder / f"{name}.txt" for name in (train_set, "val")}


def _mask_folder(train_set: str) -> str:
    return "SegmentationClassAug" if train_set == AUGMENTED else "SegmentationClass"


def lacking(root: Path, train_set: str) -> list[str]:
    """Return what the layout of ``train_set`` lacks in ``root``, each with where to get it."""
    if not root.is_dir():
        problem = "is not a folder" if root.exists() else "does not exist"
        return [f"data folder {root} {problem}: give the VOCdevkit, or VOC2012 within it ({_TAR})"]
    official = train_set != AUGMENTED
    sources = {
        "JPEGImages": _TAR,
        _mask_folder(train_set): _TAR if official else f"SegmentationClassAug.zip {_AUG}",
    }
    found = [
        f"{root / folder} {'is empty' if (root / folder).is_dir() else 'is missing'}: get {source}"
        for folder, source in sources.items()
        if not (root / folder).is_dir() or not any(_names(root / folder))
    ]
    source = _TAR if official else f"list.zip {_AUG}"
    files = list_files(root, train_set).values()
    return found + [f"{path} is missing: get {source}" for path in files if not path.is_file()]


def check_layout(root: Path, train_set: str) -> None:
    """Check quickly that ``root`` has the folders and lists of a layout.

    Raises:
        DataError: naming the first thing that is missing.
    """
    if problems := lacking(root, train_set):
        more = f" (and {len(problems) - 1} more: `normbench data check`)"
        raise DataError(problems[0] + (more if len(problems) > 1 else ""))


def class_names(root: Path) -> tuple[str, ...]:
    """Return the names of the classes, in the order of their mask values.

    Raises:
        DataError: if ``labels.txt`` is there but names fewer than 2 classes, or more than 255.
    """
    path = root / LABELS
    if not path.is_file():
        return CLASSES
    names = tuple(line.strip() for line in _read_text(path).splitlines() if line.strip())
    if not 2 <= len(names) <= IGNORE:
        raise DataError(f"{path} names {len(names)} classes: give 2 to {IGNORE}, one a line")
    return names


def read_list(root: Path, path: Path) -> list[Pair]:
    """Read a list of either format.

    Raises:
        DataError: if it cannot be read, is empty, or a line is neither a name nor two paths.
    """
    pairs = []
    for number, line in enumerate(_read_text(path).splitlines(), start=1):
        words = line.split()
        if len(words) == 1:
            image, mask = f"JPEGImages/{words[0]}.jpg", f"SegmentationClass/{words[0]}.png"
        elif len(words) == 2:
            # The leading slash of the authors' lists is relative to the folder all the same.
            image, mask = (word.lstrip("/") for word in words)
        elif words:
            raise DataError(
                f"{path}, line {number}: expected a name, or the paths of an image and its mask, "
                f"not {line.strip()[:60]!r}"
            )
        else:
            continue
        pairs.append(Pair(Path(image).stem, root / image, root / mask))
    if not pairs:
        raise DataError(f"{path} lists no images")
    return pairs


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise DataError(f"{path} cannot be read: {reason}") from None


def absent(files: Sequence[Path]) -> Iterator[Path]:
    """Iterate over the ``files`` that are not there; looks once into each folder."""
    present = {}
    for folder in {path.parent for path in files}:
        present[folder] = set(_names(folder)) if folder.is_dir() else set()
    return (path for path in files if path.name not in present[path.parent])


def _names(folder: Path) -> Iterator[str]:
    with os.scandir(folder) as entries:
        yield from (entry.name for entry in entries)


def read_split(root: Path, path: Path) -> list[Pair]:
    """Read a list and see that every file it names is there.

    Raises:
        DataError: naming the first files that are missing.
    """
    pairs = read_list(root, path)
    missing = list(absent([file for pair in pairs for file in (pair.image, pair.mask)]))
    if missing:
        raise DataError(describe_absent(path, missing))
    return pairs


def describe_absent(path: Path, missing: Sequence[Path]) -> str:
    """Say in one line which files of a list are missing."""
    named = ", ".join(str(file) for file in missing[:_NUM_NAMED])
    more = f" and {len(missing) - _NUM_NAMED:,} more" if len(missing) > _NUM_NAMED else ""
    return f"{named}{more} missing, but {path} lists them: unpack the archives again"


def count(root: Path, train_set: str) -> int | None:
    """Return the number of training pairs; None where the list is not to be read."""
    try:
        lines = _read_text(list_files(root, train_set)[train_set]).splitlines()
    except DataError:
        return None
    return sum(bool(line.strip()) for line in lines) or None


def fingerprint(root: Path, train_set: str) -> str:
    """Return a content identity of the data at ``root``: of the lists, classes and mask sizes.

    It takes one look at each of 12,000 masks, and is remembered by the time of change of the
    lists and folders.

    Raises:
        DataError: if the layout is wrong, or a listed mask is missing.
    """
    check_layout(root, train_set)
    lists = list_files(root, train_set)
    watched = [*lists.values(), root / _mask_folder(train_set), root / LABELS]
    states = [(p.resolve(), p.stat()) for p in watched if p.exists()]
    key = "".join(f"{path}\x1f{at.st_size}\x1f{at.st_mtime_ns}\x1f" for path, at in states)
    name = hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
    remembered = cache_dir() / "fingerprints" / name
    try:
        return remembered.read_text(encoding="utf-8")
    except OSError:
        pass
    found = f"voc-{_digest(root, lists)}"
    try:
        remembered.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(remembered, found)
    except OSError:
        pass  # a cache that cannot be written costs time, nothing else
    return found


def _digest(root: Path, lists: dict[str, Path]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    digest.update(repr(class_names(root)).encode())
    for name, path in lists.items():
        digest.update(name.encode())
        for pair in read_split(root, path):
            try:
                size = pair.mask.stat().st_size
            except OSError as error:  # a link that leads nowhere
                raise DataError(f"{pair.mask} cannot be read: {error.strerror}") from None
            digest.update(f"{pair.name} {size}\n".encode())
    return digest.hexdigest()


def palette() -> list[int]:
    """Return VOC's colours as 256 x (red, green, blue), flat: PIL's form.

    Class k's bits 0, 3, 6 are the high bits of red, 1, 4, 7 those of green, 2, 5 those of blue
    (``VOCcode/VOClabelcolormap.m`` of the development kit).
    """
    colours = []
    for index in range(256):
        for channel in range(3):
            bits = ((index >> (3 * place + channel)) & 1 for place in range(3))
            colours.append(sum(bit << (7 - place) for place, bit in enumerate(bits)))
    return colours

"""The ImageFolder layout without heavy libraries: where pictures lie, what is there, what is wrong.

One folder a class, in two splits, as torchvision's ``ImageFolder`` reads it and as ImageNet is
commonly unpacked::

    root/train/CLASS/*.jpg    root/val/CLASS/*.jpg
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from harness.errors import DataError
from harness.paths import cache_dir, write_atomic

TRAIN, VAL = "train", "val"
SPLITS = (TRAIN, VAL)
SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Those that torchvision's ``ImageFolder`` takes for pictures, in either case."""
EXPECTED = (
    "a folder of pictures holds train/CLASS/*.jpg and val/CLASS/*.jpg, the same classes in both"
)
IMAGENET = {TRAIN: 1_281_167, VAL: 50_000}
"""Pictures of ILSVRC 2012 (Russakovsky et al. 2014, arXiv 1409.0575, table 2)."""
IMAGENET_CLASSES = 1_000
T = TypeVar("T")

_WORDNET_ID = re.compile(r"n\d{8}")
_LARGE = 50_000
"""From so many pictures on, a fingerprint is remembered: listing them again takes too long."""


@dataclass(frozen=True)
class Listing:
    """The pictures of one split, by class."""

    folder: Path
    files: dict[str, list[tuple[str, int]]]
    """Class -> (path within the class folder, bytes), both sorted by name."""

    @property
    def classes(self) -> list[str]:
        """Return the names of the classes; the index in it is the network's output."""
        return list(self.files)

    def __len__(self) -> int:
        return sum(map(len, self.files.values()))


@dataclass(frozen=True)
class Summary:
    """What identifies a data set without reading its pictures."""

    digest: str
    num_classes: int
    num_train: int
    num_val: int

    @property
    def is_imagenet(self) -> bool:
        """Tell whether the numbers are those of ILSVRC 2012."""
        counts = {TRAIN: self.num_train, VAL: self.num_val}
        return self.num_classes == IMAGENET_CLASSES and counts == IMAGENET


def class_folders(root: Path, split: str) -> list[Path]:
    """Return the class folders of a split, sorted by name; hidden ones are no classes.

    Raises:
        DataError: if the split is missing, or holds no folders.
    """
    folder = root / split
    try:
        with os.scandir(folder) as entries:
            names = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{root} has no folder {split}/: {EXPECTED}") from None
    except OSError as error:
        raise DataError(f"{folder} cannot be listed: {error.strerror}") from None
    if not names:
        flat = " (are its pictures not sorted into classes?)" if any(folder.iterdir()) else ""
        raise DataError(f"{folder} holds no class folders{flat}: {EXPECTED}")
    return [folder / name for name in names]


def _check_root(root: Path) -> None:
    if not root.is_dir():
        problem = "is not a folder" if root.exists() else "does not exist"
        raise DataError(f"data folder {root} {problem}: {EXPECTED}")
    if not any(root.iterdir()):
        raise DataError(f"data folder {root} is empty: {EXPECTED}")


def check_layout(root: Path) -> list[str]:
    """Check quickly that ``root`` has both splits with the same classes and pictures in each.

    Returns:
        The names of the classes.

    Raises:
        DataError: naming the first thing that is wrong.
    """
    _check_root(root)
    folders = {split: class_folders(root, split) for split in SPLITS}
    names = {split: {folder.name for folder in folders[split]} for split in SPLITS}
    for here, there in ((TRAIN, VAL), (VAL, TRAIN)):
        if missing := sorted(names[here] - names[there]):
            more = f" and {len(missing) - 1} more classes" if len(missing) > 1 else ""
            raise DataError(
                f"{root / there} has no class {missing[0]!r}{more} of {root / here}: {EXPECTED}"
            )
    if len(folders[TRAIN]) < 2:
        raise DataError(f"{root / TRAIN} holds a single class: there is nothing to tell apart")
    for folder in (*folders[TRAIN], *folders[VAL]):
        if next(_pictures(folder), None) is None:
            raise DataError(
                f"class folder {folder} holds no picture ({' '.join(SUFFIXES)}): add some, or "
                "remove the class from both splits"
            )
    return [folder.name for folder in folders[TRAIN]]


def list_split(root: Path, split: str) -> Listing:
    """List every picture of a split.

    Raises:
        DataError: if the split is missing or cannot be listed.
    """
    return Listing(
        root / split,
        {folder.name: sorted(_pictures(folder)) for folder in class_folders(root, split)},
    )


def _pictures(folder: Path, within: str = "") -> Iterator[tuple[str, int]]:
    """Iterate over the pictures under a folder: path within it, bytes."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue  # hidden, e.g. the ._* files that macOS leaves behind
                if entry.is_dir():
                    yield from _pictures(Path(entry.path), f"{within}{entry.name}/")
                elif entry.name.lower().endswith(SUFFIXES):
                    yield within + entry.name, entry.stat().st_size
    except OSError as error:
        raise DataError(f"{error.filename} cannot be listed: {error.strerror}") from None


def looks_like_imagenet(classes: list[str]) -> bool:
    """Tell by the class folders whether a data set means to be ILSVRC 2012."""
    return len(classes) == IMAGENET_CLASSES and all(map(_WORDNET_ID.fullmatch, classes))


def summarise(root: Path) -> Summary:
    """Return the identity of a data set: a hash over split, class, name and size of each picture.

    A large data set is listed once and remembered until one of its folders changes.

    Raises:
        DataError: if the layout is wrong.
    """
    _check_root(root)
    state = hashlib.blake2b(os.fsencode(root.resolve()), digest_size=16)
    for split in SPLITS:
        for folder in class_folders(root, split):
            state.update(os.fsencode(f"\x1f{split}/{folder.name}\x1f{folder.stat().st_mtime_ns}"))
    return _summary(root, state.hexdigest())


@lru_cache(maxsize=16)
def _summary(root: Path, state: str) -> Summary:
    remembered = cache_dir() / "fingerprints" / f"imagefolder-{state}"
    try:
        return Summary(**json.loads(remembered.read_bytes()))
    except (OSError, ValueError, TypeError):
        pass
    check_layout(root)
    listings = [list_split(root, split) for split in SPLITS]
    digest = hashlib.blake2b(digest_size=8)
    for split, listing in zip(SPLITS, listings, strict=True):
        for name, files in listing.files.items():
            for file, size in files:
                digest.update(os.fsencode(f"{split}/{name}/{file}\x1f{size}\n"))
    train, val = map(len, listings)
    summary = Summary(digest.hexdigest(), len(listings[0].classes), train, val)
    # The times of folders within the classes are not part of `state`.
    names = (file for one in listings for files in one.files.values() for file, _ in files)
    flat = all("/" not in name for name in names)
    if flat and train + val >= _LARGE:
        try:
            remembered.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(remembered, json.dumps(asdict(summary)))
        except OSError:
            pass  # a cache that cannot be written costs time, nothing else
    return summary


def spread(items: list[T], num: int) -> list[T]:
    """Return up to ``num`` items spread evenly over ``items``, first and last included."""
    if len(items) <= num:
        return items
    return [items[round(i * (len(items) - 1) / (num - 1))] for i in range(num)]

"""The layout of ``modelnet40_ply_hdf5_2048`` without heavy libraries: lists, names, identity.

As Qi et al. publish it (PointNet, arXiv 1612.00593; shapenet.cs.stanford.edu/media)::

    root/shape_names.txt     one class a line
    root/train_files.txt     root/test_files.txt     HDF5 files, one a line
    root/ply_data_train0.h5 ...     data (N, 2048, 3) float32, label (N, 1)

The lists hold paths relative to a folder that nobody has any more (``data/...``): only the names
of the files count, which lie beside the list.
"""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path, PurePosixPath

from harness.errors import DataError
from harness.paths import cache_dir, write_atomic

TRAIN, TEST = "train", "test"
SPLITS = (TRAIN, TEST)
SHAPE_NAMES = "shape_names.txt"
FOLDER = "modelnet40_ply_hdf5_2048"
EXPECTED = (
    f"a folder like {FOLDER} holds {SHAPE_NAMES}, train_files.txt, test_files.txt and the HDF5 "
    "files that these list"
)
MODELNET40_CLASSES = 40
MODELNET40 = {TRAIN: 9840, TEST: 2468}
"""Shapes of each split (Wu et al. 2015, arXiv 1406.5670, less three that the HDF5 files lack)."""
MODELNET40_MD5 = {
    "ply_data_train0.h5": "3176385ffc31a7b6b5af22191fd920d1",
    "ply_data_train1.h5": "e3f613fb500559403b34925112754dc4",
    "ply_data_train2.h5": "0c56e233a090ff87c3049d4ce08e7d8b",
    "ply_data_train3.h5": "9d2af465adfa33a3285c369f3ca66c45",
    "ply_data_train4.h5": "dff38de489b2c41bfaeded86c2208984",
    "ply_data_test0.h5": "e9732e6d83b09e79e9a7617df058adee",
    "ply_data_test1.h5": "aba4b12a67c34391cc3c015a6f08ed4b",
}
"""Of the files of ``modelnet40_ply_hdf5_2048.zip``."""

_LARGE = 2**26
"""From so many bytes on, a checksum is remembered."""


def find(given: Path) -> Path:
    """Return the folder with the lists: the one given, or the one that it holds."""
    inner = (FOLDER, f"modelnet40/{FOLDER}", "modelnet40", f"data/{FOLDER}")
    for folder in (given, *(given / name for name in inner)):
        if (folder / SHAPE_NAMES).is_file():
            return folder
    return given


def shape_names(root: Path) -> tuple[str, ...]:
    """Return the names of the classes; the index in it is the label.

    Raises:
        DataError: if the list is missing, empty or names a class twice.
    """
    names = tuple(_lines(root, SHAPE_NAMES))
    if len(set(names)) < len(names) or len(names) < 2:
        raise DataError(f"{root / SHAPE_NAMES} must name two or more different classes, one a line")
    return names


def files(root: Path, split: str) -> list[Path]:
    """Return the HDF5 files of a split, in the order of its list.

    Raises:
        DataError: if the list is missing or empty, or a file is not beside it.
    """
    name = f"{split}_files.txt"
    found = [root / PurePosixPath(line.replace("\\", "/")).name for line in _lines(root, name)]
    if not found:
        raise DataError(f"{root / name} lists no file: {EXPECTED}")
    for path in found:
        if not path.is_file():
            raise DataError(f"{path} is missing, but {root / name} lists it: {EXPECTED}")
    if len(set(found)) < len(found):
        raise DataError(f"{root / name} lists a file twice: its shapes would count double")
    return found


def check_layout(root: Path) -> None:
    """Check quickly that ``root`` has the names, both lists and every file.

    Raises:
        DataError: naming the first thing that is wrong.
    """
    if not root.is_dir():
        problem = "is not a folder" if root.exists() else "does not exist"
        raise DataError(f"data folder {root} {problem}: {EXPECTED}")
    shape_names(root)
    shared = set(files(root, TRAIN)) & set(files(root, TEST))
    if shared:
        raise DataError(f"{min(shared)} is listed for training and for the test")


def _lines(root: Path, name: str) -> list[str]:
    try:
        text = (root / name).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"{root} has no {name}: {EXPECTED}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{root / name} cannot be read: {error}") from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def md5(path: Path) -> str:
    """Return the MD5 of a file; of a large one it is remembered until the file changes.

    Raises:
        DataError: if the file cannot be read.
    """
    try:
        state = path.stat()
        return _md5(path.resolve(), state.st_size, state.st_mtime_ns)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None


@lru_cache(maxsize=64)
def _md5(path: Path, size: int, changed: int) -> str:
    key = hashlib.blake2b(f"{path}\x1f{size}\x1f{changed}".encode(), digest_size=16).hexdigest()
    remembered = cache_dir() / "fingerprints" / f"md5-{key}"
    if size >= _LARGE and remembered.is_file():
        return remembered.read_text(encoding="ascii")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if size >= _LARGE:
        try:
            remembered.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(remembered, digest)
        except OSError:
            pass  # a cache that cannot be written costs time, nothing else
    return digest


def fingerprint(root: Path) -> str:
    """Return a short hash over the names of the classes and the content of every file.

    Raises:
        DataError: if the layout is wrong.
    """
    check_layout(root)
    content = [shape_names(root), *([md5(path) for path in files(root, s)] for s in SPLITS)]
    digest = hashlib.blake2b(json.dumps(content).encode(), digest_size=8).hexdigest()
    return f"modelnet-{digest}"


def is_modelnet40(root: Path) -> bool:
    """Tell whether these are the published files, byte for byte."""
    found = {path.name: md5(path) for split in SPLITS for path in files(root, split)}
    return found == MODELNET40_MD5

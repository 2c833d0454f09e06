"""Reads and writes the HDF5 files of clouds; whatever is wrong with one is said in one line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from harness.errors import DataError
from tasks.pointcloud import modelnet

_COORDINATES = 3


@dataclass(frozen=True)
class Clouds:
    """The clouds of one split, in memory."""

    points: NDArray[np.float32]
    """(M, N, 3): x, y (up), z."""
    labels: NDArray[np.int64]
    """(M,): indices into the class names."""
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)


def read(root: Path, split: str, num_points: int) -> Clouds:
    """Read the first ``num_points`` points of every cloud of a split.

    Args:
        root: folder in the layout of ``tasks.pointcloud.modelnet``.
        split: ``train`` or ``test``.
        num_points: points of a cloud.

    Raises:
        DataError: naming the first file that is wrong, and how.
    """
    classes = modelnet.shape_names(root)
    parts = [read_file(path, num_points, len(classes)) for path in modelnet.files(root, split)]
    points, labels = zip(*parts, strict=True)
    return Clouds(np.concatenate(points), np.concatenate(labels), classes)


def count(path: Path) -> int:
    """Return the number of clouds of a file, without reading them.

    Raises:
        DataError: if it is not a file of clouds.
    """
    with _opened(path) as file:
        return int(_dataset(path, file, "label").shape[0])


def read_file(
    path: Path, num_points: int | None, num_classes: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Read the first ``num_points`` points (None: all) and the labels of a file's clouds.

    Raises:
        DataError: saying what is wrong with the file.
    """
    with _opened(path) as file:
        data, label = _dataset(path, file, "data"), _dataset(path, file, "label")
        if data.ndim != 3 or data.shape[2] != _COORDINATES:
            raise DataError(f"{path}: data have shape {data.shape}, not (clouds, points, 3)")
        if label.shape not in ((len(data),), (len(data), 1)):
            raise DataError(f"{path}: {len(data)} clouds, but labels of shape {label.shape}")
        num_points = data.shape[1] if num_points is None else num_points
        if data.shape[1] < num_points:
            raise DataError(
                f"{path}: its clouds have {data.shape[1]} points, fewer than "
                f"data.points={num_points}: give data.points={data.shape[1]} or less"
            )
        if not (np.issubdtype(data.dtype, np.floating) and np.issubdtype(label.dtype, np.integer)):
            raise DataError(f"{path}: data of type {data.dtype} and labels of type {label.dtype}")
        try:
            points = np.asarray(data[:, :num_points], dtype=np.float32)
            labels = np.asarray(label[()], dtype=np.int64).reshape(-1)
        except OSError as error:
            raise DataError(f"{path} is damaged ({_reason(error)}): fetch it again") from None
    if not len(labels):
        raise DataError(f"{path} holds no clouds")
    if (low := labels.min()) < 0 or (high := labels.max()) >= num_classes:
        wrong = low if low < 0 else high
        raise DataError(
            f"{path} holds label {wrong}, but {modelnet.SHAPE_NAMES} names {num_classes} classes"
        )
    finite = np.isfinite(points).all(axis=(1, 2))
    if not finite.all():
        raise DataError(
            f"{path}: cloud {int(np.argmin(finite))} has coordinates that are no numbers"
        )
    return points, labels


def _opened(path: Path) -> h5py.File:
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise DataError(f"{path} is no HDF5 file ({_reason(error)}): fetch it again") from None


def _dataset(path: Path, file: h5py.File, name: str) -> h5py.Dataset:
    found = file.get(name)
    if not isinstance(found, h5py.Dataset) or not found.shape:
        raise DataError(f"{path} has no array {name!r}: ModelNet40's files hold data and label")
    return found


def _reason(error: OSError) -> str:
    """Return the last, telling part of h5py's message."""
    return str(error).splitlines()[0].rpartition("(")[2].rstrip(")") if str(error) else "unreadable"


def write(root: Path, split: str, points: NDArray[np.float32], labels: NDArray[np.int64]) -> None:
    """Write a split as one file and its list.

    Args:
        root: an existing folder.
        split: ``train`` or ``test``.
        points: (M, N, 3).
        labels: (M,), below 256.
    """
    name = f"ply_data_{split}0.h5"
    with h5py.File(root / name, "w") as file:
        file.create_dataset("data", data=points.astype(np.float32))
        file.create_dataset("label", data=labels.astype(np.uint8)[:, None])
    (root / f"{split}_files.txt").write_text(name + "\n", encoding="utf-8")

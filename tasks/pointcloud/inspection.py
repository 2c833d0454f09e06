"""What ``normbench data check`` does for point clouds: reads every cloud, compares checksums."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness.errors import DataError
from harness.task import DataReport, Progress
from tasks.pointcloud import clouds, modelnet

_FETCH = f"fetch {modelnet.FOLDER}.zip (shapenet.cs.stanford.edu/media) again"


def inspect(root: Path, progress: Progress, *, official: bool, hdf5: bool) -> DataReport:
    """Check a folder of HDF5 files.

    Args:
        root: the folder.
        progress: told of the splits read.
        official: whether ModelNet40's numbers are required; so they are of data with 40 classes.
        hdf5: whether these should be the published files, rather than meshes sampled here.

    Returns:
        Counts of each split, classes without a shape, and every problem found in words.

    Raises:
        DataError: if the folder is not of the layout at all.
    """
    modelnet.check_layout(root)
    names = modelnet.shape_names(root)
    official = official or len(names) == modelnet.MODELNET40_CLASSES
    facts = {"classes": str(len(names))}
    problems = []
    if official and len(names) != modelnet.MODELNET40_CLASSES:
        problems.append(f"{root / modelnet.SHAPE_NAMES} names {len(names)} classes, not 40")
    for split in modelnet.SPLITS:
        labels, wrong = _read_all(root, split, len(names), progress)
        expected = modelnet.MODELNET40[split]
        facts[f"{split} shapes"] = f"{len(labels):,}"
        if official:
            facts[f"{split} shapes"] += f" (ModelNet40: {expected:,})"
        facts |= _class_facts(split, labels, names)
        problems += wrong
        if official and hdf5 and len(labels) != expected:
            problems.append(
                f"{root} holds {len(labels):,} {split} shapes, ModelNet40 has {expected:,}: "
                f"{_FETCH}"
            )
    if official and hdf5:
        problems += _checksums(root)
        facts["MD5"] = f"{_num_right(root)} of {len(modelnet.MODELNET40_MD5)} files as published"
    return DataReport(root, facts, problems)


def _read_all(
    root: Path, split: str, num_classes: int, progress: Progress
) -> tuple[NDArray[np.int64], list[str]]:
    """Return the labels of the files that are as they should be, and what is wrong with others."""
    labels, problems = [np.zeros(0, dtype=np.int64)], []
    paths = modelnet.files(root, split)
    for number, path in enumerate(paths, start=1):
        try:
            labels.append(clouds.read_file(path, None, num_classes)[1])
        except DataError as error:
            problems.append(str(error))
        progress(f"read {split}", number, len(paths))
    return np.concatenate(labels), problems


def _class_facts(split: str, labels: NDArray[np.int64], names: Sequence[str]) -> dict[str, str]:
    counts = np.bincount(labels, minlength=len(names))
    facts = {f"{split} shapes of a class": f"{counts.min():,} to {counts.max():,}"}
    if absent := [name for name, count in zip(names, counts, strict=True) if not count]:
        facts[f"classes without a {split} shape"] = f"{len(absent)}: {', '.join(absent)}"
    return facts


def _num_right(root: Path) -> int:
    known = modelnet.MODELNET40_MD5
    return sum(
        (root / name).is_file() and modelnet.md5(root / name) == digest
        for name, digest in known.items()
    )


def _checksums(root: Path) -> list[str]:
    problems = []
    listed = {path.name: path for split in modelnet.SPLITS for path in modelnet.files(root, split)}
    if missing := [name for name in modelnet.MODELNET40_MD5 if name not in listed]:
        problems.append(f"{root} lists no {', '.join(missing)}: {_FETCH}")
    for name, path in listed.items():
        digest, found = modelnet.MODELNET40_MD5.get(name), modelnet.md5(path)
        if digest is not None and found != digest:
            problems.append(f"{path} has MD5 {found}, the published file {digest}: {_FETCH}")
    return problems

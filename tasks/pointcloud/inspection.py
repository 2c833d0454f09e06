"""What ``normbench data check`` does for point clouds: reads every cloud, compares checksums."""

from __future__ import annotations

from pathlib import Path

import numpy as np

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
    for number, split in enumerate(modelnet.SPLITS, start=1):
        try:
            held = clouds.read(root, split, num_points=2)
        except DataError as error:
            problems.append(str(error))
            continue
        facts |= _split_facts(split, held)
        expected = modelnet.MODELNET40[split]
        if official and hdf5 and len(held) != expected:
            problems.append(
                f"{root} holds {len(held):,} {split} shapes, ModelNet40 has {expected:,}: {_FETCH}"
            )
        progress(f"read {split}", number, len(modelnet.SPLITS))
    if official and hdf5:
        problems += _checksums(root)
        facts["MD5"] = f"{_num_right(root)} of {len(modelnet.MODELNET40_MD5)} files as published"
    return DataReport(root, facts, problems)


def _split_facts(split: str, held: clouds.Clouds) -> dict[str, str]:
    counts = np.bincount(held.labels, minlength=len(held.classes))
    absent = held.absent
    facts = {
        f"{split} shapes": f"{len(held):,} (ModelNet40: {modelnet.MODELNET40[split]:,})",
        f"{split} shapes of a class": f"{counts.min():,} to {counts.max():,}",
    }
    if absent:
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
    for name, digest in modelnet.MODELNET40_MD5.items():
        if name not in listed:
            problems.append(f"{root} lists no {name}: {_FETCH}")
        elif (found := modelnet.md5(listed[name])) != digest:
            problems.append(f"{listed[name]} has MD5 {found}, the published file {digest}: {_FETCH}")
    return problems

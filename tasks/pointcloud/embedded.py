"""Point clouds that need no download: 16 kinds of solids, in the layout of ModelNet40's HDF5 files.

The learning problem: tell the solids (box, funnel, ring, chair, spring, ...; ``solids.CLASSES``)
from 128 points on their surface. Each cloud has its own proportions; it is stretched along each
axis by 0.7 to 1.3, turned freely about the upright axis y and slightly about the others; up to a
quarter of it is cut away on one side, its points are noisy and some of them anywhere.

Each cloud also has its own size (0.6 to 1.6) and place. One cloud's mean and variance are therefore
a poor guess for the next one's, which is what statistics over few clouds (batch norm in micro-batch
training) suffer from.

On disk it is the layout that ``tasks.pointcloud.modelnet`` describes, with one file a split. Cloud
`index` of a split is drawn from `RandomState([seed, split, index])`, whose stream NumPy keeps
stable (NEP 19), and so depends neither on the other clouds nor on their number.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from harness.embedded import check_seed, generate_once
from harness.errors import UsageError
from tasks.pointcloud.modelnet import SHAPE_NAMES, SPLITS

VERSION = 1
"""Of the generator: raised whenever the same arguments give other points."""

NUM_CLASSES = 16
MIN_POINTS = 32


def fingerprint(seed: int, points: int, num_train: int, num_test: int) -> str:
    """Name what `generate` writes for these arguments; fit for a folder name.

    Args:
        seed: data seed.
        points: points of a cloud.
        num_train: number of training clouds.
        num_test: number of test clouds.

    Raises:
        UsageError: an argument is out of range.
    """
    check_seed(seed)
    if points < MIN_POINTS:
        raise UsageError(f"embedded clouds need data.points={MIN_POINTS} or more, not {points}")
    if min(num_train, num_test) < NUM_CLASSES:
        raise UsageError(
            f"embedded data need a cloud of each of the {NUM_CLASSES} classes in both splits, "
            f"not data.num_train={num_train} and data.num_test={num_test}"
        )
    return f"embedded-pointcloud-v{VERSION}-s{seed}-{points}pt-{num_train}-{num_test}"


def generate(
    root: Path,
    *,
    seed: int,
    points: int = 128,
    num_train: int = 1600,
    num_test: int = 480,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the data set to `root`, unless it is there already, and return `root`.

    Args:
        root: folder to create; its parents are created too.
        seed: data seed.
        points: points of a cloud.
        num_train: number of training clouds.
        num_test: number of test clouds.
        progress: called with (clouds done, clouds in all) now and then.

    Raises:
        DataError: `root` holds something else, or cannot be written.
        UsageError: an argument is out of range.
    """
    version = fingerprint(seed, points, num_train, num_test)

    def write(folder: Path) -> None:
        done = 0
        for split, count in zip(SPLITS, (num_train, num_test), strict=True):
            _write_split(folder, split, count, seed=seed, points=points)
            done += count
            if progress is not None:
                progress(done, num_train + num_test)

    return generate_once(root, version, write)


def _write_split(root: Path, split: str, count: int, *, seed: int, points: int) -> None:
    """Draw the clouds of a split; the classes take turns."""
    # Not at the top: `plan` imports this module for the fingerprint only and must stay fast.
    import numpy as np
    from numpy.random import RandomState

    from tasks.pointcloud import clouds, solids

    labels = np.arange(count) % NUM_CLASSES
    drawn = [
        solids.draw(RandomState([seed, SPLITS.index(split), index]), int(label), points)
        for index, label in enumerate(labels)
    ]
    (root / SHAPE_NAMES).write_text("\n".join(solids.CLASSES) + "\n", encoding="utf-8")
    clouds.write(root, split, np.stack(drawn), labels)

"""Classification data that need no download: textured shapes, written as folders of pictures.

The learning problem: a class is a texture (stripes, bars, checks, dots: of a direction and a period
of its own, both jittered) on an outline (disc, star, ring), 12 in all. The colour helps a little (a
class hue, mixed with 0.7 of a random colour). Objects differ in place, size, aspect and rotation; a
square hides a part of every other one; the background has a faint texture of any kind.

Each picture is then exposed differently: a contrast between 0.3 and 1, a colour cast, a brightness
offset and sensor noise. One picture's mean and variance are therefore a poor guess for the next
one's, which is what statistics over few pictures (batch norm in micro-batch training) suffer from.

On disk it is an ImageFolder, as ImageNet is commonly unpacked::

    root/train/stripes_disc/0000.png ...    root/val/stripes_disc/0000.png ...
    root/generator.txt

Picture `index` of a split is drawn from `RandomState([seed, split, index])`, whose stream NumPy
keeps stable (NEP 19), and so depends neither on the other pictures nor on their number.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from harness.embedded import check_seed, generate_once
from harness.errors import UsageError
from tasks.classification.imagefolder import SPLITS

VERSION = 1
"""Of the generator: raised whenever the same arguments give other pixels."""

MIN_SIZE = 16
"""Pixels a side; in smaller pictures the textures would be grey."""
NUM_CLASSES = 12


def fingerprint(seed: int, size: int, num_train: int, num_val: int) -> str:
    """Name what `generate` writes for these arguments; fit for a folder name.

    Args:
        seed: data seed.
        size: side of the square pictures, px.
        num_train: number of training pictures.
        num_val: number of evaluation pictures.

    Raises:
        UsageError: an argument is out of range.
    """
    check_seed(seed)
    if size < MIN_SIZE:
        raise UsageError(f"embedded pictures need data.size={MIN_SIZE} or more, not {size}")
    if min(num_train, num_val) < NUM_CLASSES:
        raise UsageError(
            f"embedded data need a picture of each of the {NUM_CLASSES} classes in both splits, "
            f"not data.num_train={num_train} and data.num_val={num_val}"
        )
    return f"embedded-classification-v{VERSION}-s{seed}-{size}px-{num_train}-{num_val}"


def generate(
    root: Path,
    *,
    seed: int,
    size: int = 32,
    num_train: int = 4000,
    num_val: int = 1200,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the data set to `root`, unless it is there already, and return `root`.

    Args:
        root: folder to create; its parents are created too.
        seed: data seed.
        size: side of the square pictures, px.
        num_train: number of training pictures.
        num_val: number of evaluation pictures.
        progress: called with (pictures done, pictures in all) now and then.

    Raises:
        DataError: `root` holds something else, or cannot be written.
        UsageError: an argument is out of range.
    """
    total = num_train + num_val

    def write(folder: Path) -> None:
        done = 0
        for split, count in zip(SPLITS, (num_train, num_val), strict=True):
            for index in range(count):
                _write_picture(folder, split, index, seed=seed, size=size)
                done += 1
                if progress is not None and (done % 100 == 0 or done == total):
                    progress(done, total)

    return generate_once(root, fingerprint(seed, size, num_train, num_val), write)


def _write_picture(root: Path, split: str, index: int, *, seed: int, size: int) -> None:
    """Draw one picture into the folder of its class; the classes take turns."""
    # Not at the top: `plan` imports this module for the fingerprint only and must stay fast.
    from numpy.random import RandomState
    from PIL import Image

    from tasks.classification import pictures

    number, label = divmod(index, NUM_CLASSES)
    rng = RandomState([seed, SPLITS.index(split), index])
    pixels = pictures.draw(rng, size, label)
    folder = root / split / pictures.CLASSES[label]
    folder.mkdir(parents=True, exist_ok=True)
    # PNG decodes to the same pixels everywhere; level 1 because noise hardly compresses.
    Image.fromarray(pixels).save(folder / f"{number:04d}.png", compress_level=1)

"""Segmentation data that need no download: pictures of textured shapes, as a VOC 2012 folder.

The learning problem: label every pixel as ground or as one of five fill textures (stripes, bars,
checks, dots, waves). Two to five ellipses, boxes and triangles of any size and rotation lie on a
soft ground and hide parts of one another; outlines tell nothing. A fill has a typical direction
(within about 12 degrees) and period, and its colour leans a little to a hue of its class (0.3 of
it, the rest is random).

Each picture is then exposed differently: a contrast between 0.3 and 1, a colour cast, a brightness
offset and sensor noise. One picture's mean and variance are therefore a poor guess for the next
one's, which is what statistics over few pictures (BatchNorm in micro-batch training) suffer from.

On disk it is the official layout of PASCAL VOC 2012 (see ``tasks.segmentation.voc``), with masks
as palette PNGs, 255 along all borders, and the names of the classes in ``labels.txt``::

    root/VOC2012/JPEGImages/train_000000.jpg ...   root/VOC2012/SegmentationClass/*.png
    root/VOC2012/ImageSets/Segmentation/{train,val}.txt   root/VOC2012/labels.txt

Picture `index` of a split is drawn from `RandomState([seed, split, index])`, whose stream NumPy
keeps stable (NEP 19), and so depends neither on the other pictures nor on their number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from harness.embedded import check_seed, generate_once
from harness.errors import UsageError

VERSION = 2
"""Of the generator: raised whenever the same arguments give other pixels or labels."""

MIN_SIZE = 32
"""Pixels a side; in smaller pictures the textures would be noise."""

_SPLITS = ("train", "val")
_LARGEST = 1_000_000  # pictures of a split: their names have six digits


def fingerprint(seed: int, size: int, num_train: int, num_val: int) -> str:
    """Name what `generate` writes for these arguments; fit for a folder name.

    Args:
        seed: data seed.
        size: side of the square pictures, pixels.
        num_train: number of training pictures.
        num_val: number of validation pictures.

    Raises:
        UsageError: an argument is out of range.
    """
    check_seed(seed)
    if size < MIN_SIZE:
        raise UsageError(
            f"data.size={size}: embedded segmentation pictures need {MIN_SIZE} or more"
        )
    if not (0 < num_train <= _LARGEST and 0 < num_val <= _LARGEST):
        raise UsageError(
            f"embedded segmentation data need 1 to {_LARGEST} training and validation pictures, "
            f"not {num_train} and {num_val}"
        )
    return f"embedded-segmentation-v{VERSION}-s{seed}-{size}px-{num_train}-{num_val}"


def generate(
    root: Path,
    *,
    seed: int,
    size: int = 64,
    num_train: int = 1000,
    num_val: int = 200,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the data set to `root`, unless it is there already, and return `root`.

    Args:
        root: folder to create, which will hold `VOC2012`; its parents are created too.
        seed: data seed.
        size: side of the square pictures, pixels.
        num_train: number of training pictures.
        num_val: number of validation pictures.
        progress: called with (pictures done, pictures in all) after each picture.

    Raises:
        DataError: `root` holds something else, or cannot be written.
        UsageError: an argument is out of range.
    """
    version = fingerprint(seed, size, num_train, num_val)

    def write(folder: Path) -> None:
        done = 0
        (folder / "VOC2012").mkdir()
        for split, count in zip(_SPLITS, (num_train, num_val), strict=True):
            for _ in _write_split(folder / "VOC2012", split, count, seed=seed, size=size):
                done += 1
                if progress is not None:
                    progress(done, num_train + num_val)

    return generate_once(root, version, write)


def _write_split(root: Path, split: str, count: int, *, seed: int, size: int) -> Iterator[None]:
    """Write one split, yielding after each picture; its list comes last."""
    # Not at the top: `plan` imports this module for the fingerprint only and must stay fast.
    from numpy.random import RandomState
    from PIL import Image

    from tasks.segmentation import scenes, voc

    images, masks = root / "JPEGImages", root / "SegmentationClass"
    lists = root / "ImageSets" / "Segmentation"
    for folder in (images, masks, lists):
        folder.mkdir(parents=True, exist_ok=True)
    (root / voc.LABELS).write_text("\n".join(scenes.CLASSES) + "\n", encoding="utf-8")
    names = [f"{split}_{index:06d}" for index in range(count)]
    palette = voc.palette()
    for index, name in enumerate(names):
        rng = RandomState([seed, _SPLITS.index(split), index])
        pixels, label = scenes.draw(rng, size)
        # Full colour resolution: JPEG's halved one would blur textures of a few pixels.
        Image.fromarray(pixels).save(images / f"{name}.jpg", quality=95, subsampling=0)
        mask = Image.frombytes("P", (size, size), label.tobytes())
        mask.putpalette(palette)
        mask.save(masks / f"{name}.png")
        yield
    (lists / f"{split}.txt").write_text("\n".join(names) + "\n", encoding="utf-8")

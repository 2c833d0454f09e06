"""Images and masks in VOC's format as a network takes them: read, checked, augmented, cropped.

The transforms, their order and their rounding are those of the authors' ``utils.py``
(chenxi116/DeepLabv3.pytorch): mirror, scale, normalise, pad on the right and below, crop. Crop and
pad commute where at most one of them acts on an axis, as here, so that only the crop is normalised.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from harness.errors import DataError
from tasks.segmentation.voc import IGNORE, Pair

if TYPE_CHECKING:
    from numpy.random import RandomState
    from numpy.typing import NDArray

    from tasks.segmentation.info import SegmentationData

Sample = tuple[Tensor, Tensor]
"""An image, (3, H, W) float32, normalised; and its mask, (H, W) uint8, 255 to be ignored."""


class VocImages:
    """The pairs of one split; the training samples of ``harness.task.TrainData``."""

    def __init__(self, pairs: Sequence[Pair], data: SegmentationData, num_classes: int) -> None:
        """Keep what sampling needs; no file is opened.

        Args:
            pairs: images and masks, which exist.
            data: sizes, augmentation and normalisation.
            num_classes: mask values must be below, or 255.
        """
        self.pairs, self.data, self.num_classes = list(pairs), data, num_classes
        self._mean = np.asarray(data.mean, dtype=np.float32)
        self._std = np.asarray(data.std, dtype=np.float32)

    def __len__(self) -> int:
        return len(self.pairs)

    def sample(self, index: int, rng: RandomState) -> Sample:
        """Return a random crop of pair ``index``, (3, crop, crop) and (crop, crop).

        Raises:
            DataError: if image or mask is broken, or they do not belong together.
        """
        image, mask = read_pair(self.pairs[index], self.num_classes)
        if rng.random_sample() < self.data.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            mask = mask.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        low, high = (math.log2(factor) for factor in self.data.scale)
        factor = 2.0 ** rng.uniform(low, high)
        size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
        if size != image.size:
            image = image.resize(size, Image.Resampling.LANCZOS)
            mask = mask.resize(size, Image.Resampling.NEAREST)
        crop = self.data.crop
        top = rng.randint(max(0, image.height - crop) + 1)
        left = rng.randint(max(0, image.width - crop) + 1)
        box = (left, top, min(left + crop, image.width), min(top + crop, image.height))
        return self._padded(image.crop(box), mask.crop(box))

    def evaluation_sample(self, index: int) -> tuple[Tensor, NDArray[np.uint8]]:
        """Return pair ``index`` whole: the image padded to the crop's size, the mask as it is.

        Returns:
            (3, H', W') float32 with H' and W' at least ``crop``, and (H, W) with H <= H', W <= W'.

        Raises:
            DataError: as ``sample``.
        """
        image, mask = read_pair(self.pairs[index], self.num_classes)
        return self._padded(image, mask)[0], np.asarray(mask)

    def _padded(self, image: Image.Image, mask: Image.Image) -> Sample:
        """Normalise and pad to the crop's size on the right and below, with 0 and 255."""
        height = max(self.data.crop, image.height)
        width = max(self.data.crop, image.width)
        pixels = np.zeros((height, width, 3), dtype=np.float32)
        scaled = np.asarray(image, dtype=np.float32) / np.float32(255)
        pixels[: image.height, : image.width] = (scaled - self._mean) / self._std
        labels = np.full((height, width), IGNORE, dtype=np.uint8)
        labels[: image.height, : image.width] = np.asarray(mask)
        channels_first = np.ascontiguousarray(pixels.transpose(2, 0, 1))
        return torch.from_numpy(channels_first), torch.from_numpy(labels)


def read_pair(pair: Pair, num_classes: int) -> tuple[Image.Image, Image.Image]:
    """Read an image as RGB and its mask as class numbers (mode L), of the same size.

    Raises:
        DataError: naming the file that is missing, broken, no mask, of another size than the
            other, or that holds a class there is no name for.
    """
    image = _read(pair.image, "image").convert("RGB")
    mask = _read(pair.mask, "mask")
    if mask.mode not in ("P", "L"):
        raise DataError(
            f"mask {pair.mask} is of PIL mode {mask.mode}: masks hold class numbers, as a palette "
            "(P) or greyscale (L) PNG"
        )
    if mask.size != image.size:
        raise DataError(
            f"mask {pair.mask} has {mask.width} x {mask.height} pixels, "
            f"its image {image.width} x {image.height}"
        )
    labels = Image.frombytes("L", mask.size, mask.tobytes())  # the numbers, whatever their colours
    unknown = [value for value, n in enumerate(labels.histogram()) if n and value >= num_classes]
    if unknown and unknown[0] != IGNORE:
        raise DataError(
            f"mask {pair.mask} holds class {unknown[0]}, but there are {num_classes} (0 to "
            f"{num_classes - 1}, and {IGNORE} to ignore)"
        )
    return image, labels


def _read(path: Path, what: str) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except FileNotFoundError:
        raise DataError(f"{what} {path} is missing, but a list names it") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{what} {path} cannot be read ({reason}): replace the file; "
            "`normbench data check segmentation` looks for more"
        ) from None

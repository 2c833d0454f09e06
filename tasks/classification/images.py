"""Pictures of an ImageFolder as the network sees them: read, cropped, resized, mirrored.

Every operation gives the pixels that torchvision's transforms give on the same crop; only the
draws come from the generator that is handed in.
"""

from __future__ import annotations

import math
import os
import struct
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from harness.errors import DataError
from tasks.classification.imagefolder import Listing

if TYPE_CHECKING:
    from numpy.random import RandomState

    from tasks.classification.info import ClassificationData

Sample = tuple[Tensor, int]
"""A picture, (3, size, size) uint8 RGB, and the index of its class."""

_KEPT_BYTES = 2**28
"""A split whose decoded pictures fit is decoded once: opening a tiny file outweighs its pixels."""
_ATTEMPTS = 10
_UNREADABLE = (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError)
"""What Pillow raises for files that are missing, truncated, no pictures, or absurdly large."""


class FolderImages:
    """The pictures of one split; the training samples of ``harness.task.TrainData``.

    Args:
        listing: of the split.
        data: sizes and augmentation.
    """

    def __init__(self, listing: Listing, data: ClassificationData) -> None:
        self.data, self.folder = data, listing.folder
        # Arrays, not a million small objects: those would be copied into every loader process as
        # soon as their reference counts change.
        paths = [f"{name}/{file}" for name, files in listing.files.items() for file, _ in files]
        self._files = np.array([os.fsencode(path) for path in paths])
        counts = [len(files) for files in listing.files.values()]
        self._labels = np.repeat(np.arange(len(counts)), counts)
        self._kept: dict[int, Image.Image] = {}

    def __len__(self) -> int:
        return len(self._files)

    def path(self, index: int) -> Path:
        """Return the file of a picture."""
        return self.folder / os.fsdecode(self._files[index])

    def sample(self, index: int, rng: RandomState) -> Sample:
        """Return training sample ``index``: a random crop, resized, mirrored if ``rng`` says so.

        Raises:
            DataError: if its file cannot be read.
        """
        data = self.data
        image = self._read(index)
        left, top, width, height = random_crop(image.size, data.scale, data.ratio, rng)
        image = image.crop((left, top, left + width, top + height))
        image = _resize(image, (data.size, data.size))
        if rng.random_sample() < data.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return to_tensor(image), int(self._labels[index])

    def evaluation_sample(self, index: int) -> Sample:
        """Return sample ``index``: its centre, after the shorter side has been resized.

        Raises:
            DataError: if its file cannot be read.
        """
        data = self.data
        image = centre(self._read(index), data.resize or data.size, data.size)
        return to_tensor(image), int(self._labels[index])

    def _read(self, index: int) -> Image.Image:
        if (kept := self._kept.get(index)) is not None:
            return kept
        image = read_rgb(self.path(index))
        if 3 * image.width * image.height * len(self) <= _KEPT_BYTES:
            self._kept[index] = image
        return image


def read_rgb(path: Path) -> Image.Image:
    """Read a picture of any colour mode as RGB, turned as its EXIF tag says.

    Raises:
        DataError: if the file is missing, truncated or no picture.
    """
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            if "transparency" in upright.info:
                upright = upright.convert("RGBA")  # else PIL warns of what it drops
            return upright.convert("RGB")
    except _UNREADABLE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"picture {path} cannot be read ({reason}): replace or remove the file; "
            "`normbench data check classification` looks for more"
        ) from None


def random_crop(
    size: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float], rng: RandomState
) -> tuple[int, int, int, int]:
    """Draw a crop of random area and aspect (Szegedy et al. 2014, arXiv 1409.4842, section 6).

    As torchvision's ``RandomResizedCrop``: ten attempts, then the largest centred crop whose aspect
    is allowed.

    Args:
        size: width and height of the picture, px.
        scale: smallest and largest share of its area.
        ratio: smallest and largest width / height, drawn log-uniformly.
        rng: source of the draws.

    Returns:
        Left, top, width and height of the crop, px.
    """
    width, height = size
    logs = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(_ATTEMPTS):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(*logs))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = int(rng.randint(0, height - h + 1))
            return int(rng.randint(0, width - w + 1)), top, w, h
    w, h = width, height
    if width / height < ratio[0]:
        h = round(w / ratio[0])
    elif width / height > ratio[1]:
        w = round(h * ratio[1])
    return (width - w) // 2, (height - h) // 2, w, h


def centre(image: Image.Image, shorter: int, size: int) -> Image.Image:
    """Resize the shorter side, then cut out the centre, as torchvision rounds both.

    Args:
        image: of any size.
        shorter: of the resized picture, px, at least ``size``.
        size: side of the square that is returned, px.
    """
    width, height = image.size
    if width <= height:
        image = _resize(image, (shorter, int(shorter * height / width)))
    else:
        image = _resize(image, (int(shorter * width / height), shorter))
    left, top = round((image.width - size) / 2.0), round((image.height - size) / 2.0)
    return image.crop((left, top, left + size, top + size))


def _resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image if image.size == size else image.resize(size, Image.Resampling.BILINEAR)


def to_tensor(image: Image.Image) -> Tensor:
    """Return the pixels as (3, H, W) uint8."""
    return torch.from_numpy(np.array(image).transpose(2, 0, 1).copy())


def normalise(
    images: Tensor, mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype
) -> Tensor:
    """Bring bytes (B, 3, H, W) to zero mean and unit deviation, in the order torchvision does."""
    shift, scale = (_by_channel(values, dtype, images.device) for values in (mean, std))
    return images.to(dtype).div_(255).sub_(shift).div_(scale)


@lru_cache(maxsize=8)
def _by_channel(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return (1, C, 1, 1); kept, because every forward needs it."""
    return torch.tensor(values, dtype=dtype, device=device).view(1, -1, 1, 1)

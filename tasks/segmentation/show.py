"""Draws images beside their masks, with a legend, so that a person can judge the data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from harness.errors import UsageError
from tasks.segmentation import voc
from tasks.segmentation.dataset import read_pair

_TILE = 256  # px: the longer side of a picture as shown
_GAP, _MARGIN, _CAPTION, _PAIRS_A_ROW = 6, 18, 24, 3
_GREY = (165, 165, 165)  # class 0 is left without colour
_PAPER, _INK = (255, 255, 255), (30, 30, 30)
_STRENGTH = 0.65  # of a class's colour over the greyed image


def show(root: Path, train_set: str, out: Path, *, num: int = 12) -> None:
    """Draw training samples, each beside its mask, into one picture.

    Args:
        root: VOC 2012 folder.
        train_set: list of images, over which the samples are evenly spread.
        out: picture to write; its suffix chooses the format.
        num: number of samples.

    Raises:
        DataError: the list or a chosen file is missing or broken.
        UsageError: `num` is not positive, or `out` cannot be written.
    """
    if num < 1:
        raise UsageError(f"the number of samples must be 1 or more, not {num}")
    names = voc.class_names(root)
    pairs = voc.read_split(root, voc.list_files(root, train_set)[train_set])
    chosen = [pairs[k * len(pairs) // num] for k in range(min(num, len(pairs)))]
    tiles, seen = [], set[int]()
    for pair in chosen:
        image, mask = read_pair(pair, len(names))
        labels = np.asarray(mask)
        present = np.unique(labels).tolist()
        seen.update(present)
        titles = [names[k] for k in present if 0 < k < voc.IGNORE]
        tiles.append((_tile(image, labels), f"{pair.name}: {', '.join(titles) or 'nothing'}"))
    heading = f"{root.name}/{train_set}: {len(pairs):,} images; {len(chosen)} shown"
    sheet = _sheet(tiles, heading, _legend(names, seen))
    try:
        sheet.save(out)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot write the picture {out}: {error}") from error


def _colour(index: int) -> tuple[int, int, int]:
    flat = voc.palette()
    return flat[3 * index], flat[3 * index + 1], flat[3 * index + 2]


def _tile(image: Image.Image, labels: NDArray[np.uint8]) -> Image.Image:
    """Return an image beside its greyed copy under the colours of its classes."""
    plain, noted = overlaid(image, labels, _TILE)
    pair = Image.new("RGB", (2 * _TILE + _GAP, _TILE), _PAPER)
    pair.paste(plain, (0, _TILE - plain.height))
    pair.paste(noted, (plain.width + _GAP, _TILE - plain.height))
    return pair


def overlaid(
    image: Image.Image, labels: NDArray[np.uint8], side: int
) -> tuple[Image.Image, Image.Image]:
    """Return an image, and its greyed copy under the colours of its classes.

    Args:
        image: of any size.
        labels: class of each pixel, (H, W), 255 to be ignored.
        side: pixels of the longer side of both.
    """
    factor = side / max(image.size)
    size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
    palette = np.asarray(voc.palette(), dtype=np.float64).reshape(256, 3)
    grey = np.asarray(image.convert("L"), dtype=np.float64)[..., None] * 0.6 + 90.0
    strength = np.where(labels == 0, 0.0, _STRENGTH)[..., None]
    strength[labels == voc.IGNORE] = 1.0
    blended = grey + (palette[labels] - grey) * strength
    noted = Image.fromarray(np.rint(blended).clip(0, 255).astype(np.uint8))
    plain = image.resize(size, Image.Resampling.BICUBIC)
    return plain, noted.resize(size, Image.Resampling.NEAREST)


def _legend(names: tuple[str, ...], seen: set[int]) -> list[tuple[str, tuple[int, int, int]]]:
    entries = [(f"{name} ({k})", _colour(k)) for k, name in enumerate(names) if k in seen and k]
    entries.insert(0, (f"{names[0]} (0)", _GREY))
    return [*entries, (f"ignored ({voc.IGNORE})", _colour(voc.IGNORE))]


def _sheet(
    tiles: list[tuple[Image.Image, str]],
    heading: str,
    legend: list[tuple[str, tuple[int, int, int]]],
) -> Image.Image:
    """Arrange the samples under a heading and a legend."""
    columns = min(_PAIRS_A_ROW, len(tiles))
    cell = 2 * _TILE + _GAP + _MARGIN, _TILE + _CAPTION + _MARGIN
    width = columns * cell[0] + _MARGIN
    font, large = ImageFont.load_default(size=15), ImageFont.load_default(size=20)
    entries: list[tuple[float, int, str, tuple[int, int, int]]] = []
    x, line = float(_MARGIN), 0
    for text, colour in legend:  # entries flow over as many lines as they need
        wide = 24.0 + font.getlength(text) + 22.0
        if x + wide > width and x > _MARGIN:
            x, line = float(_MARGIN), line + 1
        entries.append((x, line, text, colour))
        x += wide
    head = _MARGIN + 60 + 26 * (line + 1) + 8
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (width, head + rows * cell[1]), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, _MARGIN), heading, fill=_INK, font=large)
    guide = "Left: the image. Right: the class of every pixel over the greyed image."
    draw.text((_MARGIN, _MARGIN + 30), guide, fill=_INK, font=font)
    for x, line, text, colour in entries:
        y = _MARGIN + 58 + 26 * line
        draw.rectangle((x, y, x + 17, y + 17), fill=colour, outline=_INK)
        draw.text((x + 24, y), text, fill=_INK, font=font)
    for i, (tile, caption) in enumerate(tiles):
        left = _MARGIN + i % columns * cell[0]
        top = head + i // columns * cell[1]
        sheet.paste(tile, (left, top))
        draw.text((left, top + _TILE + 3), caption, fill=_INK, font=font)
    return sheet

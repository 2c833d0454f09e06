"""Draws pictures of a data set in rows, one a class, so that a person can judge it."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from harness.errors import UsageError
from tasks.classification.imagefolder import Listing, list_split, spread
from tasks.classification.images import read_rgb

_TILE = 96  # pixels a side, as shown
_GAP = 4
_MARGIN = 18
_HEAD = 62
_LABEL = 190
_ROWS, _COLUMNS = 12, 8
_PAPER, _INK = (255, 255, 255), (30, 30, 30)


def show(root: Path, split: str, out: Path) -> None:
    """Draw up to eight pictures of each of up to twelve classes, evenly spread over both.

    Args:
        root: folder of pictures in class folders.
        split: ``train`` or ``val``.
        out: picture to write; its suffix chooses the format.

    Raises:
        DataError: the split or a chosen picture is missing or broken.
        UsageError: `out` cannot be written.
    """
    sheet = _sheet(list_split(root, split), root)
    try:
        sheet.save(out)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot write the picture {out}: {error}") from error


def _sheet(listing: Listing, root: Path) -> Image.Image:
    names = spread(listing.classes, _ROWS)
    pitch = _TILE + _GAP
    width = 2 * _MARGIN + _LABEL + _COLUMNS * pitch
    sheet = Image.new("RGB", (width, _HEAD + len(names) * pitch + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(sheet)
    large, small = ImageFont.load_default(18), ImageFont.load_default(14)
    shown = "" if len(names) == len(listing.classes) else f"; {len(names)} classes are shown"
    heading = f"{root.name}: {listing.folder.name}"
    draw.text((_MARGIN, _MARGIN - 4), _fitting(heading, large, width - 2 * _MARGIN), _INK, large)
    counts = f"{len(listing):,} pictures of {len(listing.classes):,} classes, a row a class{shown}"
    draw.text((_MARGIN, _MARGIN + 20), counts, _INK, small)
    for row, name in enumerate(names):
        top = _HEAD + row * pitch
        files = listing.files[name]
        draw.text((_MARGIN, top + 28), _fitting(name, small, _LABEL - 8), _INK, small)
        draw.text((_MARGIN, top + 48), f"{len(files):,} pictures", (110, 110, 110), small)
        for column, (file, _) in enumerate(spread(files, _COLUMNS)):
            picture = tile(read_rgb(listing.folder / name / file))
            sheet.paste(picture, (_MARGIN + _LABEL + column * pitch, top))
    return sheet


def tile(image: Image.Image) -> Image.Image:
    """Fit a picture into a square of 96 pixels; a tiny one grows by whole pixels."""
    if max(image.size) <= _TILE:
        image = ImageOps.scale(image, _TILE // max(image.size), Image.Resampling.NEAREST)
    else:
        image.thumbnail((_TILE, _TILE))
    return ImageOps.pad(image, (_TILE, _TILE), color=_PAPER)


def _fitting(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Shorten a text to a width in pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."

"""Draws clouds in rows, one a class, so that a person can judge the data."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from harness.errors import UsageError
from tasks.pointcloud import clouds, modelnet
from tasks.pointcloud.clouds import Clouds

_TILE, _GAP, _MARGIN, _HEAD, _LABEL = 132, 6, 18, 84, 112  # px
_ROWS, _COLUMNS, _HALVES = 16, 5, 2
_SHARP = 3
"""Tiles are drawn so many times larger, then reduced: round points need it."""
_YAW, _PITCH = math.radians(30), math.radians(28)
_PAPER, _INK, _GREY = (255, 255, 255), (30, 30, 30), (110, 110, 110)
_TILE_PAPER = (246, 247, 249)
_NEAR, _FAR = np.array([18.0, 60, 120]), np.array([168.0, 190, 214])


def show(root: Path, num_points: int, out: Path) -> None:
    """Draw training clouds of up to 16 classes, the classes evenly spread over all.

    Args:
        root: folder of HDF5 files.
        num_points: points of a cloud that training uses.
        out: picture to write; its suffix chooses the format.

    Raises:
        DataError: a file is missing or wrong.
        UsageError: `out` cannot be written.
    """
    sheet = _sheet(clouds.read(root, modelnet.TRAIN, num_points), root)
    try:
        sheet.save(out)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot write the picture {out}: {error}") from error


def _sheet(held: Clouds, root: Path) -> Image.Image:
    present = sorted(set(held.labels.tolist()))
    chosen = [present[i * len(present) // _ROWS] for i in range(_ROWS)]
    labels = chosen if len(present) > _ROWS else present
    rows = -(-len(labels) // _HALVES)
    half = _LABEL + _COLUMNS * (_TILE + _GAP) + _MARGIN
    size = (_MARGIN + _HALVES * half, _HEAD + rows * (_TILE + _GAP) + _MARGIN)
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    large, small = ImageFont.load_default(20), ImageFont.load_default(15)
    shown = "" if len(labels) == len(held.classes) else f"; {len(labels)} of them are shown"
    draw.text((_MARGIN, _MARGIN - 4), f"{root.name}: train", _INK, large)
    guide = (
        f"{len(held):,} clouds of {held.points.shape[1]:,} points, {len(held.classes)} classes"
        f"{shown}. Seen from the front, a little from the side and above; y is up; near points "
        "are dark. Each cloud fills its tile: true sizes differ."
    )
    draw.text((_MARGIN, _MARGIN + 26), guide, _INK, small)
    for place, label in enumerate(labels):
        part, row = divmod(place, rows)
        left, top = _MARGIN + part * half, _HEAD + row * (_TILE + _GAP)
        members = np.flatnonzero(held.labels == label)
        draw.text((left, top + 40), held.classes[label], _INK, small)
        draw.text((left, top + 62), f"{len(members):,} clouds", _GREY, small)
        for column, index in enumerate(members[:_COLUMNS]):
            picture = tile(held.points[index])
            sheet.paste(picture, (left + _LABEL + column * (_TILE + _GAP), top))
    return sheet


def tile(points: NDArray[np.float32]) -> Image.Image:
    """Draw one cloud, (N, 3), far points first."""
    turned = (points - (points.max(0) + points.min(0)) / 2) @ _view()
    # A stray point must not shrink the rest: the frame holds 98 % of the points.
    extent = np.quantile(np.abs(turned[:, :2]).max(1), 0.98) or 1.0
    side = _TILE * _SHARP
    spots = side / 2 + turned[:, :2] * [1, -1] / extent * side * 0.45
    depth = turned[:, 2]
    nearness = (depth - depth.min()) / (np.ptp(depth) or 1.0)
    radius = side * (0.018 if len(points) <= 256 else 0.009)
    drawn = Image.new("RGB", (side, side), _TILE_PAPER)
    draw = ImageDraw.Draw(drawn)
    for i in np.argsort(depth):
        colour = _FAR + nearness[i] * (_NEAR - _FAR)
        x, y = spots[i]
        r = radius * (0.75 + 0.5 * nearness[i])
        red, green, blue = (round(value) for value in colour)
        draw.ellipse((x - r, y - r, x + r, y + r), fill=(red, green, blue))
    return drawn.resize((_TILE, _TILE), Image.Resampling.LANCZOS)


def _view() -> NDArray[np.float64]:
    """Return the matrix that turns points, as rows, to (right, up, towards the eye)."""
    cy, sy, cp, sp = math.cos(_YAW), math.sin(_YAW), math.cos(_PITCH), math.sin(_PITCH)
    yaw = np.array([[cy, 0, -sy], [0, 1, 0], [sy, 0, cy]])
    pitch = np.array([[1, 0, 0], [0, cp, sp], [0, -sp, cp]])
    return np.asarray(yaw @ pitch)

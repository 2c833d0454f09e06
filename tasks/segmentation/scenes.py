"""Draws one picture of the embedded segmentation data and labels its pixels."""

from __future__ import annotations

import colorsys
import math
from typing import NamedTuple

import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray

from tasks.segmentation.voc import IGNORE

Floats = NDArray[np.float64]
Bytes = NDArray[np.uint8]

HUE_STRENGTH = 0.3
"""Share of the class's own hue in a fill's colour; the rest is random."""

FAINTEST = 0.1
"""Contrast of the haziest pictures."""


class Fill(NamedTuple):
    """A class: its texture, and the hue (0-1, as in HSV) its colours lean to."""

    name: str
    angle: float
    """Of the texture's first axis, radians."""
    hue: float


# Class 0 is the ground. Mirroring must not turn one class into another.
FILLS = (
    Fill("stripes", 0.0, 0.02),
    Fill("bars", 0.5 * math.pi, 0.14),
    Fill("checks", 0.25 * math.pi, 0.34),
    Fill("dots", 0.0, 0.58),
    Fill("waves", 0.5 * math.pi, 0.80),
)
CLASSES = ("ground", *(fill.name for fill in FILLS))


def draw(rng: RandomState, size: int) -> tuple[Bytes, Bytes]:
    """Draw one picture.

    Args:
        rng: source of every draw.
        size: side in pixels.

    Returns:
        The picture, (size, size, 3), and its mask, (size, size): 0 the ground, k the class
        ``FILLS[k - 1]``, 255 on both sides of every border, as in VOC.
    """
    y, x = np.mgrid[:size, :size] + 0.5
    canvas = _ground(rng, x, y)
    label = np.zeros((size, size), dtype=np.uint8)
    owner = np.zeros((size, size), dtype=np.uint8)
    for number in range(1, rng.randint(2, 6) + 1):
        kind = rng.randint(len(FILLS))
        distance = _outline(rng, x, y)
        surface = _surface(rng, FILLS[kind], x, y)
        cover = np.clip(0.5 - distance, 0.0, 1.0)[..., None]  # anti-aliased
        canvas = canvas + (surface - canvas) * cover
        inside = distance <= 0.0
        label[inside], owner[inside] = kind + 1, number
    label[_borders(owner)] = IGNORE
    return _expose(rng, canvas), label


def _ground(rng: RandomState, x: Floats, y: Floats) -> Floats:
    """Draw soft blotches of two greyish tones under a slope of light, (size, size, 3)."""
    size = len(x)
    tone = np.array(colorsys.hsv_to_rgb(rng.rand(), rng.uniform(0.0, 0.3), rng.uniform(0.3, 0.8)))
    other = np.clip(tone + rng.uniform(-0.12, 0.12, 3), 0.0, 1.0)
    blotches = np.zeros_like(x)
    for _ in range(4):
        angle, period = rng.uniform(0.0, 2.0 * math.pi), rng.uniform(0.3, 0.8) * size
        across = math.cos(angle) * x + math.sin(angle) * y
        blotches += np.sin(2.0 * math.pi * (across / period + rng.rand()))
    angle = rng.uniform(0.0, 2.0 * math.pi)
    slope = (x / size - 0.5) * math.cos(angle) + (y / size - 0.5) * math.sin(angle)
    mix = (0.5 + 0.125 * blotches)[..., None]
    return np.asarray((tone + (other - tone) * mix) * (1.0 + 0.3 * slope[..., None]))


def _outline(rng: RandomState, x: Floats, y: Floats) -> Floats:
    """Return the signed distance to a random ellipse, box or triangle, px, negative inside."""
    size = len(x)
    cx, cy = rng.uniform(0.1, 0.9, 2) * size
    radius, aspect = rng.uniform(0.16, 0.32) * size, math.exp(rng.normal(0.0, 0.2))
    turn = rng.uniform(0.0, 2.0 * math.pi)
    u = (math.cos(turn) * (x - cx) + math.sin(turn) * (y - cy)) / (radius * aspect)
    v = (math.cos(turn) * (y - cy) - math.sin(turn) * (x - cx)) / (radius / aspect)
    kind = rng.randint(3)
    if kind == 0:
        distance = np.hypot(u, v) - 1.0
    elif kind == 1:
        distance = np.maximum(np.abs(u), np.abs(v)) - 0.85
    else:
        distance = np.maximum(math.sqrt(0.75) * np.abs(u) - 0.5 * v, v) - 0.65
    return np.asarray(distance * radius)


def _surface(rng: RandomState, fill: Fill, x: Floats, y: Floats) -> Floats:
    """Draw the texture of one object over the whole picture, (size, size, 3)."""
    own = np.array(
        colorsys.hsv_to_rgb(
            (fill.hue + rng.normal(0.0, 0.03)) % 1.0, rng.uniform(0.6, 1.0), rng.uniform(0.6, 1.0)
        )
    )
    colour = HUE_STRENGTH * own + (1.0 - HUE_STRENGTH) * rng.rand(3)
    # The second colour of the texture is a darker or a paler shade of the first.
    share = rng.uniform(0.35, 0.6)
    other = colour * (1.0 - share) if rng.rand() < 0.5 else colour + (1.0 - colour) * share
    angle = fill.angle + rng.normal(0.0, 0.2)
    period = 0.11 * len(x) * math.exp(rng.normal(0.0, 0.15))
    p = (math.cos(angle) * x + math.sin(angle) * y) / period + rng.rand()
    q = (math.cos(angle) * y - math.sin(angle) * x) / period + rng.rand()
    return np.asarray(colour + (other - colour) * _texture(fill.name, p, q)[..., None])


def _texture(name: str, p: Floats, q: Floats) -> Floats:
    """Return a texture, (size, size) between 0 and 1, of period 1 along ``p``."""
    if name == "checks":
        return np.asarray(0.5 + np.clip(3.0 * np.sin(math.pi * p) * np.sin(math.pi * q), -0.5, 0.5))
    if name == "dots":
        return np.clip((0.34 - np.hypot(p % 1.0 - 0.5, q % 1.0 - 0.5)) * 7.0 + 0.5, 0.0, 1.0)
    if name == "waves":
        p = p + 0.35 * np.sin(math.pi * q)
    return np.asarray(0.5 + np.clip(1.5 * np.sin(2.0 * math.pi * p), -0.5, 0.5))


def _borders(owner: Bytes) -> NDArray[np.bool_]:
    """Return the pixels with a neighbour, above, below or beside, of another owner."""
    borders = np.zeros(owner.shape, dtype=bool)
    for axis in (0, 1):
        change = np.diff(owner, axis=axis) != 0
        before, after = [(0, 0), (0, 0)], [(0, 0), (0, 0)]
        before[axis], after[axis] = (1, 0), (0, 1)
        borders |= np.pad(change, before) | np.pad(change, after)
    return borders


def _expose(rng: RandomState, canvas: Floats) -> Bytes:
    """Turn a canvas (0-1) into bytes, with a cast, brightness, noise and haze of its own."""
    cast = np.exp(rng.normal(0.0, 0.06, 3))
    offset = rng.uniform(-0.1, 0.1)
    noise = rng.normal(0.0, rng.uniform(0.005, 0.03), canvas.shape)
    contrast = FAINTEST ** rng.rand()  # log-uniform between FAINTEST and 1
    exposed = 0.5 + contrast * (np.clip(canvas * cast + offset + noise, 0.0, 1.0) - 0.5)
    return np.asarray(np.rint(exposed * 255.0), dtype=np.uint8)

"""Draws one picture of the embedded classification data."""

from __future__ import annotations

import colorsys
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Texture(NamedTuple):
    """A pattern between 0 and 1, about the same when mirrored left to right."""

    name: str
    angle: float
    """Of its lines against the horizontal, rad."""
    period: float
    """Of its repetition, as a share of the side of the picture."""


# Told apart by direction as well as by period, so that neither alone decides.
TEXTURES = (
    Texture("stripes", 0.0, 0.16),
    Texture("bars", 0.5 * math.pi, 0.24),
    Texture("checks", 0.0, 0.34),
    Texture("dots", 0.0, 0.22),
)
OUTLINES = ("disc", "star", "ring")
CLASSES = tuple(f"{texture.name}_{outline}" for outline in OUTLINES for texture in TEXTURES)
"""Names of the classes, as folders."""

HUE_STRENGTH = 0.3
"""Share of the class's own hue in an object's colour; the rest is random."""
BACKGROUND_STD = 0.2
"""Spread of the background's colour between pictures."""
OCCLUDED = 0.5
"""Share of the pictures in which a square hides a part."""


def draw(rng: np.random.RandomState, size: int, label: int) -> NDArray[np.uint8]:
    """Draw a picture of a class.

    Args:
        rng: source of everything that differs between pictures of a class.
        size: side, px.
        label: index in ``CLASSES``.

    Returns:
        (size, size, 3) RGB.
    """
    outline, texture = OUTLINES[label // len(TEXTURES)], TEXTURES[label % len(TEXTURES)]
    y, x = (np.mgrid[:size, :size] + 0.5) / size
    ground = np.clip(0.5 + BACKGROUND_STD * rng.normal(size=3), 0.0, 1.0)
    back = TEXTURES[rng.randint(len(TEXTURES))]
    angle = rng.uniform(0.0, math.pi)
    weak = 0.2 * (_texture(rng, back, x, y, angle, back.period) - 0.5)
    canvas = ground + weak[..., None]

    own = np.array(colorsys.hsv_to_rgb(label / len(CLASSES), 0.9, 0.9))
    colour = HUE_STRENGTH * own + (1.0 - HUE_STRENGTH) * rng.rand(3)
    other = np.where(colour > 0.5, colour - 0.45, colour + 0.45)
    angle = texture.angle + rng.uniform(-0.2, 0.2)
    period = texture.period * math.exp(0.15 * rng.normal())
    pattern = _texture(rng, texture, x, y, angle, period)[..., None]
    surface = other + (colour - other) * pattern
    cover = np.clip(0.5 - size * _distance(rng, x, y, outline), 0.0, 1.0)[..., None]
    canvas = canvas + (surface - canvas) * cover
    if rng.rand() < OCCLUDED:
        side, left, top = rng.uniform(0.15, 0.3), rng.rand(), rng.rand()
        hidden = (np.abs(x - left) < side / 2) & (np.abs(y - top) < side / 2)
        canvas[hidden] = rng.rand(3)
    return _expose(rng, canvas)


def _texture(
    rng: np.random.RandomState, texture: Texture, x: Floats, y: Floats, angle: float, period: float
) -> Floats:
    """Draw a pattern of a random phase, (size, size), between 0 and 1."""
    across = (math.cos(angle) * y - math.sin(angle) * x) / period + rng.rand()
    along = (math.cos(angle) * x + math.sin(angle) * y) / period + rng.rand()
    if texture.name in ("stripes", "bars"):
        wave = np.sin(2.0 * math.pi * across)
    elif texture.name == "checks":
        wave = 2.0 * np.sin(2.0 * math.pi * across) * np.sin(2.0 * math.pi * along)
    else:
        wave = np.sin(2.0 * math.pi * across) + np.sin(2.0 * math.pi * along) - 0.6
    return np.asarray(np.clip(0.5 + 1.2 * wave, 0.0, 1.0))


def _distance(rng: np.random.RandomState, x: Floats, y: Floats, outline: str) -> Floats:
    """Return about the signed distance to an outline of random place, size, aspect and rotation.

    Returns:
        (size, size), as a share of the side, negative inside.
    """
    cx, cy = 0.5 + rng.uniform(-0.1, 0.1, 2)
    radius, aspect = rng.uniform(0.3, 0.42), math.exp(0.1 * rng.normal())
    turn = 0.3 * rng.normal()
    u = (math.cos(turn) * (x - cx) + math.sin(turn) * (y - cy)) / aspect
    v = (math.cos(turn) * (y - cy) - math.sin(turn) * (x - cx)) * aspect
    r = np.hypot(u, v)
    if outline == "disc":
        distance = r - 0.9 * radius
    elif outline == "ring":
        distance = np.abs(r - 0.78 * radius) - 0.27 * radius
    else:  # five rounded points, one up
        distance = r - radius * (0.75 + 0.35 * np.cos(5.0 * np.arctan2(u, -v)))
    return np.asarray(distance)


def _expose(rng: np.random.RandomState, canvas: Floats) -> NDArray[np.uint8]:
    """Turn a canvas (0-1) into bytes, with a contrast, cast, brightness and noise of its own."""
    contrast = 0.3 ** rng.rand()  # log-uniform between 0.3 and 1
    cast = np.exp(0.06 * rng.normal(size=3))
    offset = rng.uniform(-0.1, 0.1)
    noise = rng.uniform(0.005, 0.03) * rng.normal(size=canvas.shape)
    exposed = (0.5 + contrast * (canvas - 0.5)) * cast + offset + noise
    return np.asarray(np.rint(np.clip(exposed, 0.0, 1.0) * 255.0), dtype=np.uint8)

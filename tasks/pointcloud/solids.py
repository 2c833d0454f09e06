"""Draws the clouds of the embedded data: points on the surfaces of 16 kinds of solids.

Most solids are a profile that is led around the upright axis y, either along a circle or along a
square; the others are boxes put together, and one is a coiled wire. Points are uniform on the
surface. Every cloud has proportions of its own; see ``tasks.pointcloud.embedded`` for what is then
done to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray

Points = NDArray[np.float64]
"""(N, 3): x, y (up), z."""
_Profile = list[tuple[float, float]]
"""Corners (radius, height) of a line from one end to the other."""

_RIGHT = math.pi / 2
_CROP = 0.25
"""Largest share of a cloud that is missing on one side."""
_STRETCH = (0.7, 1.3)
_TILT = 0.1
"""Standard deviation of the rotations about x and z, radians."""
_SIZE = (0.6, 1.6)
_OFFSET = 0.1
_NOISE = 0.015
_STRAY = 0.01
"""Share of points that are anywhere."""


def draw(rng: RandomState, label: int, num_points: int) -> NDArray[np.float32]:
    """Draw one cloud of class ``label``, shape ``(num_points, 3)``, in random order of points."""
    kept = 1 - rng.uniform(0, _CROP)
    whole = _SOLIDS[CLASSES[label]](rng, math.ceil(num_points / kept))
    points = whole * rng.uniform(*_STRETCH, size=3)
    points = points @ _turn(rng.uniform(0, 2 * math.pi), rng.normal(0, _TILT, size=2))
    side = rng.normal(size=3)
    points = points[np.argsort(points @ side, kind="stable")[:num_points]]
    points = points[rng.permutation(num_points)]
    stray = rng.uniform(size=num_points) < _STRAY
    points[stray] = rng.uniform(-1, 1, size=(int(stray.sum()), 3))
    points += rng.normal(0, _NOISE, size=points.shape)
    size = math.exp(rng.uniform(*np.log(_SIZE)))
    return (size * points + rng.normal(0, _OFFSET, size=3)).astype(np.float32)


def _turn(about_y: float, tilts: NDArray[np.float64]) -> NDArray[np.float64]:
    turn = np.eye(3)
    for angle, (i, j) in zip((about_y, *tilts), ((0, 2), (1, 2), (0, 1)), strict=True):
        step = np.eye(3)
        step[i, i] = step[j, j] = math.cos(angle)
        step[i, j], step[j, i] = math.sin(angle), -math.sin(angle)
        turn = turn @ step
    return turn


def _lathe(rng: RandomState, num: int, profile: _Profile, *, square: bool = False) -> Points:
    """Lead a profile around the axis and scatter points on what it sweeps."""
    ends = np.asarray(profile)
    low, high = ends[:-1, 0], ends[1:, 0]
    area = np.hypot(high - low, np.diff(ends[:, 1])) * (low + high)
    piece = rng.choice(len(area), size=num, p=area / area.sum())
    low, high = low[piece], high[piece]
    # Inverse of the distribution along the piece, whose density grows with the radius.
    drawn = rng.uniform(size=num)
    radius = np.sqrt(low**2 + drawn * (high**2 - low**2))
    flat = np.abs(high - low) < 1e-9
    along = np.where(flat, drawn, (radius - low) / np.where(flat, 1.0, high - low))
    height = ends[piece, 1] + along * (ends[piece + 1, 1] - ends[piece, 1])
    across = _square(rng, num) if square else _circle(rng, num)
    return np.stack([radius * across[0], height, radius * across[1]], axis=1)


def _circle(rng: RandomState, num: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    angle = rng.uniform(0, 2 * math.pi, size=num)
    return np.cos(angle), np.sin(angle)


def _square(rng: RandomState, num: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return points on the outline of the square from -1 to 1."""
    side, place = rng.randint(4, size=num), rng.uniform(-1, 1, size=num)
    sign = np.where(side < 2, 1.0, -1.0)
    even = side % 2 == 0
    return np.where(even, sign, place), np.where(even, place, sign)


def _boxes(rng: RandomState, num: int, *boxes: tuple[float, ...]) -> Points:
    """Scatter points on boxes of centre (x, y, z) and half sides (a, b, c), joined in one tuple."""
    table = np.asarray(boxes)
    centres, halves = table[:, :3], table[:, 3:]
    faces = 8 * halves.prod(axis=1, keepdims=True) / halves  # (boxes, 3): of two opposite faces
    chosen = rng.choice(faces.size, size=num, p=(faces / faces.sum()).ravel())
    box, axis = np.divmod(chosen, 3)
    local = rng.uniform(-1, 1, size=(num, 3))
    local[np.arange(num), axis] = np.where(rng.uniform(size=num) < 0.5, -1.0, 1.0)
    return np.asarray(centres[box] + local * halves[box])


def _arc(start: float, end: float, radius: float, centre: float = 0.0) -> _Profile:
    """Return a piece of a circle around (centre, 0), from one angle to another."""
    return [
        (max(0.0, centre + radius * math.cos(a)), radius * math.sin(a))
        for a in np.linspace(start, end, 13)
    ]


def _ellipsoid(rng: RandomState, num: int) -> Points:
    # A superellipsoid: a sphere with a square's or a diamond's tendency.
    power = rng.uniform(0.7, 1.3)
    quarter = [(r**power, math.copysign(abs(h) ** power, h)) for r, h in _arc(-_RIGHT, _RIGHT, 1)]
    return _lathe(rng, num, quarter)


def _box(rng: RandomState, num: int) -> Points:
    return _boxes(rng, num, (0, 0, 0, 0.8, 0.8, 0.8))


def _cylinder(rng: RandomState, num: int) -> Points:
    return _lathe(rng, num, [(0, 0.9), (0.7, 0.9), (0.7, -0.9), (0, -0.9)])


def _octahedron(rng: RandomState, num: int) -> Points:
    return _lathe(rng, num, [(0, 1.1), (0.8, 0), (0, -1.1)], square=True)


def _funnel(rng: RandomState, num: int) -> Points:
    neck = rng.uniform(-0.3, 0.1)
    return _lathe(rng, num, [(0.85, 0.9), (0.14, neck), (0.14, -0.9)])


def _ring(rng: RandomState, num: int) -> Points:
    thick = rng.uniform(0.15, 0.3)
    return _lathe(rng, num, _arc(0, 2 * math.pi, thick, 1 - thick))


def _frame(rng: RandomState, num: int) -> Points:
    inner, half = rng.uniform(0.45, 0.65), rng.uniform(0.15, 0.3)
    loop = [(0.9, half), (0.9, -half), (inner, -half), (inner, half), (0.9, half)]
    lying = _lathe(rng, num, loop, square=True)
    return lying[:, [0, 2, 1]]  # upright, as a picture's


def _pyramid(rng: RandomState, num: int) -> Points:
    return _lathe(rng, num, [(0, 0.9), (0.8, -0.9), (0, -0.9)], square=True)


def _hourglass(rng: RandomState, num: int) -> Points:
    waist = rng.uniform(0.05, 0.25)
    return _lathe(rng, num, [(0, 0.9), (0.8, 0.9), (waist, 0), (0.8, -0.9), (0, -0.9)])


def _tube(rng: RandomState, num: int) -> Points:
    inner = rng.uniform(0.4, 0.55)
    loop = [(0.7, 0.9), (0.7, -0.9), (inner, -0.9), (inner, 0.9), (0.7, 0.9)]
    return _lathe(rng, num, loop)


def _bowl(rng: RandomState, num: int) -> Points:
    outer, inner = _arc(0, -_RIGHT, 0.9), _arc(-_RIGHT, 0, rng.uniform(0.65, 0.8))
    points = _lathe(rng, num, [*outer, *inner, outer[0]])
    points[:, 1] += 0.45
    return points


def _lamp(rng: RandomState, num: int) -> Points:
    shade, top = rng.uniform(0.6, 0.8), rng.uniform(0.25, 0.4)
    foot = [(0.0, -1.0), (0.45, -1.0), (0.45, -0.92), (0.05, -0.92), (0.05, 0.25)]
    return _lathe(rng, num, [*foot, (shade, 0.25), (top, 1.0), (0.0, 1.0)])


def _spring(rng: RandomState, num: int) -> Points:
    turns, wire = rng.uniform(2.5, 3.5), rng.uniform(0.06, 0.12)
    place = rng.uniform(-1, 1, size=num)
    around, (across, up) = math.pi * turns * place, _circle(rng, num)
    radius = 0.75 + wire * across
    return np.stack(
        [radius * np.cos(around), 0.85 * place + wire * up, radius * np.sin(around)], axis=1
    )


def _legs(spread: float, low: float, high: float) -> list[tuple[float, ...]]:
    middle, half = (low + high) / 2, (high - low) / 2
    return [(x, middle, z, 0.07, half, 0.07) for x in (-spread, spread) for z in (-spread, spread)]


def _table(rng: RandomState, num: int) -> Points:
    return _boxes(rng, num, (0, 0.55, 0, 0.9, 0.08, 0.9), *_legs(rng.uniform(0.6, 0.8), -0.8, 0.47))


def _chair(rng: RandomState, num: int) -> Points:
    back = rng.uniform(0.35, 0.5)
    seat = (0, -0.05, 0, 0.6, 0.07, 0.6)
    rest = (0, 0.02 + back, -0.53, 0.6, back, 0.07)
    return _boxes(rng, num, seat, rest, *_legs(0.5, -0.9, -0.12))


def _cross(rng: RandomState, num: int) -> Points:
    thick = rng.uniform(0.12, 0.25)
    bars = [[thick] * axis + [0.95] + [thick] * (2 - axis) for axis in range(3)]
    return _boxes(rng, num, *((0, 0, 0, *bar) for bar in bars))


_SOLIDS: dict[str, Callable[[RandomState, int], Points]] = {
    "bowl": _bowl,
    "box": _box,
    "chair": _chair,
    "cross": _cross,
    "cylinder": _cylinder,
    "ellipsoid": _ellipsoid,
    "frame": _frame,
    "funnel": _funnel,
    "hourglass": _hourglass,
    "lamp": _lamp,
    "octahedron": _octahedron,
    "pyramid": _pyramid,
    "ring": _ring,
    "spring": _spring,
    "table": _table,
    "tube": _tube,
}
CLASSES = tuple(_SOLIDS)
"""Names in the order of their labels."""

"""Draws one picture of the embedded detection data and describes its objects in COCO's terms."""

from __future__ import annotations

import colorsys
import math
from itertools import pairwise
from typing import Any, Literal, NamedTuple, cast

import numpy as np
from contourpy import FillType, contour_generator
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


class Category(NamedTuple):
    """A class of objects; `hue` (0-1, as in HSV) is the colour its objects tend to."""

    id: int
    name: str
    supercategory: str
    hue: float


# Ids leave gaps as COCO's 1-90 do, so that code which takes an id for an index fails here too.
CATEGORIES = (
    Category(1, "disc", "round", 0.01),
    Category(3, "triangle", "pointed", 0.36),
    Category(7, "star", "pointed", 0.14),
    Category(18, "ring", "round", 0.60),
)
HUE_STRENGTH = 0.8

MIN_VISIBLE_AREA = 60
"""Pixels of every object that remain in sight."""
MIN_VISIBLE_SHARE = 0.4
"""Share of every object, of what lies inside the picture, that remains in sight."""


class _Shape(NamedTuple):
    """Where one object lies: centre and radius in pixels, signed distance to its outline."""

    x: float
    y: float
    radius: float
    distance: Floats  # (size, size), pixels, negative inside

    @property
    def mask(self) -> Mask:
        return self.distance <= 0.0


class Instance(NamedTuple):
    """One object, or one crowd, of a picture."""

    category: Category
    visible: Mask
    """What others do not hide, (size, size)."""
    area: int
    """Pixels before others hid parts of it."""
    is_crowd: bool


# --- one picture ---------------------------------------------------------------------------------


def draw(
    rng: np.random.RandomState, size: int, kind: Literal["ordinary", "crowd", "empty"]
) -> tuple[NDArray[np.uint8], list[Instance]]:
    """Draw one picture, (size, size, 3), and list its objects from back to front.

    Args:
        rng: source of every draw.
        size: side in pixels.
        kind: `crowd` puts a cluster of tiny objects at the back, `empty` leaves the background.
    """
    y, x = np.mgrid[:size, :size] + 0.5  # (size, size) each: pixel centres, as COCO's polygons
    angle = rng.uniform(0.0, 2.0 * math.pi)
    light = math.cos(angle), math.sin(angle)
    slope = ((x / size - 0.5) * light[0] + (y / size - 0.5) * light[1])[..., None]
    ground = np.array(
        colorsys.hsv_to_rgb(rng.rand(), rng.uniform(0.0, 0.35), rng.uniform(0.3, 0.8))
    )
    other = np.clip(ground + rng.uniform(-0.15, 0.15, 3), 0.0, 1.0)
    texture = _texture(rng, x, y, rng.uniform(0.08, 0.25) * size)
    canvas = (ground + (other - ground) * texture) * (1.0 + 0.4 * slope)

    instances: list[Instance] = []
    number = 0 if kind == "empty" else rng.randint(1, 5)
    for nth in range(number):
        is_crowd = kind == "crowd" and nth == 0
        category = CATEGORIES[rng.randint(len(CATEGORIES))]
        shape = _place(rng, x, y, category, is_crowd, instances)
        if shape is None:
            continue
        canvas = _paint(rng, canvas, x, y, shape, category, light)
        mask = shape.mask
        instances = [i._replace(visible=i.visible & ~mask) for i in instances]
        instances.append(Instance(category, mask, int(mask.sum()), is_crowd))
    return _expose(rng, canvas), instances


def _place(
    rng: np.random.RandomState,
    x: Floats,
    y: Floats,
    category: Category,
    is_crowd: bool,
    behind: list[Instance],
) -> _Shape | None:
    """Find room for an object that leaves enough of those behind it in sight, or give up."""
    for _ in range(10):
        shape = (_crowd if is_crowd else _single)(rng, x, y, category)
        mask = shape.mask
        if mask.sum() >= MIN_VISIBLE_AREA and all(
            (i.visible & ~mask).sum() >= max(MIN_VISIBLE_AREA, MIN_VISIBLE_SHARE * i.area)
            for i in behind
        ):
            return shape
    return None


def _single(rng: np.random.RandomState, x: Floats, y: Floats, category: Category) -> _Shape:
    """Draw the place of one object of log-uniform size."""
    size = x.shape[0]
    cx, cy = rng.uniform(0.15, 0.85, 2) * size
    radius = 0.1 * size * math.exp(rng.uniform(0.0, math.log(2.8)))
    return _Shape(cx, cy, radius, _distance(rng, x - cx, y - cy, radius, category))


def _crowd(rng: np.random.RandomState, x: Floats, y: Floats, category: Category) -> _Shape:
    """Draw the place of a cluster of tiny objects, evenly spread like a sunflower's seeds."""
    size = x.shape[0]
    cx, cy = rng.uniform(0.3, 0.7, 2) * size
    radius = rng.uniform(0.036, 0.046) * size
    number = rng.randint(10, 18)
    distance = np.full_like(x, math.inf)
    for k in range(number):
        # The golden angle 2.4 rad and a root-law radius give equal room to every seed.
        angle, reach = 2.4 * k + rng.normal(0.0, 0.08), 1.45 * radius * math.sqrt(k + 0.5)
        dx, dy = x - cx - reach * math.cos(angle), y - cy - reach * math.sin(angle)
        distance = np.minimum(distance, _distance(rng, dx, dy, radius, category))
    return _Shape(cx, cy, 1.45 * radius * math.sqrt(number), distance)


def _distance(
    rng: np.random.RandomState, dx: Floats, dy: Floats, radius: float, category: Category
) -> Floats:
    """Return the signed distance, in pixels, to an outline of jittered rotation and aspect.

    Args:
        rng: source of rotation and aspect.
        dx: offset from the centre to the right, pixels, (size, size).
        dy: offset from the centre downwards.
        radius: in pixels, of a circle about as large as the outline.
        category: whose outline.
    """
    turn, aspect = rng.normal(0.0, 0.35), math.exp(rng.normal(0.0, 0.12))
    u = (math.cos(turn) * dx + math.sin(turn) * dy) / (radius * aspect)
    v = (math.cos(turn) * dy - math.sin(turn) * dx) / (radius / aspect)
    r = np.hypot(u, v)
    if category.name == "disc":
        distance = r - 1.0
    elif category.name == "ring":
        distance = np.abs(r - 0.75) - 0.3
    elif category.name == "triangle":  # three half-planes, tip up
        half_width = math.sqrt(0.75) * np.abs(u) - 0.5 * v
        distance = np.maximum(half_width, v) - 0.65
    else:  # star: the line from an outer tip (1.3, 0) to an inner corner, mirrored ten times
        sector = np.abs((np.arctan2(u, -v) + 0.2 * math.pi) % (0.4 * math.pi) - 0.2 * math.pi)
        inner = 0.5
        steep = (1.0 - inner * math.cos(0.2 * math.pi)) / (inner * math.sin(0.2 * math.pi))
        distance = (r * (np.cos(sector) + steep * np.sin(sector)) - 1.3) / math.hypot(1.0, steep)
    return np.asarray(distance * radius)


def _texture(rng: np.random.RandomState, x: Floats, y: Floats, period: float) -> Floats:
    """Draw stripes, checks, dots or blotches, (size, size, 1) between 0 and 1."""
    angle = rng.uniform(0.0, math.pi)
    p = (math.cos(angle) * x + math.sin(angle) * y) / period + rng.rand()
    q = (math.cos(angle) * y - math.sin(angle) * x) / period + rng.rand()
    kind = rng.randint(4)
    if kind == 0:
        value = 0.5 + np.clip(2.0 * np.sin(2.0 * math.pi * p), -0.5, 0.5)
    elif kind == 1:
        value = 0.5 + np.clip(4.0 * np.sin(math.pi * p) * np.sin(math.pi * q), -0.5, 0.5)
    elif kind == 2:
        value = np.clip((0.36 - np.hypot(p % 1.0 - 0.5, q % 1.0 - 0.5)) * period + 0.5, 0.0, 1.0)
    else:
        knots = rng.rand(64)
        value = _blotches(knots, 2.0 * p, 2.0 * q)
    return np.asarray(value)[..., None]


def _blotches(knots: Floats, p: Floats, q: Floats) -> Floats:
    """Interpolate random values, hashed from `knots`, between the integer points of a plane."""
    i, j = np.floor(p).astype(np.int64), np.floor(q).astype(np.int64)
    s, t = p - i, q - j

    def at(di: int, dj: int) -> Floats:
        values: Floats = knots[((i + di) * 29 + (j + dj) * 11) % 64]
        return values

    upper = at(0, 0) * (1.0 - s) + at(1, 0) * s
    lower = at(0, 1) * (1.0 - s) + at(1, 1) * s
    return upper * (1.0 - t) + lower * t


def _paint(
    rng: np.random.RandomState,
    canvas: Floats,
    x: Floats,
    y: Floats,
    shape: _Shape,
    category: Category,
    light: tuple[float, float],
) -> Floats:
    """Lay one textured, lit object with a dark rim over the canvas, (size, size, 3)."""
    hue = (category.hue + rng.normal(0.0, 0.015)) % 1.0
    own = np.array(colorsys.hsv_to_rgb(hue, rng.uniform(0.75, 1.0), rng.uniform(0.75, 1.0)))
    colour = HUE_STRENGTH * own + (1.0 - HUE_STRENGTH) * rng.rand(3)
    # The second colour of the texture is a darker or a paler shade of the first.
    share = rng.uniform(0.25, 0.5)
    other = colour * (1.0 - share) if rng.rand() < 0.5 else colour + (1.0 - colour) * share
    texture = _texture(rng, x, y, rng.uniform(0.06, 0.14) * x.shape[0])
    slope = ((x - shape.x) * light[0] + (y - shape.y) * light[1]) / shape.radius
    shade = 1.0 + 0.25 * np.clip(slope, -1.0, 1.0)
    rim = np.clip(0.45 - shape.distance / 3.0, 0.45, 1.0)
    surface = (colour + (other - colour) * texture) * (shade * rim)[..., None]
    cover = np.clip(0.5 - shape.distance, 0.0, 1.0)[..., None]  # anti-aliased
    return np.asarray(canvas + (surface - canvas) * cover)


def _expose(rng: np.random.RandomState, canvas: Floats) -> NDArray[np.uint8]:
    """Turn a canvas (0-1) into bytes, with a contrast, cast, brightness and noise of its own."""
    contrast = 0.3 ** rng.rand()  # log-uniform between 0.3 and 1
    cast = np.exp(rng.normal(0.0, 0.06, 3))
    offset = rng.uniform(-0.1, 0.1)
    noise = rng.normal(0.0, rng.uniform(0.005, 0.02), canvas.shape)
    exposed = (0.5 + contrast * (canvas - 0.5)) * cast + offset + noise
    return np.asarray(np.rint(np.clip(exposed, 0.0, 1.0) * 255.0), dtype=np.uint8)


# --- annotations ---------------------------------------------------------------------------------


def describe(instance: Instance) -> dict[str, Any]:
    """Return an object's annotation without its ids; box and area are those of its outline."""
    height, width = instance.visible.shape
    segmentation: dict[str, Any] | list[list[float]]
    if instance.is_crowd:
        # COCO's uncompressed run lengths: column by column, starting with zeros.
        flat = np.concatenate([[False], instance.visible.ravel(order="F"), [False]])
        edges = np.flatnonzero(flat[1:] != flat[:-1])
        runs = np.diff(edges, prepend=0, append=height * width)
        segmentation = {"counts": [int(n) for n in runs], "size": [height, width]}
        encoded = coco_mask.frPyObjects(segmentation, height, width)
    else:
        segmentation = _polygons(instance.visible)
        encoded = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    return {
        "category_id": instance.category.id,
        "bbox": [float(value) for value in coco_mask.toBbox(encoded)],
        "area": float(coco_mask.area(encoded)),
        "iscrowd": int(instance.is_crowd),
        "segmentation": segmentation,
    }


def _polygons(visible: Mask) -> list[list[float]]:
    """Trace a region, (size, size), as polygons [x, y, x, y, ...] in pixels, one a piece.

    COCO's polygons have no holes: each hole is joined to its outline by a cut that runs there and
    back, so that even-odd filling leaves it out.
    """
    padded = np.pad(visible, 1).astype(np.float64)
    generator = contour_generator(z=padded, fill_type=FillType.OuterOffset)
    # Each piece's points, (n, 2), and where its rings start: the outline, then its holes.
    filled = cast("tuple[list[Floats], list[NDArray[np.uint32]]]", generator.filled(0.5, 2.0))
    traced = []
    for piece, starts in zip(*filled, strict=True):
        rings = [piece[a : b - 1] for a, b in pairwise(starts.tolist())]  # the last point repeats
        outline = _without_straight_points(rings[0])
        for hole in rings[1:]:
            outline = _join(outline, _without_straight_points(hole))
        traced.append(outline - 0.5)  # -1 for the padding, +0.5 as COCO counts from pixel corners
    # Specks that occlusion leaves over rasterise to next to nothing.
    whole = [outline for outline in traced if np.ptp(outline, axis=0).min() > 2.0]
    return [[float(c) for c in outline.ravel()] for outline in whole or traced]


def _without_straight_points(ring: Floats) -> Floats:
    """Drop the points of a closed ring, (n, 2), that lie on the line between their neighbours."""
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    bends = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    return np.asarray(ring[bends])


def _join(outline: Floats, hole: Floats) -> Floats:
    """Make one ring of an outline and a hole, through their closest points."""
    gaps = ((outline[:, None] - hole[None]) ** 2).sum(axis=-1)
    i, j = np.unravel_index(int(gaps.argmin()), gaps.shape)
    return np.concatenate([outline[: i + 1], hole[j:], hole[: j + 1], outline[i:]])

"""The random changes of a training cloud, as each of the two recipes makes them."""

from __future__ import annotations

import math

import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray

Points = NDArray[np.float32]
"""(N, 3): x, y (up), z."""

_JITTER, _JITTER_LIMIT = 0.01, 0.05
_TILT, _TILT_LIMIT = 0.06, 0.18


def augment(name: str, points: Points, rng: RandomState) -> Points:
    """Change a cloud as the recipe ``name`` does: ``dgcnn_tf``, ``dgcnn`` or ``none``.

    Returns:
        A new array, or ``points`` itself.
    """
    if name == "dgcnn_tf":
        return _dgcnn_tf(points, rng)
    if name == "dgcnn":
        return _dgcnn(points, rng)
    return points


def about_y(angle: float) -> NDArray[np.float64]:
    """Return the matrix that turns points, as rows, about the upright axis by an angle in rad."""
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])


def _dgcnn_tf(points: Points, rng: RandomState) -> Points:
    """Turn, jitter, scale, tilt and shift, in the order of csrhddlam/dgcnn, ``train.py``.

    The functions and their constants are ``provider.py``'s there, after Qi et al.'s PointNet.
    """
    turned = points @ about_y(rng.uniform(0, 2 * math.pi))
    noise = rng.normal(0, _JITTER, size=points.shape)
    jittered = turned + noise.clip(-_JITTER_LIMIT, _JITTER_LIMIT)
    scaled = jittered * rng.uniform(0.8, 1.25)
    tilted = scaled @ _tilt(rng.normal(0, _TILT, size=3).clip(-_TILT_LIMIT, _TILT_LIMIT))
    return np.asarray(tilted + rng.uniform(-0.1, 0.1, size=3), dtype=np.float32)


def _tilt(angles: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ``Rz Ry Rx`` for angles about x, y, z in rad."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return np.asarray(z @ y @ x)


def _dgcnn(points: Points, rng: RandomState) -> Points:
    """Stretch each axis, shift and shuffle the points (WangYueFt/dgcnn, ``data.py``)."""
    stretch = rng.uniform(2 / 3, 3 / 2, size=3)
    shift = rng.uniform(-0.2, 0.2, size=3)
    moved: Points = np.asarray(points * stretch + shift, dtype=np.float32)
    return moved[rng.permutation(len(moved))]

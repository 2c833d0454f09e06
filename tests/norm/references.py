"""Weight standardisation and group norm in NumPy float64, written from the definitions."""

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

DEFINITIONS = {
    # name: (subtracted from the fan-in in the variance, epsilon, epsilon inside the root, scaled)
    "authors": (1, 1e-5, False, False),
    "tf": (0, 1e-5, False, False),
    "bcn": (1, 1e-5, True, False),
    "timm": (0, 1e-6, True, False),
    "bit": (0, 1e-10, True, False),
    "scaled": (0, 1e-6, True, True),
    # One step only: the other of (row - mean) / deviation is left out.
    "centred": (1, 1e-5, False, False),
    "divided": (1, 1e-5, False, False),
}
HALVES = ("centred", "divided")
WHOLE = tuple(name for name in DEFINITIONS if name not in HALVES)
"""Those that promise mean 0 and deviation 1."""


def standardize_rows(rows: Array, variant: str) -> Array:
    """Standardise each row of (O, I), one at a time."""
    ddof, eps, inside, scaled = DEFINITIONS[variant]
    out = np.zeros_like(rows)
    for i, row in enumerate(rows):
        variance = np.var(row, ddof=ddof) if row.size > 1 else 0.0
        deviation = math.sqrt(variance + eps) if inside else math.sqrt(variance) + eps
        numerator = row if variant == "divided" else row - row.mean()
        out[i] = numerator if variant == "centred" else numerator / deviation
        if scaled:
            out[i] /= math.sqrt(row.size)
    return out


def standardize(weight: Array, variant: str) -> Array:
    """Standardise (O, ...) per output filter."""
    return standardize_rows(weight.reshape(len(weight), -1), variant).reshape(weight.shape)


def standardize_transposed(weight: Array, variant: str, groups: int) -> Array:
    """Standardise (C_in, C_out / groups, ...) per output filter, filter by filter."""
    out = np.zeros_like(weight)
    step = weight.shape[0] // groups
    for group in range(groups):
        rows = slice(group * step, (group + 1) * step)
        for j in range(weight.shape[1]):
            one = weight[rows, j]
            out[rows, j] = standardize_rows(one.reshape(1, -1), variant).reshape(one.shape)
    return out


def numeric_gradient(weight: Array, upstream: Array, variant: str, step: float = 1e-6) -> Array:
    """Differentiate sum(upstream * standardize(weight)) by central differences."""
    gradient = np.zeros_like(weight)
    for index in np.ndindex(*weight.shape):
        moved = weight.copy()
        moved[index] += step
        up = (upstream * standardize(moved, variant)).sum()
        moved[index] -= 2 * step
        down = (upstream * standardize(moved, variant)).sum()
        gradient[index] = (up - down) / (2 * step)
    return gradient


def group_norm(x: Array, groups: int, gamma: Array, beta: Array, eps: float = 1e-5) -> Array:
    """Normalise (B, C, ...) per sample and group of neighbouring channels."""
    out = np.zeros_like(x)
    width = x.shape[1] // groups
    for sample in range(x.shape[0]):
        for group in range(groups):
            channels = slice(group * width, (group + 1) * width)
            part = x[sample, channels]
            out[sample, channels] = (part - part.mean()) / math.sqrt(part.var() + eps)
    shape = (1, -1) + (1,) * (x.ndim - 2)
    return out * gamma.reshape(shape) + beta.reshape(shape)

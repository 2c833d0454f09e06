"""Weight standardisation of rows as two compiled loops: each row is read once from memory.

Torch needs two passes over a weight for the result and cannot fuse them; here a row stays in the
cache between its mean, its deviation and its result. ``harness.norm.standardize`` chooses between
this and stock torch. A task is a row, so the bits do not depend on the number of threads.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from harness import compiled

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.norm.standardize import Denominator

Array = NDArray[Any]
# Reassociation lets the sums be vectorised: their order depends on the processor's vectors.
_FAST = {"reassoc", "contract", "nsz"}


def standardize(rows: Tensor, denominator: Denominator, out: Tensor, moments: Tensor) -> None:
    """Standardise each row.

    Args:
        rows: ``(O, n)``, contiguous, float32 or float64.
        denominator: what a row's biased deviation is turned into.
        out: ``(O, n)``, written.
        moments: ``(2, O)``, written: the means, less each row's first weight, and the biased
            deviations.
    """
    _run("forward", rows, (rows, out, moments), denominator)


def gradient(
    upstream: Tensor, rows: Tensor, denominator: Denominator, moments: Tensor, out: Tensor
) -> None:
    """Differentiate ``standardize``.

    Args:
        upstream: ``(O, n)``, contiguous: the gradient of the standardised rows.
        rows: ``(O, n)``, contiguous, as they were standardised.
        denominator: as they were standardised.
        moments: ``(2, O)``, as ``standardize`` wrote them.
        out: ``(O, n)``, written: the gradient of the rows; not ``upstream``.
    """
    _run("backward", rows, (upstream, rows, moments, out), denominator)


def _run(name: str, rows: Tensor, tensors: tuple[Tensor, ...], denominator: Denominator) -> None:
    number = np.float32 if rows.element_size() == 4 else np.float64
    numbers = (denominator.factor, denominator.inner, denominator.outer, denominator.scale)
    size = rows.shape[1]
    compiled.run(_kernel(name), len(rows), *tensors, number(size), *map(number, numbers))


@cache
def _kernel(name: str) -> Callable[..., None]:
    kernels: dict[str, Callable[..., None]] = {"forward": _forward, "backward": _backward}
    return compiled.jit(kernels[name], _FAST)


def _forward(
    rows: Array,
    out: Array,
    moments: Array,
    size: Any,
    factor: Any,
    inner: Any,
    outer: Any,
    scale: Any,
    first: int,
    last: int,
) -> None:
    zero = size - size  # of the type of the rows
    for i in range(first, last):
        row, result = rows[i], out[i]
        # Subtracting one weight first makes rows of equal weights exactly 0, and keeps the digits
        # of rows whose mean is large against their deviation. Stored, for else reassociation undoes
        # it; in the result, which is in the cache, where an array of its own would crowd it out.
        for j in range(rows.shape[1]):
            result[j] = row[j] - row[0]
        mean = zero
        for j in range(rows.shape[1]):
            mean += result[j]
        mean /= size
        squares = zero
        for j in range(rows.shape[1]):
            centred = result[j] - mean
            squares += centred * centred
        sigma = np.sqrt(squares / size)
        divisor = scale * (np.sqrt(factor * factor * sigma * sigma + inner) + outer)
        reciprocal = zero if sigma == zero else (size / size) / divisor
        for j in range(rows.shape[1]):
            result[j] = (result[j] - mean) * reciprocal
        moments[0, i] = mean
        moments[1, i] = sigma


def _backward(
    upstream: Array,
    rows: Array,
    moments: Array,
    out: Array,
    size: Any,
    factor: Any,
    inner: Any,
    outer: Any,
    scale: Any,
    first: int,
    last: int,
) -> None:
    zero = size - size
    for i in range(first, last):
        row, grad, result = rows[i], upstream[i], out[i]
        for j in range(rows.shape[1]):
            result[j] = row[j] - row[0]
        mean, sigma = moments[0, i], moments[1, i]
        total = zero
        along = zero
        for j in range(rows.shape[1]):
            total += grad[j]
            along += grad[j] * (result[j] - mean)
        total /= size
        root = np.sqrt(factor * factor * sigma * sigma + inner)
        reciprocal = (size / size) / (scale * (root + outer))
        along *= zero if sigma == zero else factor * factor / (root * (root + outer)) / size
        along *= reciprocal
        for j in range(rows.shape[1]):
            result[j] = (grad[j] - total) * reciprocal - (result[j] - mean) * along

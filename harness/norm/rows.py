"""Weight standardisation of rows as two compiled loops: each row is read once from memory.

Torch needs more passes over a weight than one each way; here a row stays in the cache between its
statistics and its result. ``harness.norm.standardize`` chooses between this and stock torch. Import
this module only where numba is installed. A task is a row, so the bits do not depend on the number
of threads.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numba import carray  # type: ignore[attr-defined]
from torch import Tensor

from harness import compiled

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.norm.standardize import Denominator

# Reassociation lets the sums be vectorised: their order depends on the processor's vectors.
_FAST = {"reassoc", "contract", "nsz"}


def standardize(weight: Tensor, denominator: Denominator) -> tuple[Tensor, Tensor]:
    """Standardise each row.

    Args:
        weight: ``(O, ...)``, contiguous, float32 or float64, not empty; a row has one first index.
        denominator: what a row's biased deviation is turned into.

    Returns:
        The standardised rows, of the shape of ``weight``, and their moments, ``(2, O)``: the
        means, less each row's first weight, and the biased deviations.
    """
    out, moments = torch.empty_like(weight), weight.new_empty((2, weight.size(0)))
    _run(_forward, (weight, out, moments), denominator)
    return out, moments


def gradient(upstream: Tensor, weight: Tensor, denominator: Denominator, moments: Tensor) -> Tensor:
    """Differentiate ``standardize``.

    Args:
        upstream: the gradient of the standardised rows: of the type of ``weight``, contiguous.
        weight: ``(O, ...)``, as it was standardised.
        denominator: as it was standardised.
        moments: ``(2, O)``, as ``standardize`` returned them.

    Returns:
        The gradient of the rows, of the shape of ``weight``.
    """
    out = torch.empty_like(weight)
    _run(_backward, (weight, out, moments, upstream), denominator)
    return out


def _run(loop: Callable[..., None], tensors: tuple[Tensor, ...], own: Denominator) -> None:
    weight = tensors[0]
    num = weight.size(0)
    size = weight.numel() // num
    addresses = [tensor.data_ptr() for tensor in tensors]
    numbers = size, own.factor, own.inner, own.outer, own.scale
    compiled.run(_kernel(loop, len(tensors), weight.dtype), num, *addresses, num, size, *numbers)


@cache
def _kernel(loop: Callable[..., None], tensors: int, dtype: torch.dtype) -> Callable[..., None]:
    arguments = ["array"] * tensors + ["int"] * 2 + ["number"] * 5 + ["int"] * 2
    return compiled.c_function(loop, arguments, dtype, _FAST)


def _in_this_order(weight: Any, start: Any, mean: Any) -> Any:
    return (weight - start) - mean


# Subtracting a row's first weight before its mean makes rows of equal weights exactly 0, and keeps
# the digits of rows whose mean is large against their deviation. Reassociation would undo it.
_centred = compiled.jit(_in_this_order, {"contract"})


def _forward(
    weight: Any,
    out: Any,
    moments: Any,
    num: int,
    n: int,
    size: Any,
    factor: Any,
    inner: Any,
    outer: Any,
    scale: Any,
    first: int,
    last: int,
) -> None:
    rows, results = carray(weight, (num, n)), carray(out, (num, n))
    own = carray(moments, (2, num))
    zero = size - size  # of the type of the rows
    for i in range(first, last):
        row, result = rows[i], results[i]
        start = row[0]
        mean = zero
        squares = zero
        for j in range(n):
            shifted = _centred(row[j], start, zero)
            mean += shifted
            squares += shifted * shifted
        mean /= size
        squares /= size
        variance = squares - mean * mean
        if variance * 4 < squares:  # the first weight is far from the mean: digits are lost
            squares = zero
            for j in range(n):
                centred = _centred(row[j], start, mean)
                squares += centred * centred
            variance = squares / size
        sigma = np.sqrt(variance)
        divisor = scale * (np.sqrt(factor * factor * sigma * sigma + inner) + outer)
        reciprocal = zero if sigma == zero else (size / size) / divisor
        for j in range(n):
            result[j] = _centred(row[j], start, mean) * reciprocal
        own[0, i] = mean
        own[1, i] = sigma


def _backward(
    weight: Any,
    out: Any,
    moments: Any,
    upstream: Any,
    num: int,
    n: int,
    size: Any,
    factor: Any,
    inner: Any,
    outer: Any,
    scale: Any,
    first: int,
    last: int,
) -> None:
    rows, results = carray(weight, (num, n)), carray(out, (num, n))
    own, grads = carray(moments, (2, num)), carray(upstream, (num, n))
    zero = size - size
    for i in range(first, last):
        row, grad, result = rows[i], grads[i], results[i]
        start, mean, sigma = row[0], own[0, i], own[1, i]
        total = zero
        along = zero
        for j in range(n):
            total += grad[j]
            along += grad[j] * _centred(row[j], start, mean)
        total /= size
        root = np.sqrt(factor * factor * sigma * sigma + inner)
        reciprocal = (size / size) / (scale * (root + outer))
        along *= zero if sigma == zero else factor * factor / (root * (root + outer)) / size
        along *= reciprocal
        for j in range(n):
            result[j] = (grad[j] - total) * reciprocal - _centred(row[j], start, mean) * along

"""Weight standardisation of rows in stock torch, on two of its kernels for activations.

The form that is always there; ``harness.norm.rows`` is the compiled one of a CPU, and
``harness.norm.triton_rows`` that of a GPU. ``harness.norm.standardize`` chooses.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from harness.norm.standardize import Denominator

_BLOCK = 2**18
"""Weights that stock torch goes over at once on a CPU: a MiB, which stays in the cache."""


def standardize(rows: Tensor, denominator: Denominator) -> tuple[Tensor, Tensor]:
    """Standardise each row.

    Args:
        rows: ``(O, n)``, contiguous, float32 or float64.
        denominator: what a row's biased deviation is turned into.

    Returns:
        The rows, and their moments, ``(2, O)``: the means, less each row's first weight, and the
        biased deviations.
    """
    if (height := _height(rows)) >= len(rows):
        normalised, ratio, moments = _normalised(rows, denominator)
        return normalised.mul_(ratio), moments
    out, moments = torch.empty_like(rows), rows.new_empty(2, len(rows))
    blocks = zip(*(x.split(height) for x in (rows, out)), moments.split(height, 1), strict=True)
    for block, target, own in blocks:
        normalised, ratio, found = _normalised(block, denominator)
        torch.mul(normalised, ratio, out=target)
        own.copy_(found)
    return out, moments


def _height(rows: Tensor) -> int:
    """Return how many rows to go over at once, so that what is made on the way is small."""
    if rows.device.type != "cpu":
        return len(rows)
    return max(_BLOCK // rows.shape[1], 1)


def _normalised(rows: Tensor, denominator: Denominator) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``(O, n)`` with deviations of 1, by what to multiply each row, and the moments.

    On CPU group norm with a group a row is the fastest kernel that has both moments, several
    times faster than ``torch.var_mean``; on CUDA (not yet run) it has them in one launch.
    """
    num, n = rows.shape
    tiny = torch.finfo(rows.dtype).tiny  # no epsilon at all would make NaN of equal weights
    shifted = rows - rows.narrow(1, 0, 1)  # keeps the digits where the mean is large
    normalised, mean, rstd = torch.ops.aten.native_group_norm(
        shifted.view(1, num, n), None, None, 1, num, n, num, tiny
    )
    sigma = rstd.reciprocal_()
    sigma = sigma.masked_fill_(sigma < 2 * math.sqrt(tiny), 0.0)
    divisor = denominator.divisor(denominator.root(sigma))
    if denominator.scale != 1:
        divisor = divisor * denominator.scale
    ratio = sigma / divisor
    if not (denominator.inner or denominator.outer):
        ratio.masked_fill_(sigma == 0, 0.0)
    # The mean is that of the shifted row.
    return normalised.view(num, n), ratio.view(num, 1), torch.cat((mean, sigma))


def gradient(grad: Tensor, rows: Tensor, denominator: Denominator, moments: Tensor) -> Tensor:
    """Differentiate ``standardize``: one kernel, batch norm's with a channel a row.

    Args:
        grad: ``(O, n)``, contiguous: the gradient of the standardised rows.
        rows: ``(O, n)``, contiguous, as they were standardised.
        denominator: as they were standardised.
        moments: ``(2, O)``, as ``standardize`` returned them.

    Returns:
        The gradient of the rows, ``(O, n)``.
    """
    mean, sigma = moments
    root = denominator.root(sigma)
    divisor = denominator.divisor(root)
    # Batch norm subtracts (w - mean) * mean(g * (w - mean)) * rstd^2 and multiplies by
    # gamma * rstd, where the square is to be factor^2 / (root * divisor) and the product 1 / D.
    rstd = (root * divisor).rsqrt_().mul_(denominator.factor).masked_fill_(sigma == 0, 1.0)
    gamma = divisor * rstd
    if denominator.scale != 1:
        gamma.mul_(denominator.scale)
    gamma.reciprocal_()
    if (height := _height(rows)) >= len(rows):
        return _batch_norm_gradient(grad, rows, gamma, mean, rstd)
    out = torch.empty_like(rows)
    tensors = (out, grad, rows, gamma, mean, rstd)
    for target, *block in zip(*(tensor.split(height) for tensor in tensors), strict=True):
        target.copy_(_batch_norm_gradient(*block))
    return out


def _batch_norm_gradient(
    grad: Tensor, rows: Tensor, gamma: Tensor, mean: Tensor, rstd: Tensor
) -> Tensor:
    num, n = rows.shape
    out: Tensor = torch.ops.aten.native_batch_norm_backward(
        grad.view(1, num, n),
        (rows - rows.narrow(1, 0, 1)).view(1, num, n),
        gamma,
        None,
        None,
        mean,
        rstd,
        True,
        0.0,
        [True, False, False],
    )[0]
    return out.view(num, n)

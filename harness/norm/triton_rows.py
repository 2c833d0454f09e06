"""Weight standardisation of all layers in one launch forward and one backward, on a GPU.

A launch takes the processor longer than a small layer takes the GPU. Here a program is a row of any
layer: the addresses of all weights are in a table, and a second table says whose row is whose.
``harness.norm.window`` chooses between this and a layer at a time. Needs Triton.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from harness.norm.standardize import Denominator

_BLOCK = 1024
"""Weights of a row that are looked at together."""
_TYPES = {
    torch.float64: (tl.float64, tl.float64),
    torch.float32: (tl.float32, tl.float32),
    torch.bfloat16: (tl.bfloat16, tl.float32),
    torch.float16: (tl.float16, tl.float32),
}
"""Type of weights -> Triton's name of it, and of the numbers that are computed with."""


def standardize_together(
    weights: Sequence[Tensor], denominators: Sequence[Denominator]
) -> list[Tensor]:
    """Standardise the rows of many weights; one backward pass over all results is one launch.

    Args:
        weights: of one type and device, each ``(O, ...)`` with its rows one after the other in
            memory, in whatever order the weights of a row are.
        denominators: what a row's biased deviation is turned into, one for each weight.

    Returns:
        The standardised weights, in the shapes and memory formats of ``weights``.
    """
    layers = tuple(
        (len(weight), weight[0].numel(), denominator)
        for weight, denominator in zip(weights, denominators, strict=True)
    )
    results: tuple[Tensor, ...] = _Together.apply(_table(layers, weights[0].device), *weights)
    pairs = zip(results, weights, strict=True)
    return [result if weight.requires_grad else result.detach() for result, weight in pairs]


class _Together(torch.autograd.Function):
    """``harness.norm.standardize``'s kernel and gradient, of many weights."""

    @staticmethod
    def forward(ctx: Any, table: _Table, *weights: Tensor) -> tuple[Tensor, ...]:
        results = tuple(torch.empty_like(weight) for weight in weights)
        wide = torch.float64 if weights[0].dtype == torch.float64 else torch.float32
        moments = torch.empty(2, table.num_rows, dtype=wide, device=weights[0].device)
        table.launch(_forward, (weights, results), moments)
        ctx.save_for_backward(moments, *weights)
        ctx.table = table
        ctx.set_materialize_grads(False)  # of a layer that no forward used
        return results

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        moments, *weights = ctx.saved_tensors
        grads = [_in_order_of(g, w) for g, w in zip(upstream, weights, strict=True)]
        results = [None if grad is None else torch.empty_like(grad) for grad in grads]
        ctx.table.launch(_backward, (weights, grads, results), moments)
        return None, *results


def _in_order_of(grad: Tensor | None, weight: Tensor) -> Tensor | None:
    """Return a gradient in the memory format of its weight."""
    if grad is None or grad.stride() == weight.stride():
        return grad
    return torch.empty_like(weight).copy_(grad)


@dataclass(frozen=True)
class _Table:
    """What the kernels must know of the layers, on their device; the same in every step."""

    num_rows: int
    layer_of: Tensor
    """(rows,) int32."""
    first_row: Tensor
    """(layers,) int32."""
    fan_in: Tensor
    """(layers,) int32."""
    denominators: Tensor
    """(4, layers) float64: factor, inner, outer and scale."""

    def launch(
        self, kernel: Any, groups: Sequence[Sequence[Tensor | None]], moments: Tensor
    ) -> None:
        """Run a kernel over all rows; a tensor that is absent has the address 0."""
        device = moments.device
        present = next(tensor for tensor in groups[0] if tensor is not None)
        number, wide = _TYPES[present.dtype]
        addresses = torch.tensor(
            [[0 if tensor is None else tensor.data_ptr() for tensor in one] for one in groups],
            dtype=torch.int64,
            pin_memory=device.type == "cuda",
        ).to(device, non_blocking=True)
        with torch.cuda.device_of(moments):
            kernel[(self.num_rows,)](
                addresses,
                self.layer_of,
                self.first_row,
                self.fan_in,
                self.denominators,
                moments,
                len(self.fan_in),
                self.num_rows,
                number=number,
                wide=wide,
                block=_BLOCK,
                enable_fp_fusion=False,
            )


@lru_cache(maxsize=8)
def _table(layers: tuple[tuple[int, int, Denominator], ...], device: torch.device) -> _Table:
    rows, fan_ins, denominators = zip(*layers, strict=True)
    first = [0, *accumulate(rows)]
    constants = [(d.factor, d.inner, d.outer, d.scale) for d in denominators]
    numbers = torch.arange(len(layers), dtype=torch.int32)
    return _Table(
        num_rows=first[-1],
        layer_of=numbers.repeat_interleave(torch.tensor(rows)).to(device),
        first_row=torch.tensor(first[:-1], dtype=torch.int32).to(device),
        fan_in=torch.tensor(fan_ins, dtype=torch.int32).to(device),
        denominators=torch.tensor(constants, dtype=torch.float64).T.contiguous().to(device),
    )


# As the compiled loops of ``harness.norm.rows``, whose comments say why; a row is read several
# times, but from memory only once: it stays in the caches between its mean and its result.


@triton.jit
def _forward(
    addresses,
    layer_of,
    first_row,
    fan_in,
    denominators,
    moments,
    num_layers,
    num_rows,
    number: tl.constexpr,
    wide: tl.constexpr,
    block: tl.constexpr,
):
    row = tl.program_id(0)
    layer = tl.load(layer_of + row)
    size = tl.load(fan_in + layer)
    start = (row - tl.load(first_row + layer)).to(tl.int64) * size
    weight = tl.load(addresses + layer).to(tl.pointer_type(number)) + start
    out = tl.load(addresses + num_layers + layer).to(tl.pointer_type(number)) + start
    lanes = tl.arange(0, block)
    first = tl.load(weight).to(wide)
    sums = tl.zeros([block], wide)
    for begin in range(0, size, block):
        inside = begin + lanes < size
        shifted = tl.load(weight + begin + lanes, mask=inside, other=0).to(wide) - first
        sums += tl.where(inside, shifted, 0)
    mean = _divide(tl.sum(sums, 0), size.to(wide))
    sums = tl.zeros([block], wide)
    for begin in range(0, size, block):
        inside = begin + lanes < size
        shifted = tl.load(weight + begin + lanes, mask=inside, other=0).to(wide) - first
        sums += tl.where(inside, (shifted - mean) * (shifted - mean), 0)
    sigma = _root(_divide(tl.sum(sums, 0), size.to(wide)))
    _, root, outer, scale = _denominator(denominators, layer, num_layers, sigma)
    # A row of equal weights has no deviation, and exactly 0 as its result.
    reciprocal = tl.where(sigma == 0, sigma, _divide(sigma * 0 + 1, scale * (root + outer)))
    for begin in range(0, size, block):
        inside = begin + lanes < size
        shifted = tl.load(weight + begin + lanes, mask=inside, other=0).to(wide) - first
        tl.store(out + begin + lanes, ((shifted - mean) * reciprocal).to(number), mask=inside)
    tl.store(moments + row, mean)
    tl.store(moments + num_rows + row, sigma)


@triton.jit
def _backward(
    addresses,
    layer_of,
    first_row,
    fan_in,
    denominators,
    moments,
    num_layers,
    num_rows,
    number: tl.constexpr,
    wide: tl.constexpr,
    block: tl.constexpr,
):
    row = tl.program_id(0)
    layer = tl.load(layer_of + row)
    address = tl.load(addresses + num_layers + layer)
    if address != 0:  # else no forward used the layer
        size = tl.load(fan_in + layer)
        start = (row - tl.load(first_row + layer)).to(tl.int64) * size
        weight = tl.load(addresses + layer).to(tl.pointer_type(number)) + start
        upstream = address.to(tl.pointer_type(number)) + start
        out = tl.load(addresses + 2 * num_layers + layer).to(tl.pointer_type(number)) + start
        lanes = tl.arange(0, block)
        first = tl.load(weight).to(wide)
        mean, sigma = tl.load(moments + row), tl.load(moments + num_rows + row)
        sums = tl.zeros([block], wide)
        products = tl.zeros([block], wide)
        for begin in range(0, size, block):
            inside = begin + lanes < size
            centred = tl.load(weight + begin + lanes, mask=inside, other=0).to(wide) - first - mean
            grad = tl.load(upstream + begin + lanes, mask=inside, other=0).to(wide)
            sums += grad  # 0 outside
            products += grad * centred
        total = _divide(tl.sum(sums, 0), size.to(wide))
        factor, root, outer, scale = _denominator(denominators, layer, num_layers, sigma)
        squared = size.to(wide) * root * (root + outer)
        # 0 / 0 where the deviation is 0.
        along = _divide(tl.sum(products, 0) * factor * factor, tl.where(sigma == 0, 1, squared))
        along = tl.where(sigma == 0, sigma, along)
        reciprocal = _divide(sigma * 0 + 1, scale * (root + outer))
        for begin in range(0, size, block):
            inside = begin + lanes < size
            centred = tl.load(weight + begin + lanes, mask=inside, other=0).to(wide) - first - mean
            grad = tl.load(upstream + begin + lanes, mask=inside, other=0).to(wide)
            result = (grad - total - centred * along) * reciprocal
            tl.store(out + begin + lanes, result.to(number), mask=inside)


@triton.jit
def _denominator(denominators, layer, num_layers, sigma):
    factor = tl.load(denominators + layer).to(sigma.dtype)
    inner = tl.load(denominators + num_layers + layer).to(sigma.dtype)
    outer = tl.load(denominators + 2 * num_layers + layer).to(sigma.dtype)
    scale = tl.load(denominators + 3 * num_layers + layer).to(sigma.dtype)
    return factor, _root(factor * factor * sigma * sigma + inner), outer, scale


# In float32 the plain operators are approximations.


@triton.jit
def _divide(above, below):
    return tl.div_rn(above, below) if below.dtype == tl.float32 else above / below


@triton.jit
def _root(square):
    return tl.sqrt_rn(square) if square.dtype == tl.float32 else tl.sqrt(square)

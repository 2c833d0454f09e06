"""Weight standardisation itself: the formula, and one analytic kernel that is fast and exact.

Qiao, Wang, Liu, Shen and Yuille, "Weight Standardization" (2019), arXiv 1903.10520. The definitions
in use differ; ``harness.norm.catalogue.WS_VARIANTS`` names them.

In the comments, n is the fan-in: the number of weights that make one output value, which is
``C_in / groups * prod(kernel_size)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from harness import compiled
from harness.norm import torch_rows
from harness.norm.catalogue import WSVariant, ws_variant

COMPILED_FROM = 2**16
"""Weights in a layer from which the compiled loops pay for the second of importing numba."""


def standardize_weight(
    weight: Tensor,
    variant: str | WSVariant = "authors",
    *,
    out_dim: int = 0,
    groups: int = 1,
    fused: bool = True,
) -> Tensor:
    """Standardise each output filter of ``weight`` to mean 0 and deviation 1.

    Statistics are computed in float32 for narrower types (in float64 for float64), whatever the
    autocast, and the result is rounded once to the type of ``weight``; its memory format is kept.
    A filter with one weight, or with equal weights, has no deviation to divide by: its result is
    exactly 0 (the filter over eps where ``variant`` only divides), with a finite gradient (up to
    1 / eps: more than float16 may hold).

    Args:
        weight: ``(C_out, C_in / groups, *kernel)``, ``(C_out, C_in)``, or, with ``out_dim=1``, a
            transposed convolution's ``(C_in, C_out / groups, *kernel)``.
        variant: name in ``WS_VARIANTS``, or a definition of your own.
        out_dim: the axis that numbers the output filters.
        groups: groups of a transposed convolution, whose filters are numbered by both axes; an
            ordinary grouped convolution needs nothing, its first axis numbers them all.
        fused: whether the fast form may stand for the formula: the same to rounding, and it saves
            no second copy of the weight for the backward pass.

    Returns:
        The standardised weight, of the shape, type and memory format of ``weight``.

    Raises:
        UsageError: if ``variant`` is not the name of one.
        ValueError: if ``groups`` is given without ``out_dim=1``.
    """
    definition = ws_variant(variant) if isinstance(variant, str) else variant
    whole = definition.half is None
    standardise = _fused if fused and whole and _is_eager(weight) else _formula
    out_dim %= weight.dim()
    if groups == 1:
        return standardise(weight, definition, (out_dim,))
    if out_dim != 1:
        raise ValueError(f"groups={groups} belongs to a transposed convolution: give out_dim=1")
    per_group = torch.unflatten(weight, 0, (groups, -1))  # (G, C_in / G, C_out / G, *kernel)
    return standardise(per_group, definition, (0, 2)).flatten(0, 1)


@dataclass(frozen=True, slots=True)
class Denominator:
    """What a row is divided by: ``scale * (sqrt((factor * sigma)**2 + inner) + outer)``.

    ``sigma`` is the biased deviation. One of ``inner`` and ``outer`` is epsilon, the other 0.
    """

    factor: float
    inner: float
    outer: float
    scale: float

    @classmethod
    @cache
    def of(cls, variant: WSVariant, fan_in: int) -> Denominator:
        """Return that of ``variant`` for rows of ``fan_in`` weights."""
        # With n = 1 the deviation is 0, and the unbiased variance's 0 / 0 counts as 0.
        factor = math.sqrt(fan_in / max(fan_in - 1, 1)) if variant.unbiased else 1.0
        inner, outer = (variant.eps, 0.0) if variant.eps_inside_root else (0.0, variant.eps)
        return cls(factor, inner, outer, math.sqrt(fan_in) if variant.scaled else 1.0)

    def root(self, sigma: Tensor) -> Tensor:
        """Return ``sqrt((factor * sigma)**2 + inner)``."""
        if self.inner:
            return (sigma.square() * self.factor**2).add_(self.inner).sqrt_()
        return sigma * self.factor

    def divisor(self, root: Tensor) -> Tensor:
        """Return ``root + outer``, without the scale."""
        return root + self.outer if self.outer else root


def _formula(weight: Tensor, variant: WSVariant, filter_dims: tuple[int, ...]) -> Tensor:
    """Standardise ``weight`` over every axis but ``filter_dims``, as the definition says it."""
    inner = tuple(dim for dim in range(weight.dim()) if dim not in filter_dims)
    with _without_autocast(weight.device.type):
        wide = _widened(weight)
        # Subtracting a constant first changes neither result nor gradient, but makes filters of
        # equal weights exactly 0: their rounded mean would leave a residue of which the division
        # by a deviation near 0 makes noise.
        one = tuple(slice(0, 1) if dim in inner else slice(None) for dim in range(weight.dim()))
        centred = wide - wide.detach()[one]
        centred -= centred.mean(dim=inner, keepdim=True)
        if variant.half == "centred":
            return centred.to(weight.dtype)
        # The norm of the centred filter instead of torch.std or var_mean, which are slow on CPU.
        # Its gradient at 0 is defined as 0.
        length = torch.linalg.vector_norm(centred, dim=inner, keepdim=True)
        n = weight.numel() // length.numel()
        sigma = length / math.sqrt(max(n - variant.unbiased, 1))
        if variant.eps_inside_root:
            denominator = (sigma.square() + variant.eps).sqrt()
        else:
            denominator = sigma + variant.eps
        if variant.scaled:
            denominator = denominator * math.sqrt(n)
        numerator = wide if variant.half == "divided" else centred
        standardized: Tensor = numerator * denominator.reciprocal()
        return standardized.to(weight.dtype)


def _is_eager(weight: Tensor) -> bool:
    """Return whether ``weight`` holds numbers, and nothing but autograd is to follow them.

    Compilers and exporters fuse the formula themselves, and ``torch.func`` transforms it.
    """
    return (
        type(weight) in (Tensor, nn.Parameter)
        and weight.device.type in ("cpu", "cuda")
        and not torch.compiler.is_compiling()
        and torch._C._get_tracing_state() is None
        and not torch._C._are_functorch_transforms_active()
    )


def _fused(weight: Tensor, variant: WSVariant, filter_dims: tuple[int, ...]) -> Tensor:
    result: Tensor = _Standardize.apply(weight, variant, filter_dims)
    return result


class _Standardize(torch.autograd.Function):
    """The formula with its gradient written out; what it saves is two numbers a filter.

    With u = (w - mean) / sigma and the denominator D(sigma), the gradient of a row is
    ``(g - mean(g) - u * mean(g * u) * sigma * D' / D) / D``: that of a normalisation whose
    deviation is scaled, so that torch's kernels for normalised activations compute it.
    """

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, variant: WSVariant, filter_dims: tuple[int, ...]
    ) -> Tensor:
        out, moments = _standardized(weight, variant, filter_dims)
        ctx.save_for_backward(weight, moments)
        ctx.variant, ctx.filter_dims = variant, filter_dims
        return out

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, None, None]:
        weight, moments = ctx.saved_tensors
        (grad,) = upstream
        if torch.is_grad_enabled():  # create_graph: the formula knows its second derivative
            result = _formula(weight, ctx.variant, ctx.filter_dims)
            return (*torch.autograd.grad(result, weight, grad, create_graph=True), None, None)
        if _is_direct(weight, ctx.filter_dims) and grad.is_contiguous():
            return _gradient(grad, weight, ctx.variant, moments), None, None
        with _without_autocast(weight.device.type):
            layout = _Layout(weight, ctx.filter_dims)
            rows, grad = layout.rows(_widened(weight)), layout.rows(_widened(grad))
            out = _gradient(grad, rows, ctx.variant, moments)
            return layout.restore(out).to(weight.dtype), None, None


def standardize_alike(weights: Sequence[Tensor], variant: WSVariant) -> list[Tensor]:
    """Standardise small weights whose filters are of one length as the rows of one matrix.

    Each has the bits that it would have alone; what is saved is calls, which cost more than the
    work where a layer has a few thousand weights. In stock torch, whatever their number together.

    Args:
        weights: ``(O, ...)`` each, contiguous, of one type, device and fan-in.
        variant: a whole standardisation (``half`` is None).

    Returns:
        The standardised weights; one backward pass over all of them differentiates them together.
    """
    with _without_autocast(weights[0].device.type):
        results: tuple[Tensor, ...] = _Alike.apply(variant, *weights)
    pairs = zip(results, weights, strict=True)
    return [result if weight.requires_grad else result.detach() for result, weight in pairs]


class _Alike(torch.autograd.Function):
    """``_Standardize`` of several weights."""

    @staticmethod
    def forward(ctx: Any, variant: WSVariant, *weights: Tensor) -> tuple[Tensor, ...]:
        rows = _widened(torch.cat([weight.flatten(1) for weight in weights]))
        ctx.denominator = Denominator.of(variant, rows.shape[1])
        out, moments = torch_rows.standardize(rows, ctx.denominator)
        ctx.save_for_backward(moments, *weights)
        ctx.set_materialize_grads(False)  # of a layer that no forward used
        parts = out.to(weights[0].dtype).split([len(weight) for weight in weights])
        return tuple(_shaped_as(weight, part) for part, weight in zip(parts, weights, strict=True))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        moments, *weights = ctx.saved_tensors
        own = moments.split([len(weight) for weight in weights], dim=1)
        used = [(g, w, m) for g, w, m in zip(upstream, weights, own, strict=True) if g is not None]
        if not used:
            return None, *upstream
        with _without_autocast(weights[0].device.type):
            out = torch_rows.gradient(
                _widened(torch.cat([grad.flatten(1) for grad, _, _ in used])),
                _widened(torch.cat([weight.flatten(1) for _, weight, _ in used])),
                ctx.denominator,
                torch.cat([moment for _, _, moment in used], dim=1),
            ).to(weights[0].dtype)
        parts = iter(out.split([len(weight) for _, weight, _ in used]))
        pairs = zip(upstream, weights, strict=True)
        return None, *(None if g is None else _shaped_as(w, next(parts)) for g, w in pairs)


def recipe(tensor: Tensor) -> Callable[[], Tensor] | None:
    """Return what computes ``tensor`` again, with the same bits; None unless it came from here."""
    node: Any = tensor.grad_fn
    if getattr(node, "_forward_cls", None) is not _Standardize:
        return None
    return partial(_again, node)


def _again(node: Any) -> Tensor:
    weight, _ = node.saved_tensors
    with torch.no_grad():
        return _standardized(weight, node.variant, node.filter_dims)[0]


def _standardized(
    weight: Tensor, variant: WSVariant, filter_dims: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Return the standardised weight and the moments of its filters, ``(2, O)``.

    These are the mean, less the filter's first weight, and the biased deviation.
    """
    if _is_direct(weight, filter_dims):
        return _standardized_rows(weight, variant)
    with _without_autocast(weight.device.type):
        layout = _Layout(weight, filter_dims)
        out, moments = _standardized_rows(layout.rows(_widened(weight)), variant)
        return layout.restore(out).to(weight.dtype), moments


def _is_direct(weight: Tensor, filter_dims: tuple[int, ...]) -> bool:
    """Return whether the compiled loops can work on a weight as it lies in memory.

    What stands between them and it costs as much as they do, in the middle of a training step.
    """
    return filter_dims == (0,) and weight.is_contiguous() and _is_compiled(weight)


def _standardized_rows(rows: Tensor, variant: WSVariant) -> tuple[Tensor, Tensor]:
    denominator = Denominator.of(variant, rows.numel() // max(rows.size(0), 1))
    if _is_compiled(rows):
        from harness.norm import rows as compiled_rows  # imports numba

        return compiled_rows.standardize(rows, denominator)
    return torch_rows.standardize(rows, denominator)


def _gradient(grad: Tensor, rows: Tensor, variant: WSVariant, moments: Tensor) -> Tensor:
    denominator = Denominator.of(variant, rows.numel() // max(rows.size(0), 1))
    if _is_compiled(rows):
        from harness.norm import rows as compiled_rows

        return compiled_rows.gradient(grad, rows, denominator, moments)
    return torch_rows.gradient(grad, rows, denominator, moments)


class _Layout:
    """Views a weight as one row a filter, in its own order in memory, and back.

    The weights of a row may come in any order, so that channels_last needs no copy.
    """

    def __init__(self, weight: Tensor, filter_dims: tuple[int, ...]) -> None:
        self._like = weight
        self._plain = filter_dims == (0,) and weight.is_contiguous()
        if self._plain:
            return
        strides = weight.stride()
        inner = (dim for dim in range(weight.dim()) if dim not in filter_dims)
        self._order = (*filter_dims, *sorted(inner, key=lambda dim: -strides[dim]))
        self._shape = [weight.shape[dim] for dim in self._order]
        self._num = math.prod(weight.shape[dim] for dim in filter_dims)

    def rows(self, tensor: Tensor) -> Tensor:
        """Return ``tensor``, of the weight's shape, as ``(O, n)`` and contiguous."""
        if self._plain:
            return tensor.reshape(len(tensor), -1).contiguous()
        return tensor.permute(self._order).reshape(self._num, -1).contiguous()

    def restore(self, rows: Tensor) -> Tensor:
        """Return ``rows`` in the shape and memory format of the weight."""
        if self._plain:
            return _shaped_as(self._like, rows)
        back = sorted(range(len(self._order)), key=lambda place: self._order[place])
        tensor = rows.view(self._shape).permute(back)
        if tensor.stride() == self._like.stride():
            return tensor
        return torch.empty_like(self._like, dtype=rows.dtype).copy_(tensor)


def _shaped_as(weight: Tensor, rows: Tensor) -> Tensor:
    """Return ``rows`` as a contiguous weight; axes of one element may have any stride."""
    return rows.as_strided(weight.shape, weight.stride())


def _is_compiled(rows: Tensor) -> bool:
    return rows.numel() >= COMPILED_FROM and compiled.applies(rows)


def _widened(tensor: Tensor) -> Tensor:
    return tensor.float() if torch.finfo(tensor.dtype).bits < 32 else tensor


def _without_autocast(device_type: str) -> AbstractContextManager[object]:
    if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()

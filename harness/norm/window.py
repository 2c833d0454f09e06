"""When weights are standardised: once per optimiser step, or twice to save memory.

Within an accumulation window the raw weights do not change, so every forward may use the same
standardised weights. Gradients accumulate with respect to these, and one backward through the
standardisation ends the window: by linearity the sum that one backward per forward gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from harness.norm import together
from harness.norm.standardize import recipe
from harness.norm.weight_standardization import WeightStandardized


@contextmanager
def standardised_once(
    model: nn.Module, enabled: bool = True, *, forwards: int | None = None
) -> Iterator[None]:
    """Let every forward inside the block share one standardisation of each weight.

    The gradient of the raw weights is complete once the block has ended without an error. Layers
    are standardised together where that is faster (``harness.norm.together``).

    Args:
        model: a model with weight-standardised layers; without any, nothing happens.
        enabled: False leaves the layers to standardise in every forward.
        forwards: how many there will be; for one, layers that are alone standardise in it.
    """
    layers = [m for m in model.modules() if isinstance(m, WeightStandardized)] if enabled else []
    bundles, alone = together.bundles(layers)
    shared: list[_Pair] = []
    try:
        for bundle in bundles if forwards == 1 else [*bundles, *alone]:
            results = together.standardize(bundle)
            leaves = [one.detach().requires_grad_(one.requires_grad) for one in results]
            for layer, leaf in zip(bundle, leaves, strict=True):
                layer.shared = leaf
            shared.append((results, leaves))
        yield
        _backward(shared[: len(bundles)])
        for pair in shared[len(bundles) :]:  # so that the memory of a gradient serves the next
            _backward([pair])
    finally:
        for layer in layers:
            layer.__dict__.pop("shared", None)


_Pair = tuple[list[Tensor], list[Tensor]]
"""Standardised weights, and the same as leaves that gradients accumulate in."""


def _backward(shared: list[_Pair]) -> None:
    """Pass the gradients of the leaves, of those that have one, through the standardisation."""
    pairs = [pair for results, leaves in shared for pair in zip(results, leaves, strict=True)]
    used = [(result, leaf.grad) for result, leaf in pairs if leaf.grad is not None]
    for _, leaf in pairs:
        leaf.grad = None
    if used:
        results, gradients = zip(*used, strict=True)
        torch.autograd.backward(results, gradients)


def standardised_again(enabled: bool = True) -> AbstractContextManager[object]:
    """Keep no standardised weight for the backward pass, but standardise it anew there.

    A forward inside the block saves the raw weight, which exists anyway, and the same bits come out
    of it again. Without effect on weights that a window shares, that autocast narrows (then the
    narrow copy is what is kept) or that the plain form standardises.

    Args:
        enabled: False changes nothing.
    """
    if not enabled:
        return nullcontext()
    return torch.autograd.graph.saved_tensors_hooks(_forget, _recall)


def _forget(tensor: Tensor) -> Tensor | Callable[[], Tensor]:
    found = recipe(tensor)
    return tensor if found is None else found


def _recall(kept: Tensor | Callable[[], Tensor]) -> Tensor:
    return kept if isinstance(kept, Tensor) else kept()

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
def standardised_once(model: nn.Module, enabled: bool = True) -> Iterator[None]:
    """Let every forward inside the block share one standardisation of each weight.

    The gradient of the raw weights is complete once the block has ended without an error. On CUDA,
    all layers are standardised together where they can be (``harness.norm.together``).

    Args:
        model: a model with weight-standardised layers; without any, nothing happens.
        enabled: False leaves the layers to standardise in every forward.
    """
    layers = [m for m in model.modules() if isinstance(m, WeightStandardized)] if enabled else []
    # Else one by one, so that the memory of each gradient serves the next.
    bundles = together.bundles(layers)
    shared = []
    try:
        for bundle in bundles:
            results = together.standardize(bundle)
            leaves = [one.detach().requires_grad_(one.requires_grad) for one in results]
            for layer, leaf in zip(bundle, leaves, strict=True):
                layer.shared = leaf
            shared.append((results, leaves))
        yield
        for results, leaves in shared:
            _backward(results, leaves)
    finally:
        for layer in layers:
            layer.__dict__.pop("shared", None)


def _backward(results: list[Tensor], leaves: list[Tensor]) -> None:
    """Pass the gradients of the leaves, of those that have one, through the standardisation."""
    used = [place for place, leaf in enumerate(leaves) if leaf.grad is not None]
    gradients = [leaves[place].grad for place in used]
    for leaf in leaves:
        leaf.grad = None
    if used:
        torch.autograd.backward([results[place] for place in used], gradients)


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

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

from harness.norm.standardize import recipe
from harness.norm.weight_standardization import WeightStandardized


@contextmanager
def standardised_once(model: nn.Module, enabled: bool = True) -> Iterator[None]:
    """Let every forward inside the block share one standardisation of each weight.

    The gradient of the raw weights is complete once the block has ended without an error.

    Args:
        model: a model with weight-standardised layers; without any, nothing happens.
        enabled: False leaves the layers to standardise in every forward.
    """
    layers = [m for m in model.modules() if isinstance(m, WeightStandardized)] if enabled else []
    shared = []
    try:
        for layer in layers:
            standardised = layer.standardized_weight()
            layer.shared = standardised.detach().requires_grad_(standardised.requires_grad)
            shared.append((standardised, layer.shared))
        yield
        # One by one, so that the memory of each gradient serves the next.
        for standardised, leaf in shared:
            gradient, leaf.grad = leaf.grad, None
            if gradient is not None:
                standardised.backward(gradient)
    finally:
        for layer in layers:
            layer.__dict__.pop("shared", None)


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

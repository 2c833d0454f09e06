"""Weight standardisation once per optimiser step instead of once per forward.

Within an accumulation window the raw weights do not change, so every forward may use the same
standardised weights. Gradients accumulate with respect to these, and one backward through the
standardisation ends the window: by linearity the sum that one backward per forward gives.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

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
        used = [(whole, leaf) for whole, leaf in shared if leaf.grad is not None]
        torch.autograd.backward([whole for whole, _ in used], [leaf.grad for _, leaf in used])
    finally:
        for layer in layers:
            layer.__dict__.pop("shared", None)

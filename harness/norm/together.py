"""Which layers of a window are standardised together: on CUDA all that Triton's kernels fit.

On a CPU a layer at a time is faster, since its result is still in the cache when it is used; on a
GPU launches cost more than small layers, so that one for all of them pays. Where Triton is absent,
or cannot compile here, layers are standardised one by one with torch's own kernels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from harness.norm.catalogue import ws_variant
from harness.norm.standardize import Denominator
from harness.norm.weight_standardization import WeightStandardized

_DEVICES = ("cuda",)
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def bundles(layers: Sequence[WeightStandardized]) -> list[list[WeightStandardized]]:
    """Split layers into those that are standardised together: each alone unless the kernels fit."""
    fitting = defaultdict(list)
    alone = []
    for layer in layers:
        if fits(layer):
            fitting[layer.weight.device, layer.weight.dtype].append(layer)
        else:
            alone.append([layer])
    return [*alone, *fitting.values()]


def standardize(layers: Sequence[WeightStandardized]) -> list[Tensor]:
    """Return the standardised weights of one bundle."""
    if not fits(layers[0]):
        return [layer.standardized_weight() for layer in layers]
    from harness.norm.triton_rows import standardize_together

    weights = [layer.weight for layer in layers]
    variants = [ws_variant(layer.ws) for layer in layers]
    fan_ins = [weight[0].numel() for weight in weights]
    denominators = [Denominator.of(v, n) for v, n in zip(variants, fan_ins, strict=True)]
    return standardize_together(weights, denominators)


def fits(layer: WeightStandardized) -> bool:
    """Return whether a layer can be standardised together with others."""
    weight = layer.weight
    if weight.device.type not in _DEVICES or weight.dtype not in _DTYPES or not layer.fused:
        return False
    own = type(layer).standardized_weight is WeightStandardized.standardized_weight
    plain = type(weight) in (Tensor, nn.Parameter) and weight.numel() > 0
    whole = ws_variant(layer.ws).half is None
    return own and plain and whole and _by_filters(weight) and obstacle(weight.device) is None


def _by_filters(weight: Tensor) -> bool:
    """Return whether the filters lie one after the other in memory, without gaps."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    own = formats.get(weight.dim(), torch.contiguous_format)
    return weight.is_contiguous() or weight.is_contiguous(memory_format=own)


@cache
def obstacle(device: torch.device) -> str | None:
    """Return why Triton's kernels cannot run on ``device``, or None; tried once, on one weight."""
    if find_spec("triton") is None:
        return "triton is not installed"
    try:
        from harness.norm.triton_rows import standardize_together

        weight = torch.tensor([[1.0, 1.0, -1.0, -1.0]], device=device, requires_grad=True)
        with torch.enable_grad():
            (result,) = standardize_together([weight], [Denominator(1.0, 0.0, 0.0, 1.0)])
        result.backward(torch.tensor([[4.0, 0.0, 0.0, 0.0]], device=device))
        assert weight.grad is not None
        found = [*result.tolist(), *weight.grad.tolist()]
    except Exception as error:  # of a compiler, a driver, or an architecture that is too old
        return f"triton cannot run here ({' '.join(str(error).split())[:200]})"
    if found != [[1.0, 1.0, -1.0, -1.0], [2.0, -2.0, 0.0, 0.0]]:
        return "triton computes wrong numbers here"
    return None


def remark(model: nn.Module) -> str | None:
    """Say how the layers of a model that is on CUDA are standardised; None without any."""
    layers = [module for module in model.modules() if isinstance(module, WeightStandardized)]
    layers = [layer for layer in layers if layer.weight.device.type in _DEVICES]
    if not layers:
        return None
    fitting = sum(map(fits, layers))
    why = obstacle(layers[0].weight.device)
    if why or not fitting:
        return f"weights are standardised layer by layer, with torch's kernels: {why or 'no fit'}"
    rest = f"; {len(layers) - fitting} one by one" if fitting < len(layers) else ""
    return f"weights of {fitting} layers are standardised together, by triton{rest}"

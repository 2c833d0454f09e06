"""Which layers of a window are standardised together, where calls cost more than the work.

On CUDA these are all that Triton's kernels fit, since a launch costs more than a small layer; where
Triton is absent, or cannot compile here, layers are standardised one by one with torch's kernels.
On a CPU they are small layers with filters of one length, a few at a time; a large one is faster
alone, just before its use, when its result is still in the cache.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from harness.norm.catalogue import ws_variant
from harness.norm.standardize import COMPILED_FROM, Denominator, standardize_alike
from harness.norm.weight_standardization import WeightStandardized

_DEVICES = ("cuda",)
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


Bundle = list[WeightStandardized]


def bundles(layers: Sequence[WeightStandardized]) -> tuple[list[Bundle], list[Bundle]]:
    """Split layers into bundles that are standardised together, and those that are better alone."""
    fitting, alike = defaultdict(list), defaultdict(list)
    alone = []
    for layer in layers:
        weight = layer.weight
        if fits(layer):
            fitting[weight.device, weight.dtype].append(layer)
        elif _is_small(layer):
            alike[weight.dtype, layer.ws, weight[0].numel()].append(layer)
        else:
            alone.append([layer])
    small = (part for own in alike.values() for part in _small(own))
    return [*fitting.values(), *small], alone


def standardize(layers: Sequence[WeightStandardized]) -> list[Tensor]:
    """Return the standardised weights of one bundle."""
    weights = [layer.weight for layer in layers]
    variants = [ws_variant(layer.ws) for layer in layers]
    if fits(layers[0]):
        from harness.norm.triton_rows import standardize_together

        fan_ins = [weight[0].numel() for weight in weights]
        denominators = [Denominator.of(v, n) for v, n in zip(variants, fan_ins, strict=True)]
        return standardize_together(weights, denominators)
    if _is_small(layers[0]):
        return standardize_alike(weights, variants[0])
    return [layer.standardized_weight() for layer in layers]


def _small(layers: Sequence[WeightStandardized]) -> list[Bundle]:
    """Split layers in order, so that what is standardised at once stays in the cache."""
    found: list[Bundle] = []
    room = 0
    for layer in layers:
        room -= layer.weight.numel()
        if room < 0:
            found.append([])
            room = COMPILED_FROM - layer.weight.numel()
        found[-1].append(layer)
    return found


def _is_small(layer: WeightStandardized) -> bool:
    """Return whether a layer is on a CPU, and too small for compiled loops."""
    weight = layer.weight
    if weight.device.type != "cpu" or not 0 < weight.numel() < COMPILED_FROM:
        return False
    return _is_whole(layer) and weight.dtype in _DTYPES and weight.is_contiguous()


def fits(layer: WeightStandardized) -> bool:
    """Return whether Triton's kernels can standardise a layer together with others."""
    weight = layer.weight
    if weight.device.type not in _DEVICES or weight.dtype not in _DTYPES or not weight.numel():
        return False
    return _is_whole(layer) and _by_filters(weight) and obstacle(weight.device) is None


def _is_whole(layer: WeightStandardized) -> bool:
    """Return whether a layer standardises its filters in the fast form, and nothing else."""
    own = type(layer).standardized_weight is WeightStandardized.standardized_weight
    plain = type(layer.weight) in (Tensor, nn.Parameter)
    return layer.fused and own and plain and ws_variant(layer.ws).half is None


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

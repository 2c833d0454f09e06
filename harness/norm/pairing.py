"""Which layer feeds which batch norm, read from the module tree before anything is replaced.

The rule is structural. A convolution or Linear feeds a batch norm if it owns it as its child
``norm`` (detectron2's wrapper), or if it is registered in the same parent just before it, with as
many output channels; a ``Sequential`` just before stands for its last module (deep stems). A batch
norm without such a layer, as in pre-activation networks, is an orphan. The tests hold the result
against a trace of tensors. What no tree shows is arithmetic between modules: a batch norm of a sum
is paired with the layer registered just before it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm


@dataclass(slots=True)
class Site:
    """A batch norm of the stock model; ``kind`` is its class name before surgery."""

    path: str
    module: _BatchNorm
    kind: str
    places: list[tuple[nn.Module, str]] = field(default_factory=list)
    """Every parent and name under which it is registered."""
    fed_by: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Layer:
    """A convolution or Linear of the stock model; ``kind`` is its class name before surgery."""

    path: str
    module: _ConvNd | nn.Linear
    kind: str
    feeds: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Pairing:
    """Batch norms, layers with weights, and norms of other kinds, by path."""

    sites: dict[str, Site]
    layers: dict[str, Layer]
    others: dict[str, nn.Module]

    def dims(self, site: Site) -> int:
        """Return the number of spatial axes at ``site``."""
        for dims, kind in enumerate((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), start=1):
            if isinstance(site.module, kind):
                return dims
        # SyncBatchNorm and its like take any number of axes: ask the layer that feeds it.
        for path in site.fed_by:
            module = self.layers[path].module
            return len(module.kernel_size) if isinstance(module, _ConvNd) else 1
        return 2


def pair(model: nn.Module) -> Pairing:
    """Find every batch norm and every layer with weights, and who feeds whom.

    Args:
        model: a network that still has its batch norms.

    Returns:
        The pairing by path. A module registered in several places is listed once, under its first
        path, with the partners of all places.
    """
    sites: dict[str, Site] = {}
    layers: dict[str, Layer] = {}
    others: dict[str, nn.Module] = {}
    paths: dict[nn.Module, str] = {}
    for path, module in model.named_modules():
        paths[module] = path
        if isinstance(module, _BatchNorm):
            sites[path] = Site(path, module, type(module).__name__)
        elif isinstance(module, _ConvNd | nn.Linear):
            layers[path] = Layer(path, module, type(module).__name__)
        elif _is_other_norm(module):
            others[path] = module
    pairing = Pairing(sites, layers, others)
    for parent in paths:
        _pair_children(parent, paths, pairing)
    return pairing


def out_channels(layer: _ConvNd | nn.Linear) -> int:
    """Return the number of output channels."""
    return layer.out_channels if isinstance(layer, _ConvNd) else layer.out_features


def fan_in(layer: _ConvNd | nn.Linear) -> int:
    """Return the number of weights that make one output value."""
    return layer.weight.numel() // out_channels(layer)


def _pair_children(parent: nn.Module, paths: dict[nn.Module, str], pairing: Pairing) -> None:
    before: nn.Module | None = None
    for name, child in parent._modules.items():
        if isinstance(child, _BatchNorm):
            site = pairing.sites[paths[child]]
            site.places.append((parent, name))
            feeder = _feeder(parent, name, before, child)
            if feeder is not None and site.path not in pairing.layers[paths[feeder]].feeds:
                pairing.layers[paths[feeder]].feeds.append(site.path)
                site.fed_by.append(paths[feeder])
        before = _last(child)


def _last(module: nn.Module | None) -> nn.Module | None:
    """Return the module that computes the output of ``module``, looking into ``Sequential``."""
    while isinstance(module, nn.Sequential) and len(module):
        module = module[-1]
    return module


def _feeder(
    parent: nn.Module, name: str, before: nn.Module | None, norm: _BatchNorm
) -> _ConvNd | nn.Linear | None:
    if name == "norm" and isinstance(parent, _ConvNd | nn.Linear):
        return parent
    if not isinstance(before, _ConvNd | nn.Linear) or out_channels(before) != norm.num_features:
        return None
    owns_its_norm = isinstance(before._modules.get("norm"), _BatchNorm)
    return None if owns_its_norm else before


def _is_other_norm(module: nn.Module) -> bool:
    if isinstance(module, nn.GroupNorm | nn.LayerNorm | _InstanceNorm):
        return True
    # Libraries' own frozen, layer and other norms are no subclasses of torch's, but leaves.
    return "Norm" in type(module).__name__ and not any(module.children())

"""What surgery will do to each module of a stock model, and what it must refuse."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrize import is_parametrized

from harness.errors import AuditError, UsageError
from harness.norm.catalogue import NormLike, norm_info, ws_variant
from harness.norm.pairing import Layer, Pairing, Site, fan_in, pair
from harness.norm.weight_standardization import WS_CLASSES

Classes = Mapping[type[nn.Module], type[nn.Module]]

_STOCK_FORWARDS = {
    kind.forward for kind in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
}
_KNOWN_LIBRARIES = ("torch", "detectron2", "timm")
"""Their subclasses of batch norm compute a batch norm, and then at most call their children."""
_NUM_SHOWN = 3
"""Problems shown in one error message."""


@dataclass(frozen=True, slots=True)
class SiteDecision:
    """Whether a batch norm is replaced, why if there is something to say, and what is wrong."""

    replace: bool
    why: str = ""
    problem: str = ""


@dataclass(frozen=True, slots=True)
class LayerDecision:
    """The standardised class a layer becomes, if any; why; and what is wrong in strict mode."""

    twin: type[nn.Module] | None = None
    why: str = ""
    problem: str = ""


@dataclass(frozen=True, slots=True)
class SurgeryPlan:
    """What is to be done to a model; nothing has been done yet."""

    norm: NormLike
    pairing: Pairing
    sites: Mapping[str, SiteDecision]
    layers: Mapping[str, LayerDecision]

    @property
    def targets(self) -> dict[str, Site]:
        """Return the batch norms to replace, by path."""
        return {path: s for path, s in self.pairing.sites.items() if self.sites[path].replace}

    def problems(self, model: nn.Module) -> list[str]:
        """Return what strict mode refuses, each in one sentence."""
        sites = [decision.problem for decision in self.sites.values()]
        layers = [decision.problem for decision in self.layers.values()]
        missed = missed_batch_norms(model, self.pairing)
        return [problem for problem in missed + sites + layers if problem]


def plan_surgery(
    model: nn.Module, norm: NormLike, bare: Sequence[str], ws_classes: Classes, prefix: str | None
) -> SurgeryPlan:
    """Pair the layers of ``model`` with its batch norms and decide on each; changes nothing.

    Raises:
        AuditError: if the groups do not divide the channels of a site.
        UsageError: if there is no such norm, variant or scope.
    """
    info = norm_info(norm.layer)
    if norm.ws is not None:
        ws_variant(norm.ws)
    pairing = pair(model)
    backbone = backbone_of(norm, prefix, pairing)
    twins = WS_CLASSES | dict(ws_classes)
    plan = SurgeryPlan(
        norm,
        pairing,
        {path: decide_site(site) for path, site in pairing.sites.items()},
        {
            path: decide_layer(layer, norm, bare, twins, backbone)
            for path, layer in pairing.layers.items()
        },
    )
    if info.uses_groups:
        widths = {path: site.module.num_features for path, site in plan.targets.items()}
        check_groups(widths, norm.groups)
    return plan


def decide_site(site: Site) -> SiteDecision:
    """Decide on one batch norm, from its class and what feeds it."""
    kind = type(site.module)
    if kind.__module__.partition(".")[0] not in _KNOWN_LIBRARIES and (
        kind.forward not in _STOCK_FORWARDS
    ):
        why = f"class {kind.__name__} overrides forward"
        return SiteDecision(False, why, f"{site.path}: {why}, so no norm can stand for it")
    if not site.fed_by:
        problem = f"{site.path} ({kind.__name__}) is an orphan: no layer just before feeds it"
        return SiteDecision(True, "orphan: no layer just before feeds it", problem)
    return SiteDecision(True)


def decide_layer(
    layer: Layer, norm: NormLike, bare: Sequence[str], twins: Classes, backbone: str | None
) -> LayerDecision:
    """Decide on one layer, from its class, what follows it and where it is."""
    kind = type(layer.module)
    name = f"{layer.path} ({kind.__name__})"
    pattern = next((pattern for pattern in bare if fnmatchcase(layer.path, pattern)), None)
    if pattern is not None:
        problem = f"{name} is declared bare by {pattern!r}, but {', '.join(layer.feeds)} follows it"
        return LayerDecision(None, "declared bare", problem if layer.feeds else "")
    if not layer.feeds:
        problem = f"{name} is not followed by a norm and not declared bare"
        return LayerDecision(None, "no norm follows", problem)
    if kind in twins.values():
        problem = f"{name} is standardised already: build the stock model with plain layers"
        return LayerDecision(kind if norm.ws else None, "standardised already", problem)
    if norm.ws is None:
        return LayerDecision(None, "no weight standardisation asked for")
    if backbone is not None and not _inside(layer.path, backbone):
        return LayerDecision(None, "scope: outside the backbone")
    twin = twin_of(layer.module, twins)
    if twin is None:
        why = f"class {kind.__name__} computes its own way"
        return LayerDecision(None, why, f"{layer.path}: {why}: give its twin in ws_classes")
    return LayerDecision(
        twin, "fan-in 1: its weights become 0" if fan_in(layer.module) == 1 else ""
    )


def twin_of(module: nn.Module, twins: Classes) -> type[nn.Module] | None:
    """Return the standardised class that ``module`` may become; None if that would change more.

    A subclass of torch's may, if it inherits what computes: ``forward`` and what that calls.
    """
    kind = type(module)
    if kind in twins:
        return twins[kind]
    if is_parametrized(module):
        return None
    for stock, twin in WS_CLASSES.items():
        if issubclass(kind, stock) and all(
            getattr(kind, name) is getattr(stock, name)
            for name in ("forward", "_conv_forward")
            if hasattr(stock, name)
        ):
            return twin
    return None


def backbone_of(norm: NormLike, prefix: str | None, pairing: Pairing) -> str | None:
    """Return the path to which ``norm.scope`` confines standardisation; None for no limit.

    Raises:
        UsageError: if the scope is unknown, or there is no such backbone.
    """
    if norm.scope == "followed_by_norm":
        return None
    if norm.scope != "backbone":
        raise UsageError(f"norm.scope={norm.scope!r}: must be followed_by_norm or backbone")
    if prefix is None or not any(_inside(path, prefix) for path in pairing.layers):
        raise UsageError(f"norm.scope=backbone: the model has no layers in a backbone {prefix!r}")
    return prefix


def missed_batch_norms(model: nn.Module, pairing: Pairing) -> list[str]:
    """Return the problems with batch norms that surgery cannot find or does not know."""
    problems = [
        f"{path} ({type(module).__name__}) is not torch's batch norm: build the stock model with "
        "trainable batch norm (detectron2: FREEZE_AT 0)"
        for path, module in pairing.others.items()
        if "BatchNorm" in type(module).__name__
    ]
    if not pairing.sites:
        problems.append(f"{type(model).__name__} has no batch norm to replace")
    sites = {site.module for site in pairing.sites.values()}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            # What is kept in a plain list is called, but not registered: it would be left over.
            if isinstance(value, list | tuple) and any(
                isinstance(item, _BatchNorm) and item in sites for item in value
            ):
                problems.append(f"the list {name!r} of {path or 'the model'} keeps batch norms")
    return problems


def check_groups(widths: Mapping[str, int], groups: int) -> None:
    """Check that ``groups`` divides the channels of every site.

    Args:
        widths: channels by path.
        groups: number of channel groups.

    Raises:
        AuditError: naming the first site where it does not, and the nearest legal numbers.
    """
    for path, width in widths.items():
        if width % groups:
            divisors = [count for count in range(1, width + 1) if width % count == 0]
            below = [count for count in divisors if count < groups][-1:]
            above = [count for count in divisors if count > groups][:1]
            shared = math.gcd(*widths.values())
            everywhere = max(c for c in range(1, groups + 1) if shared % c == 0)
            raise AuditError(
                f"{path} has {width} channels, which {groups} groups do not divide; nearest "
                f"legal numbers of groups there: {', '.join(map(str, below + above))}; dividing "
                f"the channels of every site: {everywhere}"
            )


def refuse(problems: Sequence[str]) -> None:
    """Raise ``problems``, if there are any.

    Raises:
        AuditError: naming the first few and the number of the rest.
    """
    if problems:
        more = len(problems) - _NUM_SHOWN
        rest = f"; and {more} more" if more > 0 else ""
        raise AuditError("; ".join(problems[:_NUM_SHOWN]) + rest)


def _inside(path: str, prefix: str) -> bool:
    return prefix == "" or path == prefix or path.startswith(f"{prefix}.")

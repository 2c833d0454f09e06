"""Puts one norm in place of every batch norm of a model, and standardises the layers before them.

All decisions are made and checked before the first change, so a refused model is untouched.
Parameter names never change, so pretrained files of the stock model load.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from harness.errors import AuditError, UsageError
from harness.norm.audit import AuditRow, NormAudit, Role, is_trainable
from harness.norm.catalogue import (
    NormChoice,
    NormInfo,
    NormLike,
    load_factory,
    norm_info,
    parse_norm,
)
from harness.norm.decisions import Classes, LayerDecision, SurgeryPlan, plan_surgery, refuse
from harness.norm.layers import NormFactory
from harness.norm.pairing import Layer, Site, fan_in


def apply_norm(
    model: nn.Module,
    norm: NormLike,
    *,
    bare: Sequence[str] = (),
    ws_classes: Classes | None = None,
    standardise_prefix: str | None = None,
    strict: bool = True,
) -> NormAudit:
    """Replace every batch norm of ``model`` in place, and standardise the layers that feed them.

    Gamma and beta are copied; type, device, mode and ``requires_grad`` are kept.

    Args:
        model: the stock model, with batch norm wherever the recipe normalises, not wrapped.
        norm: the choice: a ``NormChoice``, or the spec's ``norm`` section.
        bare: ``fnmatch`` patterns on the paths of layers that no norm follows by the recipe.
        ws_classes: standardised twins of layer classes that compute their own way.
        standardise_prefix: path of the backbone; with ``scope="backbone"`` layers elsewhere keep
            their weights as they are.
        strict: whether whatever the switch cannot vouch for is an error. Without it such modules
            are left alone and the audit says so.

    Returns:
        One row for every norm, convolution and Linear.

    Raises:
        AuditError: if the groups do not divide the channels of a site, or the model is wrapped; in
            strict mode also for a batch norm that no layer feeds, a layer that is neither followed
            by a norm nor declared bare (or is both), a class that computes its own way, a batch
            norm left over, or a changed parameter name.
        UsageError: if there is no such norm, variant or scope.
    """
    _refuse_wrapped(model)
    plan = plan_surgery(model, norm, bare, ws_classes or {}, standardise_prefix)
    if strict:
        refuse(plan.problems(model))
    names = _parameter_names(model)
    norms = _build(plan)
    for path, new in norms.items():
        for parent, name in plan.targets[path].places:
            setattr(parent, name, new)
    _retype(plan)
    if strict:
        _verify(model, names, norm_info(norm.layer), set(norms.values()))
    return _audit(model, plan)


def convert(
    model: nn.Module,
    name: str,
    *,
    groups: int = 32,
    ws: str | None = None,
    stat_batch: int | None = None,
    strict: bool = False,
) -> NormAudit:
    """Change the norms of any model in place, e.g. ``convert(resnet50(), "gn_ws")``.

    Args:
        model: a model with batch norm: torchvision's, timm's or your own.
        name: ``<layer>[_ws]``; ``harness.norm.catalogue`` lists them.
        groups: channel groups, for the norms that use them.
        ws: variant of weight standardisation, instead of the one that ``_ws`` stands for.
        stat_batch: for ``ghost_bn``, the samples that each batch statistic sees.
        strict: refuse what cannot be vouched for, instead of leaving it alone.

    Returns:
        What happened to each layer and why.

    Raises:
        UsageError: if there is no such norm or variant, or ``stat_batch`` is missing or of no use.
        AuditError: as ``apply_norm``.
    """
    parsed = parse_norm(name)
    layer = parsed["layer"]
    if stat_batch is not None and (norm_info(layer).short_for != "ghost" or stat_batch < 1):
        raise UsageError(f"stat_batch={stat_batch}: needs ghost_bn and a number of samples")
    choice = NormChoice(layer, groups=groups, ws=ws or parsed["ws"], stat_batch=stat_batch)
    audit = apply_norm(model, choice, strict=strict)
    if not audit.num_norm_sites:
        warnings.warn(f"{type(model).__name__} has no batch norm: left as it was", stacklevel=2)
    return audit


@dataclass(frozen=True, slots=True)
class _CallChildren:
    """Forward hook that calls children of a norm after it: timm fuses its activation so."""

    names: tuple[str, ...]

    def __call__(self, module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        for name in self.names:
            output = module.get_submodule(name)(output)
        return output


def _refuse_wrapped(model: nn.Module) -> None:
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    if isinstance(model, wrappers) or hasattr(model, "_orig_mod"):
        raise AuditError(
            f"cannot change the norms of a wrapped model ({type(model).__name__}): do it before "
            "DistributedDataParallel, DataParallel or torch.compile"
        )
    if isinstance(model, _BatchNorm):
        raise AuditError("the model is itself a batch norm: nothing holds it to replace it in")


def _build(plan: SurgeryPlan) -> dict[str, nn.Module]:
    """Build what replaces each batch norm, by path, without touching the model."""
    info = norm_info(plan.norm.layer)
    factory: NormFactory = load_factory(info)
    if info.short_for == "ghost":
        factory = partial(factory, stat_batch=getattr(plan.norm, "stat_batch", None))
    if info.uses_groups and getattr(plan.norm, "interleaved", False):
        if not info.interleaves:
            raise UsageError(f"norm.interleaved=true is for gn, {info.name} has runs of channels")
        factory = partial(factory, interleaved=True)
    norms = {}
    for path, site in plan.targets.items():
        dims = plan.pairing.dims(site)
        norms[path] = _adopt(factory(site.module, dims=dims, groups=plan.norm.groups), site.module)
    return norms


def _adopt(new: nn.Module, bn: _BatchNorm) -> nn.Module:
    """Give ``new`` the gamma, beta, type, device, mode and children of ``bn``."""
    if new is bn:
        return new
    like = bn.weight if bn.weight is not None else bn.running_mean
    if like is not None:
        new.to(device=like.device, dtype=like.dtype)
    for name in ("weight", "bias"):
        old: nn.Parameter | None = getattr(bn, name)
        value: Tensor | None = getattr(new, name, None)
        if value is None:
            continue
        if old is None:
            setattr(new, name, None)  # torch's batch norm may have gamma without beta
            continue
        with torch.no_grad():
            value.copy_(old)
        if isinstance(value, nn.Parameter):
            value.requires_grad_(old.requires_grad)
    children = dict(bn.named_children())
    for name, child in children.items():
        new.add_module(name, child)
    if children:
        new.register_forward_hook(_CallChildren(tuple(children)))
    return new.train(bn.training)


def _retype(plan: SurgeryPlan) -> None:
    for path, decision in plan.layers.items():
        if decision.twin is not None:
            module: nn.Module = plan.pairing.layers[path].module
            module.__class__ = decision.twin
            module.__dict__["ws"] = plan.norm.ws


def _parameter_names(model: nn.Module) -> set[str]:
    return {name for name, _ in model.named_parameters(remove_duplicate=False)}


def _verify(model: nn.Module, names: set[str], info: NormInfo, new_norms: set[nn.Module]) -> None:
    """Check what surgery promises of its result.

    Raises:
        AuditError: for a batch norm left over, or a changed parameter name.
    """
    allowed = new_norms
    if info.uses_batch_norm:
        allowed = {inner for norm in new_norms for inner in norm.modules()}
    problems = [
        f"{path} is a batch norm left over"
        for path, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module not in allowed
    ]
    now = _parameter_names(model)
    # A parameter may have become a buffer of the same name (frozen_bn).
    gone = names - now - {name for name, _ in model.named_buffers(remove_duplicate=False)}
    fresh = {
        name for name in now - names if not _declared(name, info.own_parameters, model, new_norms)
    }
    problems += [f"the parameter {name} is gone" for name in sorted(gone)]
    problems += [f"the parameter {name} is new" for name in sorted(fresh)]
    refuse(problems)


def _declared(name: str, own: Sequence[str], model: nn.Module, norms: set[nn.Module]) -> bool:
    """Return whether the parameter ``name`` is one that a new norm declares to add."""
    parents = (name.removesuffix(f".{one}") for one in own if name.endswith(f".{one}"))
    return any(model.get_submodule(parent) in norms for parent in parents)


def _audit(model: nn.Module, plan: SurgeryPlan) -> NormAudit:
    """Write one row for every norm and layer, in the order of the model's modules."""
    rows = []
    for path, module in model.named_modules():
        if path in plan.pairing.sites:
            rows.append(_site_row(plan.pairing.sites[path], module, plan))
        elif path in plan.pairing.layers:
            rows.append(_layer_row(plan.pairing.layers[path], module, plan.layers[path]))
        elif path in plan.pairing.others:
            row = _row(path, type(module).__name__, "other", module)
            rows.append(replace(row, why="not a batch norm of the stock model"))
    return NormAudit(tuple(rows))


def _site_row(site: Site, module: nn.Module, plan: SurgeryPlan) -> AuditRow:
    kept = module is site.module
    row = _row(site.path, site.kind, "site", module)
    nested = {name for name in norm_info(plan.norm.layer).own_parameters if "." in name}
    inner = [p for name, p in module.named_parameters() if name in nested]
    remark = "the stock norm" if kept else ""
    if getattr(module, "interleaved", False):
        remark = "groups interleaved"
    return replace(
        row,
        num_params=row.num_params + sum(parameter.numel() for parameter in inner),
        paired_with=" ".join(site.fed_by),
        norm_before="bn",
        norm_after="bn" if kept else plan.norm.layer,
        groups=getattr(module, "num_groups", None),
        why=plan.sites[site.path].why or remark,
    )


def _layer_row(layer: Layer, module: nn.Module, decision: LayerDecision) -> AuditRow:
    ws = getattr(module, "ws", "")
    return replace(
        _row(layer.path, layer.kind, "layer", module),
        paired_with=" ".join(layer.feeds),
        fan_in=fan_in(layer.module),
        standardised=bool(ws),
        ws=ws,
        why=decision.why,
    )


def _row(path: str, kind: str, role: Role, module: nn.Module) -> AuditRow:
    own = list(module.parameters(recurse=False))
    return AuditRow(
        path=path,
        kind=kind,
        role=role,
        trainable=is_trainable(module),
        num_params=sum(parameter.numel() for parameter in own),
    )

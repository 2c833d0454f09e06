"""Bakes standardised weights into torch's plain layers, for inference and export."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from harness.errors import AuditError
from harness.norm.weight_standardization import WS_CLASSES, WeightStandardized


def fold(
    model: nn.Module, ws_classes: Mapping[type[nn.Module], type[nn.Module]] | None = None
) -> list[str]:
    """Turn every weight-standardised layer of ``model`` into the plain layer it stands for.

    In place: each weight becomes its standardised value and each class the stock one, so names and
    outputs stay, and a state dict of the result loads into the stock model (with the same norms).
    Training must not go on from there: the raw weights are gone (fold a ``copy.deepcopy``).

    Args:
        model: a model with layers of ``harness.norm.weight_standardization``.
        ws_classes: twins of further stock classes, as ``apply_norm`` was given.

    Returns:
        The paths of the folded layers.

    Raises:
        AuditError: if a layer is of an unknown class, or a weight belongs to other layers too;
            nothing has been changed then.
    """
    plain = {twin: stock for stock, twin in (WS_CLASSES | dict(ws_classes or {})).items()}
    layers = {p: m for p, m in model.named_modules() if isinstance(m, WeightStandardized)}
    for path, layer in layers.items():
        if type(layer) not in plain:
            raise AuditError(
                f"{path} ({type(layer).__name__}) stands for no known class: give it in ws_classes"
            )
    _refuse_tied(model, layers)
    with torch.no_grad():
        for layer in layers.values():
            layer.weight.copy_(layer.standardized_weight())
            module: nn.Module = layer
            module.__class__ = plain[type(layer)]
            for name in ("ws", "fused"):
                module.__dict__.pop(name, None)
    return list(layers)


def _refuse_tied(model: nn.Module, layers: Mapping[str, WeightStandardized]) -> None:
    """Refuse weights with several owners: folding one would change the others."""
    owners: dict[int, str] = {}
    folded = {id(layer.weight): path for path, layer in layers.items()}
    for path, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            other = owners.setdefault(id(parameter), path)
            if other != path and id(parameter) in folded:
                raise AuditError(f"{path} and {other} share a standardised weight: cannot fold it")

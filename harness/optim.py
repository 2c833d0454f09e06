"""The optimiser of a spec: one set of rules for weights, norms and biases in every task."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from harness.schema import OptimSection


def _is_norm(module: nn.Module) -> bool:
    """Tell a norm by what it holds: a vector gamma, and no kernel."""
    weight = module._parameters.get("weight")
    return weight is not None and weight.ndim == 1


def parameter_groups(model: nn.Module, optim: OptimSection) -> list[dict[str, object]]:
    """Split the trainable parameters into weights, gammas and biases (the norms' beta included).

    Returns:
        Groups for a torch optimiser, each with ``lr``, ``base_lr`` and ``weight_decay``.
    """
    weights: list[nn.Parameter] = []
    gammas: list[nn.Parameter] = []
    biases: list[nn.Parameter] = []
    seen: set[int] = set()
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None or not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            if name == "bias":
                biases.append(parameter)
            elif _is_norm(module):
                gammas.append(parameter)
            else:
                weights.append(parameter)
    groups = [
        _group(weights, optim.lr, optim.weight_decay),
        _group(gammas, optim.lr, optim.weight_decay_norm),
        _group(biases, optim.lr * optim.lr_factor_bias, optim.weight_decay_bias),
    ]
    return [group for group in groups if group["params"]]


def _group(params: list[nn.Parameter], lr: float, weight_decay: float) -> dict[str, object]:
    return {"params": params, "lr": lr, "base_lr": lr, "weight_decay": weight_decay}


def build_optimizer(model: nn.Module, optim: OptimSection) -> torch.optim.Optimizer:
    """Build the optimiser of ``optim`` over the trainable parameters of ``model``."""
    groups = parameter_groups(model, optim)
    if optim.name == "sgd":
        return torch.optim.SGD(groups, lr=optim.lr, momentum=optim.momentum)
    cls = torch.optim.AdamW if optim.name == "adamw" else torch.optim.Adam
    return cls(groups, lr=optim.lr, betas=optim.betas)


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's rate to its base rate times ``factor``."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def trainable(model: nn.Module) -> Iterable[tuple[str, nn.Parameter]]:
    """Iterate over the named parameters that are trained."""
    return ((name, p) for name, p in model.named_parameters() if p.requires_grad)

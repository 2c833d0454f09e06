"""Where numbers stopped being finite: the first layer, found by repeating a step's forwards."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from harness.errors import Diverged

if TYPE_CHECKING:
    from harness.feed import Chunk
    from harness.schema import OptimSection

Forward = Callable[["Chunk"], dict[str, Tensor]]
"""Gives the loss parts of a chunk, with the draws that the step made."""


def diverged(
    model: nn.Module,
    forward: Forward,
    window: Sequence[Chunk],
    step: int,
    *,
    parts: dict[str, float],
    optim: OptimSection,
    lr: float,
) -> Diverged:
    """Explain a step whose loss or gradient is not finite; the weights are those it began with.

    Args:
        model: in training mode, its gradients those of the step.
        forward: repeats the forward of a chunk.
        window: the step's chunks on this rank.
        step: which it was, from 0.
        parts: the step's loss parts.
        optim: of the run.
        lr: learning rate that the step would have used, after the schedule.
    """
    bad = [name for name, value in parts.items() if not math.isfinite(value)]
    found = first_non_finite(model, forward, window)
    gradients = [n for n, p in model.named_parameters() if not is_finite(p.grad)]
    where = found or f"the gradient of {(gradients or ['the sum'])[0]}"
    shown = ", ".join(f"{name}={value:.4g}" for name, value in parts.items())
    what = "loss" if bad else "gradient"
    return Diverged(
        f"the {what} at step {step} is not finite ({shown}; first in {where}): lower "
        f"optim.lr={optim.lr:g}, or set optim.clip_norm; the last good checkpoint stays",
        step,
        {
            "step": step,
            "what": what,
            "parts": {name: _json(value) for name, value in parts.items()},
            "first": where,
            "gradients": gradients[:20],
            "lr": _json(lr),
            "samples": [sample for chunk in window for sample in chunk.samples],
        },
    )


def require_finite(model: nn.Module, step: int, optim: OptimSection) -> None:
    """Look at every weight before it is saved over a good one.

    Raises:
        Diverged: naming the first weight that is not finite.
    """
    bad = [name for name, parameter in model.named_parameters() if not is_finite(parameter)]
    if bad:
        raise Diverged(
            f"{bad[0]} is not finite after {step} steps ({len(bad)} weights are not): lower "
            f"optim.lr={optim.lr:g}, or set optim.clip_norm; the last good checkpoint stays",
            step,
            {"step": step, "what": "weights", "first": bad[0], "weights": bad[:20], "lr": optim.lr},
        )


def first_non_finite(model: nn.Module, forward: Forward, window: Sequence[Chunk]) -> str | None:
    """Repeat the forwards of a step and return the first place that is not finite, in words.

    Returns:
        None if every output of every layer, and every loss, is finite.
    """
    with _watched(model) as places, torch.no_grad():
        for chunk in window:
            parts: dict[str, Tensor] = {}
            with suppress(FloatingPointError):  # of a library that looks at its numbers
                parts = forward(chunk)
            places += [f"{name} itself" for name, value in parts.items() if not is_finite(value)]
            if places:
                return places[0]
    return None


@contextmanager
def _watched(model: nn.Module) -> Iterator[list[str]]:
    """Collect the places where tensors are not finite, in the order of execution."""
    places: list[str] = []

    def before(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def look(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            if not places and not is_finite(inputs):
                places.append(f"the input of {name or 'the model'}")

        return look

    def after(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def look(module: nn.Module, _inputs: tuple[Any, ...], output: Any) -> None:
            if not places and not is_finite(output):
                bad = [n for n, p in module.named_parameters() if not is_finite(p)]
                why = f", whose {bad[0]} is not" if bad else ""
                places.append(f"{name or 'the model'} ({type(module).__name__}){why}")

        return look

    hooks = []
    for name, module in model.named_modules():
        hooks.append(module.register_forward_pre_hook(before(name)))
        hooks.append(module.register_forward_hook(after(name)))
    try:
        yield places
    finally:
        for hook in hooks:
            hook.remove()


def is_finite(value: Any) -> bool:
    """Tell whether every float in a tensor, or in nested lists and mappings of them, is finite."""
    if isinstance(value, Tensor):
        if not value.is_floating_point() or math.isfinite(value.detach().sum()):
            return True  # a sum passes over the memory once
        return bool(torch.isfinite(value).all())  # but may overflow
    if isinstance(value, dict):
        return all(is_finite(one) for one in value.values())
    if isinstance(value, list | tuple):
        return all(is_finite(one) for one in value)
    return True


def _json(value: float) -> float | str:
    """JSON has no NaN and no infinity."""
    return value if math.isfinite(value) else str(value)

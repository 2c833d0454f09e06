"""How large a spec's model is: its parameters, and the operations of one forward in training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from harness.rng import drawing, numpy_rng

if TYPE_CHECKING:
    from harness.schema import Spec
    from harness.task import Task


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """Return the numbers in all parameters of ``model``, and in those that are trained."""
    parameters = list(model.parameters())
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    return sum(parameter.numel() for parameter in parameters), trained


def forward_flops(task: Task, model: nn.Module, spec: Spec) -> int:
    """Count the FLOPs per image of one training forward over the first micro-batch of the data.

    torch counts convolutions and matrix products, a multiplication and an addition as two; norms
    and weight standardisation are not among them. The model's running averages change.
    """
    data = task.train_data()
    samples = list(range(min(spec.batch.micro, len(data))))
    batch = task.collate([data.sample(i, numpy_rng("augment", spec.seed, 0, i)) for i in samples])
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), drawing(spec.seed, 0, samples), counter:
        task.loss(model.train(), batch)
    total: int = counter.get_total_flops()
    return total // len(samples)

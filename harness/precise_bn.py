"""Batch norm's averages, estimated anew with the trained weights: ``bn_eval=precise``.

The running averages of training mix the statistics of many versions of the weights, and average
the variances within micro-batches, which for small ones are smaller than the population's. Here
every batch norm gets the mean and variance of all values it saw over a fixed set of training
images, under the final weights, each layer fed as in training. Wu and Johnson, "Rethinking 'Batch'
in BatchNorm" (2021), arXiv 2105.07576, section 3.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from harness.feed import Chunk, Steps, feed
from harness.norm.layers import widened
from harness.norm.synchronized import standing_in
from harness.rng import drawing

if TYPE_CHECKING:
    from harness.distributed import Ranks
    from harness.loop import Trainer

NUM_IMAGES = 1000
"""Images to estimate from (whole steps of them), or as many as there are; the paper finds 1,000 to
10,000 enough."""


class _Moments:
    """Forward pre-hook that sums the values of each channel and their squares, in float64."""

    def __init__(self, num_features: int, device: torch.device) -> None:
        self.sums = torch.zeros(2 * num_features + 1, dtype=torch.float64, device=device)
        self.counting = True

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if not self.counting:
            return
        x = widened(inputs[0].detach())  # (B, C, *space)
        dims = (0, *range(2, x.dim()))
        first = x.sum(dims, dtype=torch.float64)
        second = x.square().sum(dims, dtype=torch.float64)
        self.sums += torch.cat([first, second, first.new_tensor([x.numel() // x.shape[1]])])

    def write(self, norm: _BatchNorm) -> None:
        """Make mean and (unbiased) variance of all values the running averages of ``norm``."""
        first, second = self.sums[:-1].chunk(2)
        count = self.sums[-1]
        if not count:
            return  # a norm that the loss does not use keeps its averages
        mean = first / count
        variance = (second / count - mean.square()).clamp(min=0) * count / (count - 1).clamp(min=1)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)


def estimate(trainer: Trainer, progress: Callable[[str, int, int], None]) -> int:
    """Replace the running averages of every batch norm of the trainer's model.

    The images are those of the steps that would follow the last one: a function of the spec alone.
    Dropout and other draws are keyed as in training. All ranks must call this together.

    Args:
        trainer: a trained run.
        progress: told how far this is.

    Returns:
        The number of images, over all ranks.
    """
    spec, task, ranks = trainer.spec, trainer.task, trainer.ranks
    data = task.train_data()
    num_steps = -(-min(NUM_IMAGES, len(data)) // spec.batch.size)
    last = spec.steps + num_steps
    steps = Steps(
        task,
        data,
        spec.model_copy(update={"steps": last}),
        chunk=trainer.progress.chunk,
        rank=ranks.rank,
        world=ranks.world,
    )
    moments = {norm: _Moments(norm.num_features, trainer.device) for norm in _tracking(trainer)}
    hooks = [norm.register_forward_pre_hook(moments[norm]) for norm in moments]
    images = 0.0
    trainer.model.train()
    try:
        for step, window in enumerate(feed(steps, spec.steps, trainer.device), start=spec.steps):
            for chunk in window:
                images += len(chunk.samples) if chunk.counts else 0
                for one in moments.values():
                    one.counting = chunk.counts
                _forward(trainer, chunk, step)
            progress("estimating bn", step + 1 - spec.steps, num_steps)
    finally:
        for hook in hooks:
            hook.remove()
    _sum_over(ranks, [one.sums for one in moments.values()])
    for norm, one in moments.items():
        one.write(norm)
    return int(ranks.sum_floats({"images": images})["images"])


def _tracking(trainer: Trainer) -> list[_BatchNorm]:
    return [
        module
        for module in trainer.model.modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    ]


@torch.no_grad()
def _forward(trainer: Trainer, chunk: Chunk, step: int) -> None:
    absent = nullcontext() if chunk.counts else standing_in()
    with drawing(trainer.spec.seed, step, chunk.samples), trainer.autocast(), absent:
        trainer.task.loss(trainer.model, trainer.task.to_device(chunk.batch, trainer.device))


def _sum_over(ranks: Ranks, tensors: list[Tensor]) -> None:
    if ranks.world > 1:
        for tensor in tensors:
            torch.distributed.all_reduce(tensor)

"""Running averages of several processes: as one process would have them that saw every forward.

Each process moves the averages of its batch norms by its own micro-batches of a step. The update of
an average is linear, so what one process after the other would have come to follows from where each
of them started and ended (``fold``). The micro-batches of rank 0 come first, as in the step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from harness.norm.synchronized import _Synchronized

if TYPE_CHECKING:
    from harness.distributed import Ranks


class RunningAverages:
    """The buffers of a model that forwards move, over the processes of a run."""

    def __init__(self, model: nn.Module, ranks: Ranks) -> None:
        """Find them; with one process there is nothing to do.

        Synchronised batch norms are left out: their averages are the same in every process.
        """
        self.ranks = ranks
        self.folded: list[_BatchNorm] = []
        self.averaged: list[Tensor] = []
        if ranks.world == 1:
            return
        for module in model.modules():
            if isinstance(module, _Synchronized):
                continue
            if isinstance(module, _BatchNorm) and module.running_mean is not None:
                self.folded.append(module)
            else:
                own = module.named_buffers(recurse=False)
                self.averaged += [b for name, b in own if name.startswith("running_")]
        self._before = self._state()

    def _state(self) -> Tensor:
        """Return counts, means and variances of all batch norms, then the rest, in float64."""
        parts: list[Tensor] = []
        for norm in self.folded:
            count, mean, var = norm.num_batches_tracked, norm.running_mean, norm.running_var
            assert count is not None
            assert mean is not None
            assert var is not None
            parts += [count.double()[None], mean.double(), var.double()]
        parts += [buffer.double().flatten() for buffer in self.averaged]
        return torch.cat(parts) if parts else torch.zeros(0)

    def begin(self) -> None:
        """Note where a step starts, equal in every process."""
        if self.ranks.world > 1:
            self._before = self._state()

    @torch.no_grad()
    def join(self) -> None:
        """Make the averages of every process what they are after the forwards of all of them.

        Buffers of other norms than torch's batch norm (brn, est_bcn) are averaged: their updates
        are not linear, and depend on the number of processes.
        """
        if self.ranks.world == 1 or not len(self._before):
            return
        everyone = self.ranks.gather(self._state())  # (world, numbers)
        place = 0
        for norm in self.folded:
            size = 1 + 2 * norm.num_features
            before, after = (x[..., place : place + size] for x in (self._before, everyone))
            place += size
            joined = fold(before[1:], after[:, 1:], before[0], after[:, 0], norm.momentum)
            mean, var = joined.chunk(2)
            norm.running_mean.copy_(mean)  # type: ignore[union-attr]
            norm.running_var.copy_(var)  # type: ignore[union-attr]
            total = before[0] + (after[:, 0] - before[0]).sum()
            norm.num_batches_tracked.copy_(total)  # type: ignore[union-attr]
        for buffer in self.averaged:
            own = slice(place, place + buffer.numel())
            before = self._before[own]
            # By the change, so that constants (frozen norms) stay what they are to the bit.
            moved = before + (everyone[:, own] - before).mean(0)
            buffer.copy_(moved.view_as(buffer))
            place += buffer.numel()


def fold(
    start: Tensor, ends: Tensor, seen: Tensor, seen_after: Tensor, momentum: float | None
) -> Tensor:
    """Return the averages after the updates of all processes, one process after the other.

    Args:
        start: what every process started from, (N,).
        ends: what each came to by its own updates alone, (world, N).
        seen: updates before, ().
        seen_after: updates each process has made in all, (world,).
        momentum: of an update, as torch's batch norm has it; None: the cumulative average.
    """
    own = seen_after - seen
    if momentum is None:  # update t has the weight 1 / t, so that averages times counts are sums
        sums = ends * seen_after[:, None] - start * seen
        return (start * seen + sums.sum(0)) / (seen + own.sum()).clamp(min=1)
    kept = torch.full_like(own, 1 - momentum) ** own
    result = start
    for end, factor in zip(ends, kept, strict=True):
        result = result * factor + (end - start * factor)
    return result

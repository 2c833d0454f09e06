"""The processes that share one run: one reduction a step, and decisions that all ranks agree on."""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from harness.errors import EnvironmentProblem

T = TypeVar("T")


class Ranks:
    """The group of processes of a run; with one process every method is a no-op."""

    def __init__(self, device: torch.device) -> None:
        """Join the group that ``torchrun`` describes in the environment, if there is one."""
        self.world = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        self._device = device
        self._names: list[str] = []
        gpu = device if device.type == "cuda" else None
        if gpu is not None:
            torch.cuda.set_device(gpu)  # through which NCCL sends whatever is no tensor
        if self.world > 1:
            # The others wait for the slowest share of an evaluation, for as long as it takes.
            long = timedelta(hours=12)
            backend = "gloo" if gpu is None else "nccl"
            dist.init_process_group(backend, timeout=long, device_id=gpu)

    @property
    def is_main(self) -> bool:
        """Tell the one process that writes."""
        return self.rank == 0

    def sum_floats(self, values: dict[str, float]) -> dict[str, float]:
        """Sum each value over the ranks; ranks may lack keys (an empty share of a step)."""
        if self.world == 1:
            return values
        names = self._names  # the same on all ranks, so that numbers suffice
        row = [float(not values.keys() <= set(names))]
        row += [values.get(name, 0.0) for name in names]
        row += [float(name in values) for name in names]
        everyone = self.gather(torch.tensor(row, dtype=torch.float64, device=self._device))
        news, *numbers = everyone.sum(0).tolist()
        if news:
            told = dict.fromkeys(name for one in self.gather_objects([*values]) for name in one)
            self._names += [name for name in told if name not in names]
            return self.sum_floats(values)
        sums, having = numbers[: len(names)], numbers[len(names) :]
        return {name: sums[i] for i, name in enumerate(names) if having[i]}

    def any(self, flag: bool) -> bool:
        """Tell whether any rank raises the flag."""
        return bool(self.sum_floats({"flag": float(flag)})["flag"])

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add the gradients of all ranks in one flat reduction."""
        if self.world == 1:
            return
        owners = list(parameters)
        for parameter in owners:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        grads = [parameter.grad for parameter in owners if parameter.grad is not None]
        flat = torch.cat([grad.flatten() for grad in grads])
        dist.all_reduce(flat)
        torch._foreach_copy_(grads, _split_like(flat, grads))

    def gather(self, tensor: Tensor) -> Tensor:
        """Return the tensors of all ranks, which have one shape, stacked by rank."""
        everyone = [torch.empty_like(tensor) for _ in range(self.world)]
        dist.all_gather(everyone, tensor)
        return torch.stack(everyone)

    def gather_objects(self, value: T) -> list[T]:
        """Return what every rank gives, by rank."""
        if self.world == 1:
            return [value]
        everyone: list[Any] = [None] * self.world
        dist.all_gather_object(everyone, value)
        return everyone

    def close(self) -> None:
        """Leave the group."""
        if self.world > 1:
            dist.destroy_process_group()


def _split_like(flat: Tensor, shapes: list[Tensor]) -> list[Tensor]:
    parts = flat.split([tensor.numel() for tensor in shapes])
    return [part.view_as(tensor) for part, tensor in zip(parts, shapes, strict=True)]


def choose_device(asked: str, local_rank: int, devices: int) -> torch.device:
    """Return the device of this process.

    Raises:
        EnvironmentProblem: if a GPU was asked for, or several, that this machine lacks.
    """
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if asked == "cpu" or (asked == "auto" and num_gpus == 0):
        return torch.device("cpu")
    if num_gpus <= local_rank or num_gpus < min(devices, local_rank + 1):
        raise EnvironmentProblem(
            f"devices={devices} with exec.device={asked} needs as many GPUs, this machine has "
            f"{num_gpus}: lower devices, or use exec.device=cpu"
        )
    return torch.device("cuda", local_rank)

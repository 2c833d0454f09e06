"""Which GPUs each of several runs on one machine may see, and how many CPU threads it gets."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from harness.plan import PlannedRun

_USABLE = 0.92
"""Share of a GPU's memory that runs may fill; the rest is the driver's and the libraries'."""


@dataclass
class Gpu:
    """One GPU and what is on it."""

    name: str
    """As ``CUDA_VISIBLE_DEVICES`` names it."""
    mem_mib: float
    runs: dict[str, float] = field(default_factory=dict)
    """MiB by run id."""


def visible_gpus() -> list[Gpu]:
    """Return the GPUs that this process may use, without starting CUDA in it."""
    try:
        listed = subprocess.run(
            ["nvidia-smi", "--query-gpu=index,uuid,memory.total", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    found: dict[str, Gpu] = {}
    for line in listed.stdout.splitlines():
        index, uuid, memory = (part.strip() for part in line.split(","))
        if memory.replace(".", "").isdecimal():
            found[index] = found[uuid] = Gpu(index, float(memory))
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return list({id(gpu): gpu for gpu in found.values()}.values())
    return [found[name] for name in chosen.split(",") if name in found]


def usable_cores() -> int:
    """Return the CPU cores that this process may use, which a scheduler may have cut down."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Placement:
    """Gives runs their GPUs, and says when there is no room for another."""

    def __init__(self, gpus: Sequence[Gpu], jobs: int, needs: Mapping[str, float]) -> None:
        """Divide GPUs among ``jobs`` runs at a time.

        Args:
            gpus: of this machine; none leaves every run to find its own.
            jobs: runs at a time.
            needs: MiB by run id, as far as they are known.
        """
        self.gpus, self.needs = list(gpus), needs
        self.most = -(-jobs // max(1, len(self.gpus)))
        """Runs on a GPU whose needs are not known."""
        self.threads = max(1, usable_cores() // jobs)

    def take(self, cell: PlannedRun) -> list[str] | None:
        """Reserve the emptiest GPUs for a run.

        Returns:
            Their names, none where there is nothing to choose; None: wait until a run has ended.
        """
        spec = cell.spec
        if not self.gpus or spec.exec.device == "cpu" or spec.devices > len(self.gpus):
            return []
        need = self.needs.get(cell.run.id)
        ordered = sorted(self.gpus, key=lambda gpu: (len(gpu.runs), sum(gpu.runs.values())))
        chosen = [gpu for gpu in ordered if self._fits(gpu, need)][: spec.devices]
        if len(chosen) < spec.devices:
            return None
        for gpu in chosen:
            gpu.runs[cell.run.id] = gpu.mem_mib / self.most if need is None else need
        return [gpu.name for gpu in chosen]

    def _fits(self, gpu: Gpu, need: float | None) -> bool:
        if not gpu.runs:
            return True  # alone it is welcome, whatever is thought to be needed
        share = gpu.mem_mib / self.most if need is None else need
        limit = gpu.mem_mib * (_USABLE if need is not None else 1.0)
        return len(gpu.runs) < self.most and sum(gpu.runs.values()) + share <= limit * (1 + 1e-9)

    def give_back(self, cell: PlannedRun) -> None:
        """Free what a run had."""
        for gpu in self.gpus:
            gpu.runs.pop(cell.run.id, None)

"""What a checkpoint's checksum costs beside ``torch.save``: CPU seconds, whatever the load.

    python -m benchmarks.saves

100 MiB of weights, each file synced to the disk; medians of interleaved rounds in one process.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from harness import checkpoint
from harness.checkpoint import Progress

ROUNDS = 21


def main() -> None:
    torch.set_num_threads(1)
    state: dict[str, Any] = {"model": {f"w{i}": torch.randn(2**20) for i in range(25)}}
    state |= {"optimizer": {}, "scaler": {}}
    written = None
    with tempfile.TemporaryDirectory() as folder:
        path, other = Path(folder) / "checkpoint.pt", Path(folder) / "plain.pt"

        def plain() -> None:
            with other.open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())

        def ours() -> None:
            nonlocal written
            written = checkpoint.save(path, "run", Progress(), state, written)

        def first() -> None:
            nonlocal written
            written = checkpoint.save(path, "run", Progress(), state)

        cases: dict[str, Callable[[], None]] = {
            "torch.save": plain,
            "ours": ours,
            "ours, the first of a sitting": first,
        }
        took: dict[str, list[float]] = {name: [] for name in cases}
        for _ in range(ROUNDS):
            for name, work in cases.items():
                began = time.process_time()
                work()
                took[name].append(time.process_time() - began)
    for name, seconds in took.items():
        print(f"{name:30} {statistics.median(seconds):.3f} s")


if __name__ == "__main__":
    main()

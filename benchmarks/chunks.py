"""What a training step costs when batch norm sees micro-batches of a larger forward.

    python -m benchmarks.chunks [--rounds 40]

Steps of `batch.size=16` on the classification task (mini, embedded data), interleaved in one
process: micro-batch 16 (the reference), micro-batches of 1, 2 and 4 executed as one chunk, and the
literal loop of 16 forwards. Prints medians, quartiles and paired ratios.
"""

from __future__ import annotations

import argparse
import time
from statistics import median, quantiles

import torch

from harness.chunk import resolve_chunk
from harness.distributed import Ranks
from harness.environment import cpu_name
from harness.feed import Steps
from harness.loop import Trainer
from harness.registry import task_class, task_info
from harness.spec import build, parse_words
from harness.worker import build_model

CASES = {
    "micro 16": ["batch.micro=16"],
    "micro 4, one chunk": ["batch.micro=4"],
    "micro 2, one chunk": ["batch.micro=2"],
    "micro 1, one chunk": ["batch.micro=1"],
    "micro 1, literal loop": ["batch.micro=1", "exec.chunk=micro"],
}


class Case:
    """One trainer with its next step."""

    def __init__(self, words: list[str]) -> None:
        spec = build("classification", parse_words(["norm=bn", *words]))
        info = task_info(spec.task)
        root = info.prepare(spec, lambda *_: None)
        task = task_class(info)(spec, root)
        model, _ = build_model(task, spec)
        device = torch.device("cpu")
        chunk = resolve_chunk(spec, info)
        self.trainer = Trainer(task, model.train(), spec, Ranks(device), device, chunk=chunk)
        steps = Steps(task, task.train_data(), spec, chunk=chunk, rank=0, world=1)
        self.window = steps[0]

    def seconds(self) -> float:
        """Time one step on prepared data."""
        began = time.perf_counter()
        self.trainer.step(self.window, 0)
        return time.perf_counter() - began


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    cases = {name: Case(words) for name, words in CASES.items()}
    times: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(rounds + 3):
        for name, case in cases.items():
            seconds = case.seconds()
            if turn >= 3:
                times[name].append(1000 * seconds)
    reference = times["micro 16"]
    print(f"{cpu_name()}, 1 thread, torch {torch.__version__}, {rounds} rounds")
    print(f"{'case':24} {'median ms':>9} {'quartiles':>15} {'ratio':>6}")
    for name, own in times.items():
        low, _, high = quantiles(own, n=4)
        ratio = median(a / b for a, b in zip(own, reference, strict=True))
        print(f"{name:24} {median(own):9.1f} {f'{low:.1f}-{high:.1f}':>15} {ratio:6.2f}")


if __name__ == "__main__":
    main()

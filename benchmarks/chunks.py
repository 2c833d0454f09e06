"""What a training step costs when batch norm sees micro-batches of a larger forward.

    python -m benchmarks.chunks [--rounds 40]

Steps of `batch.size=16` on the network of classification's mini preset, interleaved in one process:
micro-batch 16 (the reference), micro-batches of 1 to 8 executed as one chunk, and the literal loop
of 16 / micro forwards.
"""

from __future__ import annotations

from functools import partial

from benchmarks import paired
from benchmarks.classifier import trainer_of
from benchmarks.paired import Bench, Work

SIZE = 16


def case(micro: int, *words: str, bench: Bench) -> Work:
    """Return the first step of a run as something to call."""
    all_words = ["norm=bn", f"batch.size={SIZE}", f"batch.micro={micro}", *words]
    trainer, steps = trainer_of(all_words, bench.device)
    return partial(trainer.step, steps[0], 0)


def step(bench: Bench) -> None:
    """Compare chunks and loops over micro-batches of 1 to 16."""
    smaller = (1,) if bench.quick else (8, 4, 2, 1)
    cases = {f"micro {SIZE}": case(SIZE, bench=bench)}
    for micro in smaller:
        cases[f"micro {micro}, one chunk"] = case(micro, bench=bench)
    for micro in smaller:
        cases[f"micro {micro}, literal loop"] = case(micro, "exec.chunk=micro", bench=bench)
    bench.compare("step", f"batch {SIZE}", cases, warm_up=3)


PARTS = {"step": step}
ROUNDS = 40

if __name__ == "__main__":
    paired.main("chunks", __doc__, PARTS, rounds=ROUNDS)

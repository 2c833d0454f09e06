"""Measuring the model: at the end for the record, and on the way for the learning curve.

What is reported is always the end. The best value met on the way is kept beside it, so that results
of protocols which select on the evaluation data can be told apart from ours.
"""

from __future__ import annotations

import time
from dataclasses import asdict

import torch

from harness.journal import Journal
from harness.loop import Trainer
from harness.record import Best, MetricRow
from harness.share import ALONE, Share
from harness.stop import StopRequest


def evaluate(trainer: Trainer, journal: Journal, stop: StopRequest) -> tuple[MetricRow, ...]:
    """Measure the official metrics and note them in the journal and among the best.

    All ranks must call this together; each looks at its share of the data. The model is left in
    evaluation mode; nothing that training depends on changes.

    Raises:
        Interrupted: once asked to stop; the model was saved before.
    """

    def progress(stage: str, done: int, total: int) -> None:
        journal.stage(stage, done, total)
        if stop:
            raise stop.error("the model is saved")

    began = time.monotonic()
    trainer.model.eval()
    share = Share(trainer.ranks) if trainer.ranks.world > 1 else ALONE
    try:
        with torch.no_grad():
            metrics = trainer.task.evaluate(trainer.model, trainer.device, progress, share)
    except Exception as error:
        share.fail(error)
        raise
    state = trainer.progress
    state.eval_s += time.monotonic() - began
    rows = tuple(MetricRow(**asdict(metric)) for metric in metrics)
    values = {row.name: row.value for row in rows}
    for row in rows:
        known = state.best.get(row.name)
        sign = 1 if row.higher_is_better else -1
        if known is None or sign * row.value > sign * known[0]:
            state.best[row.name] = (row.value, state.step)
    journal({"event": "evaluation", "step": state.step, "metrics": values})
    return rows


def best_of(trainer: Trainer) -> dict[str, Best]:
    """Return the best value of each metric over all evaluations, and the step it was met at."""
    best = trainer.progress.best
    return {name: Best(value=value, step=step) for name, (value, step) in best.items()}

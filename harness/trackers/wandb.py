"""Step curves in Weights & Biases; how it reaches its server is its own variables' business."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import wandb

from harness.record import RunDir
from harness.schema import Spec
from harness.trackers.curves import numbers


class WandB:
    """One W&B run for one run; ``WANDB_MODE``, ``WANDB_PROJECT`` and the others are obeyed."""

    def start(self, spec: Spec, run: RunDir, step: int) -> None:
        """Begin, or go on with the W&B run of the same id."""
        self._run = wandb.init(
            id=run.id,
            name=run.id,
            group=spec.task,
            resume="allow",
            dir=str(run.path),
            config=spec.model_dump(mode="json"),
            settings=wandb.Settings(console="off"),  # what the run says is in its log.txt
        )

    def row(self, row: Mapping[str, Any]) -> None:
        """Send the numbers of a row."""
        if found := numbers(row):
            # The last training row and the evaluation share a step: a later call adds to it.
            self._run.log(found, step=row["step"])

    def close(self, *, finished: bool) -> None:
        """End the W&B run, as failed unless the record is there."""
        self._run.finish(exit_code=0 if finished else 1)

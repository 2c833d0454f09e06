"""Step curves as TensorBoard reads them: ``tensorboard --logdir results/runs``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from harness.record import RunDir
from harness.schema import Spec
from harness.spec import dump_spec
from harness.trackers.curves import numbers


class TensorBoard:
    """Event files in ``tensorboard/`` of the run's directory."""

    def start(self, spec: Spec, run: RunDir, step: int) -> None:
        """Begin a file; what an earlier sitting wrote of later steps is superseded."""
        purge = step + 1 if step else None
        self._writer = SummaryWriter(str(run.path / "tensorboard"), purge_step=purge)
        self._writer.add_text("spec", f"```\n{dump_spec(spec)}\n```", step)

    def row(self, row: Mapping[str, Any]) -> None:
        """Write the numbers of a row."""
        for name, value in numbers(row).items():
            self._writer.add_scalar(name, value, row["step"])

    def close(self, *, finished: bool) -> None:
        """Write what is still in memory."""
        self._writer.close()

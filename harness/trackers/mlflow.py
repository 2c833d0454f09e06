"""Step curves in MLflow; ``MLFLOW_TRACKING_URI`` and ``MLFLOW_EXPERIMENT_NAME`` say where."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import mlflow
from mlflow.entities import Metric, Param, RunStatus
from mlflow.utils.time import get_current_time_millis

from harness.record import RunDir
from harness.schema import Spec
from harness.trackers.curves import numbers

_LONGEST = 500
"""Letters of a parameter that every version of MLflow's store takes."""


class MLflow:
    """One MLflow run for one sitting, named like the run."""

    def start(self, spec: Spec, run: RunDir, step: int) -> None:
        """Create the MLflow run with the spec as its parameters."""
        self._client = mlflow.MlflowClient()
        active = mlflow.start_run(run_name=run.id, tags={"normbench.run_id": run.id})
        self._id = active.info.run_id
        params = [Param(k, v[:_LONGEST]) for k, v in _flat(spec.model_dump(mode="json"))]
        self._client.log_batch(self._id, params=params)

    def row(self, row: Mapping[str, Any]) -> None:
        """Send the numbers of a row."""
        if found := numbers(row):
            now = get_current_time_millis()
            metrics = [Metric(name, value, now, row["step"]) for name, value in found.items()]
            self._client.log_batch(self._id, metrics=metrics)

    def close(self, *, finished: bool) -> None:
        """End the MLflow run, as failed unless the record is there."""
        status = RunStatus.FINISHED if finished else RunStatus.FAILED
        mlflow.end_run(RunStatus.to_string(status))


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)

"""The one list of trackers; each is imported only when a run uses it."""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points

TRACKERS: dict[str, str] = {
    "tensorboard": "harness.trackers.tensorboard:TensorBoard",
    "wandb": "harness.trackers.wandb:WandB",
    "mlflow": "harness.trackers.mlflow:MLflow",
}


@cache
def _foreign() -> dict[str, str]:
    return {point.name: point.value for point in entry_points(group="normbench.trackers")}


def tracker_names() -> dict[str, str]:
    """Return name -> ``module:class`` of our trackers and those of other packages."""
    return TRACKERS | _foreign()

"""The one list of tasks; each is imported only when it is used."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import cast

from harness.errors import UsageError, did_you_mean
from harness.task import Task, TaskInfo

TASKS: dict[str, str] = {
    "detection": "tasks.detection.info:INFO",
    "segmentation": "tasks.segmentation.info:INFO",
    "classification": "tasks.classification.info:INFO",
    "pointcloud": "tasks.pointcloud.info:INFO",
}


@cache
def _foreign_tasks() -> dict[str, str]:
    return {point.name: point.value for point in entry_points(group="normbench.tasks")}


def task_names() -> dict[str, str]:
    """Return name -> ``module:object`` of our tasks and those of other packages."""
    return TASKS | _foreign_tasks()


@cache
def load(reference: str) -> object:
    """Import ``module:object``."""
    module, _, name = reference.partition(":")
    return getattr(import_module(module), name)


def task_info(name: str) -> TaskInfo:
    """Return the light half of a task.

    Raises:
        UsageError: if no such task is registered.
    """
    names = task_names()
    if name not in names:
        raise UsageError(
            f"unknown task {name!r}.{did_you_mean(name, names)} Tasks: {', '.join(names)}"
        )
    return cast("TaskInfo", load(names[name]))


def task_class(info: TaskInfo) -> type[Task]:
    """Import the working half of a task."""
    return cast("type[Task]", load(info.implementation))

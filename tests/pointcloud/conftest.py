"""Fixtures of the point-cloud tests: one thread, and small embedded data generated once."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from harness.registry import task_info
from harness.schema import Spec
from harness.spec import build, parse_words
from tasks.pointcloud.task import PointcloudTask


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def cloud_spec(*words: str) -> Spec:
    return build("pointcloud", parse_words(words))


def cloud_task(spec: Spec) -> PointcloudTask:
    root = task_info("pointcloud").prepare(spec, lambda *_: None)
    return PointcloudTask(spec, root)


@pytest.fixture(scope="session")
def smoke_root() -> Path:
    """Return the embedded data of the smoke preset."""
    return task_info("pointcloud").prepare(cloud_spec("preset=smoke"), lambda *_: None)


@pytest.fixture
def data_copy(smoke_root: Path, tmp_path: Path) -> Path:
    """Return a copy of the smoke data that a test may damage."""
    return Path(shutil.copytree(smoke_root, tmp_path / "clouds"))

"""Fixtures of the classification tests: one thread, and small embedded data generated once."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from harness.registry import task_info
from harness.schema import Spec
from harness.spec import build, parse_words
from tasks.classification.task import ClassificationTask


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def classification_spec(*words: str) -> Spec:
    return build("classification", parse_words(words))


def classification_task(spec: Spec) -> ClassificationTask:
    root = task_info("classification").prepare(spec, lambda *_: None)
    return ClassificationTask(spec, root)


@pytest.fixture(scope="session")
def smoke_root() -> Path:
    """Return the embedded data of the smoke preset."""
    spec = classification_spec("preset=smoke")
    return task_info("classification").prepare(spec, lambda *_: None)


@pytest.fixture
def copy(smoke_root: Path, tmp_path: Path) -> Path:
    """Return a copy of the smoke data that a test may damage."""
    return Path(shutil.copytree(smoke_root, tmp_path / "pictures"))

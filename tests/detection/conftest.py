"""Fixtures of the detection tests: one thread, and small embedded data generated once."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from harness.registry import task_info
from harness.schema import Spec
from harness.spec import build
from tasks.detection.task import DetectionTask


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def detection_spec(*words: str) -> Spec:
    return build("detection", [(w.partition("=")[0], w.partition("=")[2]) for w in words])


def detection_task(spec: Spec) -> DetectionTask:
    root = task_info("detection").prepare(spec, lambda *_: None)
    return DetectionTask(spec, root)


@pytest.fixture(scope="session")
def smoke_root() -> Path:
    """Return the embedded data of the smoke preset."""
    return task_info("detection").prepare(detection_spec("preset=smoke"), lambda *_: None)


@pytest.fixture
def coco_copy(smoke_root: Path, tmp_path: Path) -> Path:
    """Return a copy of the smoke data that a test may damage."""
    import shutil

    return Path(shutil.copytree(smoke_root, tmp_path / "coco"))


Build = Callable[..., Spec]

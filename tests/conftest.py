"""Fixtures of the whole suite: the toy task, a private cache and the real samples."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

TOY_RECIPE = """\
norm: {layer: gn, groups: 4}
batch: {size: 8, micro: 4}
optim: {name: sgd, lr: 0.05, weight_decay: 1.0e-4}
schedule: {name: cosine}
steps: 6
precision: fp64
model: {name: toy}
"""


@pytest.fixture(scope="session", autouse=True)
def _private_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Generate embedded data under the test run's own folder, once."""
    if "NORMBENCH_CACHE" not in os.environ:
        os.environ["NORMBENCH_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Register the toy task with one recipe; return its name."""
    from harness import registry, spec

    configs = tmp_path / "configs"
    (configs / "toy").mkdir(parents=True)
    (configs / "toy" / "mini.yaml").write_text(TOY_RECIPE)
    monkeypatch.setitem(registry.TASKS, "toy", "tests.toy:INFO")
    monkeypatch.setattr(spec, "configs_dir", lambda: configs)
    return "toy"


@pytest.fixture(scope="session")
def coco_samples() -> Path:
    """Return the folder of real COCO samples, or skip with the reason."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "samples"
    folder = Path(os.environ.get("NORMBENCH_SAMPLES", beside)) / "coco"
    if not folder.is_dir():
        pytest.skip(f"no real COCO samples at {folder} (set NORMBENCH_SAMPLES)")
    return folder

"""Fixtures of the whole suite: the toy task, a private cache and the real samples."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path

import pytest

# Small tensors: a second thread gains nothing, and costs much where cores are shared.
os.environ.setdefault("OMP_NUM_THREADS", "1")

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
        base = tmp_path_factory.getbasetemp()
        shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
        os.environ["NORMBENCH_CACHE"] = str(shared / "cache")


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Register the toy task with one recipe; return its name."""
    from harness import registry, spec

    configs = tmp_path / "configs"
    (configs / "toy").mkdir(parents=True)
    for task in registry.TASKS:
        (configs / task).symlink_to(spec.configs_dir() / task)
    (configs / "toy" / "mini.yaml").write_text(TOY_RECIPE)
    monkeypatch.setitem(registry.TASKS, "toy", "tests.toy:INFO")
    monkeypatch.setattr(spec, "configs_dir", lambda: configs)
    return "toy"


def _samples(name: str) -> Path:
    """Return a folder of real samples, or skip with the reason."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "samples"
    folder = Path(os.environ.get("NORMBENCH_SAMPLES", beside)) / name
    if not folder.is_dir():
        pytest.skip(f"no real samples at {folder} (set NORMBENCH_SAMPLES)")
    return folder


@pytest.fixture(scope="session")
def coco_samples() -> Path:
    return _samples("coco")


@pytest.fixture(scope="session")
def voc_samples() -> Path:
    return _samples("voc")


@pytest.fixture(scope="session")
def modelnet_samples() -> Path:
    return _samples("modelnet40")


@pytest.fixture(scope="session")
def imagenet_samples() -> Path:
    return _samples("imagenet")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With several processes begin with the trainings, so that none is left over for the end."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: item.get_closest_marker("mini") is None)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite the golden files")


@pytest.fixture
def golden(request: pytest.FixtureRequest):
    """Return a check of a text against ``tests/golden/NAME``."""
    folder = Path(__file__).parent / "golden"

    def check(name: str, text: str) -> None:
        path = folder / name
        if request.config.getoption("--update-golden"):
            folder.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert path.read_text(encoding="utf-8") == text, "intended? pytest --update-golden"

    return check


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the seconds of each file, so that the suite's budget is seen."""
    seconds: dict[str, float] = defaultdict(float)
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                seconds[report.nodeid.partition("::")[0]] += report.duration
    terminalreporter.section("seconds by file")
    for part, total in sorted(seconds.items(), key=lambda item: -item[1]):
        terminalreporter.line(f"{total:7.1f}  {part}")

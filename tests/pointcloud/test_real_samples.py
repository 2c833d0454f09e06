"""Real shapes of ModelNet40: read, check, train two steps, evaluate."""

import math
from pathlib import Path

import pytest

from harness.errors import Interrupted
from harness.record import RunDir, read_record
from harness.registry import task_info
from harness.spec import dump_spec
from harness.worker import run_spec
from tests.pointcloud.conftest import cloud_spec

INFO = task_info("pointcloud")


class Never:
    def __bool__(self) -> bool:
        return False

    def error(self, saved: str) -> Interrupted:
        return Interrupted(saved)


def test_the_check_names_what_is_absent(modelnet_samples: Path) -> None:
    report = INFO.check(cloud_spec(f"data={modelnet_samples}"), lambda *_: None)
    facts = report.facts
    assert facts["train shapes"] == "113 (ModelNet40: 9,840)"
    assert facts["test shapes"] == "36 (ModelNet40: 2,468)"
    assert facts["classes without a train shape"].startswith("4: ")
    assert facts["classes without a test shape"].startswith("19: ")
    assert facts["MD5"] == "0 of 7 files as published"
    assert any("113 train shapes" in problem for problem in report.problems)
    assert "not as published" in INFO.dataset(cloud_spec(f"data={modelnet_samples}"))


@pytest.mark.parametrize("preset", ["paper", "paper_dgcnn"])
def test_two_steps_of_the_full_network_and_an_evaluation(
    preset: str, modelnet_samples: Path, tmp_path: Path
) -> None:
    spec = cloud_spec(
        f"preset={preset}",
        f"data={modelnet_samples}",
        "norm=gn_ws",
        "data.points=96",
        "batch.size=4",
        "batch.micro=4",
        "steps=2",
        "exec.threads=1",
    )
    run = RunDir(tmp_path, "run")
    run.path.mkdir(parents=True)
    run.spec.write_text(dump_spec(spec))
    run_spec(spec, run, INFO.data_root(spec), Never())
    record = read_record(run.record)
    metrics = {metric.name: metric for metric in record.metrics}
    assert set(metrics) == {"overall_acc", "mean_class_acc"}
    assert all(math.isfinite(metric.value) for metric in metrics.values())
    assert metrics["overall_acc"].n_eval == 36
    assert "the 21 of 40 classes that have test shapes" in metrics["mean_class_acc"].protocol


def test_the_picture_shows_16_of_the_classes(modelnet_samples: Path, tmp_path: Path) -> None:
    INFO.show(cloud_spec(f"data={modelnet_samples}"), tmp_path / "out.png")
    assert (tmp_path / "out.png").stat().st_size > 50_000

"""The main job as the README types it: one whole mini run, from the command line to the CSV."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from harness.collect import read_csv


def mini_run(task: str, results: Path) -> pd.DataFrame:
    """Type the task's main command and read its CSV."""
    done = subprocess.run(
        [sys.executable, "-m", "harness", "run", task, "norm=gn_ws"],
        capture_output=True,
        text=True,
        env=os.environ | {"NORMBENCH_RESULTS": str(results), "CI": "true"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return read_csv(results / "metrics.csv").set_index("metric")


@pytest.mark.mini
@pytest.mark.timeout(1500)
def test_detection_learns(tmp_path: Path):
    """Mask R-CNN with GN + WS at micro-batch 1 finds and names the shapes."""
    metrics = mini_run("detection", tmp_path)
    assert metrics["micro_batch"].unique().tolist() == [1]
    assert metrics["n_eval"].unique().tolist() == [100]
    assert metrics.loc["box_AP50", "value"] > 60
    assert metrics.loc["mask_AP50", "value"] > 60
    runs = read_csv(tmp_path / "runs.csv")
    assert runs.loc[0, "standardised"] == runs.loc[0, "norm_sites"] == 32
    assert runs.loc[0, "is_result"]


@pytest.mark.mini
@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    ("task", "metric", "least"),
    [
        ("classification", "top1_acc", 85),
        ("segmentation", "mIoU", 80),
        ("pointcloud", "overall_acc", 80),
    ],
)
def test_the_other_tasks_learn(task, metric, least, tmp_path: Path):
    assert mini_run(task, tmp_path).loc[metric, "value"] > least

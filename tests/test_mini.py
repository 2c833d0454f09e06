"""The main job as the README types it: one whole mini run, from the command line to the CSV."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.collect import read_csv


@pytest.mark.mini
@pytest.mark.timeout(1500)
def test_detection_learns(tmp_path: Path):
    """Mask R-CNN with GN + WS at micro-batch 1 finds and names the shapes."""
    done = subprocess.run(
        [sys.executable, "-m", "harness", "run", "detection", "norm=gn_ws"],
        capture_output=True,
        text=True,
        env=os.environ | {"NORMBENCH_RESULTS": str(tmp_path), "CI": "true"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    metrics = read_csv(tmp_path / "metrics.csv").set_index("metric")
    assert metrics["micro_batch"].unique().tolist() == [1]
    assert metrics["n_eval"].unique().tolist() == [100]
    assert metrics.loc["box_AP50", "value"] > 60
    assert metrics.loc["mask_AP50", "value"] > 60
    runs = read_csv(tmp_path / "runs.csv")
    assert runs.loc[0, "standardised"] == runs.loc[0, "norm_sites"] == 32
    assert runs.loc[0, "is_result"]

"""Evaluating on the way draws the curve, keeps the best, and changes nothing else."""

from __future__ import annotations

import json

import pytest

from harness.errors import Interrupted
from harness.record import read_record
from tests.harness.test_loop import record_of


def curve(run) -> list[tuple[int, float]]:
    rows = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return [
        (row["step"], row["metrics"]["pixel_acc"]) for row in rows if row["event"] == "evaluation"
    ]


@pytest.mark.parametrize("norm", ["bn", "gn_ws"])
def test_evaluating_on_the_way_changes_no_result(toy, tmp_path, norm):
    words = (f"norm={norm}", "optim.lr=0.5")
    plain = read_record(record_of(tmp_path, "plain", *words).record)
    run = record_of(tmp_path, "curve", *words, "exec.eval_every=2")
    record = read_record(run.record)
    assert record.metrics == plain.metrics
    points = curve(run)
    assert [step for step, _ in points] == [2, 4, 6]
    assert points[-1][1] == record.metrics[0].value
    best = max(points, key=lambda point: point[1])
    assert (record.best["pixel_acc"].step, record.best["pixel_acc"].value) == best
    assert plain.best == {}


def test_a_resumed_run_has_the_same_curve(toy, tmp_path):
    words = ("norm=gn", "exec.eval_every=2", "optim.lr=0.5")
    whole = record_of(tmp_path, "whole", *words)
    for stop_after in (2, 1):  # at the step of an evaluation, and between two
        with pytest.raises(Interrupted):
            record_of(tmp_path, f"parts{stop_after}", *words, stop_after=stop_after)
        parts = record_of(tmp_path, f"parts{stop_after}", *words)
        assert curve(parts) == curve(whole)
        assert read_record(parts.record).best == read_record(whole.record).best

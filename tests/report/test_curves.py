"""Learning curves are what the journals say, at steps that all runs share."""

from __future__ import annotations

import json

import numpy as np
import pytest

from harness.report.curves import evaluation_band, loss_band, read_curve


def journal(path, losses, evaluations=()):
    rows = [{"event": "start", "step": 0}]
    rows += [{"event": "train", "step": s, "loss": v} for s, v in losses]
    rows += [{"event": "stage", "stage": "evaluating", "done": 1, "total": 2}]
    rows += [{"event": "evaluation", "step": s, "metrics": {"acc": v}} for s, v in evaluations]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_torn_lines_and_infinite_losses_are_passed_over(tmp_path):
    path = journal(tmp_path / "a", [(1, 2.0), (5, float("nan")), (9, 1.0)], [(9, 50.0)])
    with path.open("a") as file:
        file.write('{"event": "train", "step": 10, "lo')
    curve = read_curve(path)
    assert curve.loss.tolist() == [[1, 2.0], [9, 1.0]]
    assert curve.evaluations["acc"].tolist() == [[9, 50.0]]


def test_a_missing_journal_is_an_empty_curve(tmp_path):
    curve = read_curve(tmp_path / "none")
    assert len(curve.loss) == 0
    assert loss_band([curve]) is None
    assert evaluation_band([curve], "acc") is None


def test_losses_are_brought_to_common_steps(tmp_path):
    a = read_curve(journal(tmp_path / "a", [(s, 1.0) for s in range(1, 100, 7)]))
    b = read_curve(journal(tmp_path / "b", [(s, 3.0) for s in range(5, 120, 3)]))
    band = loss_band([a, b])
    assert (band.steps[0], band.steps[-1]) == (5, 99)
    for values, expected in ((band.mean, 2.0), (band.low, 1.0), (band.high, 3.0)):
        np.testing.assert_allclose(values, expected)  # a mean of equals is that value


def test_smoothing_stays_within_the_losses_and_keeps_their_order(tmp_path):
    falling = [(s, 2.0 - s / 100) for s in range(0, 101, 10)]
    band = loss_band([read_curve(journal(tmp_path / "a", falling))])
    assert (np.diff(band.mean) < 0).all()
    assert 1.0 <= band.mean.min() <= band.mean.max() <= 2.0


@pytest.mark.parametrize("losses", [[], [(3, 1.0)]])
def test_too_few_losses_make_no_curve(tmp_path, losses):
    assert loss_band([read_curve(journal(tmp_path / "a", losses))]) is None


def test_evaluations_at_the_steps_that_all_runs_have(tmp_path):
    a = read_curve(journal(tmp_path / "a", [], [(2, 10.0), (4, 20.0), (6, 30.0)]))
    b = read_curve(journal(tmp_path / "b", [], [(2, 20.0), (6, 40.0)]))
    band = evaluation_band([a, b], "acc")
    assert band.steps.tolist() == [2, 6]
    assert band.mean.tolist() == [15.0, 35.0]
    assert band.low.tolist() == [10.0, 30.0]
    only_last = read_curve(journal(tmp_path / "c", [], [(6, 30.0)]))
    assert evaluation_band([only_last], "acc") is None

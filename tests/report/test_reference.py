"""Our measured tables and the README's block are what ``results/reference`` holds."""

from __future__ import annotations

import shutil

import pytest

from harness.collect import read_csv
from harness.paths import reference_csv
from harness.report import reference


def test_tables_and_readme_are_current(capsys: pytest.CaptureFixture[str]):
    assert reference.main(["--check"]) == 0, capsys.readouterr().out


def test_a_changed_number_is_noticed(tmp_path, monkeypatch, capsys):
    numbers = read_csv(reference_csv())
    numbers.loc[0, "value"] += 1
    changed = tmp_path / "metrics.csv"
    numbers.to_csv(changed, index=False)
    monkeypatch.setattr(reference, "read_csv", lambda _: read_csv(changed))
    assert reference.main(["--check"]) == 5
    assert "is not what metrics.csv gives" in capsys.readouterr().out


def test_runs_that_were_made_again_replace_theirs_and_others_stay(tmp_path, monkeypatch):
    kept = tmp_path / "reference" / "metrics.csv"
    kept.parent.mkdir()
    shutil.copyfile(reference_csv(), kept)
    before = read_csv(kept)
    again = before[before["run_id"].isin(before["run_id"].unique()[::7])].copy()
    again["value"] += 1
    monkeypatch.setattr(reference, "reference_csv", lambda: kept)
    monkeypatch.setattr(reference, "read_records", lambda _: ([], []))
    monkeypatch.setattr(reference, "metrics_frame", lambda _: again)
    reference.take_over(tmp_path / "nowhere")
    after = read_csv(kept)
    difference = after["value"] - before["value"]
    made = before["run_id"].isin(again["run_id"])
    assert list(after["run_id"]) == list(before["run_id"])
    assert (difference[made].round(6) == 1).all()
    assert (difference[~made] == 0).all()


def test_every_number_comes_from_committed_code():
    numbers = read_csv(reference_csv())
    assert not numbers["dirty"].fillna(True).any()
    assert numbers["git_sha"].str.fullmatch("[0-9a-f]{40}").all()
    assert numbers["is_result"].all()

"""Our measured tables and the README's block are what ``results/reference`` holds."""

from __future__ import annotations

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


def test_every_number_comes_from_committed_code():
    numbers = read_csv(reference_csv())
    assert not numbers["dirty"].fillna(True).any()
    assert numbers["git_sha"].str.fullmatch("[0-9a-f]{40}").all()
    assert numbers["is_result"].all()

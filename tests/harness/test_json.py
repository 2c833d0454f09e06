"""`--json`: what the tables of the command line show, for scripts."""

from __future__ import annotations

import json
import sys

import pytest

from harness.cli import main


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Return a call of the command line that gives what it printed as JSON."""

    def call(*words: str):
        monkeypatch.setattr(sys, "argv", ["normbench", *words, "--json"])
        with pytest.raises(SystemExit) as caught:
            main()
        assert not caught.value.code, capsys.readouterr().err
        return json.loads(capsys.readouterr().out)

    return call


def test_plan(answer, tmp_path):
    rows = answer("plan", "pointcloud", "norm=bn,gn", "batch.micro=1", "--results", str(tmp_path))
    assert [row["norm"] for row in rows] == ["bn", "gn"]
    assert [row["state"] for row in rows] == ["impossible", "todo"]
    assert "1 value per channel" in rows[0]["reason"]
    assert rows[1]["seed"] == 0


def test_plan_of_tables(answer, tmp_path):
    rows = answer("plan", "pointcloud_micro", "seed=0", "--results", str(tmp_path))
    assert {row["task"] for row in rows} == {"pointcloud"}
    assert all(row["tables"] == ["pointcloud_micro"] for row in rows)
    assert all(row["seconds"] is None for row in rows)  # nothing was run here


def test_status(answer, tmp_path):
    folder = tmp_path / "runs" / "one"
    folder.mkdir(parents=True)
    (folder / "spec.yaml").write_text("steps: 7\n")
    (row,) = answer("status", "--results", str(tmp_path))
    assert (row["id"], row["state"], row["total"]) == ("one", "todo", 7)


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        (("norms",), "batch_independent", True),
        (("ws",), "epsilon", 1e-5),
        (("tasks",), "task", "detection"),
        (("presets", "detection"), "preset", "smoke"),
        (("keys", "detection"), "mini", 8),
    ],
)
def test_ls(answer, words, key, value):
    rows = answer("ls", *words)
    assert value in [row[key] for row in rows]
    assert len({tuple(row) for row in rows}) == 1


def test_audit(answer):
    rows = answer("audit", "pointcloud", "norm=gn_ws", "preset=smoke")
    sites = [row for row in rows if row["role"] == "site"]
    assert {row["norm_after"] for row in sites} == {"gn"}
    assert any(row["standardised"] for row in rows)
    assert all(isinstance(row["num_params"], int) for row in rows)

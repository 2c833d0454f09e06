"""What docs/report.md tells to type works, and what it names exists."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from harness import cli, serve
from harness.report import effect
from harness.report.html import page
from harness.report.panels import COLOURS
from tests.report.cases import built

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "report.md"
COMMANDS = [
    line.strip().partition("  #")[0].strip()
    for line in PAGE.read_text(encoding="utf-8").splitlines()
    if line.startswith("    normbench ")
]


def test_commands_of_the_page(monkeypatch, tmp_path, capsys):
    assert len(COMMANDS) >= 6
    monkeypatch.setenv("NORMBENCH_RESULTS", str(tmp_path))
    monkeypatch.setattr(serve._Server, "serve_forever", lambda self: None)
    monkeypatch.setattr(serve._Server, "server_bind", lambda self: setattr(self, "server_port", 1))
    monkeypatch.setattr(serve._Server, "server_activate", lambda self: None)
    for command in COMMANDS:
        words = shlex.split(command)
        if words[1] == "run":
            words[1] = "plan"  # the same words, without an hour of training
        if words[-1] == "--html":
            words.append("pointcloud_micro")  # planning every table takes seconds
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as caught:
            cli.main()
        # Without a run, a table that is asked for is incomplete.
        assert caught.value.code == (1 if words[1] == "report" else 0), capsys.readouterr().err
    assert (tmp_path / page.NAME).read_text().startswith("<!doctype html>")
    assert "http://127.0.0.1:" in capsys.readouterr().out


def test_the_readmes_picture_is_drawn_from_a_table(tmp_path, toy):
    table = built(tmp_path)
    light, dark = effect.effect([table]), effect.effect([table], dark=True)
    assert effect.effect([table]) == light
    assert light != dark
    assert COLOURS[0].lower().encode() in light
    assert COLOURS[0].lower().encode() not in dark


def test_the_readmes_picture_is_current(tmp_path):
    """It shows what results/reference/metrics.csv holds."""
    assert effect.main(["--to", str(tmp_path)]) == 0
    for name in ("effect.svg", "effect-dark.svg"):
        assert (tmp_path / name).read_bytes() == (ROOT / "docs" / name).read_bytes()


def test_dark_colours_are_those_of_the_page():
    style = (ROOT / "harness/report/html/templates/style.css").read_text()
    dark = style.partition("data-theme=dark] {")[2].partition("}")[0]
    found = dict(re.findall(r"--(s\d): (#[0-9a-f]+);", dark))
    names = [f"s{i}" for i in range(len(COLOURS))]
    assert [{"#fff": "#ffffff"}.get(found[name], found[name]) for name in names] == list(
        effect._LIGHTER
    )

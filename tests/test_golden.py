"""Plans and audits, word for word: changed only on purpose, and then seen in a diff.

The ids in the plan hash the whole science of a run: if they change, old results count no longer.
"""

from __future__ import annotations

import sys

import pytest

from harness.cli import app


def output_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as caught:
        app(list(words))
    assert not caught.value.code
    return "\n".join(line.rstrip() for line in capsys.readouterr().out.splitlines()) + "\n"


@pytest.fixture(autouse=True)
def _nowhere(tmp_path, monkeypatch):
    monkeypatch.setenv("NORMBENCH_RESULTS", str(tmp_path))
    monkeypatch.delenv("NORMBENCH_DATA", raising=False)
    monkeypatch.setattr(sys, "argv", ["normbench"])


NORMS = "norm=bn,bn_ws,gn,gn_ws,ln,ln_ws,in,in_ws,frozen_bn,none,none_ws"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("plan_detection_mini.txt", ["detection", NORMS, "seed=0..1"]),
        ("plan_detection_micro.txt", ["detection", "norm=bn,gn_ws", "batch.micro=1,2,4,8"]),
        ("plan_detection_paper.txt", ["detection", "preset=paper"]),
    ],
)
def test_plan(name, words, capsys, golden):
    golden(name, output_of(capsys, "plan", *words))


@pytest.mark.parametrize("preset", ["mini", "paper"])
def test_audit(preset, capsys, golden, tmp_path):
    csv = tmp_path / "audit.csv"
    words = ["detection", f"preset={preset}", "norm=gn_ws"]
    out = output_of(capsys, "audit", *words, "--csv", str(csv))
    golden(f"audit_detection_{preset}.csv", csv.read_text())
    assert {"mini": "32 layers standardised", "paper": "69 layers standardised"}[preset] in out

"""The command line as a user meets it: instant help, light planning, errors in one line."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from harness.cli import main


def normbench(*words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "harness", *words],
        capture_output=True,
        text=True,
        env=os.environ | (env or {}),
        check=False,
    )


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["normbench", *words])
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0)


@pytest.mark.parametrize(
    "words", [["--help"], ["plan", "detection", "norm=bn,gn_ws", "seed=0..2"], ["ls", "norms"]]
)
def test_help_and_plan_import_neither_torch_nor_pandas(words, tmp_path):
    code = (
        "import sys\nfrom harness.cli import app\n"
        f"try: app({words!r})\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'pandas', 'detectron2', 'torchvision'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"NORMBENCH_RESULTS": str(tmp_path)},
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (["run", "detecton"], 2, "unknown task 'detecton'. Did you mean 'detection'"),
        (["run", "detection", "nrom=gn"], 2, "unknown key 'nrom'. Did you mean 'norm'"),
        (["run", "detection", "norm=gnws"], 2, "gn_ws"),
        (["run", "detection", "preset=papre"], 2, "Did you mean 'paper'"),
        (["run", "detection", "batch.size=9", "batch.micro=2"], 2, "batch.size=8 or 10"),
        (["run", "detection", "norm.groups=7"], 2, "norm.groups=7 does not divide"),
        (["run", "detection", "norm=frozen_bn"], 2, "init=scratch has none"),
        (["verify", "--table", "detecton_micro"], 2, "Did you mean 'detection_micro'"),
        (["run", "detection", "data=/no/such/folder"], 3, "/no/such/folder"),
        (["plan", "detection", "seed=x"], 2, "seed='x'"),
        (["ls", "norm"], 2, "Did you mean 'norms'"),
        (["ls", "keys"], 2, "needs a task"),
        (["audit", "detection", "norm=gx"], 2, "'gx'"),
        (["data", "show", "detection", "-o", "/no/such/folder/x.png"], 2, "cannot write"),
    ],
)
def test_bad_input_is_one_line(words, code, expected, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("NORMBENCH_RESULTS", str(tmp_path))
    assert call(monkeypatch, *words) == code
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert expected in error
    assert not list(tmp_path.iterdir())


def test_unwritable_results_are_refused(monkeypatch, capsys, tmp_path):
    (tmp_path / "file").touch()
    assert call(monkeypatch, "run", "detection", "--results", str(tmp_path / "file" / "x")) == 2
    assert "results folder" in capsys.readouterr().err


def test_mistyped_command_is_suggested():
    done = normbench("rnu", "detection")
    assert done.returncode == 2
    assert "run" in done.stderr
    assert "Traceback" not in done.stderr

"""Shell completion, through the protocol that the shells themselves speak."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness.spec import allowed, build

NORMBENCH = Path(sys.executable).with_name("normbench")
PRECISIONS = allowed("detection", "precision")


def offered(line: str) -> list[str]:
    """Return what TAB offers behind ``line`` in zsh."""
    process = subprocess.run(
        [NORMBENCH],
        env=os.environ | {"_NORMBENCH_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": line},
        capture_output=True,
        text=True,
        check=True,
    )
    assert not process.stderr
    return re.findall(r'"([^"]*)"', process.stdout)


def in_bash(*words: str) -> list[str]:
    """Return what TAB offers for the last of bash's words; ``=`` is a word there."""
    process = subprocess.run(
        [NORMBENCH],
        env=os.environ
        | {"_NORMBENCH_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(words)}
        | {"COMP_CWORD": str(len(words) - 1)},
        capture_output=True,
        text=True,
        check=True,
    )
    return process.stdout.split()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("normbench run de", ["detection"]),
        ("normbench run detection norm=gn", ["norm=gn", "norm=gn_ws"]),
        ("normbench run detection preset=sm", ["preset=smoke"]),
        ("normbench run detection exec.fus", ["exec.fused=true", "exec.fused=false"]),
        ("normbench audit pointcloud batch.mi", ["batch.micro="]),
        ("normbench report pointcloud_mi", ["pointcloud_micro"]),
        ("normbench plan pointcloud precision=b", ["precision=bf16"]),
        ("normbench ls no", ["norms"]),
        ("normbench run nonsense norm=g", []),
    ],
)
def test_offers(line: str, expected: list[str]):
    assert offered(line) == expected


def test_what_is_offered_is_accepted():
    for word in offered("normbench run segmentation precision="):
        assert build("segmentation", [tuple(word.split("="))])  # type: ignore[list-item]


def test_bash_gets_values_alone():
    assert in_bash("normbench", "run", "detection", "norm", "=", "gn") == ["gn", "gn_ws"]
    assert in_bash("normbench", "run", "detection", "prec") == [
        "precision=" + v for v in PRECISIONS
    ]


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash")
def test_what_is_installed_completes_in_bash(tmp_path):
    home = os.environ | {"HOME": str(tmp_path)}
    # The shell is found among the ancestors, and these tests may have none.
    install = f"{NORMBENCH} --install-completion; exit $?"
    subprocess.run(["bash", "-c", install], env=home, check=True)
    (script,) = (tmp_path / ".bash_completions").iterdir()
    words = f"{NORMBENCH} run detection norm = g"
    press = f"""
        source {script}
        COMP_WORDS=({words}) COMP_CWORD=5
        $(complete -p normbench | grep -o '[^ ]*completion') {NORMBENCH}
        echo "${{COMPREPLY[@]}}"
    """
    offers = subprocess.check_output(["bash", "-c", press], env=home, text=True)
    assert {"gn", "gn_ws"} <= set(offers.split())

"""Does what docs/adding-a-norm.md says, from outside the package and word for word."""

import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import normbench
from harness.cli import app, main
from harness.norm import catalogue
from tests.markdown import code_blocks

DOC = Path(__file__).parents[2] / "docs" / "adding-a-norm.md"


def blocks(language: str) -> list[str]:
    return code_blocks(DOC, language)


def install(folder: Path, code: str) -> None:
    """Put the module and what pip would make of its pyproject.toml into ``folder``."""
    project = tomllib.loads(blocks("toml")[0])["project"]
    (folder / "my_norms.py").write_text(code)
    info = folder / "my_norms-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    points = project["entry-points"]["normbench.norms"]
    lines = "".join(f"{name} = {value}\n" for name, value in points.items())
    (info / "entry_points.txt").write_text(f"[normbench.norms]\n{lines}")


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    install(tmp_path, blocks("python")[0])
    monkeypatch.syspath_prepend(str(tmp_path))
    catalogue._foreign_norms.cache_clear()
    yield tmp_path
    catalogue._foreign_norms.cache_clear()
    sys.modules.pop("my_norms", None)


def test_the_norm_is_one_short_file():
    (code,) = blocks("python")
    assert len(code.splitlines()) < 40


def commands() -> dict[str, list[str]]:
    lines = [line.split() for line in blocks("")[0].splitlines()]
    return {words[1]: words[1:] for words in lines if words[0] == "normbench"}


@pytest.mark.parametrize("command", ["ls", "selftest", "audit"])
def test_the_commands_work(command: str, outside: Path, capsys: pytest.CaptureFixture[str]):
    if command == "audit":
        pytest.importorskip("detectron2", reason="detectron2 is not installed")
    with pytest.raises(SystemExit) as caught:
        app(commands()[command])
    assert not caught.value.code
    expected = {
        "ls": "deviation",
        "selftest": "1 norm is what it declares",
        "audit": "the two runs differ in the normalisation alone",
    }
    assert expected[command] in capsys.readouterr().out


def test_it_is_a_norm_like_any_other(outside: Path):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    assert normbench.convert(model, "mad_ws", strict=True).num_standardised == 1
    assert type(model[1]).__module__ == "my_norms"
    assert model(torch.randn(2, 3, 5, 5)).isfinite().all()


def test_another_process_would_run_it(outside: Path):
    """Nothing but the two files is needed: entry points are found by their metadata."""
    env = os.environ | {"PYTHONPATH": str(outside), "NORMBENCH_RESULTS": str(outside)}
    words = ["-m", "harness", "plan", *commands()["run"][1:]]
    done = subprocess.run([sys.executable, *words], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in ("mad", "mad_ws", "gn_ws"):
        assert done.stdout.count(f"detection-{name}-") == 3


def test_a_wrong_claim_ends_with_status_5(
    outside: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    right, wrong = "batch_independent=True", "batch_independent=False"
    (outside / "my_norms.py").write_text(blocks("python")[0].replace(right, wrong))
    monkeypatch.setattr(sys, "argv", ["normbench", "selftest", "norm=mad"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 5
    assert blocks("")[1].strip() in capsys.readouterr().err

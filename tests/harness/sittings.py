"""Sittings of a toy run in this process, as the launcher and the worker make them."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from harness import worker
from harness.errors import Interrupted
from harness.identity import run_id
from harness.record import Failure, RunDir
from harness.spec import build, dump_spec, parse_words
from harness.worker import run_spec
from tests.harness.test_loop import Never

ALWAYS = "exec.checkpoint_s=0"
"""A checkpoint after every step."""


def prepared(results: Path, *words: str) -> RunDir:
    """Make a run's folder as the launcher does."""
    spec = build("toy", parse_words(words))
    run = RunDir(results, run_id(spec))
    run.path.mkdir(parents=True, exist_ok=True)
    run.spec.write_text(dump_spec(spec))
    return run


def sit(run: RunDir) -> tuple[int, Failure | None]:
    """Do one sitting in this process, signals aside, as a worker does."""
    before = {number: signal.getsignal(number) for number in (15, 2, 10, 12)}
    try:
        code = worker.main([str(run.path), "nowhere"])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code, run.read_failure()


def sit_until(run: RunDir, looks: int) -> None:
    """Do a sitting that is asked to stop after so many steps."""
    from harness.spec import load_spec

    with pytest.raises(Interrupted):
        run_spec(load_spec(run.spec), run, Path("nowhere"), Never(looks))

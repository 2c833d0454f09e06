"""Disks that are full or closed: said in one line, nothing half-written, the run goes on."""

from __future__ import annotations

import errno
import os
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from harness import collect, paths
from harness.cli import main as normbench
from harness.errors import EnvironmentProblem
from harness.record import read_record
from tests.harness.sittings import ALWAYS, prepared, sit, sit_until
from tests.harness.test_collect import record_of as made_up
from tests.harness.test_collect import store


def left_over(folder: Path) -> list[str]:
    """Return what a write that failed could have left behind."""
    return [
        p.name
        for p in folder.rglob("*")
        if p.suffix == ".writing" or (p.name.startswith(".") and p.suffix != ".lock")
    ]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond ``size`` bytes (writing more gives an OSError)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def full(number: int = errno.ENOSPC) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return fail


def test_no_room_for_a_checkpoint_keeps_the_one_before(toy, tmp_path, whole):
    run = prepared(tmp_path, ALWAYS)
    sit_until(run, 3)
    before = run.checkpoint.read_bytes()
    with largest_file(len(before) - 1000):
        code, failure = sit(run)
    assert (code, failure.exit_code) == (4, 4)
    assert str(run.checkpoint) in failure.message
    assert "larger than the system allows" in failure.message
    assert "\n" not in failure.message
    assert run.checkpoint.read_bytes() == before
    assert not left_over(tmp_path)
    assert sit(run) == (0, None)
    assert read_record(run.record).metrics == whole(ALWAYS).metrics


def test_a_full_disk_for_the_record_leaves_a_run_to_be_resumed(toy, tmp_path, monkeypatch):
    run = prepared(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("harness.record.write_atomic", _only(paths.write_atomic, run.record))
        code, failure = sit(run)
    assert code == 4
    assert failure.message == (
        f"{run.record}: no space is left on the disk: free some, then give the same command"
    )
    assert not run.record.exists()
    assert run.state() == "failed"
    assert not left_over(tmp_path)
    assert sit(run)[0] == 0
    assert read_record(run.record).num_resumed == 1


def _only(write: Callable[..., None], victim: Path) -> Callable[..., None]:
    def write_or_fail(path: Path, content: str | bytes) -> None:
        if path != victim:
            return write(path, content)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", full())
            return write(path, content)

    return write_or_fail


def test_a_disk_without_room_for_a_word_still_gives_the_exit_status(toy, tmp_path, monkeypatch):
    run = prepared(tmp_path)
    monkeypatch.setattr("harness.checkpoint.os.fsync", full())
    assert sit(run) == (4, None)
    assert not run.checkpoint.exists()
    assert not left_over(tmp_path)


def test_a_full_disk_keeps_the_tables_of_before(tmp_path, monkeypatch, capsys):
    store(tmp_path, made_up())
    for path in collect.write_csv(tmp_path, collect.read_records(tmp_path)[0]):
        assert path.is_file()
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.csv")}
    store(tmp_path, made_up(1))
    monkeypatch.setattr(os, "fsync", full())
    monkeypatch.setattr(sys, "argv", ["normbench", "report", "--results", str(tmp_path)])
    with pytest.raises(SystemExit) as caught:
        normbench()
    assert caught.value.code == 4
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert "no space is left on the disk" in told
    assert told.count("\n") == 1
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.csv")} == before
    assert not left_over(tmp_path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write")
def test_a_closed_folder_is_said(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match=r"a\.txt"):
        paths.write_atomic(tmp_path / "a.txt", "text")


def test_other_errors_of_the_system_keep_their_traceback():
    from harness.errors import of_the_machine

    assert of_the_machine(OSError(errno.ECHILD, "no child")) is None
    assert isinstance(of_the_machine(OSError(errno.EDQUOT, "", "f")), EnvironmentProblem)

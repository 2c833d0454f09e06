"""Requests to stop, as schedulers, terminals and impatient people send them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest

from harness import launch
from harness.checkpoint import load
from harness.plan import plan
from harness.stop import StopRequest, stoppable
from tests.toycli import (
    alive,
    events,
    finish,
    only_run,
    start,
    tree,
    wait_for_step,
    wait_until,
)

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
ENDLESS = ("run", "toy", "steps=1000000", "exec.log_s=0.05", "exec.threads=1")


def send(number: int, pids: list[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "everyone", "words"),
    [
        (signal.SIGINT, False, ("exec.workers=2",)),
        (signal.SIGTERM, True, ("exec.workers=2",)),
        (signal.SIGUSR1, True, ("devices=2", "exec.device=cpu")),
        (signal.SIGUSR2, False, ("exec.workers=2",)),
        (signal.SIGINT, True, ("devices=2", "exec.device=cpu")),
    ],
)
def test_all_stop_after_the_step(tmp_path, number, everyone, words):
    process = start(tmp_path, *ENDLESS, *words)
    run = wait_for_step(tmp_path, 3)
    pids = tree(process.pid)
    assert len(pids) >= 4  # the launcher, the worker or torchrun, two of theirs
    began = time.monotonic()
    send(number, pids if everyone else [process.pid])
    code, out, err = finish(process)
    assert time.monotonic() - began < 240  # the bound is a minute and more; a hang would be 300
    assert alive(pids) == []
    assert code == (130 if number == signal.SIGINT else 75), out + err
    if not everyone:  # else the workers may be gone before the launcher can say it
        assert f"{number.name}: finishing this step and saving, within 1:0" in out
    assert "is saved: the same command resumes" in err
    assert err.count("\n") == 1
    assert run.state() == "resumable"
    content, remarks = load(run.checkpoint, run.id)
    assert not remarks
    assert content["progress"]["step"] >= 3
    assert events(run, "saved")


@pytest.mark.slow
def test_torchrun_outlives_what_schedulers_send_to_everybody(tmp_path):
    """Else its workers would still be saving when their job is put back into the queue."""
    process = start(tmp_path, *ENDLESS, "devices=2", "exec.device=cpu")
    wait_for_step(tmp_path, 3)
    _, torchrun, *workers = tree(process.pid)
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        os.kill(torchrun, number)
    time.sleep(1)
    assert alive([torchrun, *workers]) == [torchrun, *workers]
    process.send_signal(signal.SIGUSR2)
    code, _, err = finish(process)
    assert (code, alive([torchrun, *workers])) == (75, [])
    assert "is saved: the same command resumes" in err


@pytest.mark.slow
def test_a_second_ctrl_c_leaves_at_once_and_keeps_the_checkpoint(tmp_path):
    words = (*ENDLESS, "exec.checkpoint_s=0", "exec.workers=1")
    process = start(tmp_path, *words)
    run = wait_for_step(tmp_path, 5)
    pids = tree(process.pid)
    send(signal.SIGSTOP, pids[1:2])  # a worker that cannot stop
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)  # the same one, passed on by a parent
    time.sleep(1)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    code, _, err = finish(process)
    assert code == 130
    assert time.monotonic() - began < 50  # without waiting for the bound
    assert "its last checkpoint is kept" in err
    assert alive(pids) == []
    assert load(run.checkpoint, run.id)[0]["progress"]["step"] >= 3


@pytest.mark.slow
def test_nothing_outlives_a_killed_worker_and_its_lock_is_free(tmp_path):
    process = start(tmp_path, *ENDLESS, "exec.workers=2")
    run = wait_for_step(tmp_path, 3)
    pids = tree(process.pid)
    assert run.state() == "running"
    process.send_signal(signal.SIGSTOP)  # else it ends what its worker leaves
    os.kill(pids[1], signal.SIGKILL)
    wait_until(lambda: run.state() != "running", 60)
    assert len(alive(pids)) > 1  # its data workers; they have not inherited the lock
    process.send_signal(signal.SIGCONT)
    code, _, err = finish(process)
    assert (code, alive(pids)) == (1, [])
    assert "the worker was killed (SIGKILL)" in err


@pytest.mark.slow
@pytest.mark.parametrize("words", [(), ("devices=2", "exec.device=cpu")])
def test_workers_notice_that_their_launcher_died_while_they_were_starting(tmp_path, words):
    process = start(tmp_path, *ENDLESS, *words)
    runs = tmp_path / "results" / "runs"  # before the worker come others, which live for a moment
    wait_until(lambda: runs.is_dir() and len(tree(process.pid)) > 1)
    pids = tree(process.pid)[1:]
    process.kill()
    process.communicate()
    wait_until(lambda: not (alive(pids) or only_run(tmp_path).state() == "running"))
    run = only_run(tmp_path)
    content, _ = load(run.checkpoint, run.id)
    assert content is None or content["progress"]["step"] < 100


def test_patience_ends(tmp_path, toy, monkeypatch):
    (cell,) = plan("toy", [*ENDLESS[2:]], tmp_path / "results")
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('ready', flush=True); time.sleep(600)"
    )
    monkeypatch.setattr(launch, "command", lambda *_: [sys.executable, "-c", deaf])
    one = launch.Running(cell, tmp_path)
    try:
        wait_until(lambda: "ready" in cell.run.log.read_text())
        one.stop(signal.SIGTERM)
        assert one.patience == 60
        monkeypatch.setattr(launch, "_GRACE_S", 0.1)
        time.sleep(0.2)
        assert not one.ended
        one.stop(signal.SIGTERM)
        assert one.ended
        outcome = one.outcome(signal.SIGTERM)
        assert outcome.exit_code == 75
        assert outcome.message.startswith("stopped (killed after 0:00); nothing was saved yet")
    finally:
        if not one.ended:
            one.kill()


def test_an_old_failure_is_not_the_new_one(tmp_path, toy, monkeypatch):
    (cell,) = plan("toy", [*ENDLESS[2:]], tmp_path)
    cell.run.path.mkdir(parents=True)
    cell.run.failure.write_text('{"exit_code": 6, "message": "an old story"}')
    monkeypatch.setattr(launch, "command", lambda *_: [sys.executable, "-c", "print('new')"])
    one = launch.Running(cell, tmp_path)
    wait_until(lambda: one.ended)
    assert "the worker ended without a record: new" in one.outcome(None).message


def test_a_worker_sees_the_end_of_its_launchers_pipe():
    code = (
        "from harness.stop import StopRequest; s = StopRequest(); print(bool(s), flush=True)\n"
        "while not s: pass\n"
        "print(s.error('x'))"
    )
    worker = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"NORMBENCH_LAUNCHED": "1"},
    )
    assert worker.stdout.readline() == "False\n"
    assert worker.communicate(timeout=300)[0] == (
        "stopped (the launcher let go); x: the same command resumes\n"
    )


def test_without_a_launcher_nothing_is_read(monkeypatch):
    monkeypatch.delenv("NORMBENCH_LAUNCHED", raising=False)
    before = {number: signal.getsignal(number) for number in signal.valid_signals() if number < 32}
    try:
        assert not StopRequest()
    finally:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, before[number])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_what_is_no_run_stops_with_75(number, capfd):
    with pytest.raises(SystemExit) as stopped, stoppable():
        signal.raise_signal(number)
    assert stopped.value.code == 75
    assert capfd.readouterr().err == f"stopped ({number.name}); the same command goes on\n"
    assert signal.getsignal(number) == signal.SIG_DFL

"""A sweep on a real Slurm of one node, started here: limits, requeues, cancelling, scripts.

Runs where Debian's slurm-wlm and munge are installed and NORMBENCH_SLURM is set (`.ci/run` does
both). One job reaches its limit of a minute, is requeued by submitit and finishes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from harness.record import RunDir, read_record
from tests.handed import PATIENCE_S, Site
from tests.toycli import wait_until

LIMIT = os.environ.get("NORMBENCH_SLURM_LIMIT", "1")
"""Minutes of the first job; a busy machine needs some to start a process."""
CLUSTER = Path(__file__).parent / "cluster"


def queue(site: Site) -> str:
    return site.call("squeue", "--noheader", "--format=%i %T %r")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    path = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])
    absent = [
        name for name in ("slurmctld", "slurmd", "munged") if not shutil.which(name, path=path)
    ]
    if absent:
        pytest.skip(f"no Slurm here ({', '.join(absent)} of Debian's slurm-wlm and munge)")
    if "NORMBENCH_SLURM" not in os.environ:
        pytest.skip("set NORMBENCH_SLURM=1 to start a Slurm cluster here")
    folder = tmp_path_factory.mktemp("slurm")
    started = subprocess.run([CLUSTER, "start", folder / "cluster"], capture_output=True, text=True)
    assert started.returncode == 0, started.stderr
    here = Site(folder, SLURM_CONF=started.stdout.strip())
    try:
        yield here
    finally:
        if jobs := queue(here).split():
            print(queue(here))
            subprocess.run(["scancel", *jobs[::3]], env=here.environment, check=False)
        subprocess.run([CLUSTER, "stop", folder / "cluster"], check=True)


def test_a_sweep_outlives_its_shell_and_its_limit(site):
    """The shell is gone when the first job starts; a second submission finds them in the queue."""
    sweep = (
        "reproduce",
        "two",
        "--launcher",
        "slurm",
        "partition=main",
        f"time={LIMIT}",
        "signal_s=5",
    )
    out = site.normbench(*sweep, "--jobs", "2")
    assert "2 runs handed to slurm (job " in out
    assert "2 of 2 runs are waiting or running already" in site.normbench(*sweep)
    slow, quick = site.run("bn-mb2-s0"), site.run("gn-s0")
    site.wait_for_step(slow)
    assert "running" in site.normbench("status")
    stopped = slow.path / "checkpoint.pt"
    wait_until(lambda: stopped.is_file() and slow.state() != "running", PATIENCE_S)
    assert not slow.record.is_file()
    site.slow.unlink()
    wait_until(lambda: slow.record.is_file() and quick.record.is_file(), PATIENCE_S)
    site.normbench("status", "--watch")
    record = read_record(slow.record)
    assert record.num_resumed >= 1
    logs = [path.read_text() for path in (site.results / "jobs").rglob("*.out")]
    assert any("Requeued job" in text for text in logs)
    assert "top1_acc" in site.normbench("reproduce", "two")
    cli = (sys.executable, "-m", "tests.slurm.cli")
    site.call(*cli, "run", "slow", "norm=bn", "--results", str(site.folder / "alone"))
    alone = RunDir(site.folder / "alone", slow.id)
    assert read_record(alone.record).metrics == record.metrics
    a, b = (torch.load(one.checkpoint, weights_only=True)["model"] for one in (slow, alone))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_cancelled_run_is_saved_and_tried_again(site):
    site.slow.touch()
    site.normbench("reproduce", "cancelled", "--launcher", "slurm", "partition=main", "time=5")
    run = site.run("bn-mb2-s1")
    site.wait_for_step(run)
    assert "1 run told to stop" in site.normbench("cancel", run.id)
    wait_until(lambda: not queue(site).strip(), PATIENCE_S)
    assert run.state() == "resumable"
    site.slow.unlink()
    site.normbench("retry", "--launcher", "slurm", "partition=main", "time=5")
    wait_until(run.record.is_file, PATIENCE_S)
    assert read_record(run.record).num_resumed == 1
    assert "no run has failed or been left" in site.normbench("retry")


def test_the_plain_script_does_the_same(site):
    script = site.folder / "sweep.sh"
    text = site.normbench("export", "plain", "--slurm-script", "partition=main", "time=0:05:00")
    assert "#SBATCH --time=5\n" in text
    script.write_text(text)
    site.call("sbatch", str(script))
    run = site.run("gn-s2")
    wait_until(run.record.is_file, PATIENCE_S)
    assert read_record(run.record).num_resumed == 0

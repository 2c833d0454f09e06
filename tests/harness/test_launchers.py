"""Runs that are handed over: to a process left behind, with their GPUs, as a plain script."""

from __future__ import annotations

import os
import socket
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import ClassVar

import pytest
from rich.console import Console

from harness import launch, launchers, placement
from harness.errors import UsageError
from harness.identity import run_id
from harness.inspect import status_table
from harness.jobs import cancel, hand_over
from harness.jobscript import slurm_script
from harness.launch import Rendezvous, Running, command
from harness.placement import Gpu, Placement, visible_gpus
from harness.plan import PlannedRun
from harness.progress import PlainLines
from harness.record import RunDir, read_record
from harness.registry import task_info
from harness.slurm import OPTIONS, Slurm, minutes
from harness.spec import build, parse_words
from tests.handed import Site
from tests.markdown import code_blocks
from tests.toycli import ROOT, alive, wait_until


def cell(results: Path, *words: str) -> PlannedRun:
    spec = build("toy", parse_words(words))
    return PlannedRun(spec, RunDir(results, run_id(spec)), "todo")


@pytest.mark.slow
def test_a_process_left_behind_makes_the_runs(tmp_path):
    """Its shell is gone; cancelled in the middle, it saves; `retry` goes on from there."""
    site = Site(tmp_path)
    assert "1 run handed to local" in site.normbench(
        "reproduce", "cancelled", "--launcher", "local"
    )
    run = site.run("bn-mb2-s1")
    site.wait_for_step(run)
    assert "running" in site.normbench("status")
    job = launchers.read_job(run)
    assert job is not None
    assert job.launcher == "local"
    pid = int(job.job.rpartition(":")[2])
    assert "1 run told to stop" in site.normbench("cancel", run.id)
    wait_until(lambda: not alive([pid]))
    assert run.state() == "resumable"
    site.slow.unlink()
    site.normbench("retry", run.id)
    assert read_record(run.record).num_resumed == 1


class MySite:
    """A launcher of another package, whose jobs wait for ever."""

    options: ClassVar[dict[str, str]] = {"queue": "where to wait"}
    waiting: ClassVar[dict[str, str]] = {}

    def __init__(self, results, options) -> None:
        self.queue = options.get("queue", "any")

    def submit(self, cells, roots, jobs) -> dict[str, str]:
        names = {one.run.id: f"{self.queue}-{one.spec.seed}" for one in cells}
        self.waiting.update(dict.fromkeys(names.values(), "queued"))
        return names

    def poll(self) -> dict[str, str]:
        return self.waiting

    def cancel(self, jobs) -> None:
        for job in jobs:
            self.waiting.pop(job, None)


def test_a_site_brings_its_own_launcher(toy, tmp_path, monkeypatch):
    """Found by its entry point; nothing is handed over twice, and only what lives is cancelled."""
    group = launchers.ENTRY_POINT_GROUP
    point = EntryPoint("mysite", "tests.harness.test_launchers:MySite", group)
    monkeypatch.setattr(launchers, "entry_points", lambda group: [point])
    runs = [cell(tmp_path, f"seed={seed}") for seed in range(2)]
    options, rest = launchers.split_options("mysite", ["queue=slow", "seed=0..1"])
    assert (options, rest) == ({"queue": "slow"}, ["seed=0..1"])
    said: list[str] = []
    hand_over(runs[:1], "mysite", options, None, tmp_path, said.append)
    hand_over(runs, "mysite", options, None, tmp_path, said.append)
    assert MySite.waiting == {"slow-0": "queued", "slow-1": "queued"}
    assert said[1] == "1 of 2 runs are waiting or running already"
    states = list(status_table(tmp_path).columns[1].cells)
    assert states == ["queued", "queued"]
    cancel([runs[1].run.id], tmp_path, said.append)
    assert list(status_table(tmp_path).columns[1].cells) == ["queued", "todo"]
    cancel([], tmp_path, said.append)
    assert MySite.waiting == {}
    cancel([], tmp_path, said.append)
    assert said[-1] == "nothing that a launcher has is waiting or running"
    with pytest.raises(UsageError, match="no run 'toy'"):
        cancel(["toy"], tmp_path, said.append)


QSUB = """\
#!{python}
import subprocess, sys
command = sys.argv[sys.argv.index("--") + 1:]
job = subprocess.Popen(command, start_new_session=True, stdout=-3, stderr=-3)  # DEVNULL
print(f"{{job.pid}}.pbs")
"""
QSTAT = """\
#!{python}
import json, pathlib
own = [p.parent.name for p in pathlib.Path("/proc").glob("[0-9]*/cmdline")
       if b"harness.jobrun" in p.read_bytes()]
print(json.dumps({{"Jobs": {{f"{{pid}}.pbs": {{"job_state": "R"}} for pid in own}}}}))
"""
QDEL = """\
#!{python}
import os, signal, sys
os.kill(int(sys.argv[1].split(".")[0]), signal.SIGTERM)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the stand-in reads /proc")
def test_the_launcher_of_the_page_about_launchers(tmp_path):
    """Installed as the page says, on stand-ins for PBS: hand over, watch, cancel, retry."""
    (code,) = code_blocks(ROOT / "docs" / "adding-a-launcher.md", "python")
    (project,) = code_blocks(ROOT / "docs" / "adding-a-launcher.md", "toml")
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in {"qsub": QSUB, "qstat": QSTAT, "qdel": QDEL}.items():
        (tools / name).write_text(text.format(python=sys.executable))
        (tools / name).chmod(0o755)
    site = Site(tmp_path, PATH=os.pathsep.join([str(tools), os.environ["PATH"]]))
    (tmp_path / "site" / "pbs_launcher.py").write_text(code)
    info = tmp_path / "site" / "pbs_launcher-0.dist-info"
    info.mkdir()
    declared = tomllib.loads(project)["project"]
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {declared['name']}\nVersion: 0\n")
    ((group, points),) = declared["entry-points"].items()
    lines = "".join(f"{name} = {value}\n" for name, value in points.items())
    (info / "entry_points.txt").write_text(f"[{group}]\n{lines}")
    said = site.normbench("reproduce", "cancelled", "--launcher", "pbs", "queue=gpu")
    assert "1 run handed to pbs" in said
    run = site.run("bn-mb2-s1")
    site.wait_for_step(run)
    assert "running" in site.normbench("status")
    site.normbench("cancel", run.id)
    wait_until(lambda: run.state() == "resumable" and "running" not in site.normbench("status"))
    site.slow.unlink()
    site.normbench("retry", run.id, "--launcher", "pbs")
    wait_until(run.record.is_file)
    assert read_record(run.record).num_resumed == 1


def test_options_are_told_from_words(tmp_path):
    options, rest = launchers.split_options("slurm", ["partition=gpu", "seed=0", "one", "time=2"])
    assert options == {"partition": "gpu", "time": "2"}
    assert rest == ["seed=0", "one"]
    with pytest.raises(UsageError, match="unknown launcher 'slum'"):
        launchers.launcher_class("slum")
    with pytest.raises(UsageError, match="gpus_per_run=two: a whole number"):
        Slurm(tmp_path, {"gpus_per_run": "two"})
    with pytest.raises(UsageError, match=r"partiton= is no option of slurm.* 'partition'"):
        launchers.split_options("slurm", ["partiton=gpu"])
    with pytest.raises(UsageError, match=r"no option of local.* Options: none"):
        launchers.split_options("local", ["exec.threads=1", "partition=gpu"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90", 90), ("1:30", 2), ("02:00:00", 120), ("1-12", 2160), ("2-00:30:00", 2910)],
)
def test_time_limits_are_read_as_slurm_writes_them(text, expected):
    assert minutes(text) == expected


@pytest.mark.parametrize("text", ["0", "soon", "1:2:3:4", "-5"])
def test_no_time_limit_is_guessed(text):
    with pytest.raises(UsageError, match="give minutes"):
        minutes(text)


def test_slurm_is_asked_for_what_a_run_needs(toy, tmp_path):
    words = {"gpus_per_run": "4", "nodes": "2", "time": "1:00:00", "partition": "a", "qos": "low"}
    two = cell(tmp_path, "devices=2", "batch.micro=1", "exec.threads=3")
    asked = Slurm(tmp_path, words).parameters(two, 7)
    assert (asked["gpus_per_node"], asked["nodes"], asked["cpus_per_task"]) == (2, 2, 3)
    assert (asked["timeout_min"], asked["slurm_array_parallelism"]) == (60, 7)
    assert (asked["slurm_partition"], asked["slurm_qos"]) == ("a", "low")
    with pytest.raises(UsageError, match="devices=1 cannot be divided over nodes=2"):
        Slurm(tmp_path, words).parameters(cell(tmp_path), 1)
    with pytest.raises(UsageError, match="gpus_per_run=1 for devices=2: give gpus_per_run=2"):
        Slurm(tmp_path, {"gpus_per_run": "1"}).parameters(two, 1)
    on_cpus = cell(tmp_path, "devices=2", "batch.micro=1", "exec.device=cpu")
    assert Slurm(tmp_path, {"gpus_per_run": "1"}).parameters(on_cpus, 1)["gpus_per_node"] == 1
    assert "partition" in OPTIONS


def test_the_script_names_every_run_and_is_requeued(toy, tmp_path):
    cells = [cell(tmp_path, f"seed={seed}") for seed in range(3)]
    text = slurm_script(cells, {"time": "30", "partition": "a b"}, 2, tmp_path)
    assert "#SBATCH --array=0-2%2\n#SBATCH --time=30\n" in text
    assert "#SBATCH --requeue" in text
    assert all(str(one.run.path) in text and one.run.spec.is_file() for one in cells)


def test_nodes_meet_where_they_are_told(toy, tmp_path):
    run = cell(tmp_path, "devices=4", "batch.micro=1", "batch.size=8")
    words = command(run.run, run.spec, tmp_path, Rendezvous(2, "first:29500", "7"))
    words = words[words.index(sys.executable) :]
    assert words[:3] == [sys.executable, "-m", "torch.distributed.run"]
    assert words[3:8] == [
        "--nnodes=2",
        "--rdzv-backend=c10d",
        "--rdzv-endpoint=first:29500",
        "--rdzv-id=7",
        "--nproc-per-node=2",
    ]


@pytest.mark.slow
def test_two_nodes_share_a_run(tmp_path):
    """Two torchruns of one process each, that know nothing of each other but the endpoint."""
    words = ["preset=smoke", "devices=2", "batch.micro=1", "exec.device=cpu", "exec.threads=1"]
    spec = build("classification", parse_words(words))
    root = task_info("classification").prepare(spec, lambda *_: None)
    one = PlannedRun(spec, RunDir(tmp_path, run_id(spec)), "todo")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        there = Rendezvous(2, f"127.0.0.1:{free.getsockname()[1]}", "test")
    nodes = [Running(one, root, 1, rendezvous=there) for _ in range(2)]
    wait_until(lambda: all(node.ended for node in nodes), 500)
    assert [node.outcome(None).exit_code for node in nodes] == [0, 0], one.run.log.read_text()
    assert read_record(one.run.record).environment["world"] == 2


def test_each_run_gets_the_emptiest_gpus(toy, tmp_path):
    gpus = [Gpu("0", 1000), Gpu("1", 1000)]
    runs = [cell(tmp_path, f"seed={seed}") for seed in range(5)]
    place = Placement(gpus, 4, {})
    assert [place.take(run) for run in runs] == [["0"], ["1"], ["0"], ["1"], None]
    place.give_back(runs[1])
    assert place.take(runs[4]) == ["1"]


def test_runs_share_a_gpu_only_as_far_as_its_memory_goes(toy, tmp_path):
    runs = [cell(tmp_path, f"seed={seed}") for seed in range(3)]
    needs = {runs[0].run.id: 500.0, runs[1].run.id: 500.0, runs[2].run.id: 400.0}
    place = Placement([Gpu("0", 1000)], 3, needs)
    assert [place.take(run) for run in runs] == [["0"], None, ["0"]]


def test_a_run_over_several_devices_gets_as_many(toy, tmp_path):
    both = cell(tmp_path, "devices=2", "batch.micro=1")
    place = Placement([Gpu("a", 10), Gpu("b", 10), Gpu("c", 10)], 1, {})
    assert place.take(both) == ["a", "b"]
    assert place.take(cell(tmp_path, "exec.device=cpu")) == []


def test_gpus_are_those_that_may_be_seen(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho '0, GPU-a, 1000'\necho '1, GPU-b, 2000'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [(gpu.name, gpu.mem_mib) for gpu in visible_gpus()] == [("0", 1000), ("1", 2000)]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-b")
    assert [gpu.name for gpu in visible_gpus()] == ["1"]
    tool.unlink()
    assert visible_gpus() == []


@pytest.mark.parametrize(("said", "threads"), [(None, 8), ("3", None)])
def test_a_job_script_says_how_many_threads(toy, tmp_path, monkeypatch, said, threads):
    """What a scheduler gave a job may be less than the machine lets it see."""
    given = []

    class Started(Exception):
        pass

    def start(_cell, _root, threads):
        given.append(threads)
        raise Started

    monkeypatch.setattr(launch, "Running", start)
    monkeypatch.setattr(launch, "usable_cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if said:
        monkeypatch.setenv("OMP_NUM_THREADS", said)
    with pytest.raises(Started):
        launch.launch(
            cell(tmp_path, "devices=2", "batch.micro=1"), tmp_path, PlainLines(6, Console())
        )
    assert given == [threads]


def test_threads_are_divided_among_runs_and_their_processes(toy, tmp_path, monkeypatch):
    from harness.launch import _environment

    monkeypatch.setattr(placement, "usable_cores", lambda: 8)
    assert Placement([], 2, {}).threads == 4
    two = cell(tmp_path, "devices=2", "batch.micro=1")
    assert _environment(two.spec, 4, None)["OMP_NUM_THREADS"] == "2"
    assert _environment(two.spec, 4, ["1", "3"])["CUDA_VISIBLE_DEVICES"] == "1,3"

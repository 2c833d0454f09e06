"""A sweep on a real Ray cluster of one core, started here: queued, cancelled, killed, finished.

Runs where ray is installed; `.ci/run` puts it beside .venv.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from harness.launchers import read_job
from harness.record import RunDir, read_record
from tests.handed import PATIENCE_S, Site
from tests.toycli import ROOT, alive, events, wait_until

CLUSTER = """\
import sys, ray
here = ray.init(num_cpus=1, include_dashboard=False, object_store_memory=80 * 2**20,
                _node_ip_address="127.0.0.1", _temp_dir=sys.argv[1])
print(here.address_info["gcs_address"], flush=True)
sys.stdin.read()
"""


def test_without_ray_one_line_says_what_to_install(toy, tmp_path):
    program = (
        "import sys; sys.modules['ray'] = None\n"
        "from pathlib import Path; from harness.ray import Ray\n"
        "one = Ray(Path(), {}); print(one.poll()); one.submit([], {}, None)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout == "{}\n"
    assert "EnvironmentProblem: --launcher ray needs the package ray" in done.stderr


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    here = Site(tmp_path, RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0")
    short = tempfile.mkdtemp(prefix="ray")  # sockets have paths of at most 107 letters
    cluster = subprocess.Popen(
        [sys.executable, "-c", CLUSTER, short],
        env=here.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert cluster.stdout is not None
    here.environment["RAY_ADDRESS"] = cluster.stdout.readline().strip()
    try:
        yield here
    finally:
        cluster.communicate("")  # its processes end with it
        shutil.rmtree(short, ignore_errors=True)


def jobruns(run: RunDir) -> list[int]:
    """Return the process that makes a run in the foreground of a job."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"harness.jobrun" in words and str(run.path).encode() in words:
            found.append(int(path.parent.name))
    return found


def goes_on(run: RunDir) -> bool:
    """Tell whether a later sitting than the first has made a step."""
    begun, made = ([0, *(row["step"] for row in events(run, kind))] for kind in ("start", "train"))
    return 0 < begun[-1] < made[-1]


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.slow
@pytest.mark.skipif(
    find_spec("ray") is None, reason="ray is not installed; .ci/run puts it beside .venv"
)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_sweep_is_cancelled_killed_and_finished(site):
    said = site.normbench("reproduce", "two", "--launcher", "ray")
    assert "2 runs handed to ray (job normbench-" in said
    slow, quick = site.run("bn-mb2-s0"), site.run("gn-s0")
    site.wait_for_step(slow)
    states = site.normbench("status")
    assert "running" in states
    assert "queued" in states
    pids = jobruns(slow)
    assert "2 runs told to stop" in site.normbench("cancel")
    wait_until(lambda: not alive(pids) and slow.state() != "running", PATIENCE_S)
    assert (slow.state(), quick.state()) == ("resumable", "todo")

    site.normbench("retry", "--launcher", "ray")
    wait_until(lambda: goes_on(slow), PATIENCE_S)
    (pid,) = jobruns(slow)
    os.kill(parent(pid), signal.SIGKILL)  # Ray's process; it starts another
    wait_until(lambda: jobruns(slow) not in ([], [pid]), PATIENCE_S)
    site.slow.unlink()
    wait_until(lambda: slow.record.is_file() and quick.record.is_file(), PATIENCE_S)
    assert read_record(slow.record).num_resumed == 2
    job = read_job(slow)
    assert job is not None
    assert "resumed at step" in (site.results / "jobs" / f"{job.job}.out").read_text()

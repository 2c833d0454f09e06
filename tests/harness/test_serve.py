"""`serve` answers two addresses, to this machine alone, and never changes a file."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import serve
from harness.errors import UsageError
from harness.live import RunStatus, status, statuses
from harness.record import RunDir, write_record
from harness.serve import Site, server
from tests.harness.test_collect import record_of
from tests.report.cases import definition

pytestmark = pytest.mark.usefixtures("toy")
ROW = {
    "event": "train",
    "step": 3,
    "loss": 1.5,
    "parts": {"loss_ce": 1.5},
    "lr": 0.1,
    "images_per_s": 8.0,
    "mem_mib": 9.0,
    "eta_s": 30.0,
}


def begun(results: Path, name: str = "toy-gn-s0-1") -> RunDir:
    """Leave what a run has written when it is at its third step."""
    run = RunDir(results, name)
    run.path.mkdir(parents=True)
    run.spec.write_text("steps: 6\n")
    run.metrics.write_text(
        json.dumps({"event": "start", "step": 0}) + "\n" + json.dumps(ROW) + "\n"
    )
    return run


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path, [definition()], (), asked=False)


@pytest.fixture
def port(site: Site) -> Iterator[int]:
    with server(site, "127.0.0.1", 0) as listening:
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield listening.server_port
        listening.shutdown()
        thread.join()


def ask(port: int, path: str, method: str = "GET", host: str = "") -> tuple[int, str, dict]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, headers={"Host": host} if host else {})
    answer = connection.getresponse()
    found = answer.status, answer.read().decode(), dict(answer.getheaders())
    connection.close()
    return found


def test_page_and_progress_follow_the_records(port, tmp_path):
    code, text, headers = ask(port, "/")
    assert (code, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert "No run has finished yet." in text
    assert 'id="live-runs"' in text
    first = json.loads(ask(port, "/progress.json")[1])
    assert first["runs"] == []
    assert f'data-page="{first["page"]}"' in text
    record = record_of()
    run = RunDir(tmp_path, record.run_id)
    run.path.mkdir(parents=True)
    write_record(run, record)
    deadline = time.monotonic() + 120
    while (page := json.loads(ask(port, "/progress.json")[1])["page"]) == first["page"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    text = ask(port, "/")[1]
    assert f'data-page="{page}"' in text
    assert record.run_id in text


def test_progress_of_a_running_run(port, tmp_path):
    run = begun(tmp_path)
    with run.lock():
        found = json.loads(ask(port, "/progress.json")[1])
    assert found["counts"] == {"running": 1}
    (row,) = found["runs"]
    shown = {key: row[key] for key in ("id", "state", "stage", "done", "total", "loss")}
    assert shown == {
        "id": run.id,
        "state": "running",
        "stage": "training",
        "done": 3,
        "total": 6,
        "loss": 1.5,
    }
    assert 0 < row["eta_s"] <= 30


@pytest.mark.parametrize(
    ("path", "method", "host", "code"),
    [
        ("/", "GET", "evil.example:8000", 403),
        ("/progress.json", "GET", "", 200),
        ("/progress.json", "GET", "localhost:1", 200),
        ("/progress.json", "GET", "[::1]:1", 200),
        ("/progress.json", "HEAD", "", 200),
        ("/../../etc/passwd", "GET", "", 404),
        ("/%2e%2e/etc/passwd", "GET", "", 404),
        ("/runs.csv", "GET", "", 404),
        ("/", "POST", "", 501),
        ("/", "DELETE", "", 501),
    ],
)
def test_nothing_else_is_answered(port, path, method, host, code):
    found, body, headers = ask(port, path, method, host)
    assert found == code
    if method == "HEAD":
        assert body == ""
        assert int(headers["Content-Length"]) > 2


def test_looking_changes_no_file(port, tmp_path):
    begun(tmp_path)

    def seen() -> dict[str, float]:
        return {str(path): path.stat().st_mtime_ns for path in tmp_path.rglob("*")}

    before = seen()
    ask(port, "/")
    ask(port, "/progress.json")
    assert seen() == before


def test_a_taken_port_is_one_line(port, site):
    with pytest.raises(UsageError, match="give another --port"):
        server(site, "127.0.0.1", port)


def test_other_addresses_are_said_to_be_open(site, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(serve._Server, "serve_forever", lambda self: None)
    serve.serve(site, "0.0.0.0", 0, said.append)
    assert said[0].startswith("http://0.0.0.0:")
    assert said[1] == "everybody who reaches this address can read the results"
    serve.serve(site, "127.0.0.1", 0, said.append)
    assert len(said) == 3


@pytest.mark.parametrize(
    "journal",
    [
        "",
        "{",
        "[]\n",
        '{"event": "train"}\n',
        '{"event": "train", "step": "x", "loss": 1}\n',
        "\0" * 99,
    ],
)
def test_torn_journals_leave_the_rest_unknown(journal, tmp_path):
    run = begun(tmp_path)
    run.metrics.write_text(journal)
    found = status(run)
    assert (found.id, found.state, found.step) == (run.id, "todo", "0/6")


def test_stages_failures_and_stops_are_told(tmp_path):
    failed, busy, stopped = (begun(tmp_path, name) for name in "abc")
    failed.failure.write_text('{"exit_code": 6, "message": "the loss became NaN"}')
    with busy.metrics.open("a") as file:
        file.write('{"event": "stage", "stage": "evaluate", "done": 2, "total": 9}\n')
    stopped.checkpoint.touch()
    with busy.lock():
        one, two, three = statuses(tmp_path)
    assert (one.state, one.message, one.step) == ("failed", "the loss became NaN", "3/6")
    assert (two.stage, two.step, two.eta_s) == ("evaluate", "evaluate 2/9", None)
    assert (three.state, three.step) == ("resumable", "3/6")
    assert isinstance(three, RunStatus)

"""Where a run was made stands beside it, and a change of it on the way is seen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from harness import environment as module
from harness.collect import metrics_frame
from harness.environment import continues_elsewhere, differences, environment
from harness.plan import plan
from harness.record import RunDir, read_record
from harness.report.build import _remarks
from tests.harness.sittings import prepared, sit, sit_until


@pytest.fixture
def stopped(toy, tmp_path) -> RunDir:
    """Return a run that was stopped after three of its six steps."""
    run = prepared(tmp_path)
    sit_until(run, 2)
    return run


def edit(run: RunDir, **changes: object) -> None:
    content = json.loads(run.environment.read_text())
    packages = content["packages"] | changes.pop("packages", {})
    run.environment.write_text(json.dumps(content | changes | {"packages": packages}))


def test_environment_tells_packages_device_code_and_flags():
    here = environment("cpu", 2, 1)
    assert {"torch", "numpy"} <= here["packages"].keys()
    assert {"device", "cpu", "host", "python", "git_sha", "dirty", "threads"} <= here.keys()
    assert {"deterministic", "matmul_precision", "cpu_capability", "cuda"} <= here["flags"].keys()
    assert json.loads(json.dumps(here)) == here


def test_without_a_gpu_cudnn_is_not_loaded(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.cudnn, "version", pytest.fail)
    assert module.flags()["cudnn"] is None


def test_a_run_that_goes_on_as_it_began_says_nothing(stopped, tmp_path):
    cell = plan("toy", [], tmp_path)[0]
    assert (cell.state, cell.reason) == ("resumable", "")
    assert sit(stopped) == (0, None)
    record = read_record(stopped.record)
    assert record.environment["changed"] == []
    assert "another environment" not in stopped.metrics.read_text()


def test_another_torch_or_device_is_planned_journalled_and_noted(stopped, tmp_path):
    edit(stopped, device="NVIDIA H200", packages={"torch": "1.0"})
    now = environment("cpu", 1, 1)["packages"]["torch"]
    changes = f"device NVIDIA H200 -> cpu; torch 1.0 -> {now}"
    cell = plan("toy", ["exec.device=cpu"], tmp_path)[0]
    assert (cell.state, cell.reason) == ("resumable", f"would continue under {changes}")
    assert sit(stopped) == (0, None)
    record = read_record(stopped.record)
    assert record.environment["changed"] == changes.split("; ")
    assert f"continued in another environment: {changes}" in stopped.metrics.read_text()
    frame = metrics_frame([record])
    assert frame["changed"].tolist() == [changes]
    said = "1 of 1 runs were continued in another environment: device NVIDIA H200 -> cpu; torch"
    assert any(line.startswith(said) for line in _remarks(frame))


def test_changes_add_up_over_sittings(stopped):
    edit(stopped, packages={"torch": "1.0"}, changed=["numpy 1 -> 2"])
    assert sit(stopped)[0] == 0
    changed = read_record(stopped.record).environment["changed"]
    assert changed[0] == "numpy 1 -> 2"
    assert changed[1].startswith("torch 1.0 -> ")


def test_a_failed_run_says_both(stopped, tmp_path):
    edit(stopped, packages={"torch": "1.0"})
    stopped.failure.write_text('{"exit_code": 1, "message": "no luck"}')
    assert "no luck; would continue under torch 1.0 -> " in plan("toy", [], tmp_path)[0].reason


@pytest.mark.parametrize("text", ["", "{", "[]", "5", '{"packages": 3, "device": null}'])
def test_an_environment_that_cannot_be_read_stops_nothing(stopped, tmp_path, text):
    stopped.environment.write_text(text)
    assert plan("toy", [], tmp_path)[0].reason == ""
    assert sit(stopped) == (0, None)


def test_what_only_one_side_tells_is_no_difference():
    assert differences({"packages": {"torch": "1"}}, {"packages": {"numpy": "2"}}) == []
    assert differences({"flags": {"cuda": None}}, {"flags": {"cuda": "12"}}) == []
    assert differences({"git_sha": "a" * 40}, {"git_sha": "b" * 40}) == [
        f"code {'a' * 12} -> {'b' * 12}"
    ]
    variables = {"flags": {"variables": {"MKL_CBWR": "AVX2"}}}
    assert differences(variables, {"flags": {"variables": {}}}) == [
        "variables MKL_CBWR=AVX2 -> none"
    ]


def test_planning_on_a_cpu_asks_no_torch(tmp_path, monkeypatch):
    path = tmp_path / "environment.json"
    path.write_text('{"device": "cpu", "packages": {}}')
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    monkeypatch.setattr(module, "Path", lambda name: Path(str(tmp_path / name.lstrip("/"))))
    assert continues_elsewhere(path, "cpu") == []
    assert module._device("auto", "cpu") == "cpu"
    assert module._device("auto", "NVIDIA H200") is None

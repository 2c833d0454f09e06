"""Trackers get the curves that the journal has; one that fails is left out and stops nothing."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from harness.identity import run_id
from harness.record import RunDir, read_record
from harness.spec import build, parse_words
from harness.trackers import registry
from harness.trackers.guard import Trackers

TRAIN = {
    "event": "train",
    "step": 3,
    "loss": 1.5,
    "parts": {"loss_ce": 1.5},
    "lr": 0.1,
    "images_per_s": 9.0,
    "mem_mib": 10.0,
    "eta_s": 1.0,
}
EVALUATION = {"event": "evaluation", "step": 4, "metrics": {"pixel_acc": 50.0}}


class Failing:
    """Fails where its class says."""

    fails = "row"
    told: list[str] = []  # noqa: RUF012

    def start(self, spec, run, step):
        self._act("start")

    def row(self, row):
        self._act("row")

    def close(self, *, finished):
        self._act(f"close {finished}")

    def _act(self, what: str) -> None:
        self.told.append(what)
        if what.startswith(self.fails):
            raise SystemExit(3) if self.fails == "start" else RuntimeError("the server is on fire")


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(registry.TRACKERS, "failing", "tests.harness.test_trackers:Failing")
    monkeypatch.setattr(Failing, "told", [])


def spec_of(*words: str):
    return build("toy", parse_words(words))


@pytest.mark.usefixtures("toy", "failing")
@pytest.mark.parametrize(
    ("fails", "told"),
    [
        ("start", ["start"]),
        ("row", ["start", "row"]),
        ("close", ["start", "row", "row", "close True"]),
    ],
)
def test_one_that_fails_is_left_out_and_the_others_go_on(fails, told, tmp_path, monkeypatch):
    monkeypatch.setattr(Failing, "fails", fails)
    run, said = RunDir(tmp_path, "r"), []
    run.path.mkdir(parents=True)
    with Trackers(("failing", "tensorboard"), spec_of(), run, 0, said.append) as trackers:
        trackers(TRAIN)
        trackers(EVALUATION)
    assert Failing.told == told
    assert len(said) == 1
    assert said[0].startswith("tracker failing is left out, the run goes on (")
    assert scalars(run)["evaluation/pixel_acc"] == [(4, 50.0)]


def scalars(run: RunDir) -> dict[str, list[tuple[int, float]]]:
    """Read back what TensorBoard would show."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(run.path / "tensorboard")).Reload()
    return {
        tag: [(one.step, one.value) for one in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
    }


@pytest.mark.usefixtures("toy")
def test_a_resumed_run_supersedes_the_steps_it_repeats(tmp_path):
    run = RunDir(tmp_path, "r")
    run.path.mkdir(parents=True)
    for start, losses in ((0, {1: 4.0, 2: 3.0, 3: 9.0}), (2, {3: 2.0, 4: 1.0})):
        with Trackers(("tensorboard",), spec_of(), run, start, pytest.fail) as trackers:
            for step, loss in losses.items():
                trackers(TRAIN | {"step": step, "loss": loss})
    assert scalars(run)["train/loss"] == [(1, 4.0), (2, 3.0), (3, 2.0), (4, 1.0)]


@pytest.mark.usefixtures("toy")
def test_trackers_are_no_part_of_a_run():
    plain = spec_of()
    assert plain.exec.trackers == ("tensorboard",)
    for words in ("exec.trackers=[]", "exec.trackers=wandb", "exec.trackers=[mlflow,wandb,mlflow]"):
        assert run_id(spec_of(words)) == run_id(plain)
    assert spec_of("exec.trackers=[mlflow,wandb,mlflow]").exec.trackers == ("mlflow", "wandb")


@pytest.mark.usefixtures("toy")
def test_an_unknown_tracker_is_refused_with_a_hint():
    from harness.errors import UsageError

    with pytest.raises(UsageError, match=r"'wandbb' is not known\. Did you mean 'wandb'"):
        spec_of("exec.trackers=wandbb")


@pytest.mark.usefixtures("toy", "failing")
def test_a_whole_run_survives_its_trackers(tmp_path):
    """The numbers are those of a run without trackers, whatever the trackers do."""
    from harness.spec import dump_spec
    from harness.stop import StopRequest
    from harness.worker import run_spec

    values = {}
    for name in ("[]", "[failing,tensorboard]"):
        spec = spec_of(f"exec.trackers={name}")
        run = RunDir(tmp_path / name, run_id(spec))
        run.path.mkdir(parents=True)
        run.spec.write_text(dump_spec(spec))
        run_spec(spec, run, Path("nowhere"), StopRequest())
        values[name] = read_record(run.record).metrics
    assert values["[]"] == values["[failing,tensorboard]"]
    rows = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    remarks = [row["text"] for row in rows if row["event"] == "remark"]
    assert sum("tracker failing is left out" in text for text in remarks) == 1
    journal = [(row["step"], row["loss"]) for row in rows if row["event"] == "train"]
    shown = scalars(run)["train/loss"]
    assert [step for step, _ in shown] == [step for step, _ in journal]
    assert [loss for _, loss in shown] == pytest.approx([loss for _, loss in journal])
    assert Failing.told[:2] == ["start", "row"]


@pytest.mark.usefixtures("toy")
def test_wandb_offline(tmp_path, monkeypatch):
    """The real library, writing to disk; skipped without the extra."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = RunDir(tmp_path, "r")
    run.path.mkdir(parents=True)
    with Trackers(("wandb",), spec_of(), run, 0, pytest.fail) as trackers:
        trackers(TRAIN)
        trackers(EVALUATION)
    assert list(run.path.glob("wandb/offline-run-*/*.wandb"))


@pytest.mark.usefixtures("toy")
def test_a_missing_library_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.delitem(sys.modules, "harness.trackers.wandb", raising=False)
    said: list[str] = []
    with Trackers(("wandb",), spec_of(), RunDir(tmp_path, "r"), 0, said.append):
        pass
    assert "install it with: uv sync --extra wandb" in said[0]

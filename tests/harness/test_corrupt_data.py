"""Processes that load data and die, and files that cannot be read: named, and skipped if asked."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from harness.errors import DataError
from harness.faults import explain
from harness.feed import Steps, feed
from harness.identity import run_id
from harness.record import read_record
from harness.registry import task_class, task_info
from harness.spec import build, parse_words
from tests import toy as toy_task
from tests.harness.sittings import ALWAYS, prepared, sit, sit_until


def test_a_dead_data_process_is_said_and_the_run_resumes(toy, tmp_path, monkeypatch, whole):
    own = os.getpid()
    stock = toy_task.ToyTrain.sample

    def sample(self, index, rng):
        if os.getpid() != own and index == 11:
            os.kill(os.getpid(), signal.SIGKILL)
        return stock(self, index, rng)

    run = prepared(tmp_path, "exec.workers=1", ALWAYS)
    with monkeypatch.context() as patch:
        patch.setattr(toy_task.ToyTrain, "sample", sample)
        code, failure = sit(run)
    assert code == 1
    assert "a process that loads data died (is killed by signal: Killed)" in failure.message
    assert "\n" not in failure.message
    assert sit(run) == (0, None)
    assert read_record(run.record).metrics == whole(ALWAYS).metrics


@pytest.mark.parametrize(
    ("text", "how"),
    [
        ("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that "
         "dataloader's workers are out of shared memory.", "Bus error"),
        ("DataLoader worker (pid(s) 7, 8) exited unexpectedly", "exited unexpectedly"),
    ],
)  # fmt: skip
def test_every_death_of_a_loader_is_one_line(text, how):
    found = explain(RuntimeError(text), Path("log.txt"))
    assert "a process that loads data died" in str(found)
    assert how in str(found)
    assert found.exit_code == 1


# Files that cannot be read


@pytest.fixture
def corrupt(monkeypatch) -> Callable[..., None]:
    """Make samples of the toy task unreadable."""
    stock = toy_task.ToyTrain.sample

    def damage(*bad: int) -> None:
        def sample(self, index, rng):
            if index in bad:
                raise DataError(f"image {index}.png cannot be read (truncated)")
            return stock(self, index, rng)

        monkeypatch.setattr(toy_task.ToyTrain, "sample", sample)

    return damage


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_file_is_named_in_one_line(toy, tmp_path, corrupt, workers):
    corrupt(5)
    code, failure = sit(prepared(tmp_path, f"exec.workers={workers}"))
    assert code == 3
    assert failure.message == "image 5.png cannot be read (truncated)"


def test_an_error_leaves_no_data_process_behind(toy, corrupt):
    """They ignore SIGTERM, with which torch ends them at exit: the run would hang there."""
    corrupt(5)
    spec = build("toy", parse_words(["exec.workers=2"]))
    task = task_class(task_info("toy"))(spec, None)
    steps = Steps(task, task.train_data(), spec, chunk=4, rank=0, world=1)
    with pytest.raises(DataError) as caught:
        list(feed(steps, 0))
    assert caught.value.__traceback__ is not None  # still holds the frames
    assert not multiprocessing.active_children()


def test_skipping_is_counted_named_once_and_resumes_exactly(toy, tmp_path, corrupt):
    corrupt(5, 6)
    words = ("data.on_corrupt=skip", "norm=gn", ALWAYS)
    whole = prepared(tmp_path / "a", *words)
    assert sit(whole) == (0, None)
    parts = prepared(tmp_path / "b", *words, "exec.workers=2")
    sit_until(parts, 2)
    assert sit(parts) == (0, None)
    one, other = (read_record(run.record) for run in (whole, parts))
    assert one.metrics == other.metrics
    # Two epochs: 5 is replaced by 7, since 6 cannot be read either; so is 6.
    assert (one.num_unreadable, one.num_replaced) == (2, 6)
    assert (other.num_unreadable, other.num_replaced) == (2, 6)
    told = [line for line in whole.metrics.read_text().splitlines() if "takes its place" in line]
    assert len(told) == 2


def test_another_sample_takes_the_place_with_the_draws_of_the_first(toy, corrupt):
    spec = build("toy", parse_words(["data.on_corrupt=skip", "steps=3"]))
    task = task_class(task_info("toy"))(spec, None)
    steps = Steps(task, task.train_data(), spec, chunk=1, rank=0, world=1)
    good = [chunk for window in feed(steps, 0) for chunk in window]
    corrupt(19)
    hurt = [chunk for window in feed(steps, 0) for chunk in window]
    assert [chunk.samples for chunk in good] == [chunk.samples for chunk in hurt]
    for before, after in zip(good, hurt, strict=True):
        same = all(torch.equal(a, b) for a, b in zip(before.batch, after.batch, strict=True))
        assert same == (before.samples != [19])
        assert bool(after.unreadable) == (before.samples == [19])
    replaced = next(chunk for chunk in hurt if chunk.samples == [19])
    images = task.train_data().images[0]
    assert any(torch.equal(replaced.batch[0][0], image) for image in (images, images.flip(-1)))


def test_another_sample_is_of_the_same_group(toy, corrupt):
    corrupt(4)
    spec = build("toy", parse_words(["data.on_corrupt=skip"]))
    task = task_class(task_info("toy"))(spec, None)
    steps = Steps(task, task.train_data(), spec, chunk=1, rank=0, world=1)
    steps.groups = bytes(i % 3 for i in range(20))
    assert list(steps._candidates(4))[:3] == [4, 7, 10]


def test_a_folder_of_corrupt_files_is_no_data_set(toy, tmp_path, corrupt):
    corrupt(*range(20))
    code, failure = sit(prepared(tmp_path, "data.on_corrupt=skip"))
    assert code == 3
    assert "11 samples in a row cannot be read: image " in failure.message


def test_skipping_is_another_run_and_the_default_none(toy):
    assert run_id(build("toy", [])) == run_id(build("toy", [("data.on_corrupt", "error")]))
    assert run_id(build("toy", [])) != run_id(build("toy", [("data.on_corrupt", "skip")]))


def test_clouds_are_not_skipped_one_by_one():
    from harness.plan import impossible

    assert "data.on_corrupt=skip" in str(
        impossible(build("pointcloud", [("data.on_corrupt", "skip")]))
    )

"""Disks, memory, numbers, processes, files and clocks that fail under a run: said in one line,
nothing half-written, the same command goes on."""

from __future__ import annotations

import ast
import errno
import json
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness import checkpoint, collect, paths, worker
from harness.checkpoint import FORMAT, Progress
from harness.cli import main as normbench
from harness.errors import DataError, Diverged, EnvironmentProblem, Interrupted, NormbenchError
from harness.faults import explain, memory_explained
from harness.feed import Steps, feed
from harness.identity import run_id
from harness.record import Failure, Record, RunDir, read_record
from harness.registry import task_class, task_info
from harness.spec import build, dump_spec, parse_words
from harness.worker import run_spec
from tests import toy as toy_task
from tests.harness.test_collect import record_of as made_up
from tests.harness.test_collect import store
from tests.harness.test_loop import LITERAL, Never, trainer_of

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


@pytest.fixture
def whole(toy, tmp_path_factory) -> Callable[..., Record]:
    def make(*words: str) -> Record:
        run = prepared(tmp_path_factory.mktemp("whole"), *words)
        assert sit(run) == (0, None)
        return read_record(run.record)

    return make


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


# Disks


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


# Checkpoints


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 0x40]) + data[place + 1 :]


def saved(path: Path, run: str = "run", step: int = 3) -> dict[str, Any]:
    state = {"model": {"w": torch.arange(100.0)}, "optimizer": {}, "scaler": {}}
    checkpoint.save(path, run, Progress(step=step), state)
    return state


def test_torch_alone_would_load_flipped_bits(tmp_path):
    """Why there is a checksum; and the file stays one that torch reads."""
    path = tmp_path / "checkpoint.pt"
    state = saved(path)
    assert torch.equal(torch.load(path, weights_only=True)["model"]["w"], state["model"]["w"])
    data = path.read_bytes()
    place = data.index(state["model"]["w"].numpy().tobytes()) + 6
    path.write_bytes(flipped(data, place))
    assert not torch.equal(torch.load(path, weights_only=True)["model"]["w"], state["model"]["w"])
    assert checkpoint.load(path, "run") == (
        None,
        [
            "checkpoint.pt is truncated or damaged: passed over",
            "no good checkpoint is left: starting at step 0",
        ],
    )


def test_every_byte_of_the_end_counts(tmp_path):
    """Where the checksum lies, with the length of the comment that holds it."""
    path = tmp_path / "checkpoint.pt"
    saved(path)
    data = path.read_bytes()
    for place in range(len(data) - 64, len(data)):
        path.write_bytes(flipped(data, place))
        assert checkpoint.load(path, "run")[0] is None, place - len(data)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), cut=st.booleans())
def test_no_flipped_bit_and_no_cut_is_ever_loaded(tmp_path, place, bit, cut):
    path = tmp_path / "checkpoint.pt"
    checkpoint.previous(path).unlink(missing_ok=True)
    path.unlink(missing_ok=True)
    saved(path)
    data = bytearray(path.read_bytes())
    at = int(place * len(data))
    if cut:
        del data[at:]
    else:
        data[at] ^= 1 << bit
    path.write_bytes(bytes(data))
    content, remarks = checkpoint.load(path, "run")
    assert content is None
    assert remarks


def test_a_damaged_checkpoint_falls_back_and_never_ousts_the_good_one(tmp_path):
    path = tmp_path / "checkpoint.pt"
    for step in (1, 2):
        saved(path, step=step)
    path.write_bytes(flipped(path.read_bytes(), 300))
    content, remarks = checkpoint.load(path, "run")
    assert content["progress"]["step"] == 1
    assert remarks == ["checkpoint.pt is truncated or damaged: passed over"]
    saved(path, step=3)
    assert checkpoint.load(path, "run")[0]["progress"]["step"] == 3
    assert checkpoint.load(checkpoint.previous(path), "run")[0]["progress"]["step"] == 1


def test_checkpoints_of_others_are_passed_over_in_words(tmp_path):
    path = tmp_path / "checkpoint.pt"
    saved(path, run="another")
    assert checkpoint.load(path, "run")[1][0] == "checkpoint.pt belongs to another: passed over"
    torch.save({"format": FORMAT + 1, "run_id": "run"}, path)
    assert "was written by a newer version" in checkpoint.load(path, "run")[1][0]
    for foreign in ([1], {"format": "x"}, {"weights": torch.ones(1)}):
        torch.save(foreign, path)
        assert "is no checkpoint" in checkpoint.load(path, "run")[1][0]
    torch.save({"format": FORMAT, "run_id": "run", "progress": {}}, path)
    assert "truncated or damaged" in checkpoint.load(path, "run")[1][0]  # its checksum is gone


def test_a_checkpoint_of_the_first_format_goes_on(toy, tmp_path, whole):
    """It had no checksum, and its progress fewer entries."""
    run = prepared(tmp_path)
    sit_until(run, 2)
    content = torch.load(run.checkpoint, weights_only=True)
    for later in ("evaluated", "best", "replaced"):
        del content["progress"][later]
    torch.save(content | {"format": 1}, run.checkpoint)
    run.checkpoint.with_suffix(".previous.pt").unlink(missing_ok=True)
    assert sit(run) == (0, None)
    assert "resumed at step 3 of 6" in run.metrics.read_text()
    assert read_record(run.record).metrics == whole().metrics


def test_a_model_built_otherwise_is_not_trained_on(toy, tmp_path, monkeypatch):
    run = prepared(tmp_path)
    sit_until(run, 2)
    stock = toy_task.Toy.build_model

    def wider(self):
        model = stock(self)
        model.add_module("head", torch.nn.Conv2d(8, 3, 3))
        return model

    monkeypatch.setattr(toy_task.Toy, "build_model", wider)
    code, failure = sit(run)
    assert code == 1
    assert failure.message.startswith("the checkpoint does not fit this model")


# Memory


@pytest.mark.parametrize("asks", [lambda: torch.empty(2**55, dtype=torch.uint8), "memory", "cuda"])
def test_running_out_of_memory_says_what_would_fit(toy, tmp_path, monkeypatch, asks):
    errors = {
        "memory": MemoryError(),
        "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nDetails"),
    }

    def loss(self, model, batch):
        if asks in errors:
            raise errors[asks]
        asks()

    monkeypatch.setattr(toy_task.Toy, "loss", loss)
    run = prepared(tmp_path, "norm=bn")
    code, failure = sit(run)
    assert code == 1
    assert "\n" not in failure.message
    assert failure.message.startswith("out of memory at batch.micro=4, 8 images a forward (")
    assert failure.message.endswith(
        "): exec.chunk=4, which changes no number, or batch.micro=2 exec.chunk=micro, which keeps "
        "batch.size=8 (another run: bn then sees 2 images)"
    )


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (["norm=gn", "batch.micro=8"], "exec.chunk=4, which changes no number, or batch.micro=4 "
         "exec.chunk=micro, which keeps batch.size=8 and changes no number"),
        (["norm=bn", "batch.micro=8", "batch.stat=ghost:4"], ": batch.micro=4 exec.chunk=micro, "
         "which keeps batch.size=8 and changes no number"),
        (["norm=bn", "batch.micro=1", LITERAL], "it cannot be split further"),
        (["norm=bn", "batch.micro=6", "batch.size=12", LITERAL], "batch.micro=4 exec.chunk=micro"),
    ],
)  # fmt: skip
def test_what_fits_is_a_run_that_can_train(toy, words, advice):
    from harness.chunk import resolve_chunk

    spec = build("toy", parse_words(words))
    chunk = resolve_chunk(spec, task_info("toy"))
    with (
        pytest.raises(NormbenchError) as caught,
        memory_explained(spec, chunk),
    ):
        raise MemoryError
    assert advice in str(caught.value)
    offered = [word for word in str(caught.value).split() if word.startswith("exec.chunk=")]
    for word in offered:
        smaller = build("toy", [*parse_words(words), *parse_words([word.rstrip(",")])])
        if "micro" not in word:
            assert resolve_chunk(smaller, task_info("toy")) < chunk
            assert run_id(smaller) == run_id(spec)


def test_a_run_goes_on_with_smaller_forwards_where_asked(toy, tmp_path, whole):
    run = prepared(tmp_path)
    sit_until(run, 2)
    run = prepared(tmp_path, "exec.chunk=2")
    assert sit(run) == (0, None)
    assert "2 images a forward instead of 8: equal up to rounding" in run.metrics.read_text()
    record = read_record(run.record)
    assert record.chunk == 2
    assert record.metrics[0].value == pytest.approx(whole().metrics[0].value)


def test_memory_errors_of_others_are_not_ours(toy):
    with pytest.raises(RuntimeError, match="shapes"), memory_explained(build("toy", []), 8):
        raise RuntimeError("shapes do not match")


# Numbers


def test_a_crash_tells_step_parts_layer_and_samples(toy, tmp_path, monkeypatch):
    stock = toy_task.ToyTrain.sample

    def sample(self, index, rng):
        image, label = stock(self, index, rng)
        return (image * torch.nan if index == 7 else image), label

    monkeypatch.setattr(toy_task.ToyTrain, "sample", sample)
    run = prepared(tmp_path, "norm=gn", "batch.micro=1", LITERAL, ALWAYS)
    code, failure = sit(run)
    assert (code, failure.exit_code) == (6, 6)
    crash = json.loads(run.crash.read_text(), parse_constant=pytest.fail)
    assert crash["first"] == "the input of the model"
    assert crash["parts"] == {"loss_ce": "nan"}
    assert 7 in crash["samples"]
    assert crash["step"] == failure.step
    assert len(crash["samples"]) in (4, 8)
    assert crash["lr"] > 0
    if run.checkpoint.exists():
        content = checkpoint.load(run.checkpoint, run.id)[0]
        assert content["progress"]["step"] == crash["step"]
        assert all(torch.isfinite(value).all() for value in content["model"].values())


def test_the_first_layer_is_found_inside_a_model(toy):
    trainer, steps = trainer_of("norm=gn")
    trainer.model.norm2.register_forward_hook(lambda _module, _in, out: out / 0)
    with pytest.raises(Diverged, match=r"first in norm2 \(GroupNorm\)"):
        trainer.step(steps[0], 0)


def test_an_infinite_gradient_of_a_finite_loss_names_its_weight(toy):
    trainer, steps = trainer_of("norm=gn")
    trainer.model.conv2.weight.register_hook(lambda grad: grad / 0)
    with pytest.raises(Diverged, match=r"gradient at step 0 .*first in the gradient of conv2"):
        trainer.step(steps[0], 0)
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


def test_a_library_that_sees_it_first_is_understood(toy, monkeypatch):
    def loss(self, model, batch):
        model(batch[0] * torch.inf)
        raise FloatingPointError("Predicted boxes or scores contain Inf/NaN")  # detectron2

    trainer, steps = trainer_of("norm=gn")
    monkeypatch.setattr(toy_task.Toy, "loss", loss)
    with pytest.raises(Diverged, match="first in the input of the model"):
        trainer.step(steps[0], 0)


def test_weights_that_overflowed_never_replace_good_ones(toy, tmp_path):
    run = prepared(tmp_path, "optim.lr=1e308", "schedule=constant", ALWAYS)
    code, failure = sit(run)
    assert code == 6
    assert "the last good checkpoint stays" in failure.message
    assert json.loads(run.crash.read_text())
    for path in run.path.glob("checkpoint*"):
        content = torch.load(path, weights_only=True)
        assert all(torch.isfinite(value).all() for value in content["model"].values())


def test_a_crash_file_goes_with_its_failure(toy, tmp_path):
    run = prepared(tmp_path)
    run.crash.write_text("{}")
    assert sit(run) == (0, None)
    assert not run.crash.exists()


# Processes that load data


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


# Clocks


def test_a_clock_that_jumps_changes_nothing(toy, tmp_path, monkeypatch, whole):
    jumps = iter(range(10**6))
    monkeypatch.setattr(time, "time", lambda: (-1) ** next(jumps) * 1e9)
    run = prepared(tmp_path, "exec.log_s=0.001")
    assert sit(run) == (0, None)
    record = read_record(run.record)
    assert record.wall_s >= 0
    assert record.images_per_s > 0
    assert record.metrics == whole().metrics


def test_no_code_reads_the_wall_clock_but_for_the_date_of_a_record():
    """Durations and limits are monotonic; the date stands in the record, and a file has an age."""
    readers = {("time", "time"), ("time", "time_ns"), ("datetime", "now"), ("datetime", "utcnow")}
    readers |= {("date", "today"), ("datetime", "today")}
    root = Path(__file__).parents[2]
    found = [
        (path.relative_to(root).as_posix(), node.attr)
        for folder in ("harness", "tasks", "normbench")
        for path in sorted((root / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and (node.value.id, node.attr) in readers
    ]
    assert found == [("harness/live.py", "time"), ("harness/worker.py", "now")]

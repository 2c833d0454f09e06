"""Memory that ends and numbers that are none: what a run that dies of them says."""

from __future__ import annotations

import json

import pytest
import torch

from harness import checkpoint
from harness.errors import Diverged, NormbenchError
from harness.faults import memory_explained
from harness.identity import run_id
from harness.record import read_record
from harness.registry import task_info
from harness.spec import build, parse_words
from tests import toy as toy_task
from tests.harness.sittings import ALWAYS, prepared, sit, sit_until
from tests.harness.test_loop import LITERAL, trainer_of


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

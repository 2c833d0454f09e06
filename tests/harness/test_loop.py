"""The loop's promises: the split of a batch does not show, and a resumed run is the same run."""

from __future__ import annotations

import os
import signal

import pytest
import torch

from harness.chunk import resolve_chunk
from harness.distributed import Ranks
from harness.errors import Diverged, Interrupted, UsageError
from harness.feed import Steps
from harness.identity import run_id
from harness.loop import Trainer
from harness.record import RunDir, read_record
from harness.registry import task_class, task_info
from harness.spec import build, dump_spec, parse_words
from harness.worker import build_model, run_spec


class Never:
    """A stop request that comes after ``after`` looks at it."""

    def __init__(self, after: int | None = None) -> None:
        self.after, self.looks = after, 0

    def __bool__(self) -> bool:
        self.looks += 1
        return self.after is not None and self.looks > self.after

    def error(self, saved: str) -> Interrupted:
        return Interrupted(saved)


def trainer_of(*words: str) -> tuple[Trainer, Steps]:
    spec = build("toy", parse_words(words))
    task = task_class(task_info("toy"))(spec, None)
    model, _ = build_model(task, spec)
    model = model.double().train()
    device = torch.device("cpu")
    chunk = resolve_chunk(spec, task_info("toy"))
    trainer = Trainer(task, model, spec, Ranks(device), device, chunk=chunk)
    return trainer, Steps(task, task.train_data(), spec, chunk=chunk, rank=0, world=1)


def gradients(*words: str, step: int = 0) -> dict[str, torch.Tensor]:
    """Return the gradients of one step, caught before the optimiser uses them."""
    trainer, steps = trainer_of(*words)
    caught = {}

    def catch(step, parts):
        caught.update({n: p.grad.clone() for n, p in trainer.model.named_parameters()})

    trainer._update = catch
    trainer.step(steps[step], step)
    return caught


def relative_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    top = max(float(value.abs().max()) for value in a.values())
    return max(float((a[name] - b[name]).abs().max()) for name in a) / top


LITERAL = "exec.chunk=micro"
SPLITS = ["batch.micro=1", "batch.micro=2", "batch.micro=4"]


@pytest.mark.parametrize("norm", ["gn", "gn_ws", "ln", "ln_ws", "in_ws", "none_ws"])
@pytest.mark.parametrize("split", SPLITS)
def test_gradient_does_not_depend_on_the_split(toy, norm, split):
    """16x1 = 1x16 (here 8): ragged ignored labels and dropout included, to 1e-12 in float64."""
    seed = f"seed={os.getpid() % 1000}"  # fresh inputs at each run of the suite
    words = [f"norm={norm}", seed, f"data.{seed}"]
    whole = gradients(*words, "batch.micro=8")
    assert relative_difference(whole, gradients(*words, split, LITERAL)) < 1e-12


@pytest.mark.parametrize("norm", ["gn_ws"])
def test_ragged_last_batch_does_not_depend_on_the_split(toy, norm):
    words = [f"norm={norm}", "steps=3"]
    whole = gradients(*words, "batch.micro=8", step=2)
    assert relative_difference(whole, gradients(*words, "batch.micro=1", LITERAL, step=2)) < 1e-12


@pytest.mark.parametrize("norm", ["bn", "bn_ws"])
def test_bn_gradient_depends_on_the_split(toy, norm):
    whole = gradients(f"norm={norm}", "batch.micro=8")
    assert relative_difference(whole, gradients(f"norm={norm}", "batch.micro=2")) > 1e-2


@pytest.mark.parametrize("norm", ["bn", "bn_ws"])
@pytest.mark.parametrize("micro", [1, 2, 4])
@pytest.mark.parametrize("step", [0, 2])
def test_a_chunk_of_micro_batches_equals_the_literal_loop(toy, norm, micro, step):
    """Gradients and running averages in float64; step 2 has a ragged tail of 4 samples (of 8)."""
    words = (f"norm={norm}", f"batch.micro={micro}", "data.num_train=21", "batch.size=8")
    literal, steps = trainer_of(*words, LITERAL)
    chunked, chunks = trainer_of(*words, "exec.chunk=8")
    assert len(chunks[step]) == 1 < len(steps[step])
    for trainer, window in ((literal, steps[step]), (chunked, chunks[step])):
        trainer.optimizer.step = lambda: None
        trainer.optimizer.zero_grad = lambda set_to_none: None
        trainer.step(window, step)
    a, b = literal.model.state_dict(), chunked.model.state_dict()
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-10, atol=1e-10, msg=name)
    grads = [{n: p.grad for n, p in t.model.named_parameters()} for t in (literal, chunked)]
    assert relative_difference(*grads) < 1e-10


@pytest.mark.parametrize("norm", ["gn_ws", "bn_ws", "none_ws"])
def test_standardising_once_per_step_equals_once_per_forward(toy, norm):
    words = (f"norm={norm}", "batch.micro=2", LITERAL)
    each = gradients(*words, "exec.ws_once=false")
    assert relative_difference(each, gradients(*words, "exec.ws_once=true")) < 1e-12


@pytest.mark.parametrize("words", ["exec.ws_recompute=true", "exec.fused=false"])
def test_how_weights_are_standardised_changes_no_number(toy, words):
    own = ("norm=gn_ws", "batch.micro=2", LITERAL, "exec.ws_once=false")
    assert relative_difference(gradients(*own), gradients(*own, words)) < 1e-12
    spec = build("toy", parse_words(own))
    assert run_id(spec) == run_id(build("toy", parse_words([*own, words])))


def test_the_window_leaves_nothing_behind(toy):
    trainer, steps = trainer_of("norm=gn_ws", "batch.micro=1", LITERAL)
    before = trainer.model.state_dict().keys()
    trainer.step(steps[0], 0)
    assert trainer.model.state_dict().keys() == before
    assert all("shared" not in vars(module) for module in trainer.model.modules())


def test_chunks_are_refused_where_they_would_change_numbers(toy):
    with pytest.raises(UsageError, match=r"must be a multiple of batch\.micro=4"):
        trainer_of("norm=bn", "exec.chunk=6")


def test_chunks_are_refused_where_images_influence_each_other():
    with pytest.raises(UsageError, match="images of this detection batch influence each other"):
        resolve_chunk(
            build("detection", [("exec.chunk", "8"), ("loss.normalizer", "stock")]),
            task_info("detection"),
        )


def test_mean_of_micro_batch_means_would_be_wrong(toy):
    """The toy's ragged labels make the classic mistake visible, so the tests above can fail."""
    trainer, steps = trainer_of("norm=gn", "batch.micro=1", LITERAL)
    window = steps[0]
    counts = [trainer.task.counts(micro.batch)["loss_ce"] for micro in window]
    assert max(counts) > 2 * min(counts)


def test_dropout_is_keyed_by_sample_and_step(toy):
    words = ("norm=gn", "batch.micro=8", "model.dropout=0.5")
    assert relative_difference(gradients(*words), gradients(*words)) == 0
    trainer, steps = trainer_of(*words)
    window = steps[0]
    first, second = (trainer.step(window, step)["loss_ce"] for step in (0, 1))
    assert first != second


def record_of(tmp_path, name: str, *words: str, stop_after: int | None = None):
    run = RunDir(tmp_path / name, "toy-run")
    run.path.mkdir(parents=True, exist_ok=True)
    spec = build("toy", parse_words(words))
    run.spec.write_text(dump_spec(spec))
    run_spec(spec, run, tmp_path, Never(stop_after))
    return run


@pytest.mark.parametrize("norm", ["gn_ws", "bn"])
@pytest.mark.parametrize("optim", ["sgd", "adamw"])
def test_three_steps_and_three_resumed_are_six(toy, tmp_path, norm, optim):
    words = (f"norm={norm}", f"optim={optim}")
    whole = record_of(tmp_path, "whole", *words)
    with pytest.raises(Interrupted, match="step 3 of 6 is saved"):
        record_of(tmp_path, "parts", *words, stop_after=2)
    parts = record_of(tmp_path, "parts", *words)
    a, b = (torch.load(run.checkpoint, weights_only=True) for run in (whole, parts))
    for name, value in a["model"].items():
        assert torch.equal(value, b["model"][name]), name
    for left, right in zip(
        a["optimizer"]["state"].values(), b["optimizer"]["state"].values(), strict=True
    ):
        assert all(torch.equal(torch.as_tensor(left[k]), torch.as_tensor(right[k])) for k in left)
    first, second = read_record(whole.record), read_record(parts.record)
    assert first.metrics == second.metrics
    assert (first.num_resumed, second.num_resumed) == (0, 1)


def test_workers_deliver_the_same_run(toy, tmp_path):
    alone = record_of(tmp_path, "alone", "norm=gn")
    helped = record_of(tmp_path, "helped", "norm=gn", "exec.workers=2")
    assert read_record(alone.record).metrics == read_record(helped.record).metrics


def test_damaged_checkpoint_falls_back_to_the_one_before(toy, tmp_path):
    words = ("norm=gn", "exec.checkpoint_s=0")
    whole = record_of(tmp_path, "whole", *words)
    with pytest.raises(Interrupted):
        record_of(tmp_path, "hurt", *words, stop_after=3)
    run = RunDir(tmp_path / "hurt", "toy-run")
    run.checkpoint.write_bytes(run.checkpoint.read_bytes()[:1000])
    record_of(tmp_path, "hurt", *words)
    assert read_record(run.record).metrics == read_record(whole.record).metrics
    assert "checkpoint.pt is truncated or damaged" in run.metrics.read_text()


def test_divergence_names_step_loss_and_layer(toy):
    trainer, steps = trainer_of("norm=gn")
    with torch.no_grad():
        trainer.model.head.weight.fill_(float("inf"))
    told = r"step 4 is not finite \(loss_ce=nan; first in head \(Conv2d\), whose weight is not\)"
    with pytest.raises(Diverged, match=told):
        trainer.step(steps[4], 4)


def test_initial_weights_do_not_depend_on_the_norm(toy):
    gn, bn = trainer_of("norm=gn_ws")[0].model, trainer_of("norm=bn")[0].model
    for name, value in gn.state_dict().items():
        assert torch.equal(value, bn.state_dict()[name]), name


def test_parameters_fall_into_their_groups(toy):
    decays = ("optim.weight_decay_norm=0.5", "optim.weight_decay_bias=0.25")
    groups = trainer_of(*decays, "optim.lr_factor_bias=2")[0].optimizer.param_groups
    assert [len(group["params"]) for group in groups] == [3, 2, 3]
    assert [group["weight_decay"] for group in groups] == [1e-4, 0.5, 0.25]
    assert [group["lr"] for group in groups] == [0.05, 0.05, 0.1]


def test_stop_request_remembers_the_signal():
    from harness.stop import StopRequest

    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
    before |= {n: signal.getsignal(n) for n in (signal.SIGUSR1, signal.SIGUSR2)}
    try:
        stop = StopRequest()
        assert not stop
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop
        assert stop.error("x").exit_code == 75
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.error("x").exit_code == 130
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

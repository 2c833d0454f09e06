"""Which images a batch statistic sees: sync_bn, ghost_bn and re-estimated averages."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from harness import precise_bn
from harness.collect import runs_frame
from harness.errors import UsageError
from harness.identity import run_id, science, stat_batch
from harness.norm.virtual import VirtualBatchNorm2d
from harness.plan import plan
from harness.record import read_record
from harness.spec import build, dump_spec, load_spec, parse_words
from tests.harness.test_loop import LITERAL, record_of, relative_difference, trainer_of


def spec_of(*words: str):
    return build("toy", parse_words(words))


def quiet(stage: str, done: int, total: int) -> None:
    pass


def test_sync_bn_is_bn_with_a_stat(toy, tmp_path):
    spec = spec_of("norm=sync_bn_ws", "devices=2")
    assert (spec.norm.layer, spec.norm.ws, spec.batch.stat) == ("bn", "authors", "sync")
    spelt = spec_of("norm=bn_ws", "batch.stat=sync", "devices=2")
    assert spec == spelt
    assert run_id(spec_of("norm=sync_bn")) == run_id(spec_of("norm=bn"))
    (tmp_path / "spec.yaml").write_text(dump_spec(spec))
    assert load_spec(tmp_path / "spec.yaml") == spec


def test_ghost_bn_needs_its_k(toy):
    spec = spec_of("norm=ghost_bn", "batch.stat=ghost:2")
    assert (spec.norm.name, stat_batch(spec)) == ("bn", 2)
    for words, message in {
        ("norm=ghost_bn",): "give batch.stat=ghost:K",
        ("norm=ghost_bn", "batch.stat=sync"): "give batch.stat=ghost:K",
        ("norm=sync_bn", "batch.stat=ghost:2"): "contradicts batch.stat=ghost:2",
        ("batch.stat=ghost:3",): r"does not divide micro=4: use batch.stat=ghost:1 or ghost:2",
        ("batch.stat=ghost:0",): "is not known. Did you mean 'ghost:K'",
    }.items():
        with pytest.raises(UsageError, match=message):
            spec_of(*words)


def test_ghost_batches_are_micro_batches_to_the_identity(toy):
    ghost = spec_of("norm=bn", "batch.micro=8", "batch.stat=ghost:2")
    assert science(ghost) == science(spec_of("norm=bn", "batch.micro=2"))
    gn = spec_of("norm=gn", "batch.micro=8", "batch.stat=ghost:2")
    assert science(gn) == science(spec_of("norm=gn", "batch.micro=8"))


@pytest.mark.parametrize("execution", [LITERAL, "exec.chunk=8"])
@pytest.mark.parametrize("step", [0, 2])
def test_ghost_batches_equal_micro_batches_of_their_size(toy, execution, step):
    """Gradients and running averages, also of an epoch's ragged last batch (5 samples)."""
    words = ("data.num_train=21", "norm=bn_ws")
    ghost, chunks = trainer_of(*words, "batch.micro=4", "batch.stat=ghost:2", execution)
    micro, steps = trainer_of(*words, "batch.micro=2", LITERAL)
    assert isinstance(ghost.model.norm1, VirtualBatchNorm2d)
    for trainer, window in ((ghost, chunks[step]), (micro, steps[step])):
        trainer._update = lambda step, parts: None
        trainer.step(window, step)
    found, expected = ghost.model.state_dict(), micro.model.state_dict()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-10, atol=1e-10)
    grads = [{n: p.grad for n, p in t.model.named_parameters()} for t in (ghost, micro)]
    assert relative_difference(*grads) < 1e-10


@pytest.mark.parametrize("norm", ["bcn", "bcn_ws"])
def test_bcn_executes_chunks_exactly(toy, norm):
    words = (f"norm={norm}", "batch.micro=2", "batch.size=8")
    literal, steps = trainer_of(*words, LITERAL)
    chunked, chunks = trainer_of(*words, "exec.chunk=8")
    for trainer, window in ((literal, steps[0]), (chunked, chunks[0])):
        trainer._update = lambda step, parts: None
        trainer.step(window, 0)
    for name, value in literal.model.state_dict().items():
        torch.testing.assert_close(chunked.model.state_dict()[name], value, rtol=1e-9, atol=1e-10)
    grads = [{n: p.grad for n, p in t.model.named_parameters()} for t in (literal, chunked)]
    assert relative_difference(*grads) < 1e-10


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["norm=brn", "batch.stat=ghost:2"], "batch.stat=ghost:2 is for bn, brn sees the whole"),
        (["norm=est_bcn", "devices=2", "batch.stat=sync"], "est_bcn sees the whole forward"),
        (["norm=gn", "bn_eval=precise"], "which gn does not use: use bn_eval=running"),
        (["norm=brn", "exec.chunk=8"], "brn sees the whole forward; use exec.chunk=micro"),
        (["norm=bcn", "norm.groups=3"], "norm.groups=3 does not divide"),
    ],
)
def test_impossible_statistics_have_a_reason(toy, tmp_path, words, reason):
    cell = plan("toy", words, tmp_path)[0]
    assert cell.state == "impossible"
    assert reason in cell.reason


def test_ghost_batches_of_detection_are_refused(tmp_path):
    words = ["norm=bn", "batch.micro=4", "batch.size=4", "batch.stat=ghost:2"]
    assert "no K images can be told apart" in plan("detection", words, tmp_path)[0].reason


@pytest.mark.parametrize("execution", [LITERAL, "exec.chunk=8"])
def test_precise_averages_are_the_moments_of_the_training_images(toy, execution):
    """By hand: the same forwards in one line, moments over everything each norm saw."""
    words = ("norm=bn", "batch.micro=2", "data.num_train=20", "model.dropout=0", "bn_eval=precise")
    trainer, _ = trainer_of(*words, execution)
    _, literal = trainer_of(*words, LITERAL)
    micros = [micro for step in (6, 7, 8) for micro in literal[step]]
    assert precise_bn.estimate(trainer, quiet) == sum(len(m.samples) for m in micros) == 20
    conv1, norm1, conv2 = (trainer.model.get_submodule(n) for n in ("conv1", "norm1", "conv2"))
    seen: tuple[list, list] = ([], [])
    with torch.no_grad():
        for micro in micros:
            first = conv1(micro.batch[0])
            args = (None, None, norm1.weight, norm1.bias)
            second = conv2(nn.functional.batch_norm(first, *args, training=True).relu())
            seen[0].append(first)
            seen[1].append(second)
    for name, values in zip(("norm1", "norm2"), seen, strict=True):
        norm, everything = trainer.model.get_submodule(name), torch.cat(values)
        torch.testing.assert_close(norm.running_mean, everything.mean((0, 2, 3)))
        torch.testing.assert_close(norm.running_var, everything.var((0, 2, 3)))


def test_precise_evaluation_is_a_run_of_its_own(toy, tmp_path):
    words = ("norm=bn", "batch.micro=1")
    assert run_id(spec_of(*words)) == run_id(spec_of(*words, "bn_eval=running"))
    assert run_id(spec_of(*words)) != run_id(spec_of(*words, "bn_eval=precise"))
    running = record_of(tmp_path, "running", *words)
    precise = record_of(tmp_path, "precise", *words, "bn_eval=precise")
    again = record_of(tmp_path, "precise", *words, "bn_eval=precise")
    records = [read_record(run.record) for run in (running, precise, again)]
    assert records[0].metrics != records[1].metrics
    assert records[1].metrics == records[2].metrics
    assert runs_frame(records)["bn_eval"].tolist() == ["running", "precise", "precise"]
    assert "estimated anew from 20 training images" in precise.metrics.read_text()


def test_norms_that_no_forward_reaches_keep_their_averages(toy):
    trainer, _ = trainer_of("norm=bn", "bn_eval=precise")
    trainer.model.unused = nn.BatchNorm2d(3).double()
    trainer.model.unused.running_var.fill_(7)
    trainer.model.forward = nn.Sequential(*list(trainer.model.children())[:-1]).forward
    precise_bn.estimate(trainer, quiet)
    assert (trainer.model.unused.running_var == 7).all()
    assert not (trainer.model.norm1.running_var == 1).any()


@pytest.mark.parametrize(("norm", "own"), [("bcn", 4), ("evonorm_s0", 2), ("dyt", 2)])
def test_parameters_that_a_norm_adds_are_decayed_as_norms_are(toy, norm, own):
    groups = trainer_of(f"norm={norm}", "optim.weight_decay_norm=0.5")[0].optimizer.param_groups
    weights, gammas, biases = (len(group["params"]) for group in groups)
    added = own // 2 if norm == "bcn" else own
    assert (weights, gammas, biases) == (3, 2 + added, 3 + own - added)


def test_constraints_are_said_in_the_log(toy, tmp_path):
    run = record_of(tmp_path, "brn", "norm=brn")
    assert "note on brn: equals bn for its first 5,000 forwards" in run.metrics.read_text()

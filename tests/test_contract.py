"""What every task promises, on its smoke preset: a registered task is tested here by itself."""

from __future__ import annotations

import math
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from harness.chunk import resolve_chunk
from harness.distributed import Ranks
from harness.errors import EnvironmentProblem, Interrupted
from harness.feed import Steps
from harness.loop import Trainer
from harness.paths import configs_dir
from harness.plan import impossible
from harness.record import RunDir, read_record
from harness.registry import TASKS, task_class, task_info
from harness.samples import ShowsSamples
from harness.spec import build, dump_spec, parse_words
from harness.worker import build_model, run_spec
from tests.norm.oracle import traced_pairs

NORMS = ("bn", "gn", "bn_ws", "gn_ws")
CPU = torch.device("cpu")

every_task = pytest.mark.parametrize("name", TASKS)
every_norm = pytest.mark.parametrize("norm", NORMS)


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def spec_of(name: str, *words: str):
    return build(name, parse_words(["preset=smoke", *words]))


@cache
def data_of(name: str) -> Path:
    return task_info(name).prepare(spec_of(name), lambda *_: None)


def task_of(spec):
    try:
        return task_class(task_info(spec.task))(spec, data_of(spec.task))
    except EnvironmentProblem as problem:
        pytest.skip(str(problem))


def batch_of(task, num: int = 2) -> Any:
    import numpy as np

    data = task.train_data()
    return task.collate([data.sample(i, np.random.RandomState(i)) for i in range(num)])


class ThroughLoss(nn.Module):
    """A model as the task itself calls it, for the oracle; always training."""

    def __init__(self, task, model: nn.Module) -> None:
        super().__init__()
        self.task, self.model = task, model.train()

    def eval(self) -> ThroughLoss:
        return self

    def forward(self, batch: Any) -> Any:
        return self.task.loss(self.model, batch)


@cache
def traced(name: str) -> frozenset[tuple[str, str]]:
    """Follow tensors from the layers to the norms of a task's stock model."""
    task = task_of(spec_of(name))
    pairs, orphans = traced_pairs(ThroughLoss(task, task.build_model()), batch_of(task))
    assert not orphans
    cut = len("model.")
    return frozenset((layer[cut:], norm[cut:]) for layer, norm in pairs)


@every_norm
@every_task
def test_the_audit_equals_what_a_forward_pass_shows(name, norm):
    spec = spec_of(name, f"norm={norm}")
    _, audit = build_model(task_of(spec), spec)
    layers = [row for row in audit if row.role == "layer"]
    sites = [row for row in audit if row.role == "site"]
    assert {(row.path, norm) for row in layers for norm in row.paired_with.split()} == traced(name)
    assert {(layer, row.path) for row in sites for layer in row.paired_with.split()} == traced(name)
    followed = {layer for layer, _ in traced(name)}
    standardised = {row.path for row in layers if row.standardised}
    assert standardised == (followed if norm.endswith("_ws") else set())
    assert {row.norm_after for row in sites} == {norm.removesuffix("_ws")}


@every_norm
@every_task
def test_a_step_counts_before_the_forward_what_the_loss_counts_after(name, norm):
    spec = spec_of(name, f"norm={norm}")
    task = task_of(spec)
    model, _ = build_model(task, spec)
    batch = batch_of(task)
    losses = task.loss(model.train(), task.to_device(batch, CPU))
    assert task.counts(batch) == {key: count for key, (_, count) in losses.items()}
    torch.stack([total for total, _ in losses.values()]).sum().backward()
    for path, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, path
            assert bool(torch.isfinite(parameter.grad).all()), path


@every_task
def test_norms_of_a_seed_start_from_the_same_weights(name):
    states = []
    for norm in NORMS:
        spec = spec_of(name, f"norm={norm}")
        model, _ = build_model(task_of(spec), spec)
        states.append(dict(model.named_parameters()))
    for state in states[1:]:
        assert state.keys() == states[0].keys()
        assert all(torch.equal(state[key], states[0][key]) for key in state)


@every_task
def test_planned_widths_are_those_of_the_built_model(name):
    spec = spec_of(name)
    sites = {norm for _, norm in traced(name)}
    modules = dict(task_of(spec).build_model().named_modules())
    widths = {modules[path].num_features for path in sites}
    assert set(task_info(name).norm_facts(spec).widths) == widths


def gradients(name: str, *words: str) -> dict[str, torch.Tensor]:
    """Return the gradients of the first step in float64, caught before the optimiser uses them."""
    info, spec = task_info(name), spec_of(name, "precision=fp64", *words)
    task = task_of(spec)
    model, _ = build_model(task, spec)
    chunk = resolve_chunk(spec, info)
    trainer = Trainer(task, model.double().train(), spec, Ranks(CPU), CPU, chunk=chunk)
    caught: dict[str, torch.Tensor] = {}

    def catch(step: int, parts: dict[str, float]) -> None:
        caught.update(
            {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}
        )

    trainer._update = catch
    trainer.step(Steps(task, task.train_data(), spec, chunk=chunk, rank=0, world=1)[0], 0)
    return caught


def relative_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    top = max(float(value.abs().max()) for value in a.values())
    return max(float((a[name] - b[name]).abs().max()) for name in a) / top


SEES_SAMPLES = [name for name in TASKS if task_info(name).sees_samples]


@pytest.mark.parametrize("norm", ["gn", "gn_ws"])
@every_task
def test_the_gradient_does_not_depend_on_the_split(name, norm):
    assert task_info(name).separable(spec_of(name))
    size = spec_of(name).batch.size
    whole = gradients(name, f"norm={norm}", f"batch.micro={size}", f"exec.chunk={size}")
    split = gradients(name, f"norm={norm}", "batch.micro=1", "exec.chunk=micro")
    assert relative_difference(whole, split) < 1e-12


@pytest.mark.parametrize("norm", ["bn", "bn_ws"])
@pytest.mark.parametrize("name", SEES_SAMPLES)
def test_a_chunk_of_micro_batches_equals_the_literal_loop(name, norm):
    words = (f"norm={norm}", "batch.micro=2")
    size = spec_of(name).batch.size
    chunk = gradients(name, *words, f"exec.chunk={size}")
    literal = gradients(name, *words, "exec.chunk=micro")
    assert relative_difference(chunk, literal) < 1e-10


class Stop:
    """A stop request that comes after ``after`` looks at it."""

    def __init__(self, after: int | None = None) -> None:
        self.after, self.looks = after, 0

    def __bool__(self) -> bool:
        self.looks += 1
        return self.after is not None and self.looks > self.after

    def error(self, saved: str) -> Interrupted:
        return Interrupted(saved)


def record_of(folder: Path, name: str, *words: str, stop: Stop) -> RunDir:
    run = RunDir(folder, "run")
    run.path.mkdir(parents=True, exist_ok=True)
    spec = spec_of(name, "exec.threads=1", *words)
    task_of(spec)
    run.spec.write_text(dump_spec(spec))
    run_spec(spec, run, data_of(name), stop)
    return run


@every_norm
@every_task
def test_a_run_stopped_and_resumed_is_the_same_run(name, norm, tmp_path):
    whole = record_of(tmp_path / "whole", name, f"norm={norm}", stop=Stop())
    with pytest.raises(Interrupted, match="step 2 of"):
        record_of(tmp_path / "parts", name, f"norm={norm}", stop=Stop(after=1))
    parts = record_of(tmp_path / "parts", name, f"norm={norm}", stop=Stop())
    a, b = (torch.load(run.checkpoint, weights_only=True)["model"] for run in (whole, parts))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)
    first, second = read_record(whole.record), read_record(parts.record)
    assert first.metrics == second.metrics
    assert (first.num_resumed, second.num_resumed) == (0, 1)
    assert not first.is_result


@every_task
def test_samples_are_drawn_and_change_nothing(name):
    spec = spec_of(name, "norm=bn")
    task = task_of(spec)
    model = build_model(task, spec)[0].eval()
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    drawn_from = torch.get_rng_state()
    assert isinstance(task, ShowsSamples)
    one, again = (task.samples(model, CPU, 2) for _ in range(2))
    assert [sample.name for sample in one] == [sample.name for sample in again]
    assert len({sample.name for sample in one}) == 2
    for sample, other in zip(one, again, strict=True):
        assert (sample.truth, sample.found) == (other.truth, other.found)
        assert min(sample.truth_picture.size) > 0
        assert sample.found_picture or sample.right is not None
    assert torch.equal(torch.get_rng_state(), drawn_from)
    for key, value in model.state_dict().items():
        assert torch.equal(value, weights[key]), key


@every_task
def test_metrics_say_what_they_are(name):
    spec = spec_of(name)
    task = task_of(spec)
    model, _ = build_model(task, spec)
    told: list[tuple[str, int, int]] = []
    with torch.no_grad():
        metrics = task.evaluate(model.eval(), CPU, lambda *at: told.append(at))
    assert len({metric.name for metric in metrics}) == len(metrics) > 0
    assert told[-1][1] == told[-1][2] > 0
    for metric in metrics:
        assert math.isfinite(metric.value)
        assert metric.n_eval > 0
        assert metric.unit
        assert metric.split
        assert metric.protocol


@every_task
def test_presets_can_run_under_every_norm(name):
    for preset in ("mini", "smoke"):
        for norm in NORMS:
            spec = build(name, parse_words([f"preset={preset}", f"norm={norm}"]))
            assert impossible(spec) is None, (preset, norm)


@every_task
def test_planning_imports_neither_torch_nor_numpy(name):
    code = (
        "import sys; from harness.spec import build; from harness.plan import impossible;"
        "from harness.identity import run_id;"
        f"spec = build({name!r}, []); impossible(spec); run_id(spec);"
        "print(*sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    heavy = {"torch", "torchvision", "numpy", "pandas", "PIL", "detectron2"}
    assert heavy.isdisjoint(found.stdout.split())


@every_task
def test_embedded_data_are_told_apart(name):
    info = task_info(name)
    prints = {info.fingerprint(spec_of(name, word)) for word in ("data.seed=0", "data.seed=1")}
    assert len(prints) == 2
    assert info.fingerprint(spec_of(name, "seed=9")) in prints


@every_task
def test_the_check_finds_the_embedded_data_sound_and_show_draws_them(name, tmp_path):
    spec = spec_of(name)
    assert list(task_info(name).check(spec, lambda *_: None).problems) == []
    task_info(name).show(spec, tmp_path / "out.png")
    assert (tmp_path / "out.png").stat().st_size > 1000


def test_reasons_are_of_keys_that_there_are():
    from harness.spec import keys

    reasons = yaml.safe_load((configs_dir() / "reasons.yaml").read_text("utf-8"))
    assert set(reasons) == {"every task", *TASKS}
    everywhere = set.intersection(*(set(keys(name)) for name in TASKS))
    assert set(reasons["every task"]) <= everywhere
    for name in TASKS:
        assert set(reasons[name]) <= set(keys(name))
        assert all(isinstance(reason, str) for reason in reasons[name].values())


@every_task
def test_every_key_is_listed_with_its_value(name, capsys):
    from rich.console import Console

    from harness.listing import listing, listing_table
    from harness.spec import keys

    rows = listing("keys", name)
    assert all(row["meaning"] for row in rows)
    assert [row["key"] for row in rows if not row["why"]] == []
    Console(width=400).print(listing_table("keys", rows))
    shown = {line.split()[0] for line in capsys.readouterr().out.splitlines() if line.strip()}
    leaves = {key for key in keys(name) if not any(k.startswith(f"{key}.") for k in keys(name))}
    assert leaves - {"loss"} <= shown  # a section that is empty for some tasks

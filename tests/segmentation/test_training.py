"""The loop's promises on the real data path, and a run through the command line."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from harness.chunk import resolve_chunk
from harness.distributed import Ranks
from harness.errors import Interrupted
from harness.feed import Steps
from harness.loop import Trainer
from harness.record import RunDir, read_record
from harness.registry import task_info
from harness.spec import dump_spec
from harness.worker import build_model, run_spec
from tests.harness.test_loop import Never
from tests.segmentation.conftest import segmentation_spec, segmentation_task

CPU = torch.device("cpu")


def trainer_of(*words: str) -> tuple[Trainer, Steps]:
    spec = segmentation_spec("preset=smoke", "precision=fp64", "data.scale=[0.25,1]", *words)
    task = segmentation_task(spec)
    model, _ = build_model(task, spec)
    chunk = resolve_chunk(spec, task_info("segmentation"))
    trainer = Trainer(task, model.double().train(), spec, Ranks(CPU), CPU, chunk=chunk)
    return trainer, Steps(task, task.train_data(), spec, chunk=chunk, rank=0, world=1)


def gradients(*words: str, step: int = 0) -> dict[str, torch.Tensor]:
    """Return the gradients of one step, caught before the optimiser uses them."""
    trainer, steps = trainer_of(*words)
    caught = {}

    def catch(step: int, parts: dict[str, float]) -> None:
        grads = {n: p.grad for n, p in trainer.model.named_parameters()}
        caught.update({n: g.clone() for n, g in grads.items() if g is not None})

    trainer._update = catch  # type: ignore[method-assign]
    trainer.step(steps[step], step)
    return caught


def relative_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    top = max(float(value.abs().max()) for value in a.values())
    return max(float((a[name] - b[name]).abs().max()) for name in a) / top


LITERAL = "exec.chunk=micro"


@pytest.mark.parametrize("norm", ["gn", "gn_ws"])
@pytest.mark.parametrize("head", ["published", "torchvision"])
@pytest.mark.parametrize("step", [0, 2])
def test_gradient_does_not_depend_on_the_split(norm: str, head: str, step: int) -> None:
    """4 x 1 = 2 x 2 = 1 x 4 to 1e-12: padding, borders, dropout; step 2 is the epoch's last."""
    words = [f"norm={norm}", f"model.head={head}"]
    whole = gradients(*words, "batch.micro=4", step=step)
    for micro in (1, 2):
        split = gradients(*words, f"batch.micro={micro}", LITERAL, step=step)
        assert relative_difference(whole, split) < 1e-12


def test_ignored_pixels_are_ragged_enough_to_matter() -> None:
    trainer, steps = trainer_of("batch.micro=1", LITERAL)
    counts = [trainer.task.counts(chunk.batch)["loss_ce"] for chunk in steps[0]]
    assert max(counts) > 1.5 * min(counts)


def test_bn_gradient_depends_on_the_split() -> None:
    whole = gradients("norm=bn", "batch.micro=4")
    assert relative_difference(whole, gradients("norm=bn", "batch.micro=2")) > 1e-2


def test_bn_over_virtual_micro_batches_equals_the_literal_loop() -> None:
    """The pooled branch, whose statistics see two values, included."""
    words = ["norm=bn", "batch.micro=2"]
    difference = relative_difference(gradients(*words), gradients(*words, LITERAL))
    assert difference < 1e-10


def run_of(folder: Path, *words: str, stop_after: int | None = None) -> RunDir:
    run = RunDir(folder, "segmentation-run")
    run.path.mkdir(parents=True, exist_ok=True)
    spec = segmentation_spec("preset=smoke", "steps=6", *words)
    run.spec.write_text(dump_spec(spec))
    root = task_info("segmentation").prepare(spec, lambda *_: None)
    run_spec(spec, run, root, Never(stop_after))  # type: ignore[arg-type]
    return run


@pytest.mark.parametrize("norm", ["gn_ws", "bn"])
def test_three_steps_and_three_resumed_are_six(tmp_path: Path, norm: str) -> None:
    whole = run_of(tmp_path / "whole", f"norm={norm}")
    with pytest.raises(Interrupted, match="step 3 of 6 is saved"):
        run_of(tmp_path / "parts", f"norm={norm}", stop_after=2)
    parts = run_of(tmp_path / "parts", f"norm={norm}")
    a, b = (torch.load(run.checkpoint, weights_only=True)["model"] for run in (whole, parts))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    first, second = read_record(whole.record), read_record(parts.record)
    assert first.metrics == second.metrics
    assert (first.num_resumed, second.num_resumed) == (0, 1)
    assert [metric.name for metric in first.metrics] == ["mIoU", "pixel_acc"]


def test_predictions_are_kept_in_the_run_on_request(tmp_path: Path) -> None:
    silent = run_of(tmp_path / "silent")
    assert not (silent.path / "predictions").exists()
    run = run_of(tmp_path / "kept", "data.save_predictions=true")
    names = sorted(path.name for path in (run.path / "predictions").iterdir())
    assert names == [f"val_{index:06d}.png" for index in range(4)]
    with Image.open(run.path / "predictions" / names[0]) as mask:
        assert (mask.mode, mask.size) == ("P", (32, 32))
    assert read_record(run.record).metrics == read_record(silent.record).metrics


def test_smoke_through_the_command_line(tmp_path: Path) -> None:
    words = ["run", "segmentation", "preset=smoke", "exec.threads=1", "--results", str(tmp_path)]
    command = [sys.executable, "-m", "harness", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (record,) = (read_record(path) for path in tmp_path.glob("runs/*/record.json"))
    assert not record.is_result
    assert record.norm.num_norm_sites == record.norm.num_standardised == 16
    again = subprocess.run(command, capture_output=True, text=True)
    assert "is done" in again.stdout

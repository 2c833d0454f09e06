"""The one training loop: a window of forwards, one reduction, one optimiser step."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from harness import checkpoint
from harness.checkpoint import Progress
from harness.errors import Diverged
from harness.feed import Chunk, Steps, feed
from harness.norm.catalogue import NORMS
from harness.norm.virtual import virtualise
from harness.norm.weight_standardization import WeightStandardized
from harness.norm.window import standardised_again, standardised_once
from harness.optim import build_optimizer, set_lr, trainable
from harness.rng import drawing
from harness.schedule import lr_factor

if TYPE_CHECKING:
    from harness.distributed import Ranks
    from harness.record import RunDir
    from harness.schema import Spec
    from harness.stop import StopRequest
    from harness.task import Task

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Trainer:
    """A run in memory: model, optimiser and how far it is. ``step`` is the whole method."""

    def __init__(
        self,
        task: Task,
        model: nn.Module,
        spec: Spec,
        ranks: Ranks,
        device: torch.device,
        *,
        chunk: int,
    ) -> None:
        """Build the optimiser; the model has had its surgery and is on its device.

        ``chunk`` images are executed at once (``harness.chunk``).
        """
        seen = spec.batch.ghost or spec.batch.micro
        if chunk > seen and NORMS[spec.norm.layer].uses_batch_norm:
            virtualise(model, seen)
        for module in model.modules():
            if isinstance(module, WeightStandardized):
                module.fused = spec.exec.fused
        self.task, self.model, self.spec = task, model, spec
        self.ranks, self.device = ranks, device
        self.optimizer = build_optimizer(model, spec.optim)
        self.scaler = torch.amp.GradScaler(device.type, enabled=spec.precision == "fp16")
        self.progress = Progress(threads=torch.get_num_threads(), chunk=chunk)

    def step(self, window: list[Chunk], step: int) -> dict[str, float]:
        """Take one optimiser step over ``window`` and return the loss parts of all ranks.

        Every loss is divided by its count over the whole window and all ranks, so that under a
        batch-independent norm the gradient does not depend on the split into micro-batches.

        Raises:
            Diverged: if the gradient is not finite.
        """
        counts: dict[str, float] = {}
        for chunk in window:
            _add(counts, self.task.counts(chunk.batch))
        counts = self.ranks.sum_floats(counts)
        parts: dict[str, float] = {}
        once = self.spec.exec.ws_once and len(window) > 1
        with standardised_once(self.model, enabled=once):
            for chunk in window:
                _add(parts, self._forward_backward(chunk, step, counts))
        parts = self.ranks.sum_floats(parts)
        self.ranks.sum_gradients(p for _, p in trainable(self.model))
        self._update(step, parts)
        return parts

    def _forward_backward(
        self, chunk: Chunk, step: int, counts: dict[str, float]
    ) -> dict[str, float]:
        batch = self.task.to_device(chunk.batch, self.device)
        again = standardised_again(self.spec.exec.ws_recompute)
        with drawing(self.spec.seed, step, chunk.samples), self.autocast(), again:
            losses = self.task.loss(self.model, batch)
            shares = {k: total / (counts[k] or 1.0) for k, (total, _) in losses.items()}
            loss = torch.stack(list(shares.values())).sum()
        self.scaler.scale(loss).backward()
        return {name: float(share.detach()) for name, share in shares.items()}

    def _update(self, step: int, parts: dict[str, float]) -> None:
        self.scaler.unscale_(self.optimizer)
        parameters = [p for _, p in trainable(self.model) if p.grad is not None]
        limit = self.spec.optim.clip_norm or math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, limit))
        if not math.isfinite(norm) and not self.scaler.is_enabled():
            raise self._diverged(step, parts)
        set_lr(self.optimizer, lr_factor(self.spec.schedule, step, self.spec.steps))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.ranks.average_buffers(self.model)

    def _diverged(self, step: int, parts: dict[str, float]) -> Diverged:
        bad = [name for name, p in trainable(self.model) if not _finite(p.grad)] or ["the sum"]
        shown = ", ".join(f"{name}={value:.4g}" for name, value in parts.items())
        return Diverged(
            f"the gradient at step {step} is not finite ({shown}; first in {bad[0]}): "
            f"lower optim.lr={self.spec.optim.lr:g}, or set optim.clip_norm"
        )

    def autocast(self) -> torch.autocast:
        """Return the context in which forwards run, from `precision`."""
        dtype = _AUTOCAST.get(self.spec.precision)
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def restore(self, content: dict[str, Any]) -> None:
        """Continue from a checkpoint's content."""
        self.model.load_state_dict(content["model"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.scaler.load_state_dict(content["scaler"])
        self.progress = Progress(**content["progress"])
        self.progress.num_resumed += 1


def train(
    trainer: Trainer,
    run: RunDir,
    stop: StopRequest,
    report: Callable[[dict[str, Any]], None],
    evaluate: Callable[[], object],
) -> None:
    """Train from the trainer's progress to the last step, saving and evaluating on the way.

    Raises:
        Interrupted: once asked to stop, after saving.
        Diverged: if a gradient is not finite; the last checkpoint stays.
    """
    spec, progress, ranks = trainer.spec, trainer.progress, trainer.ranks
    data = trainer.task.train_data()
    steps = Steps(
        trainer.task, data, spec, chunk=progress.chunk, rank=ranks.rank, world=ranks.world
    )

    def save() -> None:
        if ranks.is_main:
            checkpoint.save(run.checkpoint, run.id, progress, trainer.state())

    trainer.model.train()
    windows = feed(steps, progress.step)
    saved = logged = time.monotonic()
    images, since = 0, logged
    while progress.step < spec.steps:
        if _due(progress, spec.exec.eval_every):
            save()
            if ranks.is_main:
                evaluate()
            progress.evaluated = progress.step
            trainer.model.train()
            saved = time.monotonic()
        began = time.monotonic()
        window = next(windows)
        progress.wait_s += time.monotonic() - began
        parts = trainer.step(window, progress.step)
        lr = trainer.optimizer.param_groups[0]["lr"]
        progress.step += 1
        now = time.monotonic()
        progress.train_s += now - began
        images += spec.batch.size
        if now - logged >= spec.exec.log_s or progress.step in (1, spec.steps):
            rate = images / (now - since)
            left = (spec.steps - progress.step) * progress.train_s / progress.step
            progress.peak_mem_mib = max(progress.peak_mem_mib, peak_memory_mib(trainer.device))
            report(_row(progress, parts, lr, rate, left))
            images, since, logged = 0, now, now
        if ranks.any(bool(stop)):
            save()
            raise stop.error(f"step {progress.step} of {spec.steps} is saved")
        if now - saved >= spec.exec.checkpoint_s and progress.step < spec.steps:
            save()
            saved = time.monotonic()
    save()


def _due(progress: Progress, every: int) -> bool:
    return every > 0 and progress.step % every == 0 and progress.step > progress.evaluated


def _row(
    progress: Progress, parts: dict[str, float], lr: float, rate: float, left: float
) -> dict[str, Any]:
    return {
        "event": "train",
        "step": progress.step,
        "loss": sum(parts.values()),
        "parts": parts,
        "lr": lr,
        "images_per_s": rate,
        "mem_mib": progress.peak_mem_mib,
        "eta_s": left,
    }


def peak_memory_mib(device: torch.device) -> float:
    """Return the peak memory of this process so far: allocated on the GPU, resident on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 2**10  # bytes there, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def _add(total: dict[str, float], more: dict[str, float]) -> None:
    for name, value in more.items():
        total[name] = total.get(name, 0.0) + value


def _finite(tensor: torch.Tensor | None) -> bool:
    return tensor is None or bool(torch.isfinite(tensor).all())

"""The one training loop: a window of forwards, one reduction, one optimiser step."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from harness import checkpoint
from harness.averages import RunningAverages
from harness.checkpoint import Progress
from harness.diagnose import diverged, require_finite
from harness.errors import NormbenchError
from harness.feed import Chunk, Steps, feed
from harness.norm.catalogue import NORMS
from harness.norm.synchronized import apart, standing_in
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

_FAILED = "failed"
"""Stands among the parts of a step while ranks agree on them; no task calls a loss that."""
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
        standardised = [m for m in model.modules() if isinstance(m, WeightStandardized)]
        for layer in standardised:
            layer.fused = spec.exec.fused
        self._once = spec.exec.ws_once and bool(standardised)  # else no step looks for them
        self.task, self.model, self.spec = task, model, spec
        self.ranks, self.device = ranks, device
        self.averages = RunningAverages(model, ranks)
        self._trained = [parameter for _, parameter in trainable(model)]
        self.optimizer = build_optimizer(model, spec.optim)
        self.scaler = torch.amp.GradScaler(device.type, enabled=spec.precision == "fp16")
        self.progress = Progress(threads=torch.get_num_threads(), chunk=chunk)

    def step(self, window: list[Chunk], step: int) -> dict[str, float]:
        """Take one optimiser step over ``window`` and return the loss parts of all ranks.

        Every loss is divided by its count over the whole window and all ranks, so that under a
        batch-independent norm the gradient does not depend on the split into micro-batches.

        Raises:
            Diverged: if the loss or the gradient is not finite.
        """
        counts = self._counts(window)
        shares: list[dict[str, Tensor]] = []
        parts: dict[str, float] = {}
        try:
            parts = self._everyones(window, step, counts, shares)
            self.ranks.sum_gradients(self._trained)
            self._update(step, parts)
        except FloatingPointError:  # ours, or of a library that looks at its numbers
            rate = self.spec.optim.lr * lr_factor(self.spec.schedule, step, self.spec.steps)
            with apart():
                raise diverged(
                    self.model,
                    lambda chunk: self._shares(chunk, step, counts),
                    window,
                    step,
                    parts=parts or _read(shares),
                    optim=self.spec.optim,
                    lr=rate,
                ) from None
        return parts

    def _counts(self, window: list[Chunk]) -> dict[str, float]:
        counts: dict[str, float] = {}
        for chunk in window:
            if chunk.counts:
                _add(counts, self.task.counts(chunk.batch))
        return self.ranks.sum_floats(counts)

    def _everyones(
        self,
        window: list[Chunk],
        step: int,
        counts: dict[str, float],
        shares: list[dict[str, Tensor]],
    ) -> dict[str, float]:
        """Accumulate on all ranks and return the sums of all ``shares``, which this rank adds to.

        Raises:
            FloatingPointError: on every rank, if a library raised it on one of them.
        """
        failed: dict[str, float] = {}
        try:
            self._accumulate(window, step, counts, shares)
        except FloatingPointError:
            if self.ranks.world == 1 or self.spec.batch.stat == "sync":
                raise  # the other ranks, if any, wait inside a forward: the end of this one is told
            failed[_FAILED] = 1.0
        parts = self.ranks.sum_floats(_read(shares) | failed)
        if parts.pop(_FAILED, 0.0):
            raise FloatingPointError
        return parts

    def _accumulate(
        self,
        window: list[Chunk],
        step: int,
        counts: dict[str, float],
        shares: list[dict[str, Tensor]],
    ) -> None:
        """Run forward and backward of every chunk, adding its loss parts to ``shares``."""
        forwards = len(window)
        once = self._once and not (self.spec.exec.ws_recompute and forwards == 1)
        self.averages.begin()
        with standardised_once(self.model, enabled=once, forwards=forwards):
            for chunk in window:
                own = self._shares(chunk, step, counts)
                self.scaler.scale(self._total(own)).backward()
                # Read after the last forward: on a GPU each look would wait for all that is queued.
                shares.append({name: share.detach() for name, share in own.items()})

    def _shares(self, chunk: Chunk, step: int, counts: dict[str, float]) -> dict[str, Tensor]:
        batch = self.task.to_device(chunk.batch, self.device)
        again = standardised_again(self.spec.exec.ws_recompute)
        absent = nullcontext() if chunk.counts else standing_in()
        with drawing(self.spec.seed, step, chunk.samples), self.autocast(), again, absent:
            losses = self.task.loss(self.model, batch)
            shares = {k: total / (counts[k] or 1.0) for k, (total, _) in losses.items()}
            return shares if chunk.counts else {k: 0.0 * share for k, share in shares.items()}

    def _total(self, shares: dict[str, Tensor]) -> Tensor:
        losses = list(shares.values())
        if len(losses) == 1 and self.spec.precision not in _AUTOCAST:
            return losses[0]
        with self.autocast():  # which adds in float32
            return torch.stack(losses).sum()

    def _update(self, step: int, parts: dict[str, float]) -> None:
        """Take the optimiser step.

        Raises:
            FloatingPointError: before anything changed, if loss or gradient is not finite. A scaled
                gradient (fp16) may overflow: the scaler then leaves the step out by itself.
        """
        self.scaler.unscale_(self.optimizer)
        parameters = [p for p in self._trained if p.grad is not None]
        limit = self.spec.optim.clip_norm or math.inf
        norm = torch.nn.utils.get_total_norm(p.grad for p in parameters if p.grad is not None)
        finite = math.isfinite(norm) or self.scaler.is_enabled()
        if not finite or not math.isfinite(sum(parts.values())):
            raise FloatingPointError
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
        set_lr(self.optimizer, lr_factor(self.spec.schedule, step, self.spec.steps))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.averages.join()

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context in which forwards run, from `precision`."""
        dtype = _AUTOCAST.get(self.spec.precision)
        if dtype is None:
            return nullcontext()  # an autocast that is off costs 2 % of a small network's forward
        return torch.autocast(self.device.type, dtype=dtype)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def restore(self, content: dict[str, Any]) -> None:
        """Continue from a checkpoint's content.

        Raises:
            NormbenchError: if it is of a model that the code of then built otherwise.
        """
        chunk = self.progress.chunk
        try:
            self.model.load_state_dict(content["model"])
            self.optimizer.load_state_dict(content["optimizer"])
            self.scaler.load_state_dict(content["scaler"])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise NormbenchError(
                f"the checkpoint does not fit this model ({reason}): another version of the code "
                "wrote it; remove the run's folder to start it anew"
            ) from error
        self.progress = Progress(**content["progress"])
        self.progress.num_resumed += 1
        self.progress.chunk = chunk


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
        Diverged: if a loss, gradient or weight is not finite; the last checkpoint stays.
    """
    spec, progress, ranks = trainer.spec, trainer.progress, trainer.ranks
    data = trainer.task.train_data()
    steps = Steps(
        trainer.task, data, spec, chunk=progress.chunk, rank=ranks.rank, world=ranks.world
    )

    written = None

    def save() -> None:
        nonlocal written
        require_finite(trainer.model, progress.step, spec.optim)
        if ranks.is_main:
            began = time.monotonic()
            written = checkpoint.save(run.checkpoint, run.id, progress, trainer.state(), written)
            seconds = time.monotonic() - began
            report({"event": "saved", "step": progress.step, "seconds": seconds})

    trainer.model.train()
    windows = feed(steps, progress.step, trainer.device)
    saved = logged = time.monotonic()
    images, since = 0, logged
    while progress.step < spec.steps:
        if _due(progress, spec.exec.eval_every):
            save()
            evaluate()
            progress.evaluated = progress.step
            trainer.model.train()
            saved = time.monotonic()
        began = time.monotonic()
        window = next(windows)
        progress.wait_s += time.monotonic() - began
        if spec.data.on_corrupt == "skip":
            _note_unreadable(progress, window, ranks, report)
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


def _note_unreadable(
    progress: Progress,
    window: list[Chunk],
    ranks: Ranks,
    report: Callable[[dict[str, Any]], None],
) -> None:
    """Count the samples of all ranks that were replaced, and name each file once."""
    found = Counter(problem for chunk in window for problem in chunk.unreadable)
    for problem, times in ranks.sum_floats({p: float(n) for p, n in found.items()}).items():
        if problem not in progress.replaced:
            report({"event": "remark", "text": f"another sample takes its place: {problem}"})
        progress.replaced[problem] = progress.replaced.get(problem, 0) + int(times)


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


def _read(shares: list[dict[str, Tensor]]) -> dict[str, float]:
    """Add up the loss parts of all chunks, in their order, with one look at the device."""
    parts: dict[str, float] = {}
    if any(shares):
        values = iter(torch.stack([value for own in shares for value in own.values()]).tolist())
        for own in shares:
            _add(parts, {name: next(values) for name in own})
    return parts


def _add(total: dict[str, float], more: dict[str, float]) -> None:
    for name, value in more.items():
        total[name] = total.get(name, 0.0) + value

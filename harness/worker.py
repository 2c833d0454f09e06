"""One run in a process of its own: build, surgery, audit, init, train, evaluate, record.

Started as ``python -m harness.worker RUN_DIR DATA_ROOT`` (under ``torchrun`` for several devices).
What came of it is read from the run directory, not from here.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
import traceback
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from filelock import Timeout
from torch import nn

from harness import checkpoint, precise_bn
from harness.checkpoint import Progress
from harness.chunk import resolve_chunk
from harness.distributed import Ranks, choose_device
from harness.environment import differences, environment, read_environment
from harness.errors import Diverged, Interrupted, NormbenchError, UsageError, visible
from harness.evaluation import best_of, evaluate
from harness.faults import explain, memory_explained
from harness.identity import cell_id, science, stat_batch
from harness.journal import Journal
from harness.loop import Trainer, peak_memory_mib, train
from harness.norm import together
from harness.norm.audit import NormAudit, refresh_trainable, remark
from harness.norm.catalogue import NORMS
from harness.norm.surgery import apply_norm
from harness.norm.synchronized import synchronize
from harness.paths import sweep, write_atomic
from harness.record import (
    PROBED_S,
    InitFacts,
    MetricRow,
    NormCounts,
    Record,
    RunDir,
    write_record,
)
from harness.registry import task_class, task_info
from harness.rng import derive, key_dropout
from harness.samples import keep_samples
from harness.schema import Spec
from harness.spec import load_spec
from harness.stop import StopRequest
from harness.task import Task
from harness.trackers.guard import Trackers
from harness.weights import start
from harness.wording import counted


def build_model(task: Task, spec: Spec) -> tuple[nn.Module, NormAudit]:
    """Build a spec's model: the stock BN model, surgery, freezing, audit.

    The initial weights are drawn before the surgery, hence equal for every norm of a seed. A model
    may say how it executes layers by ``execution()``: remarks by path, for the audit.
    """
    torch.manual_seed(derive("init", spec.seed))
    model = task.build_model()
    backbone = task.backbone if spec.norm.scope == "backbone" else None
    audit = apply_norm(
        model,
        spec.norm,
        bare=task.bare,
        ws_classes=task.ws_classes,
        standardise_prefix=backbone,
    )
    task.finish_model(model)
    key_dropout(model)
    said: dict[str, str] = getattr(model, "execution", dict)()
    return model, remark(refresh_trainable(audit, model), said)


def run_spec(spec: Spec, run: RunDir, data_root: Path, stop: StopRequest) -> None:
    """Do the whole of one run; returns once ``record.json`` is written.

    Raises:
        NormbenchError: with the reason in one line.
    """
    device = choose_device(spec.exec.device, int(os.environ.get("LOCAL_RANK", "0")), spec.devices)
    ranks = Ranks(device)
    if ranks.world != spec.devices:
        raise UsageError(f"devices={spec.devices}, but {ranks.world} processes were started")
    content, remarks = checkpoint.load(run.checkpoint, run.id)
    kept = Progress(**content["progress"]) if content else None
    chunk = _chunk(spec, kept, remarks)
    if threads := kept.threads if kept else spec.exec.threads:
        torch.set_num_threads(threads)
    with memory_explained(spec, chunk):
        trainer, audit, weights = _trainer(
            spec, run, data_root, ranks, device, chunk, remarks, resumed=content is not None
        )
        if content is not None:
            trainer.restore(content)
            remarks.append(f"resumed at step {trainer.progress.step} of {spec.steps}")
        if spec.exec.ws_once and (note := together.remark(trainer.model)):
            remarks.append(note)
        where = environment(_device_name(device), torch.get_num_threads(), ranks.world)
        if content is not None:
            remarks += _carry_changes(run, where)
        if ranks.is_main:
            audit.to_csv(run.audit)
            write_atomic(run.environment, json.dumps(where, indent=1))
        begun = trainer.progress.step
        with (
            Journal(run.metrics, begun, ranks.is_main) as journal,
            _tracked(spec, run, begun, journal, ranks.is_main),
        ):
            on = (
                f"on {where['device']}, {counted(where['threads'], 'thread')}, "
                f"{counted(ranks.world, 'device')}; "
                f"{counted(chunk, 'image')} a forward"
            )
            for remark in (*remarks, audit.summary(), on):
                if ranks.is_main:
                    print(remark)  # noqa: T201  # the worker's stdout is log.txt
                journal.remark(remark)
            train(trainer, run, stop, journal, lambda: evaluate(trainer, journal, stop))
            if spec.bn_eval == "precise":
                journal.remark(_re_estimate(trainer, journal, stop))
            rows = evaluate(trainer, journal, stop)
            if ranks.is_main:
                record = _record(spec, run, audit, weights, rows, trainer, where)
                if problem := keep_samples(trainer.task, trainer.model, device, run):
                    journal.remark(problem)
                write_record(run, record)
    ranks.close()


def _tracked(spec: Spec, run: RunDir, step: int, journal: Journal, is_main: bool) -> Trackers:
    """Have the run's trackers follow its journal, in the process that writes it."""
    names = spec.exec.trackers if is_main else ()
    trackers = Trackers(names, spec, run, step, journal.remark)
    journal.follow(trackers)
    return trackers


def _chunk(spec: Spec, kept: Progress | None, remarks: list[str]) -> int:
    """Return the images of one forward: those of the first sitting, unless others are asked for.

    Float sums depend on it; but if a forward did not fit the memory, it must be possible to go on.
    On another number of devices the one of then may not mean the same statistics.
    """
    chunk = resolve_chunk(spec, task_info(spec.task))
    if kept is None or chunk == kept.chunk:
        return chunk
    if spec.exec.chunk == "auto":
        as_before = spec.exec.model_copy(update={"chunk": kept.chunk})
        with suppress(UsageError):
            return resolve_chunk(spec.model_copy(update={"exec": as_before}), task_info(spec.task))
    remarks.append(
        f"{counted(chunk, 'image')} a forward instead of {kept.chunk}: equal up to rounding"
    )
    return chunk


def _trainer(
    spec: Spec,
    run: RunDir,
    data_root: Path,
    ranks: Ranks,
    device: torch.device,
    chunk: int,
    remarks: list[str],
    *,
    resumed: bool,
) -> tuple[Trainer, NormAudit, InitFacts | None]:
    """Build a run's model with its initial weights and what trains it."""
    origin = start.prepare(spec, run, resumed=resumed)
    task = task_class(task_info(spec.task))(origin.spec, data_root)
    task.out = run.path
    model, audit = build_model(task, spec)
    model = _placed(model, spec, device)
    weights, said = start.apply(origin, model, audit, run, task.backbone, write=ranks.is_main)
    remarks += said
    if note := NORMS[spec.norm.layer].constraints:
        remarks.append(f"note on {spec.norm.layer}: {note}")
    return Trainer(task, model, spec, ranks, device, chunk=chunk), audit, weights


def _carry_changes(run: RunDir, where: dict[str, Any]) -> list[str]:
    """Note in ``where`` what was otherwise in earlier sittings; return what is new, for people."""
    before = read_environment(run.environment)
    changes = differences(before, where)
    earlier = before.get("changed")
    earlier = [visible(str(one)) for one in earlier] if isinstance(earlier, list) else []
    where["changed"] = [*earlier, *changes]
    return [f"continued in another environment: {'; '.join(changes)}"] if changes else []


def _placed(model: nn.Module, spec: Spec, device: torch.device) -> nn.Module:
    if spec.precision == "fp64":
        model = model.double()
    if spec.batch.stat == "sync" and spec.devices > 1:
        synchronize(model)
    return model.to(device)


def _re_estimate(trainer: Trainer, journal: Journal, stop: StopRequest) -> str:
    def progress(stage: str, done: int, total: int) -> None:
        journal.stage(stage, done, total)
        if trainer.ranks.any(bool(stop)):
            raise stop.error("the trained model is saved")

    began = time.monotonic()
    images = precise_bn.estimate(trainer, progress)
    trainer.progress.eval_s += time.monotonic() - began
    return f"batch norm's averages were estimated anew from {images} training images"


def _record(
    spec: Spec,
    run: RunDir,
    audit: NormAudit,
    weights: InitFacts | None,
    metrics: tuple[MetricRow, ...],
    trainer: Trainer,
    where: dict[str, Any],
) -> Record:
    progress = trainer.progress
    canonical = science(spec)
    return Record(
        run_id=run.id,
        cell=cell_id(spec),
        spec=spec.model_dump(mode="json"),
        science=canonical,
        dataset=visible(task_info(spec.task).dataset(spec)),
        fingerprint=canonical["data"]["fingerprint"],
        is_result=spec.preset != "smoke",
        metrics=metrics,
        best=best_of(trainer) if spec.exec.eval_every else {},
        norm=NormCounts(
            num_norm_sites=audit.num_norm_sites,
            num_standardised=audit.num_standardised,
            num_bare=audit.num_bare,
            num_frozen=audit.num_frozen,
            num_params=sum(parameter.numel() for parameter in trainer.model.parameters()),
        ),
        init=weights,
        stat_batch=stat_batch(spec),
        steps=spec.steps,
        images_per_s=spec.steps * spec.batch.size / max(progress.train_s, 1e-9),
        wall_s=progress.train_s + progress.eval_s,
        peak_mem_mib=max(progress.peak_mem_mib, peak_memory_mib(trainer.device)),
        data_wait_share=progress.wait_s / max(progress.train_s, 1e-9),
        num_resumed=progress.num_resumed,
        num_unreadable=len(progress.replaced),
        num_replaced=sum(progress.replaced.values()),
        chunk=progress.chunk,
        environment=where,
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def main(arguments: list[str]) -> int:
    """Run the worker; return its exit status."""
    path, data_root = Path(arguments[0]), Path(arguments[1])
    run = RunDir(path.parent.parent, path.name)
    stop = StopRequest()
    is_main = os.environ.get("RANK", "0") == "0"
    try:
        if not is_main:
            run_spec(load_spec(run.spec), run, data_root, stop)
            return 0
        with run.lock().acquire(timeout=PROBED_S, poll_interval=0.02):
            if run.record.is_file():  # another process was faster; not 0, or torchrun would wait
                return UsageError.exit_code
            sweep(run.path)
            run.failure.unlink(missing_ok=True)
            run.crash.unlink(missing_ok=True)
            return _guarded(run, data_root, stop)
    except Interrupted as error:  # of a rank that does not write; rank 0 has said it
        return error.exit_code
    except NormbenchError as error:
        print(error)  # noqa: T201
        return error.exit_code
    except Timeout:
        print(f"{run.id} is already running in another process")  # noqa: T201
        return UsageError.exit_code


def _guarded(run: RunDir, data_root: Path, stop: StopRequest) -> int:
    """Turn whatever happens into a failure file and an exit status."""
    try:
        run_spec(load_spec(run.spec), run, data_root, stop)
    except Interrupted as error:
        print(error)  # noqa: T201
        return error.exit_code
    except NormbenchError as error:
        return _fail(run, error)
    except Exception as error:  # a sweep goes on; the traceback is in log.txt
        return _fail(run, explain(error, run.log), error)
    return 0


def _fail(run: RunDir, error: NormbenchError, cause: BaseException | None = None) -> int:
    """Keep the reason of a failure as far as a full disk lets us; return the exit status."""
    with suppress(OSError):
        if cause := cause or error.__cause__:
            traceback.print_exception(cause)
    with suppress(OSError):
        if isinstance(error, Diverged):
            write_atomic(run.crash, json.dumps(error.details, indent=1, allow_nan=False))
    with suppress(OSError):
        run.write_failure(error, error.step if isinstance(error, Diverged) else None)
    with suppress(OSError):
        print(error)  # noqa: T201  # the log's last line is shown where there is no failure file
    return error.exit_code


if __name__ == "__main__":
    status = main(sys.argv[1:])
    # Data processes end with their iterator. One that an error's traceback still holds would be
    # waited for at exit, for ever.
    gc.collect()
    sys.exit(status)

"""One chain under one norm: classification first, then what starts from its backbone."""

from __future__ import annotations

from pathlib import Path

from harness.errors import UsageError
from harness.identity import cell_id, run_id
from harness.registry import task_info
from harness.schema import Spec
from harness.spec import build
from harness.task import Pretrains
from harness.weights.runs import finished, spec_of
from harness.weights.source import PRETRAIN, parse
from harness.weights.trained import mismatch, of_norm

TASK = "classification"
"""The task that backbones are pretrained on."""


def can_pretrain(task: str) -> bool:
    """Tell whether a task's backbone may be pretrained by ``init=pretrain``."""
    return isinstance(task_info(task), Pretrains)


def pretraining(spec: Spec) -> Spec | None:
    """Return the run that ``init=pretrain`` stands for: same backbone, norm, seed and data seed.

    Returns:
        The spec; None if ``spec`` starts otherwise.

    Raises:
        UsageError: if no recipe pretrains this backbone.
    """
    if spec.init.source != PRETRAIN:
        return None
    info = task_info(spec.task)
    if not isinstance(info, Pretrains):
        raise UsageError(
            f"init=pretrain: the backbone of {spec.task} is no classification network; give "
            "init=run:ID or init=FILE"
        )
    norm = spec.norm
    words = [
        *info.pretraining(spec),
        # Frozen batch norm applies what batch norm has learnt.
        ("norm.layer", "bn" if norm.layer == "frozen_bn" else norm.layer),
        ("norm.ws", norm.ws or "null"),
        ("norm.groups", str(norm.groups)),
        ("norm.interleaved", str(norm.interleaved).lower()),
        ("seed", str(spec.seed)),
        ("data.seed", str(spec.data.seed)),
        ("exec.device", spec.exec.device),
    ]
    if spec.data.root is not None:
        words.append(("data.root", spec.data.root))
    return build(TASK, words)


def starting_from(spec: Spec, source: Spec) -> Spec:
    """Return ``spec`` with the run of ``source`` as its initial weights.

    Raises:
        DataError: if the data of ``source`` are not there, which are part of its identity.
    """
    return _linked(spec, f"run:{run_id(source)}", cell_id(source))


def linked(spec: Spec, results: Path) -> tuple[Spec, str | None]:
    """Look up the run that ``init=run:ID`` names.

    Returns:
        The spec, with what that run is to a table, and why it may not start from there, if so.

    Raises:
        DataError: if there is no such run, or it is not finished.
    """
    source = parse(spec.init.source)
    if source.kind != "run":
        return _linked(spec, spec.init.source, None), None
    record = finished(source.name, results)
    reason = mismatch(of_norm(spec_of(record).norm, "its record"), spec.norm)
    if reason and not spec.init.allow_mismatch:
        reason = f"init={spec.init.source}: {reason}"
    else:
        reason = None
    return _linked(spec, spec.init.source, record.cell), reason


def _linked(spec: Spec, source: str | None, cell: str | None) -> Spec:
    if (source, cell) == (spec.init.source, spec.init.cell):
        return spec
    return spec.model_copy(
        update={"init": spec.init.model_copy(update={"source": source, "cell": cell})}
    )

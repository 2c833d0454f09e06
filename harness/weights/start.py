"""What a worker does with ``init=`` before its first step: find, judge, load, and write it down."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from harness.errors import UsageError
from harness.norm.audit import NormAudit
from harness.paths import write_atomic
from harness.record import InitFacts, RunDir
from harness.registry import task_info
from harness.schema import Spec
from harness.task import Pictures, SeesPictures
from harness.weights.find import Weights, find, shown_as, told
from harness.weights.load import Report, load
from harness.weights.source import parse
from harness.weights.trained import Trained, mismatch


@dataclass(frozen=True)
class Start:
    """The initial weights of one run, and the spec that its task is built from."""

    spec: Spec
    """With pictures shown as the weights expect them."""
    weights: Weights | None
    """None from scratch and where a checkpoint takes their place."""
    facts: InitFacts | None
    """Of an earlier sitting."""
    shown: bool
    """Whether pictures are shown in another way than the recipe's."""


def prepare(spec: Spec, run: RunDir, *, resumed: bool) -> Start:
    """Find the weights of a run, before its model is built.

    Raises:
        DataError: if they are not there or damaged.
        EnvironmentProblem: if they cannot be downloaded.
    """
    if parse(spec.init.source).kind == "scratch":
        return Start(spec, None, None, shown=False)
    if resumed:
        facts = run.read_init()
        kept = facts.pictures if facts else None
        before = Pictures("rgb", kept["mean"], kept["std"]) if kept else None
        return Start(shown_as(spec, before)[0], None, facts, shown=kept is not None)
    weights = find(spec.init, run.path.parent.parent)
    seen, shown = shown_as(spec, weights.pictures)
    return Start(seen, weights, None, shown)


def apply(
    start: Start, model: nn.Module, audit: NormAudit, run: RunDir, backbone: str, *, write: bool
) -> tuple[InitFacts | None, list[str]]:
    """Load the weights that ``prepare`` found into the model.

    Args:
        start: what ``prepare`` returned.
        model: after surgery, on its device.
        audit: of the model.
        run: where the report goes: ``weights.csv``, one row a key, and ``init.json``.
        backbone: path prefix of the model's backbone.
        write: whether this process writes them.

    Returns:
        What the record says of it, and sentences for the log.

    Raises:
        UsageError: if the weights were trained under another norm, or nobody knows under which.
        DataError: if they do not fit the model.
    """
    weights, spec = start.weights, start.spec
    if weights is None:
        return start.facts, []
    trained = told(weights, spec.init, audit)
    remarks = _judge(trained, weights, spec)
    info = task_info(spec.task)
    colours = info.pictures(spec).colours if isinstance(info, SeesPictures) else None
    report = load(
        model,
        weights,
        audit,
        colours=colours,
        backbone=backbone,
        partial=spec.init.allow_mismatch,
    )
    facts = _facts(start, trained, report)
    if write:
        write_atomic(run.weights, report.to_csv())
        write_atomic(run.init, facts.model_dump_json(indent=1))
    remarks.append(
        f"init={weights.source}: of {trained.name} ({trained.told_by}); each key is in "
        f"{run.weights.name}: {report.summary()}"
    )
    if start.shown:
        assert facts.pictures is not None
        mean, std = (
            ", ".join(f"{value:.4g}" for value in facts.pictures[name]) for name in ("mean", "std")
        )
        remarks.append(
            f"pictures are shown as these weights were trained: mean {mean}, deviation {std} of "
            "red, green, blue in 0..1, instead of the recipe's"
        )
    elif weights.pictures.mean is None and colours is not None:
        remarks.append(
            "which mean and deviation these weights expect is not known: pictures are shown as "
            "the recipe says"
        )
    return facts, remarks


def _judge(trained: Trained, weights: Weights, spec: Spec) -> list[str]:
    """Refuse weights of another norm.

    Raises:
        UsageError: with the reason, unless ``init.allow_mismatch``.
    """
    if (reason := mismatch(trained, spec.norm)) is None:
        return []
    if not spec.init.allow_mismatch:
        raise UsageError(f"init={weights.source}: {reason}")
    return [f"loaded nonetheless (init.allow_mismatch): {reason.partition(':')[0]}"]


def _facts(start: Start, trained: Trained, report: Report) -> InitFacts:
    weights = start.weights
    assert weights is not None
    theirs, pictures = weights.pictures, None
    if start.shown and theirs.mean is not None and theirs.std is not None:
        pictures = {"mean": theirs.mean, "std": theirs.std}
    return InitFacts(
        source=weights.source,
        checksum=weights.checksum,
        norm=trained.name,
        told_by=trained.told_by,
        num_loaded=report.count("loaded", "adapted"),
        num_adapted=report.count("adapted"),
        num_skipped=report.count("skipped"),
        num_missing=report.count("missing"),
        pictures=pictures,
    )

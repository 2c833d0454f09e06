"""From ``init=`` to tensors: where they lie, how they were trained, and how they see pictures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from torch import Tensor

from harness import checkpoint
from harness.errors import DataError, UsageError
from harness.norm.audit import NormAudit
from harness.record import Record, RunDir
from harness.registry import task_info
from harness.schema import InitSection, Spec
from harness.spec import load_spec
from harness.task import Pictures, SeesPictures
from harness.weights import evidence, known, library
from harness.weights.names import Layout, common_name, layout, unwrap
from harness.weights.read import Content, read
from harness.weights.runs import finished, pictures_of, spec_of
from harness.weights.source import file_checksum, parse
from harness.weights.trained import Trained, declared, of_norm

# How the layouts' own training code shows pictures.
_IMAGENET = Pictures("rgb", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""torchvision's references/classification and the authors' (pytorch-classification, imagenet.py)"""
_CAFFE2 = Pictures(
    "bgr",
    (122.7717 / 255, 115.9465 / 255, 102.9801 / 255),
    (1 / 255, 1 / 255, 1 / 255),
)
"""facebookresearch/Detectron, ``PIXEL_MEANS``; maskrcnn-benchmark, ``config/defaults.py``"""
_BIT = Pictures("rgb", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""google-research/big_transfer, ``bit_pytorch/train.py``"""
_LAYOUTS: Mapping[Layout, Pictures] = {
    "torchvision": _IMAGENET,
    "caffe2": _CAFFE2,
    "bit": _BIT,
    # Its model zoo has several means and deviations; a checkpoint of a detector may hold them.
    "detectron2": Pictures("bgr"),
}


@dataclass(frozen=True)
class Weights:
    """Weights that were found, not yet in a model."""

    source: str
    tensors: Mapping[str, Tensor]
    others: tuple[str, ...]
    """Keys of what is no tensor."""
    checksum: str
    layout: Layout
    trained: Trained | None
    """None: to be told by the tensors."""
    pictures: Pictures

    @cached_property
    def keys(self) -> dict[str, str]:
        """Return each key in the common language of names (``harness.weights.names``)."""
        return {key: common_name(short) for key, short in unwrap(self.tensors.keys()).items()}


def find(init: InitSection, results: Path) -> Weights:
    """Find and read the weights that ``init`` names.

    Args:
        init: with a source other than scratch.
        results: where runs are.

    Raises:
        DataError: if they are not there, damaged, or not of this run.
        EnvironmentProblem: if they can neither be found nor downloaded.
    """
    source = parse(init.source)
    match source.kind:
        case "run":
            found = _of_run(source.name, results)
        case "timm":
            tensors, pictures, trained = library.fetch_timm(source.name)
            checksum = library.tensor_checksum(tensors)
            found = Weights("", tensors, (), checksum, "torchvision", trained, pictures)
        case "torchvision":
            found = _of_file(library.fetch_torchvision(source.name))
            found = replace(found, trained=_of_torchvision(found))
        case _:
            found = _of_file(Path(source.name))
    if init.colours:
        found = replace(found, pictures=replace(found.pictures, colours=init.colours))
    return replace(found, source=str(init.source))


def _of_file(path: Path) -> Weights:
    checksum = file_checksum(path)
    trained = known.check(path)
    content = read(path)
    kind = layout(unwrap(content.tensors.keys()).values())
    pictures = _own_pictures(content) or _LAYOUTS[kind]
    if content.run_id is not None and (spec := _spec_beside(path)) is not None:
        trained = of_norm(spec.norm, "spec.yaml beside it")
        pictures = pictures_of(
            spec, RunDir(path.parent.parent.parent, path.parent.name).read_init()
        )
    return Weights("", content.tensors, content.others, checksum, kind, trained, pictures)


def _own_pictures(content: Content) -> Pictures | None:
    """Read the mean and deviation that older checkpoints of detectron2 hold (BGR, 0..255)."""
    mean, std = (content.tensors.get(key) for key in ("pixel_mean", "pixel_std"))
    if mean is None or std is None or mean.numel() != 3 or std.numel() != 3:
        return None
    b, g, r = (float(value) / 255 for value in mean.flatten())
    blue, green, red = (float(value) / 255 for value in std.flatten())
    return Pictures("bgr", (r, g, b), (red, green, blue))


def _spec_beside(path: Path) -> Spec | None:
    try:
        return load_spec(path.with_name("spec.yaml"))
    except UsageError:
        return None


def _of_torchvision(found: Weights) -> Trained:
    """Tell the norm of one of torchvision's networks, none of which standardises weights."""
    has_averages = any(key.endswith("running_var") for key in found.tensors)
    return Trained("bn" if has_averages else None, False, told_by="torchvision's network")


def _of_run(run_id: str, results: Path) -> Weights:
    """Read the final weights of a finished run."""
    record: Record = finished(run_id, results)
    run = RunDir(results, run_id)
    content, problems = checkpoint.load(run.checkpoint, run_id)
    if content is None:
        why = problems[0] if problems else f"{run.checkpoint.name} is not there"
        raise DataError(f"init=run:{run_id}: its weights cannot be read ({why}): make it again")
    if content["progress"]["step"] != record.steps:
        raise DataError(
            f"init=run:{run_id}: its checkpoint is of step {content['progress']['step']}, not of "
            f"the last, {record.steps}: make it again"
        )
    spec = spec_of(record)
    tensors = content["model"]
    return Weights(
        source="",
        tensors=tensors,
        others=(),
        checksum=library.tensor_checksum(tensors),
        layout=layout(tensors),
        trained=of_norm(spec.norm, "its record"),
        pictures=pictures_of(spec, record.init),
    )


def told(weights: Weights, init: InitSection, audit: NormAudit) -> Trained:
    """Tell under which norm weights were trained: from what is known, the tensors, the user.

    Args:
        weights: as they were found.
        init: what the user declares.
        audit: of the model that they are for, which says what layer feeds which norm.

    Raises:
        UsageError: if the user's word contradicts the rest.
    """
    seen = weights.trained or evidence.of_tensors(weights.tensors, _pairs(weights, audit))
    return declared(init.norm, seen) if init.norm else seen


def _pairs(weights: Weights, audit: NormAudit) -> Iterable[tuple[Tensor, Tensor]]:
    by_name = {name: weights.tensors[key] for key, name in weights.keys.items()}
    for row in audit:
        if row.role != "layer" or not row.paired_with:
            continue
        weight = by_name.get(common_name(f"{row.path}.weight"))
        site = row.paired_with.split()[0]
        variance = by_name.get(common_name(f"{site}.running_var"))
        if weight is not None and variance is not None:
            yield weight, variance


def shown_as(spec: Spec, weights: Pictures | None) -> tuple[Spec, bool]:
    """Show pictures as the weights expect them, where that is known and not what the recipe says.

    A network's first layer fits one mean and deviation. No change of its weights could replace
    them: without a bias it has nothing to take up a mean with, and standardised weights cannot take
    up three different deviations.

    Returns:
        The spec to build the task from, and whether it differs.
    """
    info = task_info(spec.task)
    if weights is None or weights.mean is None or weights.std is None:
        return spec, False
    if not isinstance(info, SeesPictures):
        return spec, False
    own = info.pictures(spec)
    theirs = (*weights.mean, *weights.std)
    ours = (*(own.mean or ()), *(own.std or ()))
    if all(abs(a - b) <= 1e-6 * max(1.0, abs(a)) for a, b in zip(ours, theirs, strict=True)):
        return spec, False
    return info.show_pictures(spec, weights.mean, weights.std), True

"""Puts weights into a model, with every key of both sides accounted for."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import Tensor, nn

from harness.errors import DataError
from harness.norm.audit import NormAudit
from harness.weights.find import Weights
from harness.weights.names import BACKBONE, PREFIXES, common_name

Status = Literal["loaded", "adapted", "skipped", "missing"]
_AVERAGES = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class Row:
    """What became of one key."""

    status: Status
    key: str
    """In the file; '' where the file has none."""
    parameter: str
    """In the model; '' where the model has none."""
    shape: str
    why: str = ""


@dataclass
class Report:
    """One row a key, the file's in their order, then what the model had and the file had not."""

    rows: list[Row] = field(default_factory=list)

    def count(self, *statuses: Status) -> int:
        """Return how many keys came to this."""
        return sum(row.status in statuses for row in self.rows)

    def to_csv(self) -> str:
        """Return the rows as CSV."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        names = [one.name for one in fields(Row)]
        writer.writerow(names)
        writer.writerows([getattr(row, name) for name in names] for row in self.rows)
        return text.getvalue()

    def summary(self) -> str:
        """Return one sentence that leaves nothing out: each status, with its reasons counted."""
        parts = []
        for status in ("loaded", "adapted", "skipped", "missing"):
            rows = [row for row in self.rows if row.status == status]
            reasons = Counter(row.why for row in rows if row.why)
            told = "; ".join(f"{why} ({n})" for why, n in reasons.most_common())
            parts.append(f"{len(rows)} {status}{f': {told}' if told else ''}")
        return " | ".join(parts)


def load(
    model: nn.Module,
    weights: Weights,
    audit: NormAudit,
    *,
    colours: str | None,
    backbone: str = "",
    partial: bool = False,
) -> Report:
    """Load weights into ``model``, in place.

    Args:
        model: after surgery.
        weights: as found.
        audit: of the model: which layers a norm follows.
        colours: order of the channels that the model is shown; None if it sees no pictures.
        backbone: path prefix of the part that must be filled whole.
        partial: whether it need not be.

    Returns:
        What became of each key.

    Raises:
        DataError: if a shape differs (but in a layer that no norm follows, such as the classes'),
            a number is not finite, or the two backbones are not one network.
    """
    own = model.state_dict()
    matcher = _Matcher(own, weights, audit, colours)
    chosen = matcher.run()
    rows, report = matcher.rows, Report()
    if not chosen:
        raise DataError(
            f"init={weights.source} holds none of this model's {len(own)} weights (its first key "
            f"is {next(iter(weights.tensors))!r}, the model's {next(iter(own))!r})"
        )
    rows += [Row("skipped", key, "", "", "not a tensor") for key in weights.others]
    taken = {row.parameter for row in rows}
    rows += [
        Row("missing", "", name, _shape(own[name]), _why_missing(name))
        for name in own
        if name not in taken
    ]
    if not partial:
        _refuse_parts(rows, weights, audit, backbone)
    model.load_state_dict(chosen, strict=False)
    report.rows = rows
    return report


class _Matcher:
    """One pass over a file's keys; ``run`` returns what goes into the model."""

    def __init__(
        self, own: Mapping[str, Tensor], weights: Weights, audit: NormAudit, colours: str | None
    ) -> None:
        self.own, self.weights, self.rows = own, weights, list[Row]()
        names = Counter(common_name(name) for name in own)
        self.by_name = {
            common if names[common := common_name(name)] == 1 else name: name for name in own
        }
        self.bare = {row.path for row in audit if row.role == "layer" and not row.paired_with}
        theirs = weights.pictures.colours
        self.turned = "" if colours in (None, theirs) else f"{theirs} to {colours}"
        self.stem = next(
            (name for name, value in own.items() if value.ndim == 4 and value.shape[1] == 3), None
        )

    def run(self) -> dict[str, Tensor]:
        """Decide on every key.

        Raises:
            DataError: at the first key that contradicts the model.
        """
        chosen: dict[str, Tensor] = {}
        for key, common in self.weights.keys.items():
            tensor = self.weights.tensors[key]
            name = self.by_name.get(common)
            if name is None:
                self._row("skipped", key, "", tensor, _why_skipped(key, common))
            elif name in chosen:
                self._row("skipped", key, "", tensor, f"{name} is filled by another key")
            else:
                fitted, changes = self._fitted(key, name, tensor)
                if fitted is None:
                    self._row("skipped", key, name, tensor, changes[0])
                    continue
                chosen[name] = fitted
                status: Status = "adapted" if changes else "loaded"
                self._row(status, key, name, tensor, ", ".join(changes))
        return chosen

    def _row(self, status: Status, key: str, name: str, tensor: Tensor, why: str) -> None:
        self.rows.append(Row(status, key, name, _shape(tensor), why))

    def _fitted(self, key: str, name: str, tensor: Tensor) -> tuple[Tensor | None, list[str]]:
        """Return the tensor as the model needs it, and what was done to it."""
        own, changes = self.own[name], list[str]()
        if self.weights.layout == "bit" and tensor.ndim == 4:
            tensor = tensor.permute(3, 2, 0, 1)
            changes.append("axes turned from HWIO to OIHW")
        if tensor.ndim > own.ndim and all(n == 1 for n in tensor.shape[own.ndim :]):
            tensor = tensor.reshape(tensor.shape[: own.ndim])
            changes.append("1x1 convolution as a linear layer")
        if tensor.shape != own.shape:
            return None, [self._other_shape(key, name, tensor, own)]
        if tensor.dtype != own.dtype:
            kinds = (str(one.dtype).removeprefix("torch.") for one in (tensor, own))
            changes.append("cast from {} to {}".format(*kinds))
        if not torch.isfinite(tensor).all():
            raise DataError(f"init={self.weights.source}: {key} holds numbers that are not finite")
        if name == self.stem and self.turned:
            tensor = tensor.flip(1)
            changes.append(f"input channels turned from {self.turned}")
        return tensor, changes

    def _other_shape(self, key: str, name: str, tensor: Tensor, own: Tensor) -> str:
        layer = name.rpartition(".")[0]
        if layer not in self.bare:
            raise DataError(
                f"init={self.weights.source}: {key} has shape {_shape(tensor)}, {name} of the "
                f"model needs {_shape(own)}: weights of another network"
            )
        if tensor.shape[1:] == own.shape[1:]:
            return f"{layer} gives {len(tensor)} numbers in the file, {len(own)} in the model"
        return f"{layer} has another shape in the model"


def _why_skipped(key: str, common: str) -> str:
    if common.endswith(_AVERAGES):
        return "the model's norm keeps no averages"
    if common.endswith("_momentum"):
        return "of the optimiser"
    if common.startswith(BACKBONE):
        return "the model's backbone has no such layer"
    part = next((part for part in key.split(".")[:-1] if part not in PREFIXES), None)
    return f"the model has no {part}" if part else "not in the model"


def _why_missing(name: str) -> str:
    if name.endswith("num_batches_tracked"):
        return "a counter, starts at 0"
    if name.endswith(_AVERAGES):
        return "averages: start at mean 0, variance 1"
    return f"{'.'.join(name.split('.')[:2])} starts at random"


def _refuse_parts(rows: Sequence[Row], weights: Weights, audit: NormAudit, backbone: str) -> None:
    """Refuse weights that fill a part of the backbone, or of which a part fills it.

    Raises:
        DataError: with the first layer.
    """
    prefix = f"{backbone}." if backbone else ""
    normed = [
        row.path
        for row in audit
        if row.role == "layer" and row.paired_with and row.path.startswith(prefix)
    ]
    unfilled = {row.parameter for row in rows if row.status == "missing"}
    without = [path for path in normed if f"{path}.weight" in unfilled]
    extra = [
        row.key
        for row in rows
        if row.status == "skipped"
        and fnmatchcase(weights.keys.get(row.key, ""), f"{BACKBONE}*conv[0-9].weight")
    ]
    if without or extra:
        first = f"{without[0]} is not in the file" if without else f"{extra[0]} is left over"
        raise DataError(
            f"init={weights.source} is of another network: of the backbone's {len(normed)} layers "
            f"before a norm {len(normed) - len(without)} are in it, and {len(extra)} of it have no "
            f"place ({first}); init.allow_mismatch=true loads what fits"
        )


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"

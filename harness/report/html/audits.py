"""The audit of each norm, folded: layers that the switch treated alike are one line."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten

from harness.errors import visible
from harness.foreign import is_plain
from harness.record import Record, RunDir

_MOST = 5000
"""Rows of an audit that are read; the largest model here has some 700."""
_NAMED = 200
"""Letters of the list of layers' names."""


@dataclass(frozen=True)
class Line:
    """Layers that are alike."""

    num: int
    kind: str
    change: str
    """What the switch did, in words."""
    params: int
    frozen: bool
    why: str
    layers: str
    """Their names, or the first of them."""


@dataclass(frozen=True)
class Audit:
    """What the switch did to a model."""

    task: str
    model: str
    norm: str
    run_id: str
    sites: int
    standardised: int
    bare: int
    frozen: int
    params: int
    lines: tuple[Line, ...]
    """None where the run keeps no audit any more."""


def audits(records: Sequence[Record], results: Path) -> Iterator[Audit]:
    """Yield one audit for each task, model and norm that was run, of the newest run."""
    newest: dict[tuple[str, str, str], Record] = {}
    for record in sorted(records, key=lambda one: one.finished):
        norm = record.spec["norm"]
        parts = {"ws": norm["ws"], "groups": record.science["norm"].get("groups")}
        name = f"{norm['layer']}{'_ws' if norm['ws'] else ''}"
        said = ", ".join(f"{key} {value}" for key, value in parts.items() if value)
        label = f"{name} ({said})" if said else name
        newest[record.spec["task"], record.spec["model"]["name"], label] = record
    for (task, model, norm), record in sorted(newest.items()):
        counts = record.norm
        yield Audit(
            task,
            model,
            norm,
            record.run_id,
            counts.num_norm_sites,
            counts.num_standardised,
            counts.num_bare,
            counts.num_frozen,
            counts.num_params,
            tuple(_lines(RunDir(results, record.run_id).audit)),
        )


def _lines(path: Path) -> Iterator[Line]:
    """Fold the rows of ``audit.csv``, which anybody may have written."""
    groups: dict[tuple[str, str, bool, str], list[tuple[str, int]]] = {}
    if not is_plain(path):
        return
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for number, row in enumerate(csv.DictReader(file)):
                if number >= _MOST:
                    break
                alike = (row["kind"], _change(row), row["trainable"] == "no", row["why"])
                groups.setdefault(alike, []).append((row["path"], int(row["num_params"])))
    except (OSError, ValueError, LookupError, TypeError, csv.Error):
        return
    for (kind, change, frozen, why), layers in groups.items():
        yield Line(
            len(layers),
            visible(kind),
            visible(change),
            sum(params for _, params in layers),
            frozen,
            visible(why) or _usual(change),
            shorten(", ".join(visible(name) for name, _ in layers), _NAMED, placeholder=" ..."),
        )


def _usual(change: str) -> str:
    """Say the rule that the audit leaves unsaid: a reason there is an exception's."""
    return "a norm follows it" if change.startswith("standardised") else "a norm of the model"


def _change(row: dict[str, str]) -> str:
    if row["role"] == "site":
        groups = f", {row['groups']} groups" if row["groups"] else ""
        return f"{row['norm_before']} \N{RIGHTWARDS ARROW} {row['norm_after']}{groups}"
    return f"standardised ({row['ws']})" if row["standardised"] == "yes" else "as it is"

"""`normbench ls`: tasks, norms, weight standardisations, presets, keys: as rows or as a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from harness.completion import LISTS
from harness.documents import read_yaml
from harness.errors import UsageError, did_you_mean
from harness.paths import configs_dir
from harness.registry import task_info, task_names
from harness.schema import Section, Spec
from harness.spec import build, keys, presets
from harness.terminal import new_table

if TYPE_CHECKING:
    from rich.table import Table

Row = dict[str, Any]


def listing(what: str, task: str | None) -> list[Row]:
    """Return what there is, one dict a row; the keys are the columns.

    Raises:
        UsageError: if there is no such listing, or it needs a task.
    """
    if what in _OF_A_TASK:
        if task is None:
            raise UsageError(f"ls {what} needs a task: normbench ls {what} TASK")
        return _OF_A_TASK[what](task)
    if what in _OF_ALL:
        return _OF_ALL[what]()
    near = did_you_mean(what, LISTS)
    raise UsageError(f"ls {what!r} is not known.{near} Lists: {', '.join(LISTS)}")


def listing_table(what: str, rows: list[Row]) -> Table:
    """Return the rows as people read them."""
    table = new_table("", *(name.replace("_", " ") for name in rows[0]))
    for row in rows:
        table.add_row(*(escape(_shown(value)) for value in row.values()))
    if what == "norms":
        table.caption = (
            "each also as NAME_ws, with weight standardisation; `normbench selftest` proves it"
        )
    return table


def _shown(value: Any) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:g}"
        case _:
            return str(value)


def _tasks() -> list[Row]:
    return [{"task": name, "what": task_info(name).title} for name in task_names()]


def _norms() -> list[Row]:
    from harness.norm.catalogue import NORMS

    return [
        {
            "norm": name,
            "what": norm.title,
            "paper": norm.paper,
            # A norm of another package may claim nothing.
            "batch_independent": "?" if norm.batch_independent is None else norm.batch_independent,
            "train_is_eval": "?" if norm.train_is_eval is None else norm.train_is_eval,
            "statistics": norm.statistics,
            "note": norm.constraints,
        }
        for name, norm in NORMS.items()
    ]


def _variants() -> list[Row]:
    from harness.norm.catalogue import WS_VARIANTS

    return [
        {
            "norm.ws": name,
            "variance": "unbiased" if ws.unbiased else "biased",
            "epsilon": ws.eps,
            "of_the_root": "inside" if ws.eps_inside_root else "outside",
            "scaled": ws.scaled,
            "source": ws.source,
        }
        for name, ws in WS_VARIANTS.items()
    ]


def _presets(task: str) -> list[Row]:
    return [{"preset": name} for name in presets(task)]


def _keys(task: str) -> list[Row]:
    spec, why = build(task, []), _reasons(task)
    rows = []
    for key, meaning in keys(task).items():
        value = _value(spec, key)
        if not isinstance(value, dict):
            rows.append({"key": key, "mini": value, "meaning": meaning, "why": why.get(key, "")})
    return rows


def _reasons(task: str) -> dict[str, str]:
    """Return why mini's values are what they are; a task of another package may give none."""
    content = read_yaml(configs_dir() / "reasons.yaml")
    return {**content["every task"], **content.get(task, {})}


def _value(spec: Spec, key: str) -> object:
    # Not from a dump: that leaves out keys which came later and have their default.
    value: object = spec
    for part in key.split("."):
        value = getattr(value, part, None)
    if isinstance(value, Section):
        return value.model_dump(mode="json")
    return list(value) if isinstance(value, tuple) else value


_OF_ALL: Mapping[str, Callable[[], list[Row]]] = {"tasks": _tasks, "norms": _norms, "ws": _variants}
_OF_A_TASK: Mapping[str, Callable[[str], list[Row]]] = {"presets": _presets, "keys": _keys}

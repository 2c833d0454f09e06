"""From the records of all runs to two tables: one row a run, and one row a number.

Both CSV files are rebuilt from the records each time, so nothing is ever appended to a torn row.
Values are raw floats, and units stand in a column of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout

from harness import foreign
from harness.environment import device_title
from harness.errors import visible
from harness.garbage import only_growing
from harness.paths import sweep, write_atomic
from harness.record import MetricRow, Record, read_record
from harness.report.published import match

_RUN_TYPES: dict[str, str] = {
    "run_id": "string",
    "cell": "string",
    "task": "string",
    "preset": "string",
    "is_result": "bool",
    "dataset": "string",
    "fingerprint": "string",
    "arch": "string",
    "norm": "string",
    "ws_variant": "string",
    "groups": "Int64",
    "seed": "int64",
    "batch_size": "int64",
    "micro_batch": "int64",
    "stat_batch": "Int64",
    "bn_eval": "string",
    "chunk": "int64",
    "world": "int64",
    "precision": "string",
    "steps": "int64",
    "init": "string",
    "init_norm": "string",
    "init_checksum": "string",
    "numerics": "string",
    "norm_sites": "int64",
    "standardised": "int64",
    "params": "int64",
    "images_per_s": "float64",
    "peak_mem_mib": "float64",
    "wall_s": "float64",
    "data_wait_share": "float64",
    "num_resumed": "int64",
    "num_unreadable": "Int64",
    "num_replaced": "Int64",
    "changed": "string",
    "device": "string",
    "threads": "int64",
    "host": "string",
    "torch": "string",
    "git_sha": "string",
    "dirty": "boolean",
    "finished": "string",
}
_METRIC_TYPES: dict[str, str] = {
    "split": "string",
    "protocol": "string",
    "metric": "string",
    "value": "float64",
    "unit": "string",
    "higher_is_better": "bool",
    "n_eval": "int64",
    "se": "float64",
}
_PUBLISHED_TYPES: dict[str, str] = {
    "published": "float64",
    "published_shown": "string",
    "published_source": "string",
    "published_verified": "boolean",
    "comparable": "string",
    "comparable_why": "string",
    "delta": "float64",
}
_PATIENCE_S = 60.0
_SHARED = [name for name in _RUN_TYPES if name not in ("host", "threads")]


def read_records(results: Path) -> tuple[list[Record], list[str]]:
    """Read every finished run of a results folder.

    Returns:
        The records, ordered by run id, and one warning for each file that was passed over.
    """
    records, warnings = [], []
    with only_growing():
        for path in sorted((results / "runs").glob("*/record.json")):
            try:
                records.append(_judged(path))
            except ValueError as error:
                warnings.append(visible(f"skipped {error}"))
    return records, warnings


def told(warnings: Sequence[str]) -> list[str]:
    """Return the lines that tell a user of the files that were passed over, and what to do."""
    if not warnings:
        return []
    return [
        *(f"warning: {warning}" for warning in warnings),
        "a run with a skipped record still counts as done: if its record.json cannot be mended, "
        "delete that file to have the run made again",
    ]


def _judged(path: Path) -> Record:
    """Read a record that anybody may have written.

    Raises:
        ValueError: in one line, if no row of the tables can be made of it.
    """
    if not foreign.is_plain(path):
        raise ValueError(f"{path}: not a file, or larger than any record")
    record = read_record(path)
    try:
        foreign.check(record, path.parent.name)
        row = _run_row(record)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a record ({type(error).__name__}: {error})") from None
    for name, kind in _RUN_TYPES.items():
        if not _fits(row[name], kind):
            raise ValueError(f"{path}: not a record ({name} is {str(row[name])[:80]!r})")
    return record


def _fits(value: Any, kind: str) -> bool:
    if value is None:
        return kind in ("string", "Int64", "boolean")
    match kind:
        case "string":
            return isinstance(value, str)
        case "bool" | "boolean":
            return isinstance(value, bool)
        case "float64":
            return isinstance(value, int | float)
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


@contextmanager
def collecting(results: Path) -> Iterator[None]:
    """Let one process at a time read the records and write what is made of them.

    Otherwise the slower of two could replace the tables of the newer records. What a killed process
    holds is free at once, and nobody waits longer than a report takes.
    """
    lock = FileLock(results / ".collect.lock", timeout=_PATIENCE_S)
    with suppress(Timeout, OSError, NotImplementedError):
        lock.acquire()
        for folder in (results, results / "tables", results / "figures"):
            sweep(folder)
    try:
        yield
    finally:
        lock.release()


def _run_row(record: Record) -> dict[str, Any]:
    spec, where = record.spec, record.environment
    norm = spec["norm"]
    return {
        "run_id": record.run_id,
        "cell": record.cell or None,
        "task": spec["task"],
        "preset": spec["preset"],
        "is_result": record.is_result,
        "dataset": record.dataset,
        "fingerprint": record.fingerprint,
        "arch": spec["model"]["name"],
        "norm": f"{norm['layer']}_ws" if norm["ws"] else norm["layer"],
        "ws_variant": norm["ws"],
        "groups": record.science["norm"].get("groups"),
        "seed": spec["seed"],
        "batch_size": spec["batch"]["size"],
        "micro_batch": spec["batch"]["micro"],
        "stat_batch": record.stat_batch,
        "bn_eval": spec.get("bn_eval", "running"),  # older records have none
        "chunk": record.chunk,
        "world": where["world"],
        "precision": spec["precision"],
        "steps": record.steps,
        "init": record.science["init"],
        "init_norm": record.init.norm if record.init else None,
        "init_checksum": record.init.checksum if record.init else None,
        "numerics": _numerics(record) or None,
        "norm_sites": record.norm.num_norm_sites,
        "standardised": record.norm.num_standardised,
        "params": record.norm.num_params,
        "images_per_s": record.images_per_s,
        "peak_mem_mib": record.peak_mem_mib,
        "wall_s": record.wall_s,
        "data_wait_share": record.data_wait_share,
        "num_resumed": record.num_resumed,
        "num_unreadable": record.num_unreadable,
        "num_replaced": record.num_replaced,
        "changed": "; ".join(map(str, where.get("changed", ()))) or None,
        "device": device_title(where),
        "threads": where["threads"],
        "host": where["host"],
        "torch": where["packages"].get("torch"),
        "git_sha": where["git_sha"],
        "dirty": where["dirty"],
        "finished": record.finished,
    }


def _numerics(record: Record) -> str:
    """Return the versions of the code that can have changed the numbers: task, norm and WS."""
    norm = record.science["norm"]
    versions = (record.science.get("numerics"), norm.get("numerics"), norm.get("ws_numerics"))
    return ".".join(str(version) for version in versions if version is not None)


def _metric_row(metric: MetricRow) -> dict[str, Any]:
    row = dict(metric)
    return {"metric": row.pop("name"), **row}


def runs_frame(records: Sequence[Record]) -> pd.DataFrame:
    """Return one typed row a run."""
    rows = [_run_row(record) for record in records]
    return pd.DataFrame(rows, columns=list(_RUN_TYPES)).astype(_RUN_TYPES)


def metrics_frame(records: Sequence[Record]) -> pd.DataFrame:
    """Return one typed row a measured number (long, tidy)."""
    runs = runs_frame(records)[_SHARED]
    shared = runs.loc[runs.index.repeat([len(record.metrics) for record in records])]
    rows = [_metric_row(metric) for record in records for metric in record.metrics]
    numbers = pd.DataFrame(rows, columns=list(_METRIC_TYPES)).astype(_METRIC_TYPES)
    long = pd.concat([shared.reset_index(drop=True), numbers], axis=1)
    theirs = {"verified": "published_verified", "why": "comparable_why"}
    known = match(records).rename(columns=theirs)
    return long.merge(known, how="left", on=["run_id", "metric"]).astype(_PUBLISHED_TYPES)


def read_csv(path: Path) -> pd.DataFrame:
    """Read ``runs.csv`` or ``metrics.csv`` back with the types it was written with."""
    names = pd.read_csv(path, nrows=0).columns
    known = _RUN_TYPES | _METRIC_TYPES | _PUBLISHED_TYPES
    types = {name: kind for name, kind in known.items() if name in names}
    return pd.read_csv(path, dtype=types)


def write_csv(
    results: Path, records: Sequence[Record], numbers: pd.DataFrame | None = None
) -> tuple[Path, Path]:
    """Rebuild ``runs.csv`` and ``metrics.csv``.

    Args:
        results: the folder to write to.
        records: of all runs.
        numbers: their ``metrics_frame``, where it is at hand.

    Returns:
        The paths of the two files.
    """
    runs, metrics = results / "runs.csv", results / "metrics.csv"
    if numbers is None:
        numbers = metrics_frame(records)
    write_atomic(runs, runs_frame(records).to_csv(index=False))
    write_atomic(metrics, numbers.to_csv(index=False))
    return runs, metrics

"""A finished run as the source of another's weights, known from its record alone, without torch."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from harness.errors import DataError
from harness.record import InitFacts, Record, RunDir, read_record
from harness.registry import task_info
from harness.schema import Spec
from harness.spec import spec_class
from harness.task import Pictures, SeesPictures


def finished(run_id: str, results: Path) -> Record:
    """Return the record of a run.

    Raises:
        DataError: if there is no such run, or it is not finished.
    """
    run = RunDir(results, run_id)
    if Path(run_id).name != run_id or not run.path.is_dir():
        known = [path.parent.name for path in (results / "runs").glob("*/record.json")]
        near = get_close_matches(run_id, known, n=1)
        hint = f". Did you mean {near[0]}?" if near else ""
        raise DataError(f"init=run:{run_id}: no such run in {results / 'runs'}{hint}")
    if not run.record.is_file():
        raise DataError(f"init=run:{run_id}: the run is not finished ({run.state()})")
    try:
        return read_record(run.record)
    except ValueError as error:
        raise DataError(f"init=run:{run_id}: {error}") from None


def spec_of(record: Record) -> Spec:
    """Return a record's spec.

    Raises:
        DataError: if this version cannot read it.
    """
    try:
        return spec_class(record.spec["task"])(**record.spec)
    except (ValueError, TypeError) as error:
        first = " ".join(str(error).split())[:200]
        raise DataError(f"init=run:{record.run_id}: its spec cannot be read ({first})") from None


def pictures_of(spec: Spec, init: InitFacts | None) -> Pictures:
    """Return how a run's network was shown pictures, its own initial weights considered."""
    info = task_info(spec.task)
    if not isinstance(info, SeesPictures):
        return Pictures("rgb")
    own = info.pictures(spec)
    if init is None or init.pictures is None:
        return own
    return Pictures(own.colours, init.pictures["mean"], init.pictures["std"])

"""A finished run as data: the one thing that runs and reports share.

``record.json`` is written last and atomically. A run directory without it is a run that was
interrupted; one with ``failure.json`` is a run that failed, with the reason.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from filelock import BaseFileLock, FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import from_json

from harness.errors import NormbenchError, visible
from harness.migrate import SCHEMA_VERSION, migrate
from harness.paths import write_atomic


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class MetricRow(_Data):
    """One measured number (see ``harness.task.Metric``)."""

    name: str
    value: float
    unit: str
    n_eval: int
    split: str
    protocol: str
    higher_is_better: bool
    se: float | None = None


class Best(_Data):
    """The best value of a metric over all evaluations of a run; stored, never reported."""

    value: float
    step: int


class NormCounts(_Data):
    """The audit in numbers."""

    num_norm_sites: int
    num_standardised: int
    num_bare: int
    num_frozen: int
    num_params: int


class InitFacts(_Data):
    """The initial weights of a run that did not start from scratch."""

    source: str
    """As ``init=`` named it."""
    checksum: str
    """Of the file; of a library's or a run's tensors, their own."""
    norm: str
    """That they were trained under, in the grammar of norms; ``?`` for what nobody knows."""
    told_by: str
    """How that is known."""
    num_loaded: int
    """Tensors that went into the model, adapted ones included."""
    num_adapted: int
    num_skipped: int
    num_missing: int
    pictures: dict[str, tuple[float, float, float]] | None = None
    """``mean`` and ``std`` of RGB in 0..1, where pictures are shown as these weights expect them
    and not as the recipe says."""


class Record(_Data):
    """Everything a report needs of a finished run."""

    schema_version: int = SCHEMA_VERSION
    run_id: str
    cell: str = ""
    """What the run is to a table, seed aside (``harness.identity.cell_id``)."""
    spec: dict[str, Any]
    science: dict[str, Any]
    """The canonical description that ``run_id`` hashes."""
    dataset: str
    fingerprint: str
    is_result: bool
    """False for ``preset=smoke``: mechanics only, barred from tables."""
    metrics: tuple[MetricRow, ...]
    best: dict[str, Best] = {}
    """Of each metric, where the run was evaluated on the way (``exec.eval_every``) too."""
    norm: NormCounts
    init: InitFacts | None = None
    """None from scratch, and in records of before schema 3."""
    stat_batch: int | None
    """Images that each batch statistic saw; None where there is none."""
    chunk: int
    """Images that one forward executed."""
    steps: int
    images_per_s: float
    wall_s: float
    """Training and evaluation, summed over all sittings."""
    peak_mem_mib: float
    data_wait_share: float
    """Share of the training time spent waiting for data."""
    num_resumed: int
    num_unreadable: int = 0
    """Training samples that could not be read, under ``data.on_corrupt=skip``."""
    num_replaced: int = 0
    """How often another sample took the place of one of these."""
    environment: dict[str, Any]
    """Of the last sitting; ``changed`` lists what was another in an earlier one."""
    finished: str
    """UTC, ISO 8601."""


class Failure(_Data):
    """Why a run ended without a record."""

    exit_code: int
    message: str
    step: int | None = None


def previous_checkpoint(path: Path) -> Path:
    """Return where the checkpoint before ``path`` is kept."""
    return path.with_suffix(".previous.pt")


PROBED_S = 2.0
"""How long to wait for a run's lock, which those who ask for its state hold for a moment."""

State = Literal["done", "running", "resumable", "failed", "todo", "impossible"]


class _File:
    """A file of a run; named when asked for, since plans have thousands of runs."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, run: RunDir, owner: type[RunDir]) -> Path:
        return run.path / self.name


class RunDir:
    """The directory of one run under ``results/runs``."""

    spec = _File("spec.yaml")
    environment = _File("environment.json")
    audit = _File("audit.csv")
    metrics = _File("metrics.jsonl")
    checkpoint = _File("checkpoint.pt")
    log = _File("log.txt")
    record = _File("record.json")
    failure = _File("failure.json")
    crash = _File("crash.json")
    job = _File("job.json")
    samples = _File("samples")
    weights = _File("weights.csv")
    init = _File("init.json")

    def __init__(self, results: Path, run_id: str) -> None:
        """Name the directory; nothing is created."""
        self.id = run_id
        self.path = results / "runs" / run_id

    def lock(self) -> BaseFileLock:
        """Return the lock that the owner of a running run holds (freed when he dies)."""
        return FileLock(self.path / "run.lock")

    def state(self) -> State:
        """Tell from the files alone how far the run is."""
        if self.record.is_file():
            return "done"
        if not self.path.is_dir():
            return "todo"
        if self._locked():
            return "running"
        if self.failure.is_file():
            return "failed"
        kept = self.checkpoint, previous_checkpoint(self.checkpoint)
        return "resumable" if any(path.is_file() for path in kept) else "todo"

    def _locked(self) -> bool:
        if not (self.path / "run.lock").exists():
            return False
        try:
            with self.lock().acquire(timeout=0):
                return False
        except Timeout:
            return True
        except OSError:
            return False

    def read_failure(self) -> Failure | None:
        """Return why the run failed, if it did."""
        try:
            found = Failure.model_validate_json(self.failure.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # no text in UTF-8, or none of ours (pydantic's)
            return None
        return found.model_copy(update={"message": visible(found.message)})

    def read_init(self) -> InitFacts | None:
        """Return what the first sitting loaded, if it loaded anything."""
        try:
            return InitFacts.model_validate_json(self.init.read_text(encoding="utf-8"))
        except (OSError, ValidationError):
            return None

    def write_failure(self, error: NormbenchError, step: int | None = None) -> None:
        """Keep the reason of a failure beside the run."""
        failure = Failure(exit_code=error.exit_code, message=str(error), step=step)
        write_atomic(self.failure, failure.model_dump_json(indent=1))


def read_record(path: Path) -> Record:
    """Read one ``record.json`` of this version or an older one.

    Raises:
        ValueError: in one line, if it is truncated, foreign or of a newer version.
    """
    try:
        content = from_json(path.read_bytes())  # a third of json.loads, and there are thousands
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not a readable record ({error})") from None
    try:
        content = migrate(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    try:
        return Record.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{path}: not a record ({where}: {first['msg']})") from None


def write_record(run: RunDir, record: Record) -> None:
    """Write ``record.json``, the last act of a run."""
    write_atomic(run.record, record.model_dump_json(indent=1))

"""Many runs on one machine: so many at a time, on after a failure, stopped and repeated at will."""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.board import Board
from harness.errors import NormbenchError
from harness.launch import POLL_S, Forward, Outcome, Running
from harness.placement import Placement, usable_cores, visible_gpus
from harness.plan import PlannedRun
from harness.registry import task_info

_LOOK_S = 1.0
"""How often runs of other processes are looked at."""


@dataclass
class Sitting:
    """What came of one call of ``run_all``."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    """By run id, of the runs that were started."""
    stopped: int | None = None
    """130 or 75 if the sitting was interrupted."""

    @property
    def failed(self) -> dict[str, str]:
        """Return the reasons of the runs that failed."""
        bad = {run: one for run, one in self.outcomes.items() if one.exit_code not in (0, 75, 130)}
        return {run: outcome.message for run, outcome in bad.items()}


def default_jobs(cells: Sequence[PlannedRun]) -> int:
    """Return how many runs to make at a time: one for each GPU they need, else as cores allow."""
    widest = max((cell.spec.devices for cell in cells), default=1)
    if any(cell.spec.exec.device != "cpu" for cell in cells) and (gpus := visible_gpus()):
        return max(1, len(gpus) // widest)
    cores = usable_cores()
    most = max(((c.spec.exec.threads or cores) * c.spec.devices for c in cells), default=1)
    return max(1, cores // most)


def prepare_data(
    cells: Sequence[PlannedRun], progress: Callable[[str, int, int], None]
) -> tuple[dict[str, Path], dict[str, Outcome]]:
    """Generate or check the data of all runs, each once.

    Returns:
        The data's folder by run id, and the outcome of runs whose data are not to be had.
    """
    roots: dict[str, Path] = {}
    problems: dict[str, Outcome] = {}
    known: dict[tuple[str, str], Path | Outcome] = {}
    for cell in cells:
        info = task_info(cell.spec.task)
        try:
            key = cell.spec.task, f"{info.data_root(cell.spec)} {info.fingerprint(cell.spec)}"
            if key not in known:
                known[key] = info.prepare(cell.spec, progress)
        except NormbenchError as error:
            problems[cell.run.id] = Outcome(error.exit_code, str(error))
            continue
        found = known[key]
        assert isinstance(found, Path)
        roots[cell.run.id] = found
    return roots, problems


def run_all(
    cells: Sequence[PlannedRun],
    roots: Mapping[str, Path],
    jobs: int,
    board: Board,
    *,
    needs: Mapping[str, float] | None = None,
) -> Sitting:
    """Make every run, at most ``jobs`` at a time, in their order.

    A failure stops nothing. A request to stop is passed on to all workers, which save; nothing new
    is started then. A run that another process is making is waited for; should that process stop
    or die, it is made here.

    Args:
        cells: what to run; each once.
        roots: folder of the data, by run id.
        jobs: runs at a time.
        board: shows what happens.
        needs: MiB of GPU memory by run id, as far as known, where several runs share a GPU.
    """
    queue = _Queue(cells, board)
    running: list[Running] = []
    on_gpus = any(cell.spec.exec.device != "cpu" for cell in cells)
    placement = Placement(visible_gpus() if on_gpus else [], jobs, needs or {})
    sitting = Sitting()
    with Forward(lambda: tuple(running), board.say) as forward:
        while running or (queue and forward.received is None):
            while len(running) < jobs and forward.received is None and (cell := queue.take()):
                gpus = placement.take(cell)
                if gpus is None:
                    queue.put_back(cell)
                    break
                shared = None if cell.spec.exec.threads else placement.threads
                running.append(Running(cell, roots[cell.run.id], shared, gpus=gpus or None))
                board.started(cell)
            for one in tuple(running):
                over = one.ended  # asked first: what comes after it is the last news
                for row in one.news():
                    board.row(one.cell, row)
                if over:
                    running.remove(one)
                    placement.give_back(one.cell)
                    outcome = one.outcome(forward.received)
                    if outcome.elsewhere:
                        queue.put_off(one.cell)
                    else:
                        sitting.outcomes[one.cell.run.id] = outcome
                        board.ended(one.cell, outcome, time.monotonic() - one.began)
            for cell, outcome in queue.finished():
                sitting.outcomes[cell.run.id] = outcome
                board.ended(cell, outcome, 0.0)
            forward.pass_on()
            board.tick()
            time.sleep(POLL_S)
    if forward.received is not None:
        sitting.stopped = 130 if forward.received == signal.SIGINT else 75
    return sitting


class _Queue:
    """The runs that are not made yet, by us or by another process."""

    def __init__(self, cells: Sequence[PlannedRun], board: Board) -> None:
        self._waiting = deque(cells)
        self._elsewhere: list[PlannedRun] = []
        self._finished: list[tuple[PlannedRun, Outcome]] = []
        self._board = board
        self._looked = time.monotonic()

    def __bool__(self) -> bool:
        return bool(self._waiting or self._elsewhere or self._finished)

    def take(self) -> PlannedRun | None:
        """Return the next run to start; its state is that of now, not of the plan."""
        while self._waiting:
            cell = self._waiting.popleft()
            match cell.run.state():
                case "done":
                    self._finished.append((cell, Outcome(0)))
                case "running":
                    self.put_off(cell)
                case _:
                    return cell
        return None

    def put_back(self, cell: PlannedRun) -> None:
        """Let a run that was taken be the next one again."""
        self._waiting.appendleft(cell)

    def put_off(self, cell: PlannedRun) -> None:
        """Leave a run to the other process that makes it, for now."""
        self._elsewhere.append(cell)
        self._board.elsewhere(cell)

    def finished(self) -> list[tuple[PlannedRun, Outcome]]:
        """Return the runs that another process brought to an end; those it left are ours again."""
        if time.monotonic() - self._looked >= _LOOK_S:
            self._looked = time.monotonic()
            for cell in tuple(self._elsewhere):
                if (state := cell.run.state()) == "running":
                    continue
                self._elsewhere.remove(cell)
                failure = cell.run.read_failure() if state == "failed" else None
                if failure:
                    self._finished.append((cell, Outcome(failure.exit_code, failure.message)))
                else:
                    self._waiting.append(cell)  # or done: seen when it is taken
        found, self._finished = self._finished, []
        return found

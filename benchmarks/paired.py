"""Times cases in turn, so that what slows one slows all, and keeps the numbers as rows.

On one thread the clock is the time of the process, so that others on the machine count less; on
several it is the clock on the wall, and on a GPU a pair of CUDA events. A goal says how large a
ratio may be at most, or, where nothing is compared, the median itself.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from statistics import median, quantiles

import torch

from benchmarks.kept import Row, merged, read_rows, write_rows
from harness.environment import cpu_name

Work = Callable[[], object]
FEWEST_ROUNDS = 3
SECONDS = 12.0
"""A comparison has no further round after these, once it has the fewest."""


class Bench:
    """What a benchmark measures with, and its rows so far."""

    def __init__(
        self,
        name: str,
        *,
        rounds: int,
        seconds: float = SECONDS,
        device: str = "cpu",
        quick: bool = False,
        keep: Path | None = None,
        resume: bool = False,
    ) -> None:
        """Start without rows.

        Args:
            name: of the benchmark.
            rounds: of a comparison, at most.
            seconds: after which a comparison has no further round.
            device: where to measure.
            quick: measure nothing worth keeping.
            keep: CSV file that gets the rows of every comparison as soon as it is done.
            resume: leave out what that file has from these versions.
        """
        self.name, self.rounds, self.seconds, self.quick = name, rounds, seconds, quick
        self.device, self.file = torch.device(device), keep
        self.rows: list[Row] = []
        self._absent: set[str] = set()
        kept = read_rows(keep) if resume and keep and keep.is_file() else []
        versions = str(torch.__version__), _version("numba")
        self._done = {row.group for row in kept if (row.torch, row.numba) == versions}

    @property
    def device_name(self) -> str:
        cuda = self.device.type == "cuda"
        return torch.cuda.get_device_name(self.device) if cuda else cpu_name()

    def wants(self, part: str, size: str) -> bool:
        """Tell whether a comparison is still to be measured; ask before costly preparations."""
        group = self.name, part, size, self.device_name, torch.get_num_threads()
        return group not in self._done

    def has(self, package: str, what: str) -> bool:
        """Tell whether a package is installed; if not, say once what is left out."""
        if find_spec(package) is not None:
            return True
        self.without(f"{package} is not installed: without {what}")
        return False

    def numba(self) -> bool:
        """Tell whether loops compiled by numba can be measured."""
        if self.device.type != "cpu":
            self.without("numba's loops are for the CPU: without ours, compiled")
            return False
        return self.has("numba", "ours, compiled")

    def without(self, why: str) -> None:
        """Say once what is left out, and why."""
        if why not in self._absent:
            self._absent.add(why)
            print(why, flush=True)

    def compare(
        self,
        part: str,
        size: str,
        cases: Mapping[str, Work],
        *,
        rounds: int | None = None,
        warm_up: int = 1,
        goals: Mapping[str, float] | None = None,
        faster: bool = False,
    ) -> None:
        """Time the cases in turn, unless that is done; ratios are against the first.

        Args:
            part: of the benchmark.
            size: of the work.
            cases: one call is one measurement.
            rounds: other than those asked for.
            warm_up: rounds before the measured ones.
            goals: the largest ratio of a case.
            faster: print how many times as fast a case is, instead of the ratio.
        """
        if not self.wants(part, size):
            return
        times: dict[str, list[float]] = {name: [] for name in cases}
        began = time.monotonic()
        for turn in range((rounds or self.rounds) + warm_up):
            late = time.monotonic() - began > self.seconds
            if late and turn >= warm_up + FEWEST_ROUNDS:
                break
            for name, case in cases.items():
                spent = milliseconds(case, self.device)
                if turn >= warm_up:
                    times[name].append(spent)
        self.record(part, size, "ms", times, goals=goals, faster=faster)

    def record(
        self,
        part: str,
        size: str,
        unit: str,
        values: Mapping[str, Sequence[float]],
        *,
        goals: Mapping[str, float] | None = None,
        faster: bool = False,
        alone: bool = False,
    ) -> None:
        """Keep and print measured values, one a round; ``alone``: they are not compared."""
        reference = "" if alone else next(iter(values))
        rows = []
        for case, own in values.items():
            ratios = (
                [a / b for a, b in zip(own, values[reference], strict=True)] if reference else []
            )
            low, middle, high = _quartiles(ratios) if reference else (None, None, None)
            least, own_middle, most = _quartiles(own)
            rows.append(
                Row(
                    benchmark=self.name,
                    part=part,
                    case=case,
                    size=size,
                    unit=unit,
                    median=own_middle,
                    q25=least,
                    q75=most,
                    reference=reference,
                    ratio=middle,
                    ratio_q25=low,
                    ratio_q75=high,
                    goal=None if self.quick else (goals or {}).get(case),
                    rounds=len(own),
                    threads=torch.get_num_threads(),
                    device=self.device_name,
                    torch=str(torch.__version__),
                    numba=_version("numba"),
                    date=datetime.now(UTC).date().isoformat(),
                )
            )
        self.rows += rows
        if self.file is not None:  # at once, so that little is lost if the next one fails
            kept = read_rows(self.file) if self.file.is_file() else []
            write_rows(self.file, merged(kept, rows))
        _show(f"{part}, {size}" if size else part, rows, values, faster=faster)


def milliseconds(work: Work, device: torch.device) -> float:
    """Return what ``work`` takes, of the processor or of the GPU."""
    if device.type != "cuda":
        clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
        began = clock()
        work()
        return 1000 * (clock() - began)
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    first.record()
    work()
    last.record()
    torch.cuda.synchronize(device)
    return first.elapsed_time(last)


def peak_mib(work: Work, device: torch.device, *, at_end: bool = False) -> float:
    """Return the memory of tensors that ``work`` adds at most, or holds at its end, in MiB."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        measure = torch.cuda.memory_allocated if at_end else torch.cuda.max_memory_allocated
        return (measure(device) - before) / 2**20
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        work()
    events = profile.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    held = top = 0
    for _, change in changes:
        held += change
        top = max(top, held)
    return (held if at_end else top) / 2**20


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, _, high = quantiles(values, n=4)
    return low, median(values), high


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _show(
    title: str, rows: Sequence[Row], values: Mapping[str, Sequence[float]], *, faster: bool
) -> None:
    """Print the table of one comparison."""
    unit, compared = rows[0].unit, bool(rows[0].reference)
    digits = 3 if unit == "s" else 1
    ratio = "times as fast" if faster else "ratio"
    heads = f"{ratio:>14} {'quartiles':>13} {'of best':>7}" if compared else ""
    print(f"\n{title}\n{'case':30} {f'median {unit}':>10} {'quartiles':>17} {heads} {'goal':>6}")
    for row in rows:
        spread = f"{row.q25:.{digits}f}-{row.q75:.{digits}f}"
        line = f"{row.case:30} {row.median:10.{digits}f} {spread:>17}"
        if compared:
            own, others = values[row.case], values[row.reference]
            pairs = zip(own, others, strict=True)
            ratios = [b / a if faster else a / b for a, b in pairs]
            low, middle, high = _quartiles(ratios)
            best = min(others) / min(own) if faster else min(own) / min(others)
            shown = f"{low:.3g}-{high:.3g}"
            line += f" {middle:14.3f} {shown:>13} {best:7.3f}"
        if row.goal is not None:
            goal = 1 / row.goal if faster else row.goal
            line += f" {goal:6.3g}{'' if row.reached else ' not reached'}"
        print(line, flush=True)


Part = Callable[[Bench], None]


def parser(doc: str | None, parts: Mapping[str, Part], *, rounds: int) -> argparse.ArgumentParser:
    """Return the options that every benchmark has."""

    def part(name: str) -> str:
        if name not in parts:
            raise argparse.ArgumentTypeError(f"no such part: {name}; parts: {', '.join(parts)}")
        return name

    found = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("parts", nargs="*", type=part, metavar="PART", help=", ".join(parts))
    found.add_argument("--rounds", type=int, default=rounds, help=f"default: {rounds}")
    seconds = f"no further round of a comparison after these; default: {SECONDS:g}"
    found.add_argument("--seconds", type=float, default=SECONDS, help=seconds)
    found.add_argument("--threads", type=int, default=1, help="default: 1")
    found.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    found.add_argument("--quick", action="store_true", help="the smallest sizes; no measurement")
    kept = "CSV file for the numbers; a comparison measured again replaces the old one"
    found.add_argument("--rows", type=Path, metavar="FILE", help=kept)
    found.add_argument("--resume", action="store_true", help="leave out what FILE has")
    return found


def run(name: str, parts: Mapping[str, Part], options: argparse.Namespace) -> Bench:
    """Measure the parts asked for and return the rows.

    Raises:
        SystemExit: if there is no such device.
    """
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("torch sees no CUDA device: leave out --device cuda")
    torch.set_num_threads(options.threads)
    bench = Bench(
        name,
        rounds=options.rounds,
        seconds=options.seconds,
        device=options.device,
        quick=options.quick,
        keep=options.rows,
        resume=options.resume,
    )
    print(
        f"{name}: {bench.device_name}, {options.threads} thread(s), torch {torch.__version__}, "
        f"{options.rounds} rounds or {options.seconds:g} s a comparison"
    )
    for part in options.parts or parts:
        parts[part](bench)
    return bench


def main(name: str, doc: str | None, parts: Mapping[str, Part], *, rounds: int) -> None:
    """Run a benchmark from the command line."""
    run(name, parts, parser(doc, parts, rounds=rounds).parse_args())

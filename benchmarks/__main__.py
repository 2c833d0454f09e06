"""Runs the benchmarks one after the other and keeps their numbers, figures and tables.

    python -m benchmarks [NAME...] [--threads 1 2] [--resume] [--device cuda] [--quick]

Each runs in a process of its own, as if alone: what one leaves in the allocator, or breaks, does
not reach the next. `results/benchmarks.csv` gets every comparison as soon as it is measured, in the
place of what it had of it, and keeps those of other devices; `--resume` leaves out what it has from
these versions, so that what was interrupted goes on. Then `results/figures/benchmarks*.png` and
`.svg` show those of this device, and `benchmarks.tables` writes those of `docs/performance.md`.
`--quick` measures nothing worth keeping, so it writes only where `--results` says.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from benchmarks import paired
from benchmarks.kept import Row, read_rows
from harness.paths import default_results_dir, write_atomic

PARTS: dict[str, tuple[str, ...]] = {
    "weight_standardization": ("alone", "step", "evaluation"),
    "edge_conv": ("layers", "growth", "knn", "step"),
    "chunks": ("step",),
    "loop": ("step", "train"),
    "coco": (),
    "report": (),
}
"""Benchmark -> those of its parts for which threads matter."""
NAMES = tuple(PARTS)
CPU_ONLY = ("coco", "report")


def main() -> int:
    """Run the benchmarks asked for; return 1 if one failed, 130 if interrupted."""
    options = _parser().parse_args()
    names = list(dict.fromkeys(options.names)) or list(NAMES)
    threads = list(dict.fromkeys(options.threads))
    if options.device != "cpu":
        threads = [1]
        for name in set(CPU_ONLY) & set(names):
            names.remove(name)
            print(f"{name} does not use a GPU: left out")
    results = options.results or (None if options.quick else default_results_dir())
    work = [
        (name, count, PARTS[name] if count > 1 else ())
        for count in threads
        for name in names
        if count == 1 or PARTS[name]
    ]
    failed, interrupted = [], False
    try:
        for name, count, parts in work:
            if status := _run(name, count, parts, options, results):
                failed.append(f"{name} (exit status {status})")
            print(flush=True)
    except KeyboardInterrupt:
        interrupted = True
        print("interrupted: --resume goes on from here")
    if results is None:
        print("nothing written (--quick)")
    else:
        print("\n".join(map(str, show(results))))
    if failed:
        print(f"failed, or above its limit: {', '.join(failed)}")
    return 130 if interrupted else int(bool(failed))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", type=_name, help=", ".join(NAMES))
    parser.add_argument("--rounds", type=int, help="default: each benchmark's own")
    seconds = f"no further round of a comparison after these; default: {paired.SECONDS:g}"
    parser.add_argument("--seconds", type=float, default=paired.SECONDS, help=seconds)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="default: 1 2")
    parser.add_argument("--resume", action="store_true", help="measure only what is missing")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--quick", action="store_true", help="the smallest sizes, one round")
    parser.add_argument("--results", type=Path, metavar="DIR", help="default: results")
    return parser


def _name(text: str) -> str:
    if text not in NAMES:
        raise argparse.ArgumentTypeError(f"no benchmark {text!r}; there are {', '.join(NAMES)}")
    return text


def _run(
    name: str,
    threads: int,
    parts: tuple[str, ...],
    options: argparse.Namespace,
    results: Path | None,
) -> int:
    """Return the exit status of a benchmark."""
    words = ["--threads", str(threads), "--device", options.device]
    words += ["--seconds", str(options.seconds)]
    rounds = options.rounds or (1 if options.quick else None)
    words += ["--rounds", str(rounds)] if rounds else []
    words += ["--quick"] if options.quick else []
    if results is not None:
        results.mkdir(parents=True, exist_ok=True)
        words += ["--rows", str(results / "benchmarks.csv")]
        words += ["--resume"] if options.resume else []
    command = [sys.executable, "-m", f"benchmarks.{name}", *parts, *words]
    return subprocess.run(command).returncode


def show(results: Path) -> list[Path]:
    """Draw the figures of the newest device, and write the tables of the documentation.

    Returns:
        What was written, the numbers themselves included; nothing without numbers.
    """
    from benchmarks import tables
    from benchmarks.figure import FORMATS, draw
    from harness.report.figures import render

    path = results / "benchmarks.csv"
    if not path.is_file():
        return []
    rows = read_rows(path)
    written = [path]
    (results / "figures").mkdir(parents=True, exist_ok=True)
    device = max(rows, key=lambda row: row.date).device
    for threads in sorted({row.threads for row in rows if row.device == device}):
        chosen: list[Row] = [r for r in rows if r.device == device and r.threads == threads]
        if figure := draw(chosen):
            for kind in FORMATS:
                suffix = "" if threads == 1 else f"_{threads}_threads"
                picture = results / "figures" / f"benchmarks{suffix}.{kind}"
                write_atomic(picture, render(figure, kind))
                written.append(picture)
    if results.resolve() == default_results_dir().resolve():
        written += tables.update(rows)
    return written


if __name__ == "__main__":
    sys.exit(main())

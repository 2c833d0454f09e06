"""Runs the benchmarks one after the other and keeps their numbers and a figure.

    python -m benchmarks [NAME...] [--rounds N] [--device cuda] [--quick]

Each runs in a process of its own, as if alone: what one leaves in the allocator, or breaks, does
not reach the next. `results/benchmarks.csv` keeps the numbers of every device; a comparison that is
measured again replaces the old one. `results/figures/benchmarks.png` and `.svg` show those of this
device. `--quick` measures nothing worth keeping, so it writes only where `--results` says.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import paired
from benchmarks.paired import Row
from harness.paths import default_results_dir, write_atomic

NAMES = ("weight_standardization", "edge_conv", "chunks", "loop", "coco", "report")
CPU_ONLY = ("coco", "report")


def main() -> int:
    """Run the benchmarks asked for; return 1 if one failed."""
    options = _parser().parse_args()
    names = list(dict.fromkeys(options.names)) or list(NAMES)
    if options.device != "cpu":
        for name in set(CPU_ONLY) & set(names):
            names.remove(name)
            print(f"{name} does not use a GPU: left out")
    results = options.results or (None if options.quick else default_results_dir())
    failed = []
    for name in names:
        status, rows = _run(name, options)
        if status:
            failed.append(f"{name} (exit status {status})")
        if rows and results:
            keep(results, rows)
        print(flush=True)
    if failed:
        print(f"failed, or above its limit: {', '.join(failed)}")
    if results is None:
        print("nothing written (--quick)")
    return int(bool(failed))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", type=_name, help=", ".join(NAMES))
    parser.add_argument("--rounds", type=int, help="default: each benchmark's own")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--quick", action="store_true", help="the smallest sizes, one round")
    parser.add_argument("--results", type=Path, metavar="DIR", help="default: results")
    return parser


def _name(text: str) -> str:
    if text not in NAMES:
        raise argparse.ArgumentTypeError(f"no benchmark {text!r}; there are {', '.join(NAMES)}")
    return text


def _run(name: str, options: argparse.Namespace) -> tuple[int, list[Row]]:
    """Return the exit status of a benchmark and the rows it had until then."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.csv"
        words = ["--rows", str(path), "--device", options.device]
        rounds = options.rounds or (1 if options.quick else None)
        words += ["--rounds", str(rounds)] if rounds else []
        words += ["--quick"] if options.quick else []
        done = subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *words])
        return done.returncode, paired.read_rows(path) if path.is_file() else []


def keep(results: Path, rows: list[Row]) -> list[Path]:
    """Write the CSV file with ``rows`` in it, and the figures of their device."""
    from benchmarks.figure import FORMATS, draw
    from harness.report.figures import render

    path, device = results / "benchmarks.csv", rows[0].device
    (results / "figures").mkdir(parents=True, exist_ok=True)
    everything = paired.merged(paired.read_rows(path) if path.is_file() else [], rows)
    paired.write_rows(path, everything)
    written = [path]
    if figure := draw([row for row in everything if row.device == device]):
        for kind in FORMATS:
            picture = results / "figures" / f"benchmarks.{kind}"
            write_atomic(picture, render(figure, kind))
            written.append(picture)
    print("\n".join(map(str, written)))
    return written


if __name__ == "__main__":
    sys.exit(main())

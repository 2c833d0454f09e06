"""How long it takes to rebuild all tables from many records, and how that grows.

    python -m benchmarks.report [--records 1000 3000 10000] [--figures] [--tables FILE]

Synthetic records of four tasks, recipes on embedded and on real data, four norms and several
hundred seeds; the tables are those of `configs/tables.yaml` on embedded data. Prints seconds by
stage, of the processor and of the clock: on an idle machine both are the same, on a shared one the
clock says nothing. The goal is five seconds of the processor for 10,000 records, imports included,
without figures; above it the exit status is 1. One round: most stages are long.
"""

from __future__ import annotations

import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks import paired
from benchmarks.paired import Bench
from harness.identity import cell_id
from harness.record import MetricRow, NormCounts, Record, RunDir
from harness.spec import build, parse_words

GOAL_S, GOAL_AT = 5.0, 10_000
SIZES = (1000, 3000, 10_000)
METRICS = {
    "classification": ("top1_acc", "top5_acc"),
    "detection": tuple(f"{kind}_AP{part}" for kind in ("box", "mask") for part in ("", "50", "75")),
    "segmentation": ("mIoU", "pixel_acc"),
    "pointcloud": ("overall_acc", "mean_class_acc"),
}
NORMS = ("bn", "bn_ws", "gn", "gn_ws")
ENVIRONMENT = {
    "world": 1,
    "device": "cpu",
    "cpu": "some cpu",
    "threads": 1,
    "host": "h",
    "packages": {"torch": "2.15"},
    "git_sha": "0" * 40,
    "dirty": False,
}


def records(number: int) -> Iterator[Record]:
    """Yield different runs, as many as asked for."""
    kinds = [
        (task, preset, norm) for task in METRICS for preset in ("mini", "paper") for norm in NORMS
    ]
    draw = random.Random(0)
    specs = {}
    for index in range(number):
        task, preset, norm = kind = kinds[index % len(kinds)]
        if kind not in specs:
            spec = build(task, parse_words([f"preset={preset}", f"norm={norm}"]))
            specs[kind] = (spec.model_dump(mode="json"), cell_id(spec))
        spec, cell = specs[kind]
        seed = index // len(kinds)
        rows = tuple(
            MetricRow(
                name=name,
                value=draw.uniform(50, 90),
                unit="%",
                n_eval=1000,
                split="val",
                protocol="official",
                higher_is_better=True,
            )
            for name in METRICS[task]
        )
        yield Record(
            run_id=f"{task}-{preset}-{norm}-s{seed}",
            cell=cell,
            spec=spec | {"seed": seed},
            science={"norm": {"groups": 4, "numerics": 1}, "numerics": 1, "init": "scratch"},
            dataset="COCO" if task == "detection" and preset == "paper" else "embedded",
            fingerprint="v1-0",
            is_result=True,
            metrics=rows,
            norm=NormCounts(
                num_norm_sites=53, num_standardised=53, num_bare=1, num_frozen=0, num_params=10**7
            ),
            stat_batch=1 if norm.startswith("bn") else None,
            chunk=8,
            steps=1000,
            images_per_s=draw.uniform(10, 20),
            wall_s=100.0,
            peak_mem_mib=1000.0,
            data_wait_share=0.01,
            num_resumed=0,
            environment=ENVIRONMENT,
            finished="2026-01-01T00:00:00+00:00",
        )


Stages = dict[str, list[float]]
"""Seconds of the processor, by stage."""


@contextmanager
def timed(stage: str, stages: Stages, *, children: bool = False) -> Iterator[None]:
    """Print what a stage takes and keep its seconds of the processor, or of its children's."""
    clock, processor = time.perf_counter(), _processor_s(children)
    yield
    stages[stage] = [_processor_s(children) - processor]
    print(f"{stage:24} {stages[stage][0]:8.2f} {time.perf_counter() - clock:8.2f}", flush=True)


def _processor_s(children: bool) -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN if children else resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


IMPORTS = (
    "from harness.collect import metrics_frame, read_records, write_csv",
    "from harness.report.build import build_table",
    "from harness.report.definition import choose",
    "from harness.report.latex import to_latex",
    "from harness.report.markdown import to_markdown",
    "from harness.report.wide import wide",
)


def rebuild(num: int, definitions: Path | None, *, with_figures: bool) -> Stages:
    """Write ``num`` records and rebuild the tables from them."""
    from harness.collect import metrics_frame, read_records, write_csv
    from harness.report.build import build_table
    from harness.report.definition import choose
    from harness.report.latex import to_latex
    from harness.report.markdown import to_markdown
    from harness.report.wide import wide

    stages: Stages = {}
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder)
        for record in records(num):
            run = RunDir(results, record.run_id)
            run.path.mkdir(parents=True)
            run.record.write_text(record.model_dump_json(indent=1))
        print(f"\n{num} records\n{'stage':24} {'cpu s':>8} {'clock s':>8}")
        with timed("start and import", stages, children=True):
            subprocess.run([sys.executable, "-c", "; ".join(IMPORTS)], check=True)
        with timed("read records", stages):
            found, warnings = read_records(results)
        assert len(found) == num, warnings
        with timed("numbers of the tables", stages):
            metrics = metrics_frame(found)
        with timed("runs.csv, metrics.csv", stages):  # of these numbers, as `report` does
            write_csv(results, found, metrics)
        with timed("build tables", stages):
            tables, words = choose((), (), every=True, path=definitions)
            built = [build_table(table, words, results, metrics) for table in tables]
        with timed("CSV, Markdown, LaTeX", stages):
            for table in built:
                wide(table).to_csv(index=False)
                to_markdown(table)
                to_latex(table)
        stages["all"] = [sum(values[0] for values in stages.values())]
        if with_figures:
            from harness.report.export import write

            with timed("files and figures", stages):
                write(built, results)
    return stages


def main() -> int:
    """Measure and print; return 1 above the limit."""
    parser = paired.parser(__doc__, PARTS, rounds=1)
    parser.add_argument(
        "--records", type=int, nargs="+", metavar="N", help="default: 1000 3000 10000"
    )
    parser.add_argument("--figures", action="store_true", help="write files and figures too")
    parser.add_argument("--tables", type=Path, help="default: configs/tables.yaml")
    options = parser.parse_args()

    def part(bench: Bench) -> None:
        growth(bench, options.records, options.tables, with_figures=options.figures)

    bench = paired.run("report", {"rebuild": part}, options)
    return int(not all(row.reached for row in bench.rows))


def growth(
    bench: Bench,
    sizes: list[int] | None = None,
    definitions: Path | None = None,
    *,
    with_figures: bool = False,
) -> None:
    """Rebuild from more and more records."""
    for num in sizes or ((100,) if bench.quick else SIZES):
        if not bench.wants("rebuild", f"{num} records"):
            continue
        stages = rebuild(num, definitions, with_figures=with_figures)
        goals = {"all": GOAL_S} if num == GOAL_AT else {}
        bench.record("rebuild", f"{num} records", "s", stages, goals=goals, alone=True)


PARTS = {"rebuild": growth}
ROUNDS = 1

if __name__ == "__main__":
    sys.exit(main())

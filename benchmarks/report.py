"""How long it takes to rebuild all tables from many records.

    python -m benchmarks.report [--records 10000] [--figures] [--tables FILE]

Synthetic records of four tasks, recipes on embedded and on real data, four norms and several
hundred seeds; the tables are those of `configs/tables.yaml` on embedded data. Prints seconds by
stage, of the processor and of the clock, and fails above five of the processor (without figures):
on an idle machine both are the same, on a shared one the clock says nothing.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.environment import cpu_name
from harness.identity import cell_id
from harness.record import MetricRow, NormCounts, Record, RunDir
from harness.spec import build, parse_words

LIMIT_S = 5.0
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


@contextmanager
def timed(stage: str, total: list[float]) -> Iterator[None]:
    """Print what a stage takes and add its seconds of the processor to ``total``."""
    clock, processor = time.perf_counter(), time.process_time()
    yield
    total.append(time.process_time() - processor)
    print(f"{stage:24} {total[-1]:8.2f} {time.perf_counter() - clock:8.2f}")


def main() -> int:
    """Measure and print; return 1 above the limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--figures", action="store_true", help="write files and figures too")
    parser.add_argument("--tables", type=Path, help="default: configs/tables.yaml")
    options = parser.parse_args()
    total: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder)
        for record in records(options.records):
            run = RunDir(results, record.run_id)
            run.path.mkdir(parents=True)
            run.record.write_text(record.model_dump_json(indent=1))
        print(f"{cpu_name()}, {options.records} records")
        print(f"{'stage':24} {'cpu s':>8} {'clock s':>8}")
        with timed("import", total):
            from harness.collect import metrics_frame, read_records, write_csv
            from harness.report.build import build_table
            from harness.report.definition import choose
            from harness.report.latex import to_latex
            from harness.report.markdown import to_markdown
            from harness.report.wide import wide
        with timed("read records", total):
            found, warnings = read_records(results)
        assert len(found) == options.records, warnings
        with timed("runs.csv, metrics.csv", total):
            write_csv(results, found)
        with timed("numbers of the tables", total):
            metrics = metrics_frame(found)
        with timed("build tables", total):
            tables, words = choose((), (), every=True, path=options.tables)
            built = [build_table(table, words, results, metrics) for table in tables]
        with timed("CSV, Markdown, LaTeX", total):
            for table in built:
                wide(table).to_csv(index=False)
                to_markdown(table)
                to_latex(table)
        seconds = sum(total)
        if options.figures:
            from harness.report.export import write

            with timed("files and figures", total):
                write(built, results)
    print(f"{len(tables)} tables, {seconds:.2f} s without figures (limit {LIMIT_S:.0f})")
    return int(seconds > LIMIT_S)


if __name__ == "__main__":
    sys.exit(main())

"""Records become tables without losing, inventing or reformatting a number."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from harness.collect import metrics_frame, read_csv, read_records, runs_frame, write_csv
from harness.errors import NormbenchError
from harness.plan import plan
from harness.record import MetricRow, NormCounts, Record, RunDir, read_record, write_record
from harness.run import run


def record_of(number: int = 0, norm: str = "gn", values: tuple[float, ...] = (61.25,)) -> Record:
    return Record(
        run_id=f"toy-{norm}-mb1-s{number}-00000000",
        spec={
            "task": "toy",
            "preset": "mini",
            "model": {"name": "toy"},
            "norm": {"layer": norm, "ws": None, "groups": 4},
            "batch": {"size": 8, "micro": 1},
            "seed": number,
            "precision": "fp32",
        },
        science={"norm": {"groups": 4} if norm == "gn" else {}, "init": "scratch"},
        dataset="embedded",
        fingerprint="v1-0",
        is_result=True,
        metrics=tuple(
            MetricRow(
                name=f"m{i}",
                value=v,
                unit="%",
                n_eval=100,
                split="val",
                protocol="p",
                higher_is_better=True,
            )
            for i, v in enumerate(values)
        ),
        norm=NormCounts(
            num_norm_sites=2, num_standardised=0, num_bare=1, num_frozen=0, num_params=1000
        ),
        stat_batch=1 if norm == "bn" else None,
        chunk=8,
        steps=6,
        images_per_s=10.5,
        wall_s=1.25,
        peak_mem_mib=100.0,
        data_wait_share=0.01,
        num_resumed=0,
        environment={
            "world": 1,
            "device": "cpu",
            "cpu": "some cpu",
            "threads": 2,
            "host": "h",
            "packages": {"torch": "2.15"},
            "git_sha": None,
            "dirty": None,
        },
        finished="2026-01-01T00:00:00+00:00",
    )


def store(results, record: Record) -> RunDir:
    run = RunDir(results, record.run_id)
    run.path.mkdir(parents=True, exist_ok=True)
    write_record(run, record)
    return run


def test_record_reads_back_equal(tmp_path):
    record = record_of()
    assert read_record(store(tmp_path, record).record) == record


def test_csv_round_trip_keeps_values_and_types(tmp_path):
    records = [record_of(0, "bn", (1 / 3, 2.0)), record_of(1, "gn", (1e-17,))]
    runs, metrics = write_csv(tmp_path, records)
    pd.testing.assert_frame_equal(read_csv(runs), runs_frame(records))
    pd.testing.assert_frame_equal(read_csv(metrics), metrics_frame(records))
    assert read_csv(metrics)["value"].tolist() == [1 / 3, 2.0, 1e-17]
    assert read_csv(runs)["stat_batch"].tolist() == [1, pd.NA]


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=5))
def test_collecting_keeps_every_number(values):
    frame = metrics_frame([record_of(values=tuple(values))])
    assert frame["value"].tolist() == values


def test_rebuilding_is_idempotent(tmp_path):
    store(tmp_path, record_of())
    first = [path.read_bytes() for path in write_csv(tmp_path, read_records(tmp_path)[0])]
    second = [path.read_bytes() for path in write_csv(tmp_path, read_records(tmp_path)[0])]
    assert first == second


def test_empty_results_have_headers(tmp_path):
    runs, _ = write_csv(tmp_path, [])
    assert read_csv(runs).empty
    assert runs.read_text().startswith("run_id,cell,task,preset")


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (lambda text: text[:50], "not a readable record"),
        (lambda text: "[]", "not a record"),
        (lambda text: json.dumps(json.loads(text) | {"schema_version": 99}), "newer version"),
        (lambda text: json.dumps(json.loads(text) | {"steps": "many"}), "steps"),
        (lambda text: "\udcff", "not a readable record"),
    ],
)
def test_bad_records_are_skipped_with_one_warning(tmp_path, damage, word):
    store(tmp_path, record_of(0))
    bad = store(tmp_path, record_of(1))
    text = damage(bad.record.read_text())
    bad.record.write_bytes(text.encode(errors="surrogateescape"))
    records, warnings = read_records(tmp_path)
    assert [record.run_id for record in records] == [record_of(0).run_id]
    assert len(warnings) == 1
    assert word in warnings[0]
    assert str(bad.record) in warnings[0]


def test_a_run_whose_record_is_skipped_has_no_numbers_to_show(toy, tmp_path, capsys):
    (cell,) = plan(toy, [], tmp_path)
    cell.run.path.mkdir(parents=True)
    cell.run.record.write_text("{")
    with pytest.raises(NormbenchError, match=f"{cell.run.id}: its record was passed over"):
        run(toy, [], tmp_path, Console())
    out = capsys.readouterr().out
    assert f"warning: skipped {cell.run.record}" in out
    assert "delete that file to have the run made again" in out

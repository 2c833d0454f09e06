"""Measured against known numbers: what seeds explain is inside, the rest is not."""

from __future__ import annotations

import math

import pytest
from rich.console import Console
from scipy import stats

from harness.collect import metrics_frame
from harness.errors import NormbenchError, UsageError
from harness.record import RunDir, write_record
from harness.report import published
from harness.report import verify as module
from harness.report.definition import cells, definitions
from harness.report.verify import OutsideTolerance, verify
from tests.report.cases import record

TABLE = """\
mini:
  toy_rows:
    task: toy
    title: Toy
    metrics: [m0]
    seeds: 0..4
    rows: {norm: [bn, gn]}
    reference: gn
"""


def records_of(table, results, values):
    for cell in cells(table, (), results):
        of_row = values.get(cell.row, ())
        if cell.seed < len(of_row):
            yield record(cell, [of_row[cell.seed]])


@pytest.fixture
def against(toy, tmp_path, monkeypatch):
    """Return a function that verifies measured values against those of a reference."""
    path = tmp_path / "tables.yaml"
    path.write_text(TABLE)
    table = definitions(path)["toy_rows"]
    reference = tmp_path / "reference.csv"
    monkeypatch.setattr(module, "reference_csv", lambda: reference)

    def check(measured, known, tolerance=None, words=()):
        results = tmp_path / "results"
        for one in records_of(table, results, measured):
            run = RunDir(results, one.run_id)
            run.path.mkdir(parents=True)
            write_record(run, one)
        frame = metrics_frame(list(records_of(table, results, known)))
        frame.to_csv(reference, index=False)
        verify(["toy_rows"], words, results, Console(), every=False, tolerance=tolerance, path=path)

    return check


def test_the_same_numbers_are_inside(against, capsys):
    values = {"bn": (50.0, 51.0), "gn": (60.0, 61.0)}
    against(values, values)
    assert capsys.readouterr().out.count(" ok") == 2


def test_the_limit_is_the_interval_of_a_difference_of_means(against, capsys):
    """By hand: 99 % of Student's two-sample t with one common deviation."""
    known = (60.0, 62.0, 64.0, 61.0, 63.0)
    pooled = math.sqrt((10.0 + 10.0) / 8)
    limit = stats.t.ppf(0.995, 8) * pooled * math.sqrt(2 / 5)
    against({"gn": tuple(v + limit - 0.01 for v in known)}, {"gn": known})
    assert f"{limit:.2f}" in capsys.readouterr().out


def test_what_is_outside_is_listed_and_ends_with_5(against):
    known = {"gn": (60.0, 62.0, 64.0, 61.0, 63.0), "bn": (50.0, 51.0, 52.0, 50.5, 51.5)}
    worse = known | {"gn": tuple(v - 5 for v in known["gn"])}
    with pytest.raises(OutsideTolerance) as caught:
        against(worse, known)
    assert caught.value.exit_code == 5
    first, *rest = str(caught.value).splitlines()
    assert first == "1 of 2 numbers are outside:"
    assert rest[0].startswith("toy_rows gn m0: 57.00 against 62.00 (reference), more than ")


def test_one_seed_is_judged_by_the_spread_of_the_reference(against):
    against({"gn": (64.0,)}, {"gn": (60.0, 62.0, 64.0, 61.0, 63.0)})


def test_one_seed_against_one_needs_a_tolerance(against, capsys):
    against({"gn": (64.0,)}, {"gn": (60.0,)})
    assert "cannot be judged" in capsys.readouterr().out


def test_a_tolerance_overrides(against):
    known = {"gn": (60.0, 62.0)}
    with pytest.raises(OutsideTolerance, match=r"62.00 against 61.00 .*, more than 0.50 apart"):
        against({"gn": (61.0, 63.0)}, known, tolerance=0.5)
    with pytest.raises(UsageError, match="--tolerance -1"):
        against({}, known, tolerance=-1)


def test_nothing_to_compare_is_no_success(against):
    with pytest.raises(NormbenchError, match="nothing to compare"):
        against({"gn": (60.0,)}, {"bn": (50.0,)})


def test_a_skipped_record_is_told(against, tmp_path, capsys):
    torn = RunDir(tmp_path / "results", "torn")
    torn.path.mkdir(parents=True)
    torn.record.write_text("{")
    against({"gn": (60.0, 61.0)}, {"gn": (60.0, 61.0)})
    out = capsys.readouterr().out
    assert out.startswith(f"warning: skipped {torn.record}")


PUBLISHED = """\
task,dataset,model,norm,ws,metric,value,unit,reading_error,epochs,drops,batch_size,images_per_gpu,\
init,preset,comparable,verified,source,protocol,note
toy,embedded,MODEL,gn,,m0,61.5,%,,,,,,,mini,partly,no,a paper,p,half the steps
toy,embedded,MODEL,bn,,m0,90.0,%,,,,,,,,no,yes,a paper,p,other pictures
"""


def test_tables_of_the_paper_are_held_against_what_is_published(toy, tmp_path, monkeypatch, capsys):
    """And only against numbers that compare; an unverified one is shown as such."""
    path = tmp_path / "tables.yaml"
    path.write_text(
        TABLE.replace("mini:\n", "paper:\n").replace("m0]", "m0]\n    base: {preset: mini}")
    )
    table = definitions(path)["toy_rows"]
    values = {"gn": (56.0, 57.0, 58.0, 56.5, 57.5), "bn": (50.0, 51.0, 52.0, 50.5, 51.5)}
    results = tmp_path / "results"
    for one in records_of(table, results, values):
        run = RunDir(results, one.run_id)
        run.path.mkdir(parents=True)
        write_record(run, one)
    csv = tmp_path / "published.csv"
    csv.write_text(PUBLISHED.replace("MODEL", one.spec["model"]["name"]))
    monkeypatch.setattr(published, "published_csv", lambda: csv)
    with pytest.raises(OutsideTolerance) as caught:
        verify(["toy_rows"], (), results, Console(), every=False, tolerance=None, path=path)
    first, *rest = str(caught.value).splitlines()
    assert first == "1 of 1 numbers are outside:"
    limit = stats.t.ppf(0.995, 4) * math.sqrt(2.5 / 4) * math.sqrt(1 / 5 + 1)
    assert rest == [
        "toy_rows gn m0: 57.00 against 61.50 (published, 61.5 (unverified)), "
        f"more than {limit:.2f} apart"
    ]
    verify(["toy_rows"], (), results, Console(), every=False, tolerance=4.5, path=path)
    assert capsys.readouterr().out.count(" ok") == 1

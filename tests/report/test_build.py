"""Tables hold what the records say, differences by seed, and every gap with its reason."""

from __future__ import annotations

import math

import pytest

from harness.collect import metrics_frame
from harness.report.build import build_table
from harness.report.definition import cells
from tests.report.cases import VALUES, built, definition, record, records

pytestmark = pytest.mark.usefixtures("toy")


def p_of(t: float) -> float:
    """Two-sided p of Student's t with 2 degrees of freedom, which is closed."""
    return 1 - t / math.sqrt(t**2 + 2)


def test_values_and_spread_by_hand(tmp_path):
    cell = built(tmp_path).cell("bn", "1", "m0")
    assert cell.values.to_dict() == {0: 50.0, 1: 51.0, 2: 52.0}
    assert (cell.summary.mean, cell.summary.sd, cell.summary.n) == (51.0, 1.0, 3)
    assert (cell.standard_error, cell.unit, cell.higher_is_better) == (2.0, "%", True)
    assert set(cell.runs) == {0, 1, 2}
    assert not cell.missing


def test_differences_are_paired_and_corrected_for_distinct_comparisons(tmp_path):
    """bn: -10, -11, -12 (t = 11 sqrt 3); bn|fast: -20, -17, -17 (mean -18, sd sqrt 3, t = 18).

    gn: 0, 1, 1 (mean 2/3, sd 1/sqrt 3, t = 2). bn at 2: -2, -1 and at 4: 1, -0.5, each with one
    degree of freedom. gn stands in three columns and counts once: five comparisons.
    """
    table = built(tmp_path)
    own, fast, gn = (table.cell(row, "1", "m0").difference for row in ("bn", "bn|fast", "gn"))
    assert (own.mean, own.sd) == (-11.0, pytest.approx(1.0))
    assert own.low == pytest.approx(-11 - 4.30265273 / math.sqrt(3), rel=1e-8)
    assert own.p == pytest.approx(p_of(11 * math.sqrt(3)))
    assert fast.p == pytest.approx(p_of(18))
    assert own.p_holm == pytest.approx(5 * own.p)
    assert 4 * fast.p < 5 * own.p == pytest.approx(fast.p_holm)  # never below a smaller p's
    assert gn.p == pytest.approx(p_of(2))
    two = table.cell("bn", "2", "m0").difference
    assert (two.mean, two.seeds) == (-1.5, (0, 1))
    one_degree = 1 - 2 / math.pi * math.atan(3)  # Cauchy; t = -1.5 / (sd / sqrt 2) = -3
    assert two.p == pytest.approx(one_degree)
    assert gn.p_holm == pytest.approx(3 * gn.p)
    assert table.cell("bn", "4", "m0").difference.seeds == (0, 2)
    assert len({id(table.cell("gn", str(m), "m0").difference) for m in (1, 2, 4)}) == 1
    assert table.cell("gn_ws", "2", "m0").difference is None


def test_cost_is_relative_to_the_reference_at_the_same_micro_batch(tmp_path):
    cell = built(tmp_path).cell("bn", "2", "m0")
    assert cell.cost == {"images_per_s": 125.0, "step_ms": 64.0, "peak_mem_mib": 150.0}
    assert cell.relative == {"images_per_s": 1.25, "step_ms": 0.8, "peak_mem_mib": 0.75}


def test_gaps_say_why(tmp_path):
    table = built(tmp_path)

    def notes(row, column):
        return [table.notes[mark] for mark in table.cell(row, column, "m0").marks]

    assert notes("bn", "1") == []
    assert notes("bn", "2") == ["seed 2 not run"]
    assert notes("bn", "4") == ["seed 1 failed: the loss became NaN at step 4"]
    (impossible,) = notes("gn, 3 groups", "1")
    assert impossible.startswith("n/a: norm.groups=3 does not divide the 8 channels")
    (confound,) = notes("bn|fast", "1")
    assert confound.startswith("not only the norm differs from gn_ws: optim.lr 0.5 against 0.05")
    assert notes("bn|fast", "2")[0] == "not run"
    # 3 x bn, 3 x bn|fast, gn and gn_ws once, each with three seeds; gn, 3 groups never.
    assert (table.num_runs, table.num_done, table.complete) == (24, 7 + 3 + 6, False)
    assert len(table.run_ids) == table.num_done


def test_a_table_is_complete_without_what_cannot_run(tmp_path):
    table = definition(rows=[{"label": "gn", "norm": "gn"}, {"norm": "gn", "norm.groups": 3}],
                       columns=[{"label": ""}], reference="gn")  # fmt: skip
    values = {("gn", ""): VALUES["gn", "1"]}
    done = records(table, tmp_path, values)
    assert build_table(table, (), tmp_path, metrics_frame(done)).complete
    assert not build_table(table, (), tmp_path, metrics_frame(done[:2])).complete


def test_a_metric_that_no_record_has_is_a_gap(tmp_path):
    table = definition(metrics=["m0", "m1"])
    found = build_table(table, (), tmp_path, metrics_frame(records(table, tmp_path)))
    assert found.cell("gn", "1", "m1").summary is None
    assert found.cell("gn", "1", "m0").summary.n == 3


def test_the_reference_may_be_a_column(tmp_path):
    table = definition(reference="4", rows=[{"label": "bn", "norm": "bn"}])
    values = {("bn", "1"): (50.0, 51.0), ("bn", "4"): (60.0, 62.0)}
    found = build_table(table, (), tmp_path, metrics_frame(records(table, tmp_path, values)))
    assert found.cell("bn", "1", "m0").difference.mean == -10.5
    assert found.cell("bn", "4", "m0").difference is None
    notes = [found.notes[mark] for mark in found.cell("bn", "1", "m0").marks]
    assert any(note.startswith("not only the norm differs from 4: batch.stat 1") for note in notes)


def only(table, tmp_path, *found):
    return build_table(table, (), tmp_path, metrics_frame(found))


@pytest.fixture
def single(tmp_path):
    """Return a table of one run and its planned cell."""
    table = definition(
        rows=[{"label": "gn", "norm": "gn"}],
        columns=[{"label": ""}],
        seeds="0",
        reference="gn",
    )
    (cell,) = cells(table, (), tmp_path)
    return table, cell


def test_the_run_planned_now_is_preferred_and_then_the_newest(single, tmp_path):
    table, cell = single
    own = record(cell, [60.0])
    old, new = (
        record(cell, [value], run_id=f"other-{value}", finished=f"2026-0{month}-01T00:00:00+00:00")
        for value, month in ((61.0, 2), (62.0, 3))
    )

    def value(*found):
        return only(table, tmp_path, *found).cell("gn", "", "m0").summary.mean

    assert value(new, old) == value(old, new) == 62.0
    assert value(new, own, old) == 60.0


def test_what_is_no_result_is_barred(single, tmp_path):
    table, cell = single
    found = only(table, tmp_path, record(cell, [60.0], is_result=False))
    assert found.cell("gn", "", "m0").summary is None
    assert found.num_done == 0


def remarks(single, tmp_path, *changes):
    table = single[0].model_copy(update={"seeds": f"0..{len(changes) - 1}"})
    planned = list(cells(table, (), tmp_path))
    made = [record(one, [60.0], **change) for one, change in zip(planned, changes, strict=True)]
    return only(table, tmp_path, *made).remarks


def test_runs_alike_need_no_remark(single, tmp_path):
    assert remarks(single, tmp_path, {}, {}) == ()


def test_dirty_and_unknown_trees_are_two_things(single, tmp_path):
    where = record(single[1], [60.0]).environment
    dirty, unknown = ({"environment": where | {"dirty": d}} for d in (True, None))
    assert remarks(single, tmp_path, {}, dirty, unknown) == (
        "1 of 3 runs come from a git tree with uncommitted changes",
        "1 of 3 runs come from code that no git tree tells the version of",
    )


def test_differing_hardware_is_noted(single, tmp_path):
    where = record(single[1], [60.0]).environment
    other = {"environment": where | {"device": "cuda (H200)"}}
    (remark,) = remarks(single, tmp_path, {}, {}, other)
    assert remark == (
        "runs were made on different devices, so that costs cannot be compared: "
        "cuda (H200) (1), some cpu (2)"
    )


def test_processors_of_one_name_with_other_vectors_are_two(single, tmp_path):
    where = record(single[1], [60.0]).environment
    old, new = (
        {"environment": where | {"flags": {"cpu_capability": vectors}}}
        for vectors in ("AVX2", "AVX512")
    )
    (remark,) = remarks(single, tmp_path, old, new, new)
    assert remark.endswith(": some cpu (AVX2) (1), some cpu (AVX512) (2)")


def test_versions_of_the_code_are_compared_norm_by_norm(single, tmp_path):
    science = record(single[1], [60.0]).science
    task = {"science": science | {"numerics": 2}}
    norm = {"science": science | {"norm": {"numerics": 2}}}
    (remark,) = remarks(single, tmp_path, {}, task)
    assert remark == "runs were made with different versions of the task's code: 1 (1), 2 (1)"
    (remark,) = remarks(single, tmp_path, {}, norm)
    assert remark == "runs were made with different versions of the code of gn: 1 (1), 2 (1)"
    # gn_ws has a version more than gn at all times.
    assert not any("versions" in remark for remark in built(tmp_path).remarks)

"""Tables as data: they define runs, share them, and refuse what would change them."""

from __future__ import annotations

import pytest

from harness.errors import UsageError
from harness.report.definition import cells, choose, definitions, tables_file

TABLE = """\
mini:
  curve:
    task: toy
    title: A curve
    metrics: [pixel_acc]
    seeds: 0..1
    base: {steps: 2}
    rows: {norm: [bn, gn]}
    columns: {batch.micro: [2, 4]}
    reference: gn
  halves:
    task: toy
    title: Rows with names
    metrics: [pixel_acc]
    rows:
      - {label: plain, norm: gn, steps: 2}
      - {label: "standardised, faster", norm: gn_ws, steps: 2, optim.lr: 0.1}
    reference: plain
"""


@pytest.fixture
def tables(toy, tmp_path):
    path = tmp_path / "tables.yaml"
    path.write_text(TABLE)
    return path


def test_shared_cells_are_one_run(tables, tmp_path):
    curve = definitions(tables)["curve"]
    planned = list(cells(curve, (), tmp_path))
    assert len(planned) == 8
    assert len({cell.planned.run.id for cell in planned if cell.row == "gn"}) == 2  # seeds
    assert len({cell.planned.run.id for cell in planned if cell.row == "bn"}) == 4
    assert len({cell.id for cell in planned}) == 3
    # The other table's plain row is the same run as this one's gn.
    plain = next(cells(definitions(tables)["halves"], (), tmp_path))
    assert plain.id in {cell.id for cell in planned if cell.row == "gn"}


def test_rows_with_names_keep_their_keys(tables, tmp_path):
    second = list(cells(definitions(tables)["halves"], (), tmp_path))[1]
    assert second.row == "standardised, faster"
    assert (second.planned.spec.optim.lr, second.planned.spec.norm.name) == (0.1, "gn_ws")


def test_seeds_can_be_restricted_and_nothing_else_changed(tables):
    chosen, words = choose(["curve"], ["seed=1", "exec.threads=1"], every=False, path=tables)
    assert chosen[0].all_seeds() == [1]
    assert words == (("exec.threads", "1"),)
    with pytest.raises(UsageError, match="steps= would change what the tables define"):
        choose(["curve"], ["steps=3"], every=False, path=tables)


@pytest.mark.parametrize(
    ("names", "words", "every", "message"),
    [
        (["curv"], [], False, "unknown table 'curv'. Did you mean 'curve'"),
        ([], [], False, "name tables"),
        (["curve"], [], True, "name tables"),
        ([], ["preset=mino"], True, "preset=mino: no set of tables; .* Did you mean 'mini'"),
        ([], ["preset=paper"], True, r"preset=paper: no set of tables; there are mini\.$"),
        (["curve"], ["preset=paper"], False, "preset=paper: no set of tables"),
    ],
)
def test_wrong_choices_say_what_to_do(tables, names, words, every, message):
    with pytest.raises(UsageError, match=message):
        choose(names, words, every=every, path=tables)


def test_a_named_table_may_be_given_its_own_set_and_no_other():
    chosen, words = choose(["detection_rates"], ["preset=rates"], every=False)
    assert [table.name for table in chosen] == ["detection_rates"]
    assert words == ()
    with pytest.raises(UsageError, match=r"preset=mini: table detection_rates is of preset=rates$"):
        choose(["detection_rates"], ["preset=mini"], every=False)


@pytest.mark.parametrize("seeds", ["x", "1.5", "", "0,,1"])
def test_wrong_seeds_are_refused(tables, tmp_path, seeds):
    (table,), words = choose(["curve"], [f"seed={seeds}"], every=False, path=tables)
    with pytest.raises(UsageError, match=r"is not like 0\.\.2"):
        next(cells(table, words, tmp_path))


def test_a_seed_asked_for_twice_is_one(tables):
    (table,), _ = choose(["curve"], ["seed=1,0,1"], every=False, path=tables)
    assert table.all_seeds() == [1, 0]


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (
            "task: toy\n    title: A",
            "task: toi\n    title: A",
            "curve: .*unknown task 'toi'",
        ),
        ("reference: gn\n", "reference: gm\n", "curve: .*reference 'gm' is no row or column"),
        ("metrics: [pixel_acc]\n    seeds", "metrics: []\n    seeds", "curve: metrics: "),
        ("seeds: 0..1", "seed: 0..1", "curve: seed: .*Did you mean 'seeds'"),
        ("standardised, faster", "plain", "halves: two rows or columns are called 'plain'"),
        ("mini:\n", "mimi:\n", "'mimi' is not one of mini"),
        ("rows: {norm", "rows: [norm", "not a readable file of tables"),
    ],
)
def test_wrong_definitions_name_table_and_key(tables, before, after, message):
    assert before in TABLE
    tables.with_name("wrong.yaml").write_text(TABLE.replace(before, after))
    with pytest.raises(UsageError, match=message):
        definitions(tables.with_name("wrong.yaml"))


def test_a_wrong_key_in_a_row_names_the_table(tables, tmp_path):
    tables.with_name("wrong.yaml").write_text(TABLE.replace("steps: 2}", "step: 2}"))
    with pytest.raises(UsageError, match=r"table curve \(bn, 2\): unknown key 'step'"):
        list(cells(definitions(tables.with_name("wrong.yaml"))["curve"], (), tmp_path))


def test_our_tables_can_be_planned(tmp_path):
    tables = definitions(tables_file()).values()
    assert {table.set for table in tables} == {"mini", "rates", "pretrain", "lite", "paper"}
    for table in tables:
        planned = list(cells(table, (), tmp_path))
        assert len({(cell.row, cell.column) for cell in planned}) == len(table.rows) * len(
            table.columns
        )
        if table.set in ("mini", "rates"):
            assert {cell.planned.state for cell in planned} == {"todo"}, table.name
        if table.set in ("lite", "paper"):
            assert all(cell.planned.reason for cell in planned), table.name

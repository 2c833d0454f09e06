"""Tables are written word for word, the same each time, in files that others can read."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from dataclasses import replace

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.collect import metrics_frame, read_records, write_csv
from harness.record import RunDir, write_record
from harness.report import latex, markdown
from harness.report.build import Published, build_table
from harness.report.export import write
from harness.report.latex import to_latex
from harness.report.layout import layout
from harness.report.markdown import grids, to_markdown
from harness.report.wide import read_wide, wide
from tests.report.cases import VALUES, built, definition, records

pytestmark = pytest.mark.usefixtures("toy")

SOURCE = Published(
    value=61.5,
    shown="61.50 (unverified)",
    source="Table 1 of a paper",
    verified=False,
    comparable="partly",
    why="half the steps",
)


def shown(tmp_path):
    """Return the whole case with a published number that compares and one that does not."""
    table = built(tmp_path)
    given = {"gn": SOURCE, "gn_ws": replace(SOURCE, comparable="no", why="other data")}
    cells = [
        replace(cell, published=given.get(cell.row)) if cell.column == "1" else cell
        for cell in table.cells
    ]
    return replace(table, cells=tuple(cells))


def test_csv(tmp_path, golden):
    golden("table_toy.csv", wide(shown(tmp_path)).to_csv(index=False))


def test_markdown(tmp_path, golden):
    golden("table_toy.md", to_markdown(shown(tmp_path), ["../figures/toy_micro_cost.png"]))


def test_tex(tmp_path, golden):
    golden("table_toy.tex", to_latex(shown(tmp_path)))


# -- layout ------------------------------------------------------------------------------------


def test_each_comparison_is_said_once(tmp_path):
    lines = layout(built(tmp_path)).verdicts
    assert [line.partition(":")[0] for line in lines] == [
        "bn (micro-batch 1)",
        "bn (micro-batch 2)",
        "bn (micro-batch 4)",
        "bn|fast (micro-batch 1)",
        "gn (micro-batch 1, 2, 4)",
    ]


def test_incomplete_cells_are_marked_and_others_are_not(tmp_path):
    (values,) = (grid for grid in layout(built(tmp_path)).grids if grid.kind == "values")
    marked = {
        (row[0].text, values.header[i])
        for row in values.rows
        for i, entry in enumerate(row)
        if entry.incomplete
    }
    everywhere = {("gn, 3 groups", column) for column in "124"}
    assert marked == everywhere | {("bn", "2"), ("bn", "4"), ("bn|fast", "2"), ("bn|fast", "4")}


def test_a_published_number_that_does_not_compare_has_no_difference(tmp_path):
    (grid,) = (grid for grid in layout(shown(tmp_path)).grids if grid.kind == "published")
    assert [[entry.text for entry in row] for row in grid.rows] == [
        ["gn", "1", "62.7 ± 2.5 (3)", "61.50 (unverified)", "+1.2", "partly"],
        ["gn_ws", "1", "62.0 ± 2.0 (3)", "61.50 (unverified)", "\N{EN DASH}", "no"],
    ]
    frame = wide(shown(tmp_path)).set_index(["row", "column"])
    assert frame.loc[("gn", "1"), "m0_delta"] == pytest.approx(62.0 + 2 / 3 - 61.5)
    assert math.isnan(frame.loc[("gn_ws", "1"), "m0_delta"])


def test_a_table_without_columns_has_none_in_its_cost(tmp_path):
    table = definition(columns=[{"label": ""}], columns_are="")
    values = {(row, ""): of_seed for (row, column), of_seed in VALUES.items() if column == "1"}
    found = build_table(table, (), tmp_path, metrics_frame(records(table, tmp_path, values)))
    first, *_, cost = layout(found).grids
    assert first.header == ("norm", "m0")
    assert cost.header == ("norm", "images/s", "ms a step", "peak MiB")
    assert [len(row) for row in cost.rows] == [4] * 4


# -- Markdown and LaTeX ------------------------------------------------------------------------

WORDS = st.text(st.characters(codec="latin-1", exclude_categories=["Cc"]), max_size=12)


@given(WORDS)
def test_markdown_labels_neither_end_a_cell_nor_mean_anything(text):
    escaped = markdown.escape(text)
    assert re.sub(r"\\(?=[^\w\s]|_)", "", escaped.replace("\\\\", "\0")).replace("\0", "\\") == text
    assert not re.search(r"(?<!\\)(\\\\)*[|<`*]", escaped)


def test_words_of_ours_need_no_escape():
    for text in ("gn_ws", "95 % interval [1, 2]", "images/s", "mean ± sd (3)"):
        assert markdown.escape(text) == text


def test_every_row_of_a_markdown_table_has_all_columns(tmp_path):
    lines = to_markdown(shown(tmp_path)).splitlines()
    widths = [len(re.findall(r"(?<!\\)\|", line)) for line in lines]
    found = 0
    for index, line in enumerate(lines):
        if re.match(r"\|[-:|]+\|$", line):
            rows = [widths[index - 1]]
            while index < len(lines) and lines[index]:
                rows.append(widths[index])
                index += 1
            assert len(set(rows)) == 1
            found += 1
    assert found == len(layout(shown(tmp_path)).grids)


def test_the_readme_has_values_with_their_notes(tmp_path):
    text = grids(layout(built(tmp_path)), values=True)
    assert text.count("**m0 in %") == 1
    assert "compared with" not in text
    assert "<sup>1</sup> seed 2 not run\\\n<sup>2</sup> seed 1 failed" in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("50 % & gn_ws #1 {x}", r"50 \% \& gn\_ws \#1 \{x\}"),
        (r"a\b~c^d$", r"a\textbackslash{}b\textasciitilde{}c\textasciicircum{}d\$"),
        ("-1.50 [-2, 3] 10-20", r"$-$1.50 {[}$-$2, 3{]} 10-20"),
        ("a--b---c `` '' ?`", r"a-{}-b-{}-{}-c `{}` '{}' ?{}`"),
        ("line\nbreak \x00", "line break  "),
    ],
)
def test_latex_prints_labels_as_they_stand(text, expected):
    assert latex.escape(text) == expected


def test_latex_says_when_labels_need_another_engine(tmp_path):
    table = built(tmp_path)
    greek = replace(table, definition=table.definition.model_copy(update={"title": "μ-batch β"}))
    assert "LuaLaTeX" in to_latex(greek)
    assert "LuaLaTeX" not in to_latex(table)


DOCUMENT = r"""\documentclass{article}
\usepackage{booktabs}
\usepackage{xcolor}
\begin{document}
\input{table}
%s
\end{document}
"""


def test_latex_compiles(tmp_path):
    engine = shutil.which("pdflatex") or shutil.which("tectonic")
    if engine is None:
        pytest.skip("neither pdflatex nor tectonic is on PATH")
    (tmp_path / "table.tex").write_text(to_latex(shown(tmp_path)))
    every = "".join(map(chr, range(0x20, 0x7F))) + "ÄÖÜßéñçøå±\N{MULTIPLICATION SIGN}µ§°"
    (tmp_path / "main.tex").write_text(DOCUMENT % latex.escape(every))
    words = ["-interaction=nonstopmode", "-halt-on-error"] if "pdflatex" in engine else []
    done = subprocess.run(
        [engine, *words, "main.tex"], cwd=tmp_path, capture_output=True, text=True, errors="replace"
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Missing character" not in done.stdout


# -- CSV ---------------------------------------------------------------------------------------


def test_csv_round_trip_keeps_values_and_types(tmp_path):
    frame = wide(shown(tmp_path))
    path = tmp_path / "table.csv"
    frame.to_csv(path, index=False)
    pd.testing.assert_frame_equal(read_wide(path), frame)
    plain = pd.read_csv(path)
    assert plain["m0_n"].dtype == "int64"
    numbers = [name for name in plain if name not in ("row", "column", "m0_n")]
    assert (plain[numbers].dtypes == "float64").all()


@settings(max_examples=30, deadline=None)
@given(
    st.floats(-1e100, 1e100),
    st.sampled_from(["NA", "None", "null", "", "1", "a,b", 'say "x"']),
)
def test_csv_keeps_every_number_and_label(tmp_path_factory, value, label):
    folder = tmp_path_factory.mktemp("wide")
    table = definition(
        rows=[{"label": "gn", "norm": "gn"}], columns=[{"label": label}], reference="gn"
    )
    found = records(table, folder, {("gn", label): (value,)})
    path = folder / "table.csv"
    wide(build_table(table, (), folder, metrics_frame(found))).to_csv(path, index=False)
    back = read_wide(path)
    assert back["m0"].tolist() == [value]
    assert back["column"].tolist() == [label]


# -- files -------------------------------------------------------------------------------------


def stored(results):
    """Store the case's records and journals; return its table from what was stored."""
    table = definition()
    built(results)
    for index, record in enumerate(records(table, results)):
        run = RunDir(results, record.run_id)
        run.path.mkdir(parents=True)
        write_record(run, record)
        rows = [
            {"event": "train", "step": step, "loss": 2.0 / step + index / 100}
            for step in range(1, 7)
        ]
        rows += [{"event": "evaluation", "step": s, "metrics": {"m0": 10.0 * s}} for s in (3, 6)]
        run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rebuilt(results)


def rebuilt(results):
    return build_table(definition(), (), results, metrics_frame(read_records(results)[0]))


def test_writing_is_idempotent_and_removes_nothing(tmp_path):
    stored(tmp_path)
    (tmp_path / "tables").mkdir()
    foreign = tmp_path / "tables" / "mine.csv"
    foreign.write_text("mine")
    first = {path: path.read_bytes() for path in write([rebuilt(tmp_path)], tmp_path)}
    write_csv(tmp_path, read_records(tmp_path)[0])
    second = {path: path.read_bytes() for path in write([rebuilt(tmp_path)], tmp_path)}
    assert first == second
    assert foreign.read_text() == "mine"
    names = {path.relative_to(tmp_path).as_posix() for path in first}
    figures = {
        f"figures/toy_micro_{kind}.{suffix}"
        for kind in ("micro", "curves", "cost")
        for suffix in ("png", "svg", "pdf")
    }
    assert names == figures | {f"tables/toy_micro.{suffix}" for suffix in ("csv", "md", "tex")}
    linked = re.findall(r"\]\(<\.\./(.*?)>\)", (tmp_path / "tables/toy_micro.md").read_text())
    assert set(linked) == {name for name in figures if name.endswith("png")}
    assert not [path for path in tmp_path.rglob(".*") if path.is_file()]


def test_figures_hold_no_dates(tmp_path):
    for path in write([stored(tmp_path)], tmp_path):
        if path.suffix in (".svg", ".pdf"):
            assert not re.search(rb"CreationDate|dc:date", path.read_bytes())


def test_a_table_without_numbers_has_no_figures(tmp_path):
    found = build_table(definition(), (), tmp_path, metrics_frame([]))
    paths = write([found], tmp_path)
    assert {path.suffix for path in paths} == {".csv", ".md", ".tex"}
    assert "incomplete: 0 of 24 runs are there" in paths[1].read_text()
    assert read_wide(paths[0])["m0_n"].tolist() == [0] * 15

"""Every benchmark runs at its smallest size, and what it compares does the same work."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as everything
from benchmarks import (
    chunks,
    coco,
    edge_conv,
    kept,
    loop,
    paired,
    report,
    tables,
    weight_standardization,
)
from benchmarks.figure import FORMATS, draw
from benchmarks.kept import Row
from benchmarks.paired import Bench

MODULES = (weight_standardization, edge_conv, chunks, loop, coco, report)
# pycocotools 2.0 predates NumPy 2's copy keyword.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def name_of(module) -> str:
    return module.__name__.rpartition(".")[2]


def run(module, rows: Path, *parts: str) -> Bench:
    given = {"rounds": 1, "seconds": 60.0, "threads": 1, "device": "cpu", "quick": True}
    options = argparse.Namespace(parts=parts, rows=rows, resume=False, **given)
    return paired.run(name_of(module), module.PARTS, options)


def row(**changes) -> Row:
    values = {
        "benchmark": "b",
        "part": "p",
        "case": "ours",
        "size": "1,000 of them",
        "unit": "ms",
        "median": 1.5,
        "q25": 1.25,
        "q75": 2.0,
        "reference": "plain",
        "ratio": 0.5,
        "ratio_q25": 0.25,
        "ratio_q75": 0.75,
        "goal": None,
        "rounds": 3,
        "threads": 1,
        "device": "a processor",
        "torch": "2",
        "numba": "",
        "date": "2026-01-01",
    }
    return Row(**values | changes)


def test_all_benchmarks_are_here():
    assert {name_of(module) for module in MODULES} == set(everything.NAMES)
    for module in MODULES:
        assert set(everything.PARTS[name_of(module)]) <= set(module.PARTS)


@pytest.mark.parametrize(
    "module",
    [
        # It compiles kernels.
        pytest.param(
            module, marks=pytest.mark.slow if module is edge_conv else (), id=name_of(module)
        )
        for module in MODULES
    ],
)
def test_it_runs_and_writes_rows(module, tmp_path: Path):
    path = tmp_path / "rows.csv"
    bench = run(module, path)
    if not bench.rows:
        pytest.skip("what it compares with is not installed")
    assert {found.part for found in bench.rows} == set(module.PARTS)
    for found in bench.rows:
        assert found.benchmark == name_of(module)
        assert found.median >= 0
        assert (found.ratio is None) == (found.reference == "")
        assert found.rounds >= 1
        assert found.device
    read = kept.read_rows(path)
    assert [one.case for one in read] == [one.case for one in bench.rows]
    assert [one.median for one in read] == pytest.approx([one.median for one in bench.rows], 1e-5)


@pytest.mark.parametrize("network", loop.QUICK.values())
def test_the_loop_by_hand_does_the_same_work(network):
    torch.set_num_threads(1)
    trainer, window, by_hand = loop.pair(network, torch.device("cpu"))
    for number in range(3):
        parts = trainer.step(window, number)
        own = by_hand.step([chunk.batch for chunk in window], number)
        assert own == pytest.approx(parts["loss_ce"], rel=1e-4)
    ours, others = trainer.model.state_dict(), by_hand.model.state_dict()
    assert ours.keys() == others.keys()
    for name, value in ours.items():
        torch.testing.assert_close(others[name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_ratios_are_medians_of_pairs():
    bench = Bench("b", rounds=3)
    bench.record(
        "p", "", "ms", {"plain": [1.0, 2.0, 4.0], "ours": [1.0, 1.0, 1.0]}, goals={"ours": 0.4}
    )
    plain, ours = bench.rows
    assert (plain.ratio, plain.goal, ours.ratio, ours.median) == (1.0, None, 0.5, 1.0)
    assert plain.reached
    assert not ours.reached
    bench.record("q", "", "s", {"alone": [0.2]}, goals={"alone": 0.3}, alone=True)
    alone = bench.rows[-1]
    assert (alone.ratio, alone.q25, alone.median, alone.q75) == (None, 0.2, 0.2, 0.2)
    assert alone.reached


def test_cases_take_turns_after_the_warm_up(capsys: pytest.CaptureFixture[str]):
    calls: list[str] = []
    bench = Bench("b", rounds=2)
    cases = {name: lambda name=name: calls.append(name) for name in ("first", "second")}
    bench.compare("p", "", cases, warm_up=1)
    assert calls == ["first", "second"] * 3
    assert [found.rounds for found in bench.rows] == [2, 2]
    assert "first" in capsys.readouterr().out


def test_an_absent_peer_is_named_once(capsys: pytest.CaptureFixture[str]):
    bench = Bench("b", rounds=1)
    assert not bench.has("no_such_package", "its layer")
    assert not bench.has("no_such_package", "its layer")
    assert capsys.readouterr().out == "no_such_package is not installed: without its layer\n"


def test_rows_survive_the_file(tmp_path: Path):
    rows = [row(), row(case='with "quotes", commas', ratio=None, ratio_q25=None, ratio_q75=None)]
    kept.write_rows(tmp_path / "rows.csv", rows)
    assert kept.read_rows(tmp_path / "rows.csv") == rows


def measure(path: Path, *, resume: bool, calls: list[str]) -> None:
    """Compare two cases of two sizes; the first time, something interrupts after one."""
    bench = Bench("b", rounds=2, keep=path, resume=resume)
    for size in ("small", "large"):
        cases = {name: lambda name=name: calls.append(name) for name in ("plain", "ours")}
        bench.compare("p", size, cases, warm_up=0)
        if not resume and len(calls) < 5:
            raise KeyboardInterrupt


def test_what_was_interrupted_goes_on(tmp_path: Path):
    path, calls = tmp_path / "rows.csv", []
    with pytest.raises(KeyboardInterrupt):
        measure(path, resume=False, calls=calls)
    assert {one.size for one in kept.read_rows(path)} == {"small"}
    measure(path, resume=True, calls=calls)
    assert [(one.size, one.case) for one in kept.read_rows(path)] == [
        ("small", "plain"), ("small", "ours"), ("large", "plain"), ("large", "ours"),
    ]  # fmt: skip
    assert len(calls) == 8  # each comparison once
    measure(path, resume=True, calls=calls)
    assert len(calls) == 8
    measure(path, resume=False, calls=calls)
    assert len(calls) == 16
    assert len(kept.read_rows(path)) == 4


def test_a_comparison_has_its_time_but_a_few_rounds_at_least(monkeypatch: pytest.MonkeyPatch):
    bench = Bench("b", rounds=50, seconds=0.0)
    bench.compare("p", "", {"plain": lambda: None})
    assert bench.rows[0].rounds == paired.FEWEST_ROUNDS


def test_a_comparison_measured_again_replaces_the_old_one():
    old = [row(case="gone"), row(part="other"), row(device="another"), row(threads=2)]
    found = kept.merged(old, [row(case="plain"), row(case="ours")])
    assert [(one.case, one.part, one.device, one.threads) for one in found] == [
        ("plain", "p", "a processor", 1),
        ("ours", "p", "a processor", 1),
        ("ours", "other", "a processor", 1),
        ("ours", "p", "a processor", 2),
        ("ours", "p", "another", 1),
    ]


def test_figures_are_of_the_newest_device(tmp_path: Path):
    rows = [row(), row(threads=2), row(device="another", date="2025-01-01")]
    kept.write_rows(tmp_path / "benchmarks.csv", rows)
    assert [path.name for path in everything.show(tmp_path)] == [
        "benchmarks.csv",
        "benchmarks.png",
        "benchmarks.svg",
        "benchmarks_2_threads.png",
        "benchmarks_2_threads.svg",
    ]
    assert everything.show(tmp_path / "nothing") == []


PAGE = """before
<!-- benchmark b p -->
old
<!-- end of benchmark -->
between
<!-- benchmark b missing -->
<!-- end of benchmark -->
after
"""


def test_tables_of_a_page_come_from_the_rows(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    rows = [
        row(case="plain", ratio=1.0),
        row(goal=0.4),
        row(case="plain", threads=2, ratio=1.0),
        row(threads=2, goal=0.6),
    ]
    assert tables.update(rows, page, check=True) == [page]
    assert page.read_text() == PAGE
    tables.update(rows, page)
    lines = page.read_text().splitlines()
    assert "| | 1,000 of them, 1 thread | 1,000 of them, 2 threads |" in lines
    assert "| plain | 1.5 ms | 1.5 ms |" in lines
    ours = "| ours | 1.5 ms, **0.5** (0.25-0.75); goal 0.4: not reached "
    assert f"{ours}| 1.5 ms, **0.5** (0.25-0.75); goal 0.6 |" in lines
    assert "a processor, torch 2, 2026-01-01; 3 rounds. Medians, ratios of pairs." in lines
    assert lines.count("Not measured yet.") == 1
    assert "old" not in lines
    assert [lines[0], lines[-1]] == ["before", "after"]
    assert tables.update(rows, page) == []


def test_tables_tell_how_many_times_as_fast():
    found = tables.cell(row(benchmark="edge_conv", part="layers", goal=0.1))
    assert found == "1.5 ms, **x2** (1.33-4); goal x10: not reached"


def test_the_page_is_what_the_rows_give():
    path = Path(__file__).parents[1] / "results" / "benchmarks.csv"
    rows = kept.read_rows(path) if path.is_file() else []
    assert tables.PAGE.is_file()
    assert tables.update(rows, check=True) == []


def test_figure_shows_ratios_and_shares_of_goals():
    alone = row(reference="", ratio=None, ratio_q25=None, ratio_q75=None, part="start", goal=3.0)
    figure = draw([row(case="plain", ratio=1.0), row(goal=0.4), alone])
    assert figure is not None
    words = " ".join(text.get_text() for axes in figure.axes for text in axes.texts)
    assert "1 = plain" in words
    assert "1 = the goal" in words
    assert draw([dataclasses.replace(alone, goal=None)]) is None
    assert "png" in FORMATS

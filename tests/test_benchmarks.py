"""Every benchmark runs at its smallest size, and what it compares does the same work."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as everything
from benchmarks import chunks, coco, edge_conv, loop, paired, report, weight_standardization
from benchmarks.figure import FORMATS, draw
from benchmarks.paired import Bench, Row

MODULES = (weight_standardization, edge_conv, chunks, loop, coco, report)
# pycocotools 2.0 predates NumPy 2's copy keyword.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def name_of(module) -> str:
    return module.__name__.rpartition(".")[2]


def run(module, rows: Path, *parts: str) -> Bench:
    options = argparse.Namespace(parts=parts, rounds=1, device="cpu", quick=True, rows=rows)
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
    read = paired.read_rows(path)
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
    paired.write_rows(tmp_path / "rows.csv", rows)
    assert paired.read_rows(tmp_path / "rows.csv") == rows


def test_a_comparison_measured_again_replaces_the_old_one(tmp_path: Path):
    old = [row(case="gone"), row(part="other"), row(device="another")]
    new = [row(case="plain"), row(case="ours")]
    everything.keep(tmp_path, old)
    written = everything.keep(tmp_path, new)
    assert [path.name for path in written] == ["benchmarks.csv", "benchmarks.png", "benchmarks.svg"]
    found = paired.read_rows(written[0])
    assert {(one.case, one.part, one.device) for one in found} == {
        ("ours", "other", "a processor"),
        ("ours", "p", "another"),
        ("plain", "p", "a processor"),
        ("ours", "p", "a processor"),
    }


def test_figure_shows_ratios_and_shares_of_goals():
    alone = row(reference="", ratio=None, ratio_q25=None, ratio_q75=None, part="start", goal=3.0)
    figure = draw([row(case="plain", ratio=1.0), row(goal=0.4), alone])
    assert figure is not None
    words = " ".join(text.get_text() for axes in figure.axes for text in axes.texts)
    assert "1 = plain" in words
    assert "1 = the goal" in words
    assert draw([dataclasses.replace(alone, goal=None)]) is None
    assert "png" in FORMATS

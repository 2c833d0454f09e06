"""One chain under one norm: runs that start from runs, planned and made in their order."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from harness.errors import UsageError
from harness.identity import cell_id, run_id
from harness.plan import plan, plan_one
from harness.pretrain import can_pretrain, pretraining
from harness.record import InitFacts, RunDir, read_record, write_record
from harness.report.build import _confounds
from harness.report.definition import TableDefinition, cells, choose
from harness.reproduce import pretrained
from harness.spec import build
from harness.weights.find import find, shown_as
from tests.harness.test_collect import record_of
from tests.markdown import code_blocks

PAGE = Path(__file__).parents[2] / "docs" / "weights.md"
CHAIN = [("preset", "smoke"), ("init", "pretrain")]


def done(results: Path, task: str, *pairs: tuple[str, str], **facts) -> str:
    """Leave the record of a finished run, as far as starting from it needs one; return its id."""
    spec = build(task, list(pairs))
    run = RunDir(results, run_id(spec))
    run.path.mkdir(parents=True)
    fields = {"run_id": run.id, "spec": spec.model_dump(mode="json"), "cell": cell_id(spec)}
    write_record(run, record_of().model_copy(update={**fields, **facts}))
    return run.id


@pytest.mark.parametrize("task", ["detection", "segmentation"])
@pytest.mark.parametrize("norm", ["bn", "gn", "gn_ws"])
def test_classification_first_under_the_same_norm_and_seed(task, norm, tmp_path):
    first, second = plan(
        task, ["preset=smoke", "init=pretrain", f"norm={norm}", "seed=5"], tmp_path
    )
    assert (first.spec.task, second.spec.task) == ("classification", task)
    assert (first.state, second.state) == ("todo", "todo")
    assert first.spec.norm == second.spec.norm
    assert first.spec.seed == second.spec.seed == 5
    assert second.source is not None
    assert second.spec.init.source == f"run:{first.run.id}"
    scratch = plan_one(build(task, [("preset", "smoke"), ("norm", norm), ("seed", "5")]), tmp_path)
    assert second.run.id != scratch.run.id
    assert cell_id(second.spec) != cell_id(scratch.spec)


def test_a_cell_is_one_for_all_seeds_and_another_for_other_pretraining(tmp_path):
    def cell(*pairs):
        return cell_id(plan_one(build("segmentation", [*CHAIN, *pairs]), tmp_path).spec)

    assert cell(("seed", "0")) == cell(("seed", "1"))
    other = plan_one(build("segmentation", CHAIN), tmp_path).spec
    longer = other.model_copy(update={"init": other.init.model_copy(update={"cell": "00000000"})})
    assert cell_id(longer) != cell_id(other)


def test_frozen_bn_starts_from_bn_and_given_data_are_passed_on():
    pairs = [("norm", "frozen_bn"), ("data", "/data"), ("data.seed", "3")]
    before = pretraining(build("detection", [*CHAIN, *pairs]))
    assert before.norm.name == "bn"
    assert (before.data.root, before.data.seed) == ("/data", 3)
    assert pretraining(build("detection", [("preset", "smoke")])) is None


def test_what_has_no_backbone_to_pretrain_says_so(tmp_path):
    assert not can_pretrain("pointcloud")
    for task, word in (("pointcloud", "no classification network"), ("detection", "no recipe")):
        words = ["init=pretrain"] + ["model.name=mask_rcnn_r50_fpn"] * (task == "detection")
        with pytest.raises(UsageError, match=word):
            plan(task, words, tmp_path)


def test_missing_data_of_the_pretraining_are_those_of_the_chain(tmp_path):
    (cell,) = plan("detection", ["preset=paper", "init=pretrain", f"data={tmp_path}"], tmp_path)
    assert (cell.state, cell.exit_code) == ("impossible", 3)


def test_a_run_may_start_from_a_finished_one_of_its_norm_only(tmp_path):
    words = ("model.name", "resnet_mini_segmentation"), ("model.width", "8")
    source = done(tmp_path, "classification", ("preset", "smoke"), ("norm", "gn_ws"), *words)

    def asked(*pairs):
        spec = build("segmentation", [("preset", "smoke"), ("init", f"run:{source}"), *pairs])
        return plan_one(spec, tmp_path)

    assert asked().state == "todo"
    assert asked().spec.init.cell == read_record(RunDir(tmp_path, source).record).cell
    refused = asked(("norm", "bn"))
    assert (refused.state, refused.exit_code) == ("impossible", 2)
    assert "trained under gn, not bn and with weight standardisation" in refused.reason
    assert asked(("norm", "bn"), ("init.allow_mismatch", "true")).state == "todo"
    for name, words in (
        (f"{source}x", f"no such run .*Did you mean {source}"),
        ("../runs", "no such run"),
    ):
        spec = build("segmentation", [("init", f"run:{name}")])
        cell = plan_one(spec, tmp_path)
        assert (cell.state, cell.exit_code) == ("impossible", 3)
        assert pd.Series([cell.reason]).str.contains(words).all(), cell.reason
    RunDir(tmp_path, source).record.unlink()
    assert "not finished" in asked().reason


def test_a_run_shows_pictures_as_the_weights_that_it_started_from(tmp_path):
    facts = InitFacts(
        source="x",
        checksum="0",
        norm="gn_ws",
        told_by="x",
        num_loaded=1,
        num_adapted=0,
        num_skipped=0,
        num_missing=0,
        pictures={"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)},
    )
    name = done(tmp_path, "detection", ("preset", "smoke"), init=facts, steps=3)
    run = RunDir(tmp_path, name)
    from harness import checkpoint

    state = {"model": {"a": torch.ones(1)}, "optimizer": {}, "scaler": {}}
    checkpoint.save(run.checkpoint, name, checkpoint.Progress(step=3), state)
    init = build("detection", [("preset", "smoke"), ("init", f"run:{name}")]).init
    pictures = find(init, tmp_path).pictures
    assert (pictures.colours, pictures.mean) == ("bgr", (0.1, 0.2, 0.3))
    seen, changed = shown_as(build("detection", [("preset", "smoke")]), pictures)
    assert changed
    assert seen.model.pixel_mean == pytest.approx((76.5, 51, 25.5))
    assert seen.model.pixel_std == pytest.approx((153, 127.5, 102))


def test_an_unfinished_or_damaged_checkpoint_is_refused(tmp_path):
    from harness import checkpoint
    from harness.errors import DataError

    name = done(tmp_path, "classification", ("preset", "smoke"), steps=3)
    run = RunDir(tmp_path, name)
    init = build("detection", [("preset", "smoke"), ("init", f"run:{name}")]).init
    with pytest.raises(DataError, match="is not there"):
        find(init, tmp_path)
    state = {"model": {"a": torch.ones(1)}, "optimizer": {}, "scaler": {}}
    checkpoint.save(run.checkpoint, name, checkpoint.Progress(step=2), state)
    with pytest.raises(DataError, match="of step 2, not of the last, 3"):
        find(init, tmp_path)
    data = bytearray(run.checkpoint.read_bytes())
    data[len(data) // 2] ^= 1
    run.checkpoint.write_bytes(bytes(data))
    with pytest.raises(DataError, match="truncated or damaged"):
        find(init, tmp_path)


def table(**changes) -> TableDefinition:
    content = {
        "name": "t",
        "set": "pretrain",
        "task": "segmentation",
        "title": "T",
        "metrics": ["mIoU"],
        "base": {"preset": "smoke"},
        "rows": {"norm": ["bn", "gn_ws"]},
        "columns": [{"label": "scratch", "init": "scratch"}, {"label": "pre", "init": "pretrain"}],
        "reference": "scratch",
    }
    return TableDefinition(**(content | changes))


def test_a_table_compares_weights_and_norms_without_a_false_note(tmp_path):
    """Chains of two norms differ by the norm alone, also in what each starts from."""
    by_weights, by_norm = table(), table(reference="gn_ws")
    shown = {(cell.row, cell.column): cell for cell in cells(by_weights, (), tmp_path)}
    for norm in ("bn", "gn_ws"):
        pair = shown[norm, "pre"], shown[norm, "scratch"]
        assert list(_confounds(by_weights, *pair)) == []
        assert "init.cell" in next(_confounds(by_norm, *pair))
    assert list(_confounds(by_norm, shown["bn", "pre"], shown["gn_ws", "pre"])) == []
    other = table(
        rows=[
            {"label": "bn", "norm": "bn", "model.width": 16},
            {"label": "gn_ws", "norm": "gn_ws"},
        ],
        reference="gn_ws",
    )
    shown = {(cell.row, cell.column): cell for cell in cells(other, (), tmp_path)}
    (note,) = _confounds(other, shown["bn", "pre"], shown["gn_ws", "pre"])
    assert "pretraining: model.width 16 against 8" in note
    assert "init.cell" not in note


def test_the_word_concerns_tables_that_do_not_name_weights(tmp_path):
    plain = table(columns=[{"label": "", "norm.groups": 4}], reference="gn_ws")
    words = (("init", "pretrain"),)
    assert all(cell.planned.source for cell in cells(plain, words, tmp_path))
    named = list(cells(table(), words, tmp_path))
    assert [bool(cell.planned.source) for cell in named] == [False, True, False, True]
    other = table(task="classification", columns=[{"label": "", "norm.groups": 4}])
    other = other.model_copy(update={"reference": "gn_ws"})
    assert not any(cell.planned.source for cell in cells(other, words, tmp_path))


def test_the_tables_of_the_set_are_planned(tmp_path):
    chosen, words = choose([], ["preset=pretrain", "seed=0"], every=True)
    assert {one.task for one in chosen} == {"detection", "segmentation"}
    shown = [cell for one in chosen for cell in cells(one, words, tmp_path)]
    assert all(cell.planned.state == "todo" for cell in shown)
    # From scratch they are the runs of `mini`.
    mini, _ = choose([], ["preset=mini", "seed=0"], every=True)
    known = {cell.planned.run.id for one in mini for cell in cells(one, (), tmp_path)}
    assert {c.planned.run.id for c in shown if c.column == "scratch"} <= known


def test_the_commands_of_the_page_are_understood():
    (block,) = code_blocks(PAGE, "")
    lines = [line.split() for line in block.splitlines()]
    assert {(line[0], line[1]) for line in lines} == {
        ("normbench", "run"),
        ("normbench", "reproduce"),
    }
    for _, verb, *words in lines:
        if verb == "run":
            spec = build(words[0], [tuple(word.split("=", 1)) for word in words[1:]])
            assert spec.init.source is not None
            assert spec.init.source != "scratch"
        else:
            assert words == ["--pretrain"]
            assert pretrained([], [], every=False) == (["preset=pretrain"], True)
            assert pretrained(["t"], ["a=b"], every=False) == (["a=b", "init=pretrain"], False)


TABLES = """\
pretrain:
  chain:
    task: segmentation
    title: Chain
    metrics: [mIoU]
    base: {preset: smoke}
    rows: {norm: [gn_ws]}
    columns:
      - {label: scratch, init: scratch}
      - {label: classification, init: pretrain}
    reference: scratch
"""


@pytest.mark.slow
def test_the_chain_is_made_and_stands_in_the_results(tmp_path):
    (tmp_path / "tables.yaml").write_text(TABLES)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "harness", "reproduce", "--pretrain"),
            *("--tables", str(tmp_path / "tables.yaml"), "--results", str(tmp_path / "results")),
        ],
        env=os.environ | {"CI": "true"},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert "3 runs, 0 done, 3 to make" in done.stdout
    assert done.returncode == 1, done.stderr  # smoke runs are no results: the table stays empty
    assert "error: a table is incomplete" in done.stderr
    runs = pd.read_csv(tmp_path / "results" / "runs.csv").set_index("run_id")
    assert len(runs) == 3
    (name,) = runs.index[runs["init"].str.startswith("run:")]
    source = runs.loc[name, "init"].removeprefix("run:")
    assert runs.loc[source, "task"] == "classification"
    assert runs.loc[name, "init_norm"] == "gn_ws"
    assert len(runs.loc[name, "init_checksum"]) == 16
    run = RunDir(tmp_path / "results", name)
    rows = pd.read_csv(run.weights, keep_default_na=False)
    state = torch.load(run.checkpoint, weights_only=True)["model"]
    assert set(rows["parameter"]) - {""} == set(state)
    body = rows[rows["parameter"].str.startswith("backbone.")]
    assert set(body["status"]) == {"loaded"}
    assert read_record(run.record).init.num_loaded == len(body)
    assert json.loads(run.init.read_text())["told_by"] == "its record"
    assert "each key is in weights.csv: 27 loaded" in run.log.read_text()

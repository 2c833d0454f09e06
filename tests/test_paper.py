"""Every configuration of the published tables starts: built at full size, one step, small inputs.

Detection's are in ``tests/detection/test_paper.py``.
"""

from __future__ import annotations

import math

import pytest
import torch

from harness.distributed import Ranks
from harness.feed import Steps
from harness.loop import Trainer
from harness.registry import task_class, task_info
from harness.report.definition import cells, definitions, tables_file
from harness.spec import build, parse_words, presets
from harness.worker import build_model

SMALL = {
    "classification": ("data.num_train=24", "data.num_val=24", "data.size=32", "data.resize=32"),
    "segmentation": ("data.num_train=8", "data.num_val=4", "data.train_set=train", "data.crop=65"),
    "pointcloud": ("data.num_train=16", "data.num_test=16", "data.points=64"),
}
# Layers standardised by norm=gn_ws: every convolution of the backbones, the ASPP's six as well, and
# the 12 of dgcnn_tf (transform net, EdgeConvs, embedding, head; dgcnn has no transform net).
STANDARDISED = {
    ("classification", "paper"): 53,
    ("classification", "paper_r101"): 104,
    ("classification", "paper_x50"): 53,
    ("classification", "paper_x101"): 104,
    ("classification", "lite"): 53,
    ("segmentation", "paper"): 110,
    ("segmentation", "lite"): 110,
    ("pointcloud", "paper"): 12,
    ("pointcloud", "paper_dgcnn"): 7,
    ("pointcloud", "lite"): 12,
}


def test_no_configuration_is_forgotten():
    found = {
        (task, preset)
        for task in SMALL
        for preset in presets(task)
        if preset.startswith("paper") or preset == "lite"
    }
    assert found == STANDARDISED.keys()


@pytest.mark.parametrize(("task", "preset"), STANDARDISED)
def test_it_starts(task, preset):
    words = (
        *(f"preset={preset}", "norm=gn_ws", "init=scratch", "data.embedded=true"),
        *("batch.size=2", "batch.micro=2", "batch.tail=drop", "steps=2", "schedule.name=constant"),
        "schedule.warmup_steps=0",
        *("precision=fp32", "exec.workers=0", "exec.device=cpu"),
    )
    spec = build(task, parse_words([*words, *SMALL[task]]))
    info = task_info(task)
    working = task_class(info)(spec, info.prepare(spec, lambda *_: None))
    model, audit = build_model(working, spec)
    assert audit.num_standardised == STANDARDISED[task, preset]
    cpu = torch.device("cpu")
    trainer = Trainer(working, model, spec, Ranks(cpu), cpu, chunk=2)
    steps = Steps(working, working.train_data(), spec, chunk=2, rank=0, world=1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    parts = trainer.step(steps[0], 0)
    assert all(math.isfinite(value) for value in parts.values())
    moved = [name for name, p in model.named_parameters() if not torch.equal(before[name], p)]
    assert len(moved) > len(before) / 2


def test_lite_is_small_and_never_published():
    for task in ("detection", *SMALL):
        lite, paper = (build(task, parse_words([f"preset={p}"])) for p in ("lite", "paper"))
        assert lite.steps * lite.batch.size < paper.steps * paper.batch.size / 2
        assert not lite.data.embedded
        assert lite.batch.micro == 2
    lite = [table for table in definitions(tables_file()).values() if table.set == "lite"]
    assert {table.task for table in lite} == {"detection", *SMALL}


def test_every_table_of_the_paper_needs_real_data(tmp_path):
    for table in definitions(tables_file()).values():
        if table.set in ("lite", "paper"):
            for cell in cells(table, (), tmp_path):
                assert cell.planned.state == "impossible"
                assert "give data=DIR" in cell.planned.reason

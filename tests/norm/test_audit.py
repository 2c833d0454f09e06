from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from harness.errors import DataError
from harness.norm.audit import COLUMNS, NormAudit, refresh_trainable
from harness.norm.catalogue import NormChoice
from harness.norm.surgery import apply_norm
from tests.norm.nets import SMALL_BARE, Small

GOLDEN = Path(__file__).parent / "golden_audit.csv"


def small_audit(model: nn.Module | None = None) -> NormAudit:
    choice = NormChoice("gn", groups=4, ws="authors")
    return apply_norm(model or Small(), choice, bare=SMALL_BARE)


def test_golden_csv(tmp_path: Path):
    path = tmp_path / "audit.csv"
    small_audit().to_csv(path)
    assert path.read_text() == GOLDEN.read_text()


def test_csv_round_trip(tmp_path: Path):
    audit = small_audit()
    row = replace(audit.rows[0], why='a "quoted", odd\nreason', fan_in=None, groups=3)
    audit = NormAudit((*audit.rows, row))
    audit.to_csv(tmp_path / "audit.csv")
    assert NormAudit.from_csv(tmp_path / "audit.csv") == audit


def test_other_csv_files_are_refused(tmp_path: Path):
    path = tmp_path / "other.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="is not a norm audit"):
        NormAudit.from_csv(path)


def test_summary_and_table():
    audit = small_audit()
    assert audit.summary() == (
        "2 norm sites (gn, groups=4); 2 layers standardised (authors); 2 bare; 0 frozen"
    )
    plain = apply_norm(Small(), NormChoice("bn"), bare=SMALL_BARE)
    assert plain.summary() == "2 norm sites (bn); 0 layers standardised; 2 bare; 0 frozen"
    table = audit.table_rows()
    assert len(table) == len(audit.rows)
    assert {len(row) for row in table} == {len(COLUMNS)}
    assert table[0][:4] == ("conv1", "Conv2d", "layer", "27")


def test_freezing_after_surgery_shows():
    model = Small()
    audit = small_audit(model)
    model.conv1.requires_grad_(False)
    model.bn1.requires_grad_(False)
    frozen = refresh_trainable(audit, model)
    assert frozen.num_frozen == 2
    assert [row.path for row in frozen if not row.trainable] == ["conv1", "bn1"]
    assert audit.num_frozen == 0


def test_degenerate_fan_in_is_said():
    model = nn.Sequential(nn.Conv2d(4, 4, 1, groups=4, bias=False), nn.BatchNorm2d(4))
    audit = apply_norm(model, NormChoice("gn", groups=4, ws="authors"))
    assert audit.rows[0].why == "fan-in 1: its weights become 0"
    assert (model(torch.randn(2, 4, 3, 3)) == 0).all()


def test_num_params_counts_each_number_once():
    model = Small()
    assert sum(row.num_params for row in small_audit(model)) == sum(
        parameter.numel() for parameter in model.parameters()
    )

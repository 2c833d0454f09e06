"""``normbench audit --vs``: two runs differ in the norm alone, or what else differs has a name."""

from __future__ import annotations

import pytest
import torch
from rich.console import Console
from torch import nn

from harness.compare import Built, compare
from harness.errors import AuditError
from harness.inspect import _built, audit, one_spec
from harness.norm.audit import NormAudit
from harness.norm.catalogue import NORMS
from harness.totals import forward_flops, parameter_counts
from tests.toy import Toy


def built(*words: str) -> Built:
    return _built(one_spec("toy", words))[0]


def confounds(*vs: str, words: tuple[str, ...] = ("norm=gn_ws",)) -> tuple[str, ...]:
    return compare(built(*words), built(*words, *vs)).confounds


@pytest.mark.parametrize("norm", NORMS._own)
def test_every_norm_differs_from_gn_in_nothing_else(toy, norm):
    more = ("batch.stat=ghost:2",) if norm == "ghost_bn" else ()
    found = compare(built("norm=gn_ws"), built(f"norm={norm}", *more))
    assert found.confounds == ()
    assert len(found.equal) == 5
    assert "weight standardisation of 2 of 3 layers" in found.intended
    assert f"{0 if norm == 'gn' else 2} of 2 norm sites" in found.intended


@pytest.mark.parametrize(
    ("vs", "expected"),
    [
        (
            ["optim.lr=0.1"],
            ["optim.lr: 0.05 against 0.1", "rate or decay of conv1.weight"],
        ),
        (["steps=7"], ["steps: 6 against 7"]),
        (["schedule=constant"], ["schedule.name: 'cosine' against 'constant'"]),
        (["seed=1"], ["seed: 0 against 1", "initial value of conv1.weight, conv2.weight"]),
        (["batch.size=16"], ["batch.size: 8 against 16"]),
        (["norm=bn", "bn_eval=precise"], ["bn_eval: None against 'precise'"]),
        (["data.seed=3"], ["data.fingerprint"]),
        (["optim.weight_decay_norm=0.1"], ["optim.weight_decay_norm", "decay of norm1.weight"]),
        (
            ["model.width=16"],
            ["model.width", "or freezing of conv1", "initial value of conv"],
        ),
    ],
)
def test_confounds_have_a_name(toy, vs, expected):
    found = confounds(*vs)
    for part in expected:
        assert any(part in line for line in found), found


def test_options_that_are_not_read_are_no_confounds(toy):
    assert confounds("optim.betas=[0.8,0.9]", "exec.workers=2", "norm.groups=2") == ()


def test_the_micro_batch_is_a_confound_only_between_batch_norms(toy):
    assert confounds("norm=bn", "batch.micro=2") == ()
    assert confounds("batch.micro=2", words=("norm=bn",)) == ("batch.stat: 4 against 2",)
    assert confounds("batch.stat=ghost:2", words=("norm=bn",)) == ()


def test_freezing_and_other_layers_are_seen(toy, monkeypatch):
    plain = built("norm=gn")

    def freeze(self: Toy, model: nn.Module) -> None:
        model.conv2.requires_grad_(False)
        model.head.stride = (2, 2)

    monkeypatch.setattr(Toy, "finish_model", freeze)
    (layers,) = compare(plain, built("norm=bn")).confounds
    assert layers == "layer or freezing of conv2, head"
    extra = built("norm=gn")
    extra.model.head.gain = nn.Parameter(torch.ones(1))
    assert "parameter of head.gain" in compare(plain, extra).confounds


def test_models_without_the_data_are_compared_by_what_was_asked(toy, monkeypatch):
    from harness.errors import DataError
    from tests.toy import ToyInfo

    def missing(self, spec):
        raise DataError("not here")

    monkeypatch.setattr(ToyInfo, "fingerprint", missing)
    assert confounds("norm=bn", "exec.threads=1") == ()
    assert confounds("norm=bn", "data=/x") == ("data.root: None against '/x'",)


def test_the_command_prints_the_proof(toy, tmp_path):
    console = Console(record=True, width=160)
    path = tmp_path / "audit.csv"
    audit("toy", ["norm=gn_ws"], ["norm=bn"], path, console)
    text = console.export_text()
    assert "the two runs differ in the normalisation alone" in text
    assert "851 parameters, 851 of them trained" in text
    assert "FLOPs: not counted without data" in text
    assert NormAudit.from_csv(path).num_standardised == 2
    with pytest.raises(AuditError, match=r"confound: steps: 6 against 7") as caught:
        audit("toy", ["norm=gn_ws"], ["norm=bn", "steps=7"], None, console)
    assert caught.value.exit_code == 5
    assert "CONFOUND" in console.export_text()


@pytest.mark.parametrize("norm", ["gn_ws", "bn"])
def test_flops_are_those_of_the_convolutions(toy, norm):
    spec = one_spec("toy", [f"norm={norm}"])
    one, _, task = _built(spec)
    per_pixel = 2 * (3 * 8 * 9 + 8 * 8 * 9 + 8 * 3)
    assert forward_flops(task, one.model, spec) == 36 * per_pixel
    assert parameter_counts(one.model) == (851, 851)
    one.model.conv1.requires_grad_(False)
    assert parameter_counts(one.model) == (851, 851 - 216)

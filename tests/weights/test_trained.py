"""The guard: which weights a run may start from, and how their norm is known."""

from __future__ import annotations

import copy

import pytest
import torch

from harness.errors import UsageError
from harness.norm.catalogue import NORMS
from harness.norm.surgery import convert
from harness.schema import NormSection
from harness.weights.evidence import of_tensors
from harness.weights.trained import Trained, declared, mismatch, of_norm
from tests.weights import files


def section(name: str, **parts) -> NormSection:
    return NormSection(**NormSection.expand(name), **parts)


NAMES = ["bn", "bn_ws", "gn", "gn_ws", "ln", "in_ws", "none", "bcn_ws"]


@pytest.mark.parametrize("theirs", NAMES)
@pytest.mark.parametrize("ours", NAMES)
def test_a_norm_starts_from_its_own_weights_only(theirs, ours):
    reason = mismatch(of_norm(section(theirs), "its record"), section(ours))
    assert (reason is None) == (theirs == ours)
    if reason:
        assert "init.allow_mismatch=true" in reason
        assert f"norm={ours}" in reason


@pytest.mark.parametrize(
    ("trained", "norm", "words"),
    [
        (Trained("bn", False), section("frozen_bn"), None),
        (Trained("frozen_bn", False), section("frozen_bn"), None),
        (Trained("frozen_bn", False), section("bn"), "folded into gain and shift"),
        (Trained("gn", True, 32), section("gn_ws", groups=16), "with 32 groups, not 16"),
        (Trained("gn", True, 32), section("gn_ws", groups=32), None),
        (Trained("gn", False), section("gn_ws"), "without weight standardisation"),
        (Trained("gn", True), section("gn"), "with weight standardisation"),
        (Trained("gn", True, variant="bit"), section("gn_ws"), None),
        (Trained("gn", True, variant="scaled"), section("gn_ws"), "norm.ws=scaled, not authors"),
        (Trained("gn"), section("gn_ws"), "init.norm=gn or init.norm=gn_ws"),
        (Trained(), section("gn"), "declare it"),
    ],
)
def test_what_else_is_told_apart(trained, norm, words):
    reason = mismatch(trained, norm)
    assert (reason is None) == (words is None)
    assert (words or "") in (reason or "")


def test_the_users_word_fills_the_gap_and_never_contradicts():
    assert declared("gn_ws", Trained()).name == "gn_ws"
    assert declared("gn_ws", Trained("gn")).standardised is True
    for seen in (Trained("bn", None), Trained("gn", False), Trained("gn", False, told_by="x")):
        with pytest.raises(UsageError, match="contradicts"):
            declared("gn_ws", seen)
    # What was only estimated gives way to who knows.
    assert declared("bn_ws", Trained("bn", False, estimated=True)).standardised is True


def test_layouts_name_their_norm():
    state = files.network().state_dict()
    assert of_tensors(dict.fromkeys(files.caffe2_names(state), torch.ones(1)), ()).layer == "gn"
    folded = of_tensors(dict.fromkeys(files.caffe2_names(state, "bn"), torch.ones(1)), ())
    assert (folded.layer, folded.standardised) == ("frozen_bn", False)
    assert of_tensors(state, ()) == Trained()  # torchvision's names: nothing tells
    bit = {"resnet/root_block/standardized_conv2d/kernel": torch.ones(1)}
    assert of_tensors(bit, ()).name == "gn_ws"


@pytest.mark.parametrize("scale", [0.01, 0.03, 0.1])
@pytest.mark.parametrize("norm", ["bn", "bn_ws"])
def test_running_averages_tell_of_standardised_weights(norm, scale):
    """Measured on a network whose averages come from forwards; raw weights of any usual scale."""
    model = files.network("bn", shape=files.SHAPE).float()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.weight.normal_(0.1 * scale, scale)
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None  # the average over all forwards
                module.reset_running_stats()
                module.weight.uniform_(0.5, 1.5)
    if norm == "bn_ws":
        convert(model, norm)
    model.train()
    for _ in range(3):
        model(torch.randn(4, 3, 64, 64))
    pairs = []
    modules = dict(model.named_modules())
    for name, module in modules.items():
        if isinstance(module, torch.nn.Conv2d):
            site = name.replace("downsample.0", "downsample.1").replace("conv", "bn")
            pairs.append((module.weight, modules[site].running_var))
    assert len(pairs) > 8
    seen = of_tensors(copy.deepcopy(model.state_dict()), pairs)
    assert (seen.layer, seen.standardised, seen.estimated) == ("bn", norm == "bn_ws", True)


def test_averages_that_tell_nothing_are_not_guessed_from():
    weight = torch.randn(64, 64, 3, 3)  # as spread as if standardised
    assert of_tensors({"bn1.running_var": torch.ones(64)}, [(weight, torch.rand(64) * 300)]) == (
        Trained("bn", None, told_by="running averages in the file", estimated=True)
    )


def test_every_norm_has_a_name_here():
    for name in NORMS:
        if not NORMS[name].short_for:
            assert of_norm(section(name), "x").layer == name

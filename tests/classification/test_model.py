"""The published networks to the parameter, their norm sites, and any other classifier."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from harness.errors import AuditError, EnvironmentProblem, UsageError
from harness.norm.audit import NormAudit
from harness.plan import impossible
from harness.registry import task_info
from harness.worker import build_model
from tasks.classification import model as models
from tasks.classification.architectures import RESNETS, norm_facts
from tasks.classification.model import build_classifier
from tasks.classification.task import ClassificationTask
from tests.classification.conftest import classification_spec
from tests.norm.oracle import traced_pairs

PAPER = {
    # name: (preset, norm sites, parameters with 1000 classes)
    "resnet50": ("paper", 53, 25_557_032),
    "resnet101": ("paper_r101", 104, 44_549_160),
    "resnext50_32x4d": ("paper_x50", 53, 25_028_904),
    "resnext101_32x4d": ("paper_x101", 104, 44_177_704),
}


def surgery(*words: str) -> tuple[nn.Module, NormAudit]:
    spec = classification_spec(*words)
    return build_model(ClassificationTask(spec, None), spec)


@pytest.mark.parametrize("name", PAPER)
def test_published_networks(name: str) -> None:
    preset, sites, params = PAPER[name]
    model, audit = surgery(f"preset={preset}", "norm=gn_ws")
    assert sum(p.numel() for p in model.parameters()) == params
    assert audit.num_norm_sites == audit.num_standardised == sites
    assert [row.path for row in audit if row.role == "layer" and not row.standardised] == ["fc"]
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    groups = {m.num_groups for m in model.modules() if isinstance(m, nn.GroupNorm)}
    assert groups == {32}
    stock, _ = build_classifier(name, 1000)
    traced, orphans = traced_pairs(stock, torch.zeros(1, 3, 32, 32))
    assert not orphans
    layers = [row for row in audit if row.role == "layer"]
    paired = {(row.path, site) for row in layers for site in row.paired_with.split()}
    assert paired == traced
    assert len(traced) == sites


@pytest.mark.parametrize("name", PAPER)
def test_strides_are_in_the_3x3_convolutions(name: str) -> None:
    with torch.device("meta"):
        model, _ = build_classifier(name, 10)
    for stage in ("layer2", "layer3", "layer4"):
        block = model.get_submodule(stage)[0]  # type: ignore[index]
        assert (block.conv1.stride, block.conv2.stride) == ((1, 1), (2, 2))
        assert block.conv2.groups == RESNETS[name].groups


def test_mini_is_the_narrow_network_it_says_it_is() -> None:
    model, audit = surgery("norm=gn_ws")
    assert sum(p.numel() for p in model.parameters()) == 175_388
    assert audit.num_norm_sites == audit.num_standardised == 15
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 12)


@pytest.mark.parametrize("name", ["resnet50", "resnext50_32x4d", "resnet_mini"])
def test_initial_weights_are_the_authors(name: str) -> None:
    """Normal with variance 2 / (k^2 C_out): a ResNeXt's groups do not enter."""
    torch.manual_seed(0)
    model, _ = build_classifier(name, 10)
    for path, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            assert module.bias is None
            kernel, out = module.kernel_size[0], module.out_channels
            expected = math.sqrt(2 / (kernel**2 * out))
            spread = 5 / math.sqrt(2 * module.weight.numel())  # five standard errors
            assert float(module.weight.detach().std()) == pytest.approx(expected, rel=spread), path
        elif isinstance(module, nn.BatchNorm2d):
            assert bool((module.weight == 1).all()), path  # also the last of a block
            assert bool((module.bias == 0).all()), path


@pytest.mark.parametrize("name", RESNETS)
def test_planned_norm_sites_are_those_of_a_forward(name: str) -> None:
    seen: dict[str, tuple[int, int]] = {}

    def watch(path: str) -> Callable[[nn.Module, tuple[torch.Tensor]], None]:
        def hook(_: nn.Module, inputs: tuple[torch.Tensor]) -> None:
            seen[path] = inputs[0].shape[1], inputs[0].shape[2] * inputs[0].shape[3]

        return hook

    with torch.device("meta"):
        model, _ = build_classifier(name, 10)
    for path, module in model.eval().named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(watch(path))
    for size in (32, 33, 64, 224):
        model(torch.empty(1, 3, size, size, device="meta"))
        facts = norm_facts(name, size)
        assert set(facts.widths) == {width for width, _ in seen.values()}
        assert facts.min_values == min(values for _, values in seen.values())
        smallest = {path for path, (_, values) in seen.items() if values == facts.min_values}
        assert any(path.startswith(facts.smallest_site) for path in smallest)


def test_bn_on_single_values_is_refused_in_the_plan() -> None:
    words = ("model=resnet50", "norm.groups=32", "data.size=32")
    assert "bn sees 1 value per channel at layer4" in str(
        impossible(classification_spec(*words, "norm=bn", "batch.micro=1"))
    )
    assert impossible(classification_spec(*words, "norm=bn", "batch.micro=2")) is None
    assert impossible(classification_spec(*words, "norm=gn", "batch.micro=1")) is None


class TestOtherClassifiers:
    @pytest.mark.parametrize(
        ("name", "sites", "bare"),
        [("resnet18", 20, 1), ("mobilenet_v2", 52, 1), ("regnet_y_400mf", 53, 33)],
    )
    def test_any_of_torchvision(self, name: str, sites: int, bare: int) -> None:
        """Squeeze-and-excitation's convolutions, for one, have no norm and stay as they are."""
        model, audit = surgery(f"model={name}", "norm=gn_ws", "norm.groups=4")
        assert audit.num_norm_sites == audit.num_standardised == sites
        assert audit.num_bare == bare
        assert model.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 12)

    def test_planning_does_not_judge_a_name_it_does_not_know(self) -> None:
        for norm in ("gn", "bn", "in"):
            spec = classification_spec("model=no_such_net", f"norm={norm}", "norm.groups=7")
            assert impossible(spec) is None

    @pytest.mark.parametrize(
        ("name", "said"),
        [("resnet5O", "'resnet50'"), ("resnext101_32x4", "'resnext101_32x4d'")],
    )
    def test_a_slip_is_answered_with_the_nearest(self, name: str, said: str) -> None:
        with pytest.raises(UsageError) as caught:
            surgery(f"model={name}")
        assert f"model.name={name!r}" in str(caught.value)
        assert f"Did you mean {said}" in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_segmentation_networks_are_no_classifiers(self) -> None:
        with pytest.raises((UsageError, EnvironmentProblem), match="is no classifier"):
            surgery("model=deeplabv3_resnet50")

    def test_a_missing_timm_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(models, "find_spec", lambda name: None)
        with pytest.raises(EnvironmentProblem, match="install the package timm") as caught:
            surgery("model=nf_ecaresnet26")
        assert caught.value.exit_code == 4

    def test_a_network_without_batch_norm_is_refused(self) -> None:
        with pytest.raises(AuditError, match="has no batch norm"):
            surgery("model=alexnet")

    def test_a_network_with_auxiliary_heads_is_refused(self) -> None:
        spec = classification_spec("model=googlenet")
        task = ClassificationTask(spec, None)
        with pytest.warns(FutureWarning, match="init"):
            model = task.build_model()
        batch = torch.zeros(2, 3, 96, 96, dtype=torch.uint8), torch.zeros(2, dtype=torch.long)
        with pytest.raises(UsageError, match="returns GoogLeNetOutputs, not logits"):
            task.loss(model.train(), batch)

    def test_timm(self) -> None:
        if importlib.util.find_spec("timm") is None:
            pytest.skip("timm is not installed")
        model, audit = surgery("model=resnet26d", "norm=gn_ws")
        assert audit.num_standardised == audit.num_norm_sites > 26
        assert model.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 12)
        with pytest.raises(UsageError, match="Did you mean 'resnet26d"):
            surgery("model=resnet26dd")


@pytest.mark.parametrize("layer", ["ln", "in", "none", "frozen_bn"])
def test_every_norm_keeps_the_names(layer: str) -> None:
    stock, _ = build_classifier("resnet_mini", 12)
    model, _ = surgery(f"norm={layer}_ws")
    own = {name for name, _ in model.named_parameters()}
    own |= {name for name, _ in model.named_buffers()}
    assert {name for name, _ in stock.named_parameters()} <= own


def test_the_info_is_what_the_registry_says() -> None:
    assert task_info("classification").sees_samples

import copy

import pytest
import torch
import torchvision
from torch import distributed, nn
from torch.nn.utils import parametrizations

from harness.errors import AuditError, UsageError
from harness.norm.catalogue import NORMS, NormChoice, NormInfo
from harness.norm.surgery import apply_norm, convert
from harness.norm.weight_standardization import WSConv2d, WSConvTranspose2d, WSLinear
from tests.norm.nets import SMALL_BARE, SharedNorm, Small, net_2d, net_flat, randomise_norms

GN_WS = NormChoice("gn", groups=4, ws="authors")


class Doubling(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


class WSDoubling(WSConv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


class Named(nn.Conv2d):
    """A subclass that computes as torch's does."""


class OddNorm(nn.BatchNorm2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 1


def refusal(model: nn.Module, norm: NormChoice = GN_WS, **kwargs: object) -> str:
    """Return the refusal's message, and check that the model was not touched."""
    kinds = {path: type(module) for path, module in model.named_modules()}
    with pytest.raises(AuditError) as caught:
        apply_norm(model, norm, **kwargs)
    assert {path: type(module) for path, module in model.named_modules()} == kinds
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "sites"), [("resnet50", 53), ("resnet101", 104), ("resnext50_32x4d", 53)]
)
def test_resnets_are_standardised_everywhere_but_the_classifier(name: str, sites: int):
    model = getattr(torchvision.models, name)()
    before = {key: value.clone() for key, value in model.named_parameters()}
    audit = apply_norm(model, NormChoice("gn", ws="authors"), bare=["fc"])
    assert (audit.num_norm_sites, audit.num_standardised, audit.num_bare) == (sites, sites, 1)
    after = dict(model.named_parameters())
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert not list(model.buffers())
    assert {type(m).__name__ for m in model.modules() if isinstance(m, nn.Conv2d)} == {"WSConv2d"}
    assert sum(isinstance(m, nn.GroupNorm) for m in model.modules()) == sites


def test_result_is_the_network_built_by_hand():
    model = randomise_norms(net_2d()).double()
    hand = nn.Sequential(
        WSConv2d(3, 8, 3, bias=False),
        nn.GroupNorm(4, 8),
        nn.ReLU(),
        WSConvTranspose2d(8, 4, 2),
        nn.GroupNorm(4, 4),
    ).double()
    apply_norm(model, GN_WS)
    hand.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    assert torch.equal(model.eval()(x), hand.eval()(x))


def test_type_mode_affine_and_frozen_parameters_are_kept():
    model = randomise_norms(net_2d()).double().eval()
    model[1].weight.requires_grad_(False)
    gamma = model[1].weight.clone()
    audit = apply_norm(model, GN_WS)
    assert torch.equal(model[1].weight, gamma)
    assert not model[1].weight.requires_grad
    assert model[1].bias.requires_grad
    assert not model[1].training
    assert model[1].bias.dtype == torch.float64
    assert audit.num_frozen == 0


def test_bn_is_left_as_it_is():
    model = randomise_norms(net_2d())
    expected = copy.deepcopy(model)
    audit = apply_norm(model, NormChoice("bn"))
    x = torch.randn(2, 3, 5, 5)
    assert torch.equal(model(x), expected(x))
    assert {row.why for row in audit if row.role == "site"} == {"the stock norm"}


def test_shared_norms_are_replaced_once_everywhere():
    model = SharedNorm()
    audit = apply_norm(model, GN_WS)
    assert model.bn1 is model.conv1[1]
    assert isinstance(model.bn1, nn.GroupNorm)
    assert audit.num_norm_sites == audit.num_standardised == 2
    assert model(torch.randn(2, 3, 5, 4)).shape == (2, 4, 5)


def test_a_layer_that_serves_two_norms_is_standardised_once():
    conv = nn.Conv2d(3, 4, 1)
    model = nn.Sequential(nn.Sequential(conv, nn.BatchNorm2d(4)), nn.Conv2d(4, 3, 1))
    model.append(nn.Sequential(conv, nn.BatchNorm2d(4)))
    audit = apply_norm(model, GN_WS, bare=["1"])
    assert audit.num_standardised == 1
    assert next(row for row in audit if row.path == "0.0").paired_with == "0.1 2.1"


def test_subclasses_of_batch_norm_are_sites():
    model = nn.SyncBatchNorm.convert_sync_batchnorm(
        nn.Sequential(nn.Conv3d(2, 4, 1), nn.BatchNorm3d(4))
    )
    apply_norm(model, NormChoice("in"))
    assert isinstance(model[1], nn.InstanceNorm3d)
    flat = nn.SyncBatchNorm.convert_sync_batchnorm(net_flat())
    apply_norm(flat, NormChoice("in"))
    assert isinstance(flat[1], nn.InstanceNorm1d)


def test_linear_layers_before_norms_are_standardised():
    model = net_flat()
    apply_norm(model, GN_WS)
    assert [type(model[i]) for i in (0, 3)] == [WSLinear, WSLinear]


def test_scope_confines_standardisation_but_not_normalisation():
    model = nn.ModuleDict({"backbone": net_2d(), "head": net_2d()})
    choice = NormChoice("gn", groups=4, ws="tf", scope="backbone")
    audit = apply_norm(model, choice, standardise_prefix="backbone")
    assert audit.num_norm_sites == 4
    assert [row.path for row in audit if row.standardised] == ["backbone.0", "backbone.3"]
    assert {row.why for row in audit if row.path.startswith("head") and row.role == "layer"} == {
        "scope: outside the backbone"
    }
    with pytest.raises(UsageError, match="no layers in a backbone 'bone'"):
        apply_norm(net_2d(), choice, standardise_prefix="bone")
    with pytest.raises(UsageError, match="must be followed_by_norm or backbone"):
        apply_norm(net_2d(), NormChoice("gn", scope="head"))


def test_layers_of_other_classes_need_a_twin():
    model = nn.Sequential(Doubling(3, 4, 1), nn.BatchNorm2d(4), Named(4, 4, 1), nn.BatchNorm2d(4))
    assert "0: class Doubling computes its own way" in refusal(model)
    apply_norm(copy.deepcopy(model), NormChoice("gn", groups=4))
    apply_norm(model, GN_WS, ws_classes={Doubling: WSDoubling})
    assert [type(model[i]) for i in (0, 2)] == [WSDoubling, WSConv2d]
    parametrized = net_2d()
    parametrizations.weight_norm(parametrized[0])
    assert "computes its own way" in refusal(parametrized)


def test_orphans_are_refused():
    model = nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    assert "0 (BatchNorm2d) is an orphan" in refusal(model)
    audit = apply_norm(model, GN_WS, strict=False)
    assert audit.rows[0].why == "orphan: no layer just before feeds it"
    assert isinstance(model[0], nn.GroupNorm)


def test_bare_layers_must_be_declared_and_only_they():
    assert refusal(Small()) == (
        "mix (Conv2d) is not followed by a norm and not declared bare; "
        "head (Linear) is not followed by a norm and not declared bare"
    )
    message = refusal(Small(), bare=[*SMALL_BARE, "conv*"])
    assert message == "conv1 (Conv2d) is declared bare by 'conv*', but bn1 follows it"


def test_problems_beyond_three_are_counted():
    model = nn.Sequential(*(nn.Conv2d(4, 4, 1) for _ in range(5)), nn.BatchNorm2d(4))
    model.append(nn.Conv2d(4, 4, 1))
    assert refusal(model).endswith("; and 2 more")


def test_groups_must_divide_the_channels():
    model = nn.Sequential(
        nn.Conv2d(3, 48, 1), nn.BatchNorm2d(48), nn.Conv2d(48, 40, 1), nn.BatchNorm2d(40)
    )
    assert refusal(model, NormChoice("gn", groups=32)) == (
        "1 has 48 channels, which 32 groups do not divide; nearest legal numbers of groups there: "
        "24, 48; dividing the channels of every site: 8"
    )
    assert "40 channels" in refusal(model, NormChoice("gn", groups=16), strict=False)


def test_standardised_stock_models_are_refused():
    model = nn.Sequential(WSConv2d(3, 4, 1, ws="timm"), nn.BatchNorm2d(4))
    assert "0 (WSConv2d) is standardised already" in refusal(model)
    audit = apply_norm(model, NormChoice("gn", groups=4), strict=False)
    assert (audit.rows[0].standardised, audit.rows[0].ws) == (True, "timm")


def test_norms_that_surgery_cannot_see_are_refused():
    frozen = torchvision.ops.FrozenBatchNorm2d(4)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), frozen)
    assert "2 (FrozenBatchNorm2d) is not torch's batch norm" in refusal(model)
    odd = nn.Sequential(nn.Conv2d(3, 4, 1), OddNorm(4))
    assert "1: class OddNorm overrides forward" in refusal(odd)
    apply_norm(odd, GN_WS, strict=False)
    assert isinstance(odd[1], OddNorm)
    listed = net_2d()
    listed.norms = [listed[1]]
    assert "the list 'norms' of the model keeps batch norms" in refusal(listed)
    assert "has no batch norm to replace" in refusal(nn.Sequential(nn.ReLU()))


def test_other_norms_are_reported():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.LayerNorm(5))
    audit = apply_norm(model, GN_WS)
    assert audit.rows[2].role == "other"
    assert audit.rows[2].why == "not a batch norm of the stock model"


class ExtraGain(nn.GroupNorm):
    def __init__(self, num_features: int) -> None:
        super().__init__(1, num_features)
        self.gain = nn.Parameter(torch.ones(1))


def extra_gain(bn: nn.BatchNorm2d, *, dims: int, groups: int) -> nn.Module:
    return ExtraGain(bn.num_features)


def fresh_bn(bn: nn.BatchNorm2d, *, dims: int, groups: int) -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(bn.num_features))


def test_changed_names_and_leftovers_are_refused(monkeypatch: pytest.MonkeyPatch):
    for function in ("extra_gain", "fresh_bn"):
        info = NormInfo(function, "", "", True, "", factory=f"{__name__}:{function}")
        monkeypatch.setitem(NORMS._own, function, info)
    with pytest.raises(AuditError, match=r"the parameter 1\.gain is new"):
        apply_norm(net_2d(), NormChoice("extra_gain"))
    with pytest.raises(AuditError, match=r"1\.0 is a batch norm left over.*1\.bias is gone"):
        apply_norm(net_2d(), NormChoice("fresh_bn"))


def test_wrapped_models_are_refused():
    assert "DataParallel" in refusal(nn.DataParallel(net_2d()))
    assert "OptimizedModule" in refusal(torch.compile(net_2d(), backend="eager"))
    assert "nothing holds it" in refusal(nn.BatchNorm2d(4))
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        assert "DistributedDataParallel" in refusal(nn.parallel.DistributedDataParallel(net_2d()))
    finally:
        distributed.destroy_process_group()


def test_unknown_names_are_refused_before_anything_changes():
    with pytest.raises(UsageError, match=r"unknown norm layer 'gm'.*'gn'"):
        apply_norm(net_2d(), NormChoice("gm"))
    with pytest.raises(UsageError, match="unknown weight standardisation 'author'"):
        apply_norm(net_2d(), NormChoice("gn", ws="author"))


def test_convert_takes_any_model_in_one_line():
    model = torchvision.models.densenet121()
    audit = convert(model, "gn_ws")
    assert audit.num_norm_sites == 121
    assert audit.num_standardised == 59
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert model(torch.randn(1, 3, 32, 32)).isfinite().all()
    assert {row.ws for row in convert(net_2d(), "gn", groups=2, ws="bit") if row.ws} == {"bit"}
    with pytest.raises(AuditError, match="not declared bare"):
        convert(Small(), "gn_ws", groups=4, strict=True)
    with pytest.warns(UserWarning, match="Sequential has no batch norm"):
        convert(nn.Sequential(nn.ReLU()), "gn_ws")


def test_no_norm_with_scaled_weights_keeps_the_size_of_its_signal():
    layers = [nn.Conv2d(16, 16, 3, padding=1, padding_mode="circular") for _ in range(6)]
    model = nn.Sequential(*(m for conv in layers for m in (conv, nn.BatchNorm2d(16))))
    convert(model, "none_ws")
    out = model(torch.randn(2, 16, 8, 8))
    assert 0.5 < out.std() < 2

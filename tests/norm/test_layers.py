import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from harness.errors import AuditError
from harness.norm.catalogue import NORMS, NormChoice, parse_norm
from harness.norm.layers import ChannelAffine, FrozenBatchNorm, build_frozen_bn
from harness.norm.surgery import apply_norm
from tests.norm.nets import NETS, FusedAct, net_2d, net_flat, randomise_norms
from tests.norm.references import group_norm

OWN = ("bn", "gn", "frozen_bn", "ln", "in", "none")
NAMES = [name + suffix for name in OWN for suffix in ("", "_ws")]


def switched(model: nn.Module, name: str, groups: int = 4) -> nn.Module:
    apply_norm(model, NormChoice(**parse_norm(name), groups=groups))
    return model


def norm_of(bn: nn.Module, name: str, groups: int = 4) -> nn.Module:
    """Return what ``name`` puts in place of ``bn``."""
    conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[int(type(bn).__name__[-2])]
    net = nn.Sequential(conv(2, bn.num_features, 1), bn)
    return switched(net, name, groups)[1]


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("name", NAMES)
def test_every_norm_trains_everywhere(name: str, net: str):
    build, shape = NETS[net]
    model = build()
    names = set(model.state_dict())
    x = torch.randn(shape)
    audit = apply_norm(model, NormChoice(**parse_norm(name), groups=4))
    assert audit.num_norm_sites == 2
    assert audit.num_standardised == (2 if name.endswith("_ws") else 0)
    assert set(model.state_dict()) <= names
    assert audit.num_frozen == (2 if name.startswith("frozen_bn") else 0)
    if name.startswith("in") and net == "flat":
        with pytest.raises(ValueError, match=r"\(3, 8\) has one value per statistic"):
            model(x)
        return
    model(x).square().mean().backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
    assert model.eval()(x).shape == model.train()(x).shape


@pytest.mark.parametrize("name", NAMES)
def test_norms_survive_copies_narrow_types_and_compilation(name: str):
    model = switched(randomise_norms(net_2d()), name).eval()
    x = torch.randn(2, 3, 6, 6)
    expected = model(x)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(copied(x), expected)
    last = model.to(memory_format=torch.channels_last)
    images = x.to(memory_format=torch.channels_last)
    torch.testing.assert_close(last(images), expected, rtol=1e-4, atol=1e-4)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(x).isfinite().all()
    assert model.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("training", [True, False])
def test_declared_batch_independence_is_true(name: str, training: bool):
    model = switched(randomise_norms(net_2d()).double(), name).train(training)
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64)

    def gradient(chunks: int) -> torch.Tensor:
        clone = copy.deepcopy(model)
        for chunk in x.chunk(chunks):
            clone(chunk).tanh().sum().backward()
        return torch.cat([p.grad.flatten() for p in clone.parameters()])

    whole, single = gradient(1), gradient(4)
    difference = (whole - single).norm() / whole.norm()
    if NORMS[name].batch_independent or not training:
        assert difference < 1e-12
    else:
        assert difference > 1e-3


@pytest.mark.parametrize("name", [name for name in OWN if NORMS[name].batch_independent])
def test_batch_independent_norms_do_the_same_in_evaluation(name: str):
    model = switched(randomise_norms(net_2d()), name)
    x = torch.randn(2, 3, 5, 5)
    assert torch.equal(model.train()(x), model.eval()(x))


@pytest.mark.parametrize(("name", "groups"), [("gn", 4), ("gn", 1), ("ln", 1), ("in", 8)])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_group_norms_equal_the_definition(dims: int, name: str, groups: int):
    kinds = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
    bn = randomise_norms(kinds[dims](8, eps=0.1, dtype=torch.float64))
    norm = norm_of(bn, name, groups)
    x = torch.randn(3, 8, *(2, 3, 4)[:dims], dtype=torch.float64) * 2 + 1
    gamma, beta = bn.weight.detach().numpy(), bn.bias.detach().numpy()
    expected = group_norm(x.numpy(), groups, gamma, beta)
    np.testing.assert_allclose(norm(x).detach(), expected, rtol=0, atol=1e-12)


def test_gn_and_ln_take_flat_inputs():
    bn = randomise_norms(nn.BatchNorm1d(8, dtype=torch.float64))
    x = torch.randn(5, 8, dtype=torch.float64)
    gamma, beta = bn.weight.detach().numpy(), bn.bias.detach().numpy()
    for name, groups in (("gn", 4), ("ln", 1)):
        model = nn.Sequential(nn.Linear(2, 8), copy.deepcopy(bn))
        found = switched(model, name)[1](x)
        expected = group_norm(x.numpy(), groups, gamma, beta)
        np.testing.assert_allclose(found.detach(), expected, rtol=0, atol=1e-12)


def test_frozen_bn_is_batch_norm_in_evaluation_with_gradients_to_inputs_only():
    bn = randomise_norms(nn.BatchNorm2d(8, eps=1e-3))
    reference = copy.deepcopy(bn).eval()
    frozen = norm_of(bn, "frozen_bn").train()
    x = torch.randn(2, 8, 3, 3)
    mine, theirs = (x.clone().requires_grad_() for _ in range(2))
    frozen(mine).square().sum().backward()
    reference(theirs).square().sum().backward()
    assert torch.equal(frozen(x), reference(x))
    torch.testing.assert_close(mine.grad, theirs.grad)
    assert not list(frozen.parameters())
    before = {name: value.clone() for name, value in frozen.state_dict().items()}
    frozen(x)
    assert all(torch.equal(before[name], value) for name, value in frozen.state_dict().items())


def test_frozen_bn_exchanges_state_with_batch_norm():
    model = randomise_norms(net_2d())
    stock = copy.deepcopy(model)
    switched(model, "frozen_bn")
    assert list(model.state_dict()) == list(stock.state_dict())
    for name, value in stock.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)
    stock.load_state_dict(model.state_dict())
    other = randomise_norms(net_2d())
    model.load_state_dict(other.state_dict())
    x = torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(model(x), other.eval()(x))
    old = {k: v for k, v in other.state_dict().items() if not k.endswith("num_batches_tracked")}
    model.load_state_dict(old)


def test_frozen_bn_needs_running_averages():
    with pytest.raises(AuditError, match="tracks none"):
        build_frozen_bn(nn.BatchNorm2d(4, track_running_stats=False), dims=2, groups=1)


def test_none_keeps_gain_and_shift_only():
    bn = randomise_norms(nn.BatchNorm2d(8))
    affine = norm_of(bn, "none")
    assert isinstance(affine, ChannelAffine)
    x = torch.randn(2, 8, 3, 3)
    expected = x * bn.weight.view(-1, 1, 1) + bn.bias.view(-1, 1, 1)
    torch.testing.assert_close(affine(x), expected)
    assert affine(x.bfloat16()).dtype == torch.bfloat16
    assert [name for name, _ in affine.named_parameters()] == ["weight", "bias"]


@pytest.mark.parametrize("name", OWN)
def test_norms_without_affine_or_beta_stay_so(name: str):
    x = torch.randn(2, 8, 3, 3)
    plain = norm_of(nn.BatchNorm2d(8, affine=False), name)
    assert not list(plain.parameters())
    assert plain(x).shape == x.shape
    bn = nn.BatchNorm2d(8)
    bn.bias = None  # what BatchNorm2d(8, bias=False) is in newer releases of torch
    gain = norm_of(bn, name)
    assert gain.bias is None
    assert gain(x).shape == x.shape


@pytest.mark.parametrize("name", NAMES)
def test_fused_activations_are_kept(name: str):
    model = nn.Sequential(nn.Conv2d(3, 8, 1), randomise_norms(FusedAct(8)))
    plain = nn.Sequential(copy.deepcopy(model[0]), nn.BatchNorm2d(8))
    plain[1].load_state_dict(model[1].state_dict(), strict=False)
    act = copy.deepcopy(model[1].act)
    names = {key for key, _ in model.named_parameters()}
    for net in (model, plain):
        switched(net, name).eval()
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(model(x), act(plain(x)))
    torch.testing.assert_close(copy.deepcopy(model)(x), act(plain(x)))
    if name.startswith("frozen_bn"):
        names -= {"1.weight", "1.bias"}
    assert {key for key, _ in model.named_parameters()} == names


def test_flat_frozen_bn_equals_batch_norm():
    model = randomise_norms(net_flat()).eval()
    x = torch.randn(4, 6)
    expected = model(x)
    torch.testing.assert_close(switched(model, "frozen_bn")(x), expected)
    assert isinstance(model[1], FrozenBatchNorm)
    assert "8, eps=1e-05" in repr(model[1])

import copy
import pickle
import shutil

import numpy as np
import pytest
import torch
from torch import nn

from harness.errors import AuditError
from harness.norm.catalogue import NORMS
from harness.norm.layers import ChannelAffine, FrozenBatchNorm, build_frozen_bn
from tests.norm.nets import NETS, FusedAct, net_2d, net_flat, randomise_norms
from tests.norm.references import group_norm
from tests.norm.switching import NAMES, OWN, norm_of, switch, switched


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("name", NAMES)
def test_every_norm_trains_everywhere(name: str, net: str):
    build, shape = NETS[net]
    model = build()
    names = {name for name, _ in model.named_parameters()}
    x = torch.randn(shape)
    audit = switch(model, name)
    info = NORMS[name.removesuffix("_ws")]
    assert audit.num_norm_sites == 2
    assert audit.num_standardised == (2 if name.endswith("_ws") else 0)
    own = {f"{site}.{name}" for site in (1, 4) for name in info.own_parameters}
    assert names <= set(model.state_dict())
    assert {name for name, _ in model.named_parameters()} - names == own
    assert audit.num_frozen == (2 if info.name == "frozen_bn" else 0)
    assert sum(row.num_params for row in audit) == sum(p.numel() for p in model.parameters())
    if net == "flat" and not info.takes_flat:
        with pytest.raises(ValueError, match=r"\(3, 8\) has one value per statistic"):
            model(x)
        return
    if net == "flat" and info.name == "ghost_bn":
        x = torch.randn(4, *shape[1:])  # a ghost batch of one flat sample has no deviation
    # A loss that the mean over channels does not take to zero by symmetry.
    (model(x) * torch.randn(model(x).shape)).sum().backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
    assert model.eval()(x).shape == model.train()(x).shape


@pytest.mark.parametrize("name", NAMES)
def test_norms_survive_copies_and_narrow_types(name: str):
    model = switched(randomise_norms(net_2d()), name).eval()
    x = torch.randn(2, 3, 6, 6)
    expected = model(x)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(copied(x), expected)
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    images = x.to(memory_format=torch.channels_last)
    torch.testing.assert_close(last(images), expected, rtol=1e-4, atol=1e-4)
    if not name.startswith("in"):  # torch's instance norm returns contiguous tensors
        assert last(images).is_contiguous(memory_format=torch.channels_last)
    for mode in (True, False):
        copied = copy.deepcopy(model).train(mode)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = copied(x)
        out.float().square().sum().backward()
        assert out.isfinite().all()
        torch.testing.assert_close(out.float(), copied(x), rtol=0.1, atol=0.1)
        assert all(p.grad.isfinite().all() for p in copied.parameters() if p.grad is not None)
        assert copied.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("name", [f"{name}_ws" for name in OWN])
def test_norms_compile_as_one_graph(name: str):
    """In training: outputs, gradients and running averages of the compiled network."""
    stock = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    model = switched(randomise_norms(stock).double(), name)
    twin, x = copy.deepcopy(model), torch.randn(4, 3, 6, 6, dtype=torch.float64)
    torch.compiler.reset()
    compiled = torch.compile(twin, backend="aot_eager", fullgraph=True)
    found, expected = compiled(x), model(x)
    torch.testing.assert_close(found, expected)
    for out in (found, expected):
        out.tanh().sum().backward()
    for (key, value), (_, other) in zip(
        model.named_parameters(), twin.named_parameters(), strict=True
    ):
        torch.testing.assert_close(other.grad, value.grad, msg=key)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(twin.state_dict()[key], value, msg=key)


@pytest.mark.slow
def test_inductor_compiles_gn_ws():
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("no C++ compiler: Inductor cannot be tried")
    model = switched(randomise_norms(net_2d()), "gn_ws")
    x = torch.randn(2, 3, 6, 6)
    torch.compiler.reset()
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-4)


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
    own = NORMS[name].own_parameters
    plain = norm_of(nn.BatchNorm2d(8, affine=False), name)
    assert {key for key, _ in plain.named_parameters()} == {key for key in own if "." not in key}
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
    names |= {f"1.{key}" for key in NORMS[name.removesuffix("_ws")].own_parameters}
    assert {key for key, _ in model.named_parameters()} == names


def test_flat_frozen_bn_equals_batch_norm():
    model = randomise_norms(net_flat()).eval()
    x = torch.randn(4, 6)
    expected = model(x)
    torch.testing.assert_close(switched(model, "frozen_bn")(x), expected)
    assert isinstance(model[1], FrozenBatchNorm)
    assert "8, eps=1e-05" in repr(model[1])

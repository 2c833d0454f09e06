"""FRN, EvoNorm-S0, DyT and the norms of positions against NumPy and against timm."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from harness.norm.batch_free import FilterResponseNorm
from tests.norm.nets import randomise_norms
from tests.norm.switching import norm_of

SPACES = {1: (5,), 2: (3, 4), 3: (2, 3, 2)}
KINDS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
GROUPS = 4
Array = np.ndarray


def frn(x: Array) -> Array:
    out = np.empty_like(x)
    for sample, channel in np.ndindex(x.shape[:2]):
        part = x[sample, channel]
        out[sample, channel] = part / math.sqrt((part**2).mean() + 1e-6)
    return out


def evonorm_s0(x: Array, v: Array) -> Array:
    out, width = np.empty_like(x), x.shape[1] // GROUPS
    for sample, channel in np.ndindex(x.shape[:2]):
        first = channel // width * width
        deviation = math.sqrt(x[sample, first : first + width].var() + 1e-5)
        part = x[sample, channel]
        out[sample, channel] = part / (1 + np.exp(-v[channel] * part)) / deviation
    return out


def over_channels(x: Array, centre: bool) -> Array:
    last = np.moveaxis(x, 1, -1)
    centred = last - last.mean(-1, keepdims=True) if centre else last
    return np.moveaxis(centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5), -1, 1)


DEFINITIONS = {
    "frn": lambda x, norm: frn(x),
    "evonorm_s0": lambda x, norm: evonorm_s0(x, norm.v.detach().numpy()),
    "dyt": lambda x, norm: np.tanh(norm.alpha.item() * x),
    "ln_pos": lambda x, norm: over_channels(x, centre=True),
    "rms": lambda x, norm: over_channels(x, centre=False),
}


@pytest.mark.parametrize(
    ("dims", "name"),
    [(dims, name) for name in DEFINITIONS for dims in range(4) if dims or name != "frn"],
)
def test_norms_equal_their_definitions(dims: int, name: str):
    bn = randomise_norms(KINDS[max(dims, 1)](8, eps=0.1, dtype=torch.float64))
    norm = norm_of(bn, name, GROUPS)
    for own in ("v", "alpha"):
        if hasattr(norm, own):
            nn.init.normal_(getattr(norm, own))
    x = torch.randn(3, 8, *SPACES.get(dims, ()), dtype=torch.float64) * 2 + 1
    shape = (-1, *(1,) * dims)
    gamma, beta = (value.detach().numpy().reshape(shape) for value in (bn.weight, bn.bias))
    expected = DEFINITIONS[name](x.numpy(), norm) * gamma + beta
    np.testing.assert_allclose(norm(x).detach(), expected, rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(norm, x[:1].clone().requires_grad_())


def test_own_parameters_start_as_published():
    assert (norm_of(nn.BatchNorm2d(8), "evonorm_s0").v == 1).all()
    assert norm_of(nn.BatchNorm2d(8), "dyt").alpha.tolist() == [0.5]
    assert norm_of(nn.BatchNorm2d(8), "evonorm_s0", groups=2).num_groups == 2


def test_filter_response_norm_needs_two_values():
    for shape in ((2, 8), (2, 8, 1, 1), (2, 8, 1)):
        with pytest.raises(ValueError, match="one value per statistic"):
            FilterResponseNorm(8)(torch.randn(shape))
    assert FilterResponseNorm(8)(torch.randn(2, 8, 1, 2)).isfinite().all()


def compared_with(theirs: nn.Module, name: str) -> None:
    """Give both the same parameters; compare outputs and all gradients in float64."""
    bn = randomise_norms(nn.BatchNorm2d(8, dtype=torch.float64))
    ours, theirs = norm_of(bn, name, GROUPS), theirs.double()
    for key in ("v", "alpha"):
        if hasattr(ours, key):
            nn.init.normal_(getattr(ours, key))
    own = dict(ours.named_parameters())
    theirs.load_state_dict({key: own[key].detach() for key in theirs.state_dict()})
    x, upstream = (torch.randn(3, 8, 4, 5, dtype=torch.float64) for _ in range(2))
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    for norm, leaf in zip((ours, theirs), inputs, strict=True):
        norm(leaf).backward(upstream)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-9, atol=1e-12)
    for key, value in theirs.named_parameters():
        torch.testing.assert_close(own[key].grad, value.grad, rtol=1e-9, atol=1e-12)


def test_timm_has_the_same_norms():
    """timm computes statistics in float32 at most: its layers are exact where it does not."""
    layers = pytest.importorskip("timm.layers", reason="timm, the oracle, is not installed")
    compared_with(_widened(layers.FilterResponseNormTlu2d(8, apply_act=False, eps=1e-6)), "frn")
    compared_with(_widened(layers.EvoNorm2dS0(8, groups=GROUPS)), "evonorm_s0")
    compared_with(layers.LayerNorm2d(8, eps=1e-5), "ln_pos")


def _widened(module: nn.Module) -> nn.Module:
    """Let timm's layers, which call ``.float()``, keep float64."""
    forward = module.forward

    def wide(x: torch.Tensor) -> torch.Tensor:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.Tensor, "float", lambda self: self)
            return forward(x)

    module.forward = wide
    return module


inputs = st.builds(
    lambda seed, channels, side: torch.from_numpy(
        np.random.RandomState(seed).randn(2, 4 * channels, side, side)
    ),
    st.integers(0, 2**16),
    st.integers(1, 4),
    st.integers(2, 5),
)
seeded = settings(deadline=None, derandomize=True, max_examples=30)


@seeded
@given(inputs, st.floats(0.5, 50), st.sampled_from(["frn", "rms", "ln_pos", "gn", "ln", "in"]))
def test_scaling_the_input_changes_nothing(x: torch.Tensor, scale: float, name: str):
    norm = norm_of(nn.BatchNorm2d(x.shape[1], dtype=torch.float64), name, GROUPS)
    x = 100 * x  # epsilon is 1e-5, and statistics of a few numbers may be small
    torch.testing.assert_close(norm(scale * x), norm(x), rtol=1e-2, atol=1e-2)


@seeded
@given(inputs, st.floats(-5, 5), st.sampled_from(["ln_pos", "gn", "ln", "in", "bn", "bcn"]))
def test_shifting_the_input_changes_nothing(x: torch.Tensor, shift: float, name: str):
    norm = norm_of(nn.BatchNorm2d(x.shape[1], dtype=torch.float64), name, GROUPS)
    torch.testing.assert_close(norm(x + shift), norm(x), rtol=1e-6, atol=1e-6)


@seeded
@given(inputs, st.sampled_from(["frn", "rms", "ln_pos", "evonorm_s0", "dyt"]))
def test_samples_do_not_see_each_other(x: torch.Tensor, name: str):
    norm = norm_of(nn.BatchNorm2d(x.shape[1], dtype=torch.float64), name, GROUPS)
    alone = torch.cat([norm(x[:1]), norm(x[1:])])
    torch.testing.assert_close(norm(x), alone, rtol=0, atol=1e-12)

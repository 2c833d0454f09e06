import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from harness.errors import UsageError
from harness.norm.catalogue import WS_VARIANTS, WSVariant
from harness.norm.weight_standardization import (
    WS_CLASSES,
    WSConv2d,
    WSConvTranspose2d,
    WSLinear,
    standardize_weight,
)
from tests.norm.references import (
    DEFINITIONS,
    HALVES,
    WHOLE,
    numeric_gradient,
    standardize,
    standardize_transposed,
)

VARIANTS = tuple(WS_VARIANTS)
SHAPES = {
    "linear": (5, 7),
    "conv1d": (4, 3, 5),
    "conv2d": (4, 6, 3, 3),
    "conv3d": (3, 2, 3, 1, 2),
    "depthwise": (6, 1, 3, 3),
    "grouped": (8, 2, 3, 3),
    "fan_in_1": (5, 1, 1, 1),
    "fan_in_2": (3, 2),
}
EXACT = {
    bias: WSVariant("exact", bias == "unbiased", 0.0, False, False, "test")
    for bias in ("unbiased", "biased")
}


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(seed).randn(*shape))


def gradient(weight: torch.Tensor, upstream: torch.Tensor, variant: str | WSVariant):
    leaf = weight.detach().clone().requires_grad_()
    standardize_weight(leaf, variant).backward(upstream)
    return leaf.grad


def test_every_variant_has_a_reference():
    assert set(DEFINITIONS) == set(WS_VARIANTS)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", SHAPES)
def test_float64_equals_the_definition(name: str, variant: str):
    weight = 0.05 * normal(*SHAPES[name]) + 0.3
    found = standardize_weight(weight, variant)
    np.testing.assert_allclose(found, standardize(weight.numpy(), variant), rtol=0, atol=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", ["linear", "conv2d", "depthwise", "fan_in_1", "fan_in_2"])
def test_gradient_equals_finite_differences(name: str, variant: str):
    weight, upstream = normal(*SHAPES[name]), normal(*SHAPES[name], seed=1)
    expected = numeric_gradient(weight.numpy(), upstream.numpy(), variant)
    found = gradient(weight, upstream, variant)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradcheck(variant: str):
    weight = normal(3, 2, 2, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda w: standardize_weight(w, variant), weight)
    transposed = normal(4, 2, 3).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda w: standardize_weight(w, variant, out_dim=1, groups=2), transposed
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_float32_is_exact_to_rounding(variant: str):
    weight, upstream = 0.02 * normal(8, 64, 3, 3), normal(8, 64, 3, 3, seed=1)
    found = standardize_weight(weight.float(), variant).double()
    expected = standardize_weight(weight.float().double(), variant)
    assert (found - expected).norm() < 3e-7 * expected.norm()
    found = gradient(weight.float(), upstream.float(), variant).double()
    expected = gradient(weight.float().double(), upstream.float().double(), variant)
    assert (found - expected).norm() < 1e-6 * expected.norm()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("dtype", "bits"), [(torch.bfloat16, 8), (torch.float16, 11)])
def test_narrow_types_are_rounded_once(dtype: torch.dtype, bits: int, variant: str):
    weight = (0.05 * normal(8, 16, 3, 3) + 0.2).to(dtype)
    found = standardize_weight(weight, variant)
    expected = standardize(weight.double().numpy(), variant)
    assert found.dtype == dtype
    half_a_step = 2.0**-bits * np.abs(expected) * 1.01 + 1e-6
    assert (np.abs(found.double().numpy() - expected) <= half_a_step).all()
    assert gradient(weight, torch.ones_like(weight), variant).dtype == dtype


@pytest.mark.parametrize("variant", WHOLE)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [0.0, 0.1, -3.3, 1e-3])
def test_filters_without_deviation_give_zero_and_a_finite_gradient(value, dtype, variant):
    for shape in [(4, 3, 3, 3), (4, 64, 3, 3), (6, 1, 1, 1), (5, 1)]:
        weight = torch.full(shape, value, dtype=dtype)
        assert (standardize_weight(weight, variant) == 0).all()
        upstream = normal(*shape).to(dtype)
        found = gradient(weight, 1e-3 * upstream, variant)
        assert found.isfinite().all()
        if weight[0].numel() == 1:
            assert (found == 0).all()


@pytest.mark.parametrize("shape", [(4, 64, 3, 3), (5, 1)])
@pytest.mark.parametrize("value", [0.0, 0.1, -3.3, 1e-3])
def test_halves_of_filters_without_deviation(value: float, shape: tuple[int, ...]):
    weight, upstream = torch.full(shape, value), normal(*shape).float()
    assert (standardize_weight(weight, "centred") == 0).all()
    divided = standardize_weight(weight, "divided")
    assert divided.isfinite().all()
    torch.testing.assert_close(divided, weight / 1e-5)
    for variant in HALVES:
        assert gradient(weight, upstream, variant).isfinite().all()


@pytest.mark.parametrize("variant", WHOLE)
def test_gradient_at_zero_is_the_limit_of_the_formula(variant: str):
    upstream = normal(3, 8)
    _, eps, inside, scaled = DEFINITIONS[variant]
    expected = (upstream - upstream.mean(1, keepdim=True)) / (eps**0.5 if inside else eps)
    if scaled:
        expected = expected / 8**0.5
    found = gradient(torch.zeros(3, 8, dtype=torch.float64), upstream, variant)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def rows(draw_seed: int, filters: int, fan_in: int, scale: float, shift: float) -> torch.Tensor:
    return shift + scale * normal(filters, fan_in, seed=draw_seed)


weights = st.builds(
    rows,
    st.integers(0, 2**16),
    st.integers(1, 6),
    st.integers(2, 40),
    st.floats(0.01, 10),
    st.floats(-5, 5),
)
seeded = settings(deadline=None, derandomize=True, max_examples=40)


@seeded
@given(weights, st.sampled_from(WHOLE))
def test_rows_have_mean_0_and_deviation_1(weight: torch.Tensor, variant: str):
    definition = WS_VARIANTS[variant]
    found = standardize_weight(weight, definition)
    assert found.mean(1).abs().max() < 1e-10
    std = weight.std(1, correction=int(definition.unbiased))
    inside = definition.eps_inside_root
    shrunk = std / ((std**2 + definition.eps).sqrt() if inside else std + definition.eps)
    expected = shrunk / weight.shape[1] ** 0.5 if definition.scaled else shrunk
    found_std = found.std(1, correction=int(definition.unbiased))
    torch.testing.assert_close(found_std, expected, rtol=1e-9, atol=1e-12)


@seeded
@given(weights, st.floats(-10, 10), st.sampled_from(WHOLE))
def test_shifting_a_filter_changes_nothing(weight: torch.Tensor, shift: float, variant: str):
    moved = standardize_weight(weight + shift, variant)
    torch.testing.assert_close(moved, standardize_weight(weight, variant), rtol=1e-7, atol=1e-9)


@seeded
@given(weights, st.floats(0.1, 100), st.sampled_from(sorted(EXACT)))
def test_scaling_a_filter_divides_its_gradient(weight: torch.Tensor, scale: float, bias: str):
    variant = EXACT[bias]
    upstream = normal(*weight.shape, seed=3)
    scaled = standardize_weight(scale * weight, variant)
    torch.testing.assert_close(scaled, standardize_weight(weight, variant), rtol=1e-7, atol=1e-9)
    found = gradient(scale * weight, upstream, variant)
    expected = gradient(weight, upstream, variant) / scale
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


@seeded
@given(weights, st.sampled_from(WHOLE))
def test_gradient_rows_sum_to_0_and_are_orthogonal_to_the_weights(weight, variant: str):
    found = gradient(weight, normal(*weight.shape, seed=5), variant)
    size = found.abs().sum(1) + 1
    assert (found.sum(1).abs() <= 1e-9 * size).all()
    exact = gradient(weight, normal(*weight.shape, seed=5), EXACT["unbiased"])
    centred = weight - weight.mean(1, keepdim=True)
    assert (
        (exact * centred).sum(1).abs() <= 1e-7 * (exact.abs() * centred.abs()).sum(1) + 1e-9
    ).all()


def test_memory_format_is_kept_forward_and_backward():
    weight = normal(8, 6, 3, 3).to(memory_format=torch.channels_last).requires_grad_()
    found = standardize_weight(weight)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert not found.is_contiguous()
    found.backward(torch.randn_like(found))
    assert weight.grad.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, standardize_weight(weight.contiguous()))
    conv = WSConv2d(6, 8, 3).to(memory_format=torch.channels_last)
    images = torch.randn(2, 6, 5, 5).to(memory_format=torch.channels_last)
    assert conv(images).is_contiguous(memory_format=torch.channels_last)
    transposed = WSConvTranspose2d(6, 8, 3, groups=2).to(memory_format=torch.channels_last)
    assert transposed.standardized_weight().is_contiguous(memory_format=torch.channels_last)


def test_autocast_changes_nothing_but_the_convolution():
    conv = WSConv2d(3, 8, 3)
    outside = conv.standardized_weight()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = conv.standardized_weight()
        assert conv(torch.randn(1, 3, 5, 5)).dtype == torch.bfloat16
    assert inside.dtype == torch.float32
    assert torch.equal(inside, outside)


def test_any_axis_may_number_the_filters():
    weight = normal(3, 3, 4, 7)
    found = standardize_weight(weight, out_dim=-1)  # (H, W, C_in, C_out), as TensorFlow has it
    expected = standardize(weight.permute(3, 0, 1, 2).numpy(), "authors")
    np.testing.assert_allclose(found.permute(3, 0, 1, 2), expected, rtol=0, atol=1e-12)


def test_wrong_arguments_are_refused():
    with pytest.raises(UsageError, match=r"unknown weight standardisation 'author'.*'authors'"):
        standardize_weight(torch.ones(2, 2), "author")
    with pytest.raises(UsageError, match="unknown weight standardisation"):
        WSLinear(2, 2, ws="x")
    with pytest.raises(ValueError, match="out_dim=1"):
        standardize_weight(torch.ones(4, 2), groups=2)


LAYERS = {
    "conv1d": (nn.Conv1d, (4, 6, 3), {"groups": 2, "stride": 2}, (2, 4, 9)),
    "conv2d": (nn.Conv2d, (4, 6, 3), {"padding": 1, "bias": False}, (2, 4, 6, 5)),
    "conv2d_same": (nn.Conv2d, (4, 4, 3), {"padding": "same", "groups": 4}, (2, 4, 6, 5)),
    "conv2d_reflect": (
        nn.Conv2d,
        (4, 6, 3),
        {"padding": 1, "padding_mode": "reflect"},
        (2, 4, 6, 5),
    ),
    "conv3d": (nn.Conv3d, (2, 4, 2), {"dilation": 2}, (1, 2, 5, 5, 5)),
    "conv_transpose1d": (nn.ConvTranspose1d, (4, 6, 3), {"stride": 2, "groups": 2}, (2, 4, 5)),
    "conv_transpose2d": (
        nn.ConvTranspose2d,
        (4, 6, 3),
        {"stride": 2, "output_padding": 1, "groups": 2},
        (2, 4, 5, 4),
    ),
    "conv_transpose3d": (nn.ConvTranspose3d, (3, 2, 2), {"padding": 1}, (1, 3, 4, 4, 4)),
    "linear": (nn.Linear, (6, 5), {}, (3, 6)),
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", LAYERS)
def test_layer_is_torchs_on_the_standardised_weight(name: str, variant: str):
    kind, args, kwargs, shape = LAYERS[name]
    layer = WS_CLASSES[kind](*args, **kwargs, ws=variant, dtype=torch.float64)
    plain = kind(*args, **kwargs, dtype=torch.float64)
    plain.load_state_dict(layer.state_dict())
    weight = plain.weight.detach().numpy()
    if "transpose" in name:
        expected = standardize_transposed(weight, variant, kwargs.get("groups", 1))
    else:
        expected = standardize(weight, variant)
    with torch.no_grad():
        plain.weight.copy_(torch.from_numpy(expected))
    x = normal(*shape)
    torch.testing.assert_close(layer(x), plain(x), rtol=1e-10, atol=1e-12)
    assert f"ws={variant}" in repr(layer)


@pytest.mark.parametrize("name", LAYERS)
def test_retyped_instance_is_the_same_layer(name: str):
    kind, args, kwargs, shape = LAYERS[name]
    layer = WS_CLASSES[kind](*args, **kwargs, ws="tf")
    plain = kind(*args, **kwargs)
    plain.load_state_dict(layer.state_dict())
    assert list(plain.state_dict()) == list(layer.state_dict())
    plain.__class__ = WS_CLASSES[kind]
    plain.ws = "tf"
    x = torch.randn(*shape)
    expected = layer(x)
    for copied in (plain, copy.deepcopy(plain), pickle.loads(pickle.dumps(plain))):
        assert torch.equal(copied(x), expected)
        assert copied.ws == "tf"
        assert repr(copied) == repr(layer)


def test_transposed_output_size_is_honoured():
    layer = WSConvTranspose2d(2, 3, 3, stride=2)
    x = torch.randn(1, 2, 4, 4)
    expected = F.conv_transpose2d(
        x, layer.standardized_weight(), layer.bias, stride=2, output_padding=1
    )
    assert torch.equal(layer(x, output_size=[10, 10]), expected)


@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d", "linear"])
def test_compiles_as_one_graph(name: str):
    kind, args, kwargs, shape = LAYERS[name]
    layer = WS_CLASSES[kind](*args, **kwargs)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    x = torch.randn(*shape)
    torch.testing.assert_close(compiled(x), layer(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert compiled(x).dtype == torch.bfloat16

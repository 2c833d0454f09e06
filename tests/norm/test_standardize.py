"""The analytic kernel, in stock torch and compiled, against the formula: fresh inputs each run."""

import os

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from harness import compiled
from harness.norm import standardize, torch_rows
from harness.norm.catalogue import WS_VARIANTS
from harness.norm.weight_standardization import WSConv2d, WSConvTranspose2d, standardize_weight
from tests.norm.references import WHOLE
from tests.norm.test_ws_definitions import DEFINITIONS, as_rows

SHAPES = {
    "linear": ((5, 300), {}),
    "conv1d": ((4, 3, 5), {}),
    "conv2d": ((6, 5, 3, 3), {}),
    "1x1": ((7, 33, 1, 1), {}),
    "conv3d": ((3, 2, 3, 1, 2), {}),
    "depthwise": ((6, 1, 3, 3), {}),
    "fan_in_1": ((5, 1, 1, 1), {}),
    "fan_in_2": ((3, 2), {}),
    "last": ((3, 3, 4, 7), {"out_dim": -1}),
    "transposed": ((6, 4, 3, 2), {"out_dim": 1}),
    "transposed_groups": ((6, 4, 3, 2), {"out_dim": 1, "groups": 2}),
}
NARROW = [(torch.bfloat16, 8), (torch.float16, 11)]


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch.manual_seed(os.getpid())


@pytest.fixture(params=["stock", "compiled"], autouse=True)
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Try every test with both forms of the kernel."""
    if request.param == "stock":
        monkeypatch.setattr(compiled, "applies", lambda rows: False)
    elif not compiled.available():
        pytest.skip("no numba: only the form in stock torch can be tried")
    monkeypatch.setattr(standardize, "COMPILED_FROM", 1)
    return request.param


def both(weight: torch.Tensor, variant: str, upstream: torch.Tensor, **options):
    """Return result and gradient of the kernel, then of the formula."""
    found = []
    for fused in (True, False):
        leaf = weight.detach().clone(memory_format=torch.preserve_format).requires_grad_()
        result = standardize_weight(leaf, variant, fused=fused, **options)
        result.backward(upstream)
        found += [result.detach(), leaf.grad]
    return found


@pytest.mark.parametrize("variant", WHOLE)
@pytest.mark.parametrize("name", SHAPES)
def test_kernel_equals_formula_in_float64(name: str, variant: str):
    shape, options = SHAPES[name]
    weight = torch.randn(shape, dtype=torch.float64) + torch.randn(())
    upstream = torch.randn(shape, dtype=torch.float64)
    result, gradient, expected, slope = both(weight, variant, upstream, **options)
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)
    size = float(slope.abs().max())
    torch.testing.assert_close(gradient, slope, rtol=1e-12, atol=1e-12 * max(size, 1.0))


@pytest.mark.parametrize("variant", WS_VARIANTS)
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e3])
def test_kernel_equals_the_published_lines(variant: str, scale: float):
    rows = scale * torch.randn(6, 45, dtype=torch.float64)
    mine, theirs = (rows.clone().requires_grad_() for _ in range(2))
    upstream = torch.randn_like(rows)
    result, expected = standardize_weight(mine, variant), DEFINITIONS[variant](theirs)
    result.backward(upstream)
    expected.backward(upstream)
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)
    size = float(theirs.grad.abs().max())
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-12, atol=2e-12 * size)


@pytest.mark.parametrize("variant", WS_VARIANTS)
@pytest.mark.parametrize("mean", [0.0, 0.1, 1.0, 10.0, 1e4], ids="{}x its deviation".format)
def test_float32_is_exact_to_rounding(variant: str, mean: float):
    weight, upstream = 0.02 * (torch.randn(8, 64, 3, 3) + mean), torch.randn(8, 64, 3, 3)
    result, gradient, _, _ = both(weight, variant, upstream)
    _, _, expected, slope = both(weight.double(), variant, upstream.double())
    assert (result - expected).norm() < 3e-7 * expected.norm()
    assert (gradient - slope).norm() < 5e-7 * slope.norm()


@pytest.mark.parametrize("variant", WS_VARIANTS)
@pytest.mark.parametrize(("dtype", "bits"), NARROW)
def test_narrow_types_are_rounded_once(dtype: torch.dtype, bits: int, variant: str):
    weight, upstream = (torch.randn(8, 16, 3, 3).to(dtype) for _ in range(2))
    result, gradient, _, _ = both(weight, variant, upstream)
    _, _, expected, slope = both(weight.double(), variant, upstream.double())
    assert result.dtype == gradient.dtype == dtype
    for found, exact in ((result, expected), (gradient, slope)):
        half_a_step = 2.0**-bits * exact.abs() * 1.01 + 1e-6
        assert ((found.double() - exact).abs() <= half_a_step).all()


@pytest.mark.parametrize("variant", WHOLE)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n", [1, 2, 7, 16, 27, 131, 2304])
def test_equal_weights_give_exactly_zero(n: int, dtype: torch.dtype, variant: str):
    value = (torch.randn(()) * 10.0 ** torch.randint(-6, 4, ())).to(dtype)
    weight = torch.randn(4, n).to(dtype)
    weight[1:3] = torch.stack([value, torch.zeros((), dtype=dtype)])[:, None]
    upstream = 1e-3 * torch.randn(4, n)
    result, gradient, expected, slope = both(weight, variant, upstream.to(dtype))
    assert (result[1:3] == 0).all()
    assert gradient.isfinite().all()
    if dtype != torch.bfloat16:
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)
        size = float(slope.abs().max())
        torch.testing.assert_close(gradient, slope, rtol=1e-4, atol=1e-5 * size)
    if n == 1:
        assert (gradient == 0).all()


@pytest.mark.parametrize(
    ("shape", "options", "format"),
    [
        ((8, 6, 3, 3), {}, torch.channels_last),
        ((8, 6, 1, 1), {}, torch.channels_last),
        ((6, 8, 3, 3), {"out_dim": 1}, torch.channels_last),
        ((6, 8, 3, 3), {"out_dim": 1, "groups": 2}, torch.channels_last),
        ((4, 3, 2, 3, 2), {}, torch.channels_last_3d),
    ],
)
def test_memory_format_is_kept(shape, options, format):
    weight = torch.randn(shape, dtype=torch.float64).to(memory_format=format)
    for upstream in (torch.randn(shape), torch.randn(shape).to(memory_format=format)):
        result, gradient, expected, slope = both(weight, "authors", upstream.double(), **options)
        assert result.stride() == gradient.stride() == weight.stride()
        torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(gradient, slope, rtol=1e-11, atol=1e-11)


def test_weights_that_are_views_and_gradients_that_are_expanded():
    whole = torch.randn(12, 10, 3, dtype=torch.float64)
    for weight in (whole[::2], whole[:, 1:7], whole.transpose(0, 1), whole[:4].expand(4, 10, 3)):
        upstream = torch.randn((), dtype=torch.float64).expand(weight.shape)
        result, gradient, expected, slope = both(weight, "authors", upstream)
        torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(gradient, slope, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("variant", WS_VARIANTS)
def test_first_and_second_derivatives(variant: str):
    weight = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)

    def function(w: torch.Tensor) -> torch.Tensor:
        return standardize_weight(w, variant)

    assert torch.autograd.gradcheck(function, weight)
    assert torch.autograd.gradgradcheck(function, weight)


def test_what_is_saved_is_the_weight_itself_and_two_numbers_a_filter():
    saved: list[torch.Tensor] = []
    weight = nn.Parameter(torch.randn(8, 6, 3, 3))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        standardize_weight(weight)
    fresh = [tensor for tensor in saved if tensor.data_ptr() != weight.data_ptr()]
    assert sum(tensor.numel() for tensor in fresh) == 2 * 8
    assert len(saved) == len(fresh) + 1


def test_changing_the_weight_before_the_backward_pass_is_an_error():
    weight = nn.Parameter(torch.randn(8, 6))
    result = standardize_weight(weight)
    with torch.no_grad():
        weight.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.sum().backward()


def test_autocast_changes_no_bit():
    weight, upstream = torch.randn(8, 6, 3, 3), torch.randn(8, 6, 3, 3)
    outside = both(weight, "authors", upstream)[:2]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = both(weight, "authors", upstream)[:2]
    for a, b in zip(outside, inside, strict=True):
        assert a.dtype == b.dtype == torch.float32
        assert torch.equal(a, b)


def test_bits_do_not_depend_on_the_number_of_threads():
    weight, upstream = torch.randn(64, 700), torch.randn(64, 700)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(both(weight, "authors", upstream)[:2])
    for result, gradient in results[1:]:
        assert torch.equal(result, results[0][0])
        assert torch.equal(gradient, results[0][1])


@pytest.mark.parametrize("block", [1, 700, 5000])
def test_blocks_change_no_bit(block: int, monkeypatch: pytest.MonkeyPatch):
    weight, upstream = torch.randn(17, 700), torch.randn(17, 700)
    whole = both(weight, "authors", upstream)[:2]
    monkeypatch.setattr(torch_rows, "_BLOCK", block)
    assert all(map(torch.equal, both(weight, "authors", upstream)[:2], whole))


def test_transforms_and_compilers_see_the_formula():
    weight, upstream = torch.randn(2, 4, 9, dtype=torch.float64), torch.randn(4, 9).double()

    def loss(w: torch.Tensor) -> torch.Tensor:
        return (standardize_weight(w) * upstream).sum()

    each = torch.func.vmap(torch.func.grad(loss))(weight)
    torch.testing.assert_close(each[0], both(weight[0], "authors", upstream)[1])
    leaf = weight[0].clone().requires_grad_()
    torch.compile(loss, backend="aot_eager", fullgraph=True)(leaf).backward()
    torch.testing.assert_close(leaf.grad, each[0])
    _, tangent = torch.func.jvp(loss, (weight[0],), (torch.ones_like(upstream),))
    assert tangent.abs() < 1e-12  # a shift changes nothing


def test_halves_always_use_the_plain_form():
    for variant in WS_VARIANTS:
        layer = WSConv2d(3, 4, 3, ws=variant)
        assert (standardize.recipe(layer.standardized_weight()) is None) == (variant not in WHOLE)


def test_layers_may_use_the_plain_form():
    layer = WSConv2d(3, 4, 3)
    assert standardize.recipe(layer.standardized_weight()) is not None
    layer.fused = False
    assert standardize.recipe(layer.standardized_weight()) is None
    transposed = WSConvTranspose2d(3, 4, 3)
    transposed.fused = False
    expected = as_rows(transposed.weight, 1)
    expected = DEFINITIONS["authors"](expected).view(4, 3, 3, 3).transpose(0, 1)
    torch.testing.assert_close(transposed.standardized_weight(), expected)


def test_the_recipe_gives_the_same_bits():
    weight = nn.Parameter(torch.randn(8, 6, 3, 3).to(memory_format=torch.channels_last))
    result = standardize_weight(weight)
    again = standardize.recipe(result)()
    assert torch.equal(again, result)
    assert again.stride() == result.stride()
    assert standardize.recipe(F.relu(result)) is None
    assert standardize.recipe(weight) is None


@pytest.mark.gpu
@pytest.mark.parametrize("variant", WHOLE)
def test_kernel_equals_formula_on_a_gpu(variant: str):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    weight, upstream = torch.randn(2, 6, 5, 3, 3, dtype=torch.float64).cuda()
    weight[1] = 0.1
    result, gradient, expected, slope = both(weight, variant, upstream)
    assert (result[1] == 0).all()
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)
    size = float(slope.abs().max())
    torch.testing.assert_close(gradient, slope, rtol=1e-12, atol=1e-12 * max(size, 1.0))

"""EdgeConv without edges against the plain form, in float64, on inputs that are new every time."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from harness import compiled
from harness.chunk import resolve_chunk
from harness.identity import run_id
from harness.norm.batch_free import FilterResponseNorm
from harness.norm.layers import ChannelAffine, FrozenBatchNorm, InterleavedGroupNorm
from harness.norm.virtual import virtualise
from harness.norm.weight_standardization import WSConv2d
from harness.norm.window import standardised_once
from harness.registry import task_info
from harness.worker import build_model
from tasks.pointcloud import edge_conv, edge_ops
from tasks.pointcloud.edge_conv import why_plain
from tasks.pointcloud.graph import nearest
from tasks.pointcloud.model import normed
from tasks.pointcloud.task import PointcloudTask
from tests.pointcloud.conftest import cloud_spec, cloud_task

NEEDS_NUMBA = pytest.mark.skipif(not compiled.available(), reason="needs numba")
FORMS = ["torch", pytest.param("numba", marks=NEEDS_NUMBA)]


@pytest.fixture(params=FORMS)
def form(request, monkeypatch):
    """Run with torch's own operations, and with the compiled ones."""
    if request.param == "torch":
        monkeypatch.setattr(compiled, "available", lambda: False)
    return request.param


def _virtual(channels: int) -> nn.Module:
    holder = nn.Sequential(nn.BatchNorm2d(channels))
    virtualise(holder, 2)
    return holder[0]


def _trained(norm: nn.Module) -> nn.Module:
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    return norm.eval()


NORMS = {
    "bn": nn.BatchNorm2d,
    "bn, cumulative": lambda c: nn.BatchNorm2d(c, momentum=None),
    "bn, evaluating": lambda c: _trained(nn.BatchNorm2d(c)),
    "bn, untracked": lambda c: nn.BatchNorm2d(c, track_running_stats=False),
    "bn, micro-batches": _virtual,
    "gn": lambda c: nn.GroupNorm(2, c),
    "gn, interleaved": lambda c: InterleavedGroupNorm(2, c),
    "ln": lambda c: nn.GroupNorm(1, c),
    "in": lambda c: nn.InstanceNorm2d(c, affine=True),
    "bare in": nn.InstanceNorm2d,
    "frozen_bn": lambda c: _trained(FrozenBatchNorm(c)),
    "none": ChannelAffine,
}


def drawn_block(norm: str, inputs: int, out: int, *, ws: bool, bias: bool, slope: float):
    """Return a block with gammas of both signs, and zeros among them."""
    block = normed(nn.Conv2d(2 * inputs, out, 1, bias=bias), slope)
    block.norm = NORMS[norm](out)
    if ws:
        block.conv.__class__ = WSConv2d
    if block.norm.weight is not None:
        with torch.no_grad():
            block.norm.weight.normal_()[1] = 0
            block.norm.bias.normal_()
    return block.double()


def results(block: nn.Module, x: Tensor, neighbours: Tensor, grad: Tensor, **kwargs) -> dict:
    """Return outputs, every gradient and every running average of one forward and backward."""
    block, x = copy.deepcopy(block), x.clone().requires_grad_()
    out = edge_conv.edge_conv(block, x, neighbours, **kwargs)
    out.backward(grad.to(out.dtype))
    found = {"out": out.detach(), "dx": x.grad, **dict(block.named_buffers())}
    return found | {name: p.grad for name, p in block.named_parameters()}


def assert_same(found: dict, expected: dict, tolerance: float = 1e-10) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if value is None:
            assert found[name] is None
        else:
            torch.testing.assert_close(
                found[name], value, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n} {m}"
            )


@pytest.mark.parametrize("norm", NORMS)
@settings(deadline=None, max_examples=12)
@given(
    sizes=st.tuples(*(st.integers(*ends) for ends in ((2, 5), (1, 6), (1, 70), (2, 30)))),
    share=st.floats(0, 1),
    ws=st.booleans(),
    bias=st.booleans(),
    slope=st.sampled_from([0.0, 0.2, 1.0]),
    use_numba=st.booleans() if compiled.available() else st.just(False),
    seed=st.integers(0, 2**31),
)
def test_values_and_gradients_are_those_of_the_plain_form(
    norm, sizes, share, ws, bias, slope, use_numba, seed
):
    clouds, inputs, half, num = sizes
    k = 1 + round(share * (num - 1))
    torch.manual_seed(seed)
    block = drawn_block(norm, inputs, 2 * half, ws=ws, bias=bias, slope=slope)
    x = 3 + torch.randn(clouds, inputs, num, dtype=torch.float64)
    grad = torch.randn(clouds, 2 * half, num, dtype=torch.float64)
    neighbours = nearest(x, k)
    with pytest.MonkeyPatch.context() as patch:
        if not use_numba:
            patch.setattr(compiled, "available", lambda: False)
        found = results(block, x, neighbours, grad)
    assert not why_plain(block)
    assert_same(found, results(block, x, neighbours, grad, fused=False))


def test_the_gradient_of_a_tie_goes_to_the_first_neighbour(form):
    """Whole numbers are exact: duplicated points tie to the last bit in both forms."""
    torch.manual_seed(0)
    block = normed(nn.Conv2d(6, 8, 1, bias=False), 0.2).double()
    block.norm = nn.GroupNorm(2, 8).double()
    with torch.no_grad():
        block.conv.weight.copy_(torch.randint(-2, 3, block.conv.weight.shape))
        block.norm.weight.copy_(torch.tensor([1, -1, 0, 2, -2, 1, 0, -1]))
    x = torch.randint(-1, 2, (2, 3, 16)).double()
    x[:, :, 8:] = -x[:, :, :8]  # centred without rounding
    neighbours = torch.stack([torch.randperm(16)[:9] for _ in range(32)]).view(2, 16, 9)
    grad = torch.randn(2, 8, 16, dtype=torch.float64)
    ours = results(block, x, neighbours, grad)
    assert_same(ours, results(block, x, neighbours, grad, fused=False), 1e-12)
    # Ties there are: with the neighbours in reverse, other points get the gradient.
    reverse = results(block, x, neighbours.flip(2), grad)
    torch.testing.assert_close(reverse["out"], ours["out"])
    assert float((reverse["dx"] - ours["dx"]).abs().max()) > 0.1


def test_the_forms_of_other_devices_agree(monkeypatch):
    """On CUDA, sums walk a sorted list of edges; on a CPU the same code gives the same numbers."""
    torch.manual_seed(0)
    indices = torch.randint(0, 40, (40, 7))
    values, slot = torch.randn(40, 6), torch.randint(0, 7, (40, 6))
    expected = torch.zeros(40, 6).scatter_add_(0, indices.gather(1, slot), values)
    ends = edge_ops.Ends.of(indices)
    for most in (1, 10**6):
        monkeypatch.setattr(edge_ops, "_most", lambda values, most=most: most)
        torch.testing.assert_close(ends.sum_chosen(values, slot.to(torch.uint8)), expected)


def test_more_neighbours_than_a_byte_counts(form):
    torch.manual_seed(0)
    block = drawn_block("bn", 3, 4, ws=False, bias=False, slope=0.2)
    x = torch.randn(2, 3, 300, dtype=torch.float64)
    neighbours, grad = nearest(x, 290), torch.randn(2, 4, 300, dtype=torch.float64)
    found = results(block, x, neighbours, grad)
    assert_same(found, results(block, x, neighbours, grad, fused=False))


@pytest.mark.parametrize("offset", [0, 100])
def test_float32_is_as_near_to_float64_as_the_plain_form(form, offset):
    torch.manual_seed(0)
    block = drawn_block("gn", 3, 64, ws=True, bias=False, slope=0.2)
    x = offset + torch.randn(2, 3, 200)
    neighbours, grad = nearest(x, 20), torch.randn(2, 64, 200)
    exact = results(block, x.double(), neighbours, grad.double())["out"]
    single = copy.deepcopy(block).float()
    ours = results(single, x, neighbours, grad)["out"]
    plain = results(single, x, neighbours, grad, fused=False)["out"]
    error = float((plain - exact).abs().max())
    assert float((ours - exact).abs().max()) < max(4 * error, 1e-5)


@pytest.mark.parametrize("norm", ["bn", "gn"])
def test_autocast_leaves_the_statistics_in_float32(form, norm):
    torch.manual_seed(0)
    block = drawn_block(norm, 8, 16, ws=True, bias=True, slope=0.2).float()
    x, grad = torch.randn(2, 8, 50), torch.randn(2, 16, 50)
    neighbours = nearest(x, 5)
    expected = results(block, x, neighbours, grad)
    with torch.autocast("cpu", torch.bfloat16):
        found = results(block, x, neighbours, grad)
        narrow = results(block, x.bfloat16(), neighbours, grad)
    assert found["out"].dtype == torch.float32
    assert_same(found, expected, 0)
    torch.testing.assert_close(narrow["out"], expected["out"], rtol=0.05, atol=0.05)
    assert narrow["dx"].dtype == torch.bfloat16


@NEEDS_NUMBA
def test_threads_change_no_bit():
    torch.manual_seed(0)
    x, grad = torch.randn(3, 16, 100), torch.randn(3, 100, 200)
    p, q, neighbours = torch.randn(3, 100, 200), torch.randn(3, 100, 200), nearest(x, 9)
    constants = torch.randn(3, 3, 200)

    def everything() -> list[Tensor]:
        found = edge_ops.reduce_edges(p, q, neighbours)
        gradients, sums = edge_ops.activation_gradient(grad.clone(), q, found.best, 0.2)
        given = (p, q, neighbours, found, gradients, constants)
        return [nearest(x, 9), *found, sums, *edge_ops.scatter_edges(*given)]

    one = everything()
    for threads in (2, 3):
        torch.set_num_threads(threads)
        assert all(torch.equal(a, b) for a, b in zip(one, everything(), strict=True))
    assert all(torch.isfinite(value).all() for value in one)


def test_repeated_runs_give_the_same_bits(form):
    torch.manual_seed(0)
    block = drawn_block("bn", 3, 32, ws=True, bias=False, slope=0.0).float()
    x, grad = torch.randn(2, 3, 64), torch.randn(2, 32, 64)
    neighbours = nearest(x, 8)
    assert_same(results(block, x, neighbours, grad), results(block, x, neighbours, grad), 0)


def test_standardised_once_reaches_the_raw_weights(form):
    torch.manual_seed(0)
    block = drawn_block("gn", 3, 8, ws=True, bias=False, slope=0.2)
    x, grad = torch.randn(2, 3, 20, dtype=torch.float64), torch.randn(2, 8, 20).double()
    neighbours = nearest(x, 4)
    gradients = []
    for once in (True, False):
        own = copy.deepcopy(block)
        with standardised_once(own, enabled=once):
            for _ in range(3):
                edge_conv.edge_conv(own, x, neighbours).backward(grad)
        gradients.append(own.conv.weight.grad)
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


class Counted(nn.BatchNorm2d):
    """A norm of which nothing is known."""


@pytest.mark.parametrize(
    ("part", "module", "why"),
    [
        ("norm", FilterResponseNorm(8), "FilterResponseNorm needs more"),
        ("norm", Counted(8), "Counted needs more"),
        ("norm", nn.InstanceNorm2d(8, track_running_stats=True), "InstanceNorm2d needs more"),
        ("conv", nn.Conv2d(6, 8, 3, padding=1), "not 1x1"),
        ("conv", nn.Conv2d(6, 8, 1, groups=2), "not 1x1"),
        ("conv", type("Odd", (nn.Conv2d,), {})(6, 8, 1), "Odd computes"),
        ("act", nn.GELU(), "GELU does not keep"),
        ("act", nn.LeakyReLU(-0.1), "LeakyReLU does not keep"),
    ],
)
def test_what_is_not_known_to_fit_takes_the_plain_form(part, module, why, monkeypatch):
    block = normed(nn.Conv2d(6, 8, 1), 0.2)
    setattr(block, part, module)
    assert why in why_plain(block)
    monkeypatch.setattr(edge_conv, "_without_edges", None)
    x = torch.randn(2, 3, 12)
    out = edge_conv.edge_conv(block, x, nearest(x, 4))
    assert out.shape == (2, 8, 12)


def test_whoever_watches_a_module_sees_all_edges():
    block, seen = normed(nn.Conv2d(6, 8, 1), 0.2), []
    x = torch.randn(2, 3, 12)
    handle = block.norm.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0].shape))
    edge_conv.edge_conv(block, x, nearest(x, 4))
    handle.remove()
    edge_conv.edge_conv(block, x, nearest(x, 4))
    everywhere = nn.modules.module.register_module_forward_hook(
        lambda m, inputs, out: seen.append(out.shape) if m is block.conv else None
    )
    edge_conv.edge_conv(block, x, nearest(x, 4))
    everywhere.remove()
    assert seen == [(2, 8, 12, 4)] * 2


def test_one_value_per_statistic_is_refused_as_by_the_norm():
    block = normed(nn.Conv2d(6, 8, 1), 0.2)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        edge_conv.edge_conv(block, torch.randn(1, 3, 1), torch.zeros(1, 1, 1, dtype=torch.int64))


@pytest.mark.parametrize("index", [-1, 12])
def test_neighbours_that_do_not_exist_are_refused(index):
    block, x = normed(nn.Conv2d(6, 8, 1), 0.2), torch.randn(2, 3, 12)
    neighbours = nearest(x, 4)
    neighbours[1, 3, 2] = index
    with pytest.raises(IndexError, match="of 12 points"):
        edge_conv.edge_conv(block, x, neighbours)


def test_not_a_number_stays_one(form):
    block, x = normed(nn.Conv2d(6, 8, 1), 0.2), torch.randn(2, 3, 12)
    x[0, 0, 0] = torch.nan
    out = edge_conv.edge_conv(block, x, nearest(x, 4))
    assert bool(out.isnan().all())


def test_the_audit_says_how_each_edge_conv_is_executed():
    def told(*words: str) -> dict[str, str]:
        spec = cloud_spec("preset=smoke", *words)
        _, audit = build_model(PointcloudTask(spec, None), spec)
        return {row.path: row.why for row in audit if "edge" in row.path and row.role == "layer"}

    assert set(told("norm=gn_ws").values()) == {"without edges"}
    for why in told("norm=dyt_ws").values():
        assert why == "all edges (DynamicTanh needs more than means and variances)"
    assert set(told("exec.fused=false").values()) == {"all edges (exec.fused=false)"}
    assert told("model.name=dgcnn_tf")["transform.edge1.conv"] == "all edges (two in a row)"


def test_the_form_is_no_part_of_the_identity():
    words = ("preset=smoke", "norm=gn_ws")
    assert run_id(cloud_spec(*words)) == run_id(cloud_spec(*words, "exec.fused=false"))


@pytest.mark.parametrize("norm", ["bn", "gn_ws", "ln_ws", "dyt"])
@pytest.mark.parametrize("name", ["dgcnn", "dgcnn_tf"])
def test_a_training_step_is_the_plain_one(norm, name):
    """Through the task, its chunks and virtual micro-batches, on the graphs of the first step."""
    import numpy as np

    found = []
    for fused in ("true", "false"):
        spec = cloud_spec(
            "preset=smoke", f"norm={norm}", f"model.name={name}", "precision=fp64",
            "model.dropout=0", f"exec.fused={fused}", "norm.groups=4",
        )  # fmt: skip
        task = cloud_task(spec)
        model, _ = build_model(task, spec)
        model.double().train()
        if norm == "bn":
            virtualise(model, spec.batch.micro)
        rng = np.random.RandomState(0)
        size = resolve_chunk(spec, task_info("pointcloud"))
        batch = task.collate([task.train_data().sample(i, rng) for i in range(size)])
        task.loss(model, batch)["loss_ce"][0].backward()
        state = {n: p.grad for n, p in model.named_parameters()} | dict(model.named_buffers())
        found.append(state)
    assert_same(*found)

"""The networks: against a plain formula, torch-geometric, the published numbers and a trace."""

import math

import pytest
import torch
from torch import nn

from harness.registry import task_info
from harness.worker import build_model
from tasks.pointcloud.graph import nearest
from tasks.pointcloud.model import DGCNN, edge_conv, normed
from tasks.pointcloud.task import PointcloudTask
from tests.norm.oracle import traced_pairs
from tests.pointcloud import reference
from tests.pointcloud.conftest import cloud_spec, cloud_task

INFO = task_info("pointcloud")
PRESETS = ["paper", "paper_dgcnn", "mini", "smoke"]
NUM_NORMED = {"paper": 12, "paper_dgcnn": 7, "mini": 7, "smoke": 5}


def stock(*words: str) -> DGCNN:
    return PointcloudTask(cloud_spec(*words), None).build_model()


@pytest.mark.parametrize("preset", PRESETS)
def test_audit_equals_the_traced_oracle(preset: str) -> None:
    spec = cloud_spec(f"preset={preset}", "norm=bn_ws")
    _, audit = build_model(PointcloudTask(spec, None), spec)
    pairs, orphans = traced_pairs(stock(f"preset={preset}"), torch.randn(2, 32, 3))
    assert not orphans
    assert len(pairs) == NUM_NORMED[preset]
    layers = [row for row in audit if row.role == "layer"]
    assert {(row.path, row.paired_with) for row in layers if row.standardised} == pairs
    bare = {row.path for row in layers if not row.paired_with}
    assert bare == {"head.logits"} | ({"transform.matrix"} if preset == "paper" else set())


def test_the_published_sites_are_standardised_and_no_others() -> None:
    spec = cloud_spec("preset=paper")
    _, audit = build_model(PointcloudTask(spec, None), spec)
    standardised = [row.path.rpartition(".")[0] for row in audit if row.standardised]
    transform = ["edge1", "edge2", "embed", "fc1", "fc2"]
    assert standardised == [
        *(f"transform.{name}" for name in transform),
        *(f"edge.{number}" for number in range(4)),
        *("embed", "head.fc1", "head.fc2"),
    ]
    assert {row.ws for row in audit if row.standardised} == {"tf"}
    assert next(row.fan_in for row in audit if row.standardised) == 6


@pytest.mark.parametrize(
    ("preset", "parameters"),
    # The second is what its authors' model has; the third MINI's 72 thousand.
    [("paper", 1_836_081), ("paper_dgcnn", 1_809_576), ("mini", 71_888)],
)
def test_networks_have_the_published_number_of_parameters(preset: str, parameters: int) -> None:
    assert sum(p.numel() for p in stock(f"preset={preset}").parameters()) == parameters


@pytest.mark.parametrize("preset", ["paper", "paper_dgcnn"])
def test_logits_equal_the_plain_formula(preset: str) -> None:
    torch.manual_seed(3)
    small = ["model.k=4", "model.edge=[8,8,8,16]", "model.embedding=16", "model.head=[12,8]"]
    model = stock(f"preset={preset}", *small).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.add_(0.5 * torch.rand_like(buffer))
    weights = dict(model.state_dict())
    clouds = torch.randn(3, 24, 3, dtype=torch.float64)
    norm = reference.batch_norm_eval(weights, 1e-3 if preset == "paper" else 1e-5)
    with torch.no_grad():
        expected = [
            reference.logits(weights, cloud, 4, tf=preset == "paper", norm=norm) for cloud in clouds
        ]
        torch.testing.assert_close(model(clouds), torch.stack(expected))


def flat_edges(neighbours: torch.Tensor) -> torch.Tensor:
    """Return torch-geometric's edge_index (2, B * N * k), edges sorted by their target."""
    clouds, num, k = neighbours.shape
    offset = torch.arange(clouds)[:, None, None] * num
    target = torch.arange(clouds * num).repeat_interleave(k)
    return torch.stack([(neighbours + offset).flatten(), target])


class Rows(nn.Module):
    """A normed 1x1 convolution for flat edges (E, C), viewed as clouds before the norm."""

    def __init__(self, block: nn.Sequential, clouds: int) -> None:
        super().__init__()
        self.block, self.clouds = block, clouds

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        wide = rows.unflatten(0, (self.clouds, -1)).transpose(1, 2).unsqueeze(3)
        return self.block(wide).squeeze(3).transpose(1, 2).flatten(0, 1)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(16), nn.GroupNorm(4, 16)])
def test_edge_conv_is_torch_geometrics(norm: nn.Module) -> None:
    geometric = pytest.importorskip("torch_geometric.nn")
    torch.manual_seed(0)
    block = normed(nn.Conv2d(10, 16, 1), 0.2).double()
    block.norm = norm.double()
    x = torch.randn(3, 5, 20, dtype=torch.float64)
    neighbours = nearest(x, 6)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    convolution = geometric.EdgeConv(Rows(block, 3))  # draws the weights of the block anew
    ours = edge_conv(block, inputs[0], neighbours)
    rows = inputs[1].transpose(1, 2).flatten(0, 1)
    theirs = convolution(rows, flat_edges(neighbours))
    theirs = theirs.unflatten(0, (3, 20)).transpose(1, 2)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    for out in (ours, theirs):
        (out**2).sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-10, atol=1e-10)


def test_group_norm_over_flat_edges_is_another_norm() -> None:
    """The trap: (E, C) makes each edge a sample of its own."""
    torch.manual_seed(0)
    norm, y = nn.GroupNorm(4, 16).requires_grad_(False), torch.randn(2, 16, 20, 6)
    flat = norm(y.permute(0, 2, 3, 1).reshape(-1, 16)).view(2, 20, 6, 16).permute(0, 3, 1, 2)
    assert float((flat - norm(y)).abs().max()) > 0.5


def test_the_transform_starts_as_the_identity_and_turns_points_as_rows() -> None:
    model = stock("preset=paper").eval()
    x = torch.randn(2, 3, 30)
    torch.testing.assert_close(model.transform(x, nearest(x, 20)), x)
    turn = torch.tensor([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]])
    with torch.no_grad():
        model.transform.matrix.bias.copy_(turn.flatten())
    rows = x.transpose(1, 2) @ turn
    torch.testing.assert_close(model.transform(x, nearest(x, 20)), rows.transpose(1, 2))


def test_initial_weights_and_constants_are_the_recipes() -> None:
    torch.manual_seed(0)
    model = stock("preset=paper").requires_grad_(False)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            assert (module.eps, module.momentum) == (1e-3, 0.01)
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
            if module is model.transform.matrix:
                continue
            out, fan_in = module.weight.flatten(1).shape
            limit = math.sqrt(6 / (fan_in + out))
            assert 0.9 * limit < float(module.weight.abs().max()) <= limit
            assert not module.bias.any()
    torchs = stock("preset=paper_dgcnn")
    assert {m.eps for m in torchs.modules() if isinstance(m, nn.BatchNorm2d)} == {1e-5}
    biased = {
        path
        for path, m in torchs.named_modules()
        if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Linear) and m.bias is not None
    }
    assert biased == {"head.fc2.fc", "head.logits"}


@pytest.mark.parametrize("preset", PRESETS)
def test_planned_widths_are_those_of_the_built_model(preset: str) -> None:
    word = f"preset={preset}"
    norms = (m for m in stock(word).modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    assert set(INFO.norm_facts(cloud_spec(word)).widths) == {norm.num_features for norm in norms}


def test_planned_smallest_site_is_the_one_a_forward_meets() -> None:
    model, seen = stock("preset=paper").eval(), {}
    for path, module in model.named_modules():
        if path.endswith("norm"):
            module.register_forward_pre_hook(
                lambda m, inputs, path=path: seen.update({path: inputs[0][0, 0].numel()})
            )
    model(torch.randn(2, 24, 3))
    assert min(seen.values()) == INFO.norm_facts(cloud_spec("preset=paper")).min_values == 1
    flat = {path for path, values in seen.items() if values == 1}
    assert flat == {f"{part}.fc{i}.norm" for part in ("transform", "head") for i in (1, 2)}


RUNNABLE = ["bn", "bn_ws", "gn", "gn_ws", "ln", "frozen_bn", "none_ws"]


@pytest.mark.parametrize("norm", RUNNABLE)
def test_every_norm_keeps_the_parameter_names_and_gives_finite_losses(norm: str) -> None:
    import numpy as np

    spec = cloud_spec("preset=smoke", f"norm={norm}")
    task = cloud_task(spec)
    names = set(dict(task.build_model().named_parameters()))
    model, audit = build_model(task, spec)
    assert not names ^ set(dict(model.named_parameters())) or norm == "frozen_bn"
    assert audit.num_standardised == (5 if norm.endswith("_ws") else 0)
    rng = np.random.RandomState(0)
    batch = task.collate([task.train_data().sample(i, rng) for i in range(4)])
    total, count = task.loss(model.train(), batch)["loss_ce"]
    assert count == task.counts(batch)["loss_ce"] == 4
    assert bool(torch.isfinite(total))

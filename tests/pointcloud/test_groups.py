"""Group norm's groups, in runs of channels and interleaved, against a plain formula."""

import numpy as np
import pytest
import torch
from torch import nn

from harness.errors import UsageError
from harness.identity import run_id
from harness.norm.layers import EPS, InterleavedGroupNorm
from harness.worker import build_model
from tasks.pointcloud.task import PointcloudTask
from tests.pointcloud.conftest import cloud_spec


def plain(x: np.ndarray, groups: list[list[int]], gamma: np.ndarray, beta: np.ndarray):
    """Normalise each sample and group of channels by itself, number by number."""
    out = np.empty_like(x)
    for sample in range(len(x)):
        for channels in groups:
            values = x[sample, channels]
            centred = values - values.mean()
            out[sample, channels] = centred / np.sqrt((centred**2).mean() + EPS)
    shape = (1, -1, *(1,) * (x.ndim - 2))
    return out * gamma.reshape(shape) + beta.reshape(shape)


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("space", [(), (7,), (6, 5)])
def test_groups_are_those_of_the_plain_formula(space, interleaved):
    torch.manual_seed(0)
    channels, count = 12, 4
    cls = InterleavedGroupNorm if interleaved else nn.GroupNorm
    norm = cls(count, channels, eps=EPS).double().requires_grad_(False)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(3, channels, *space, dtype=torch.float64)
    each = channels // count
    groups = [
        [c for c in range(channels) if (c % count if interleaved else c // each) == g]
        for g in range(count)
    ]
    expected = plain(x.numpy(), groups, norm.weight.numpy(), norm.bias.numpy())
    np.testing.assert_allclose(norm(x).numpy(), expected, rtol=1e-12, atol=1e-12)


def test_interleaved_groups_are_other_groups_with_the_same_parameters():
    x = torch.randn(2, 12, 9)
    runs, interleaved = nn.GroupNorm(4, 12), InterleavedGroupNorm(4, 12)
    assert not torch.allclose(runs(x), interleaved(x), atol=0.01)
    assert runs.state_dict().keys() == interleaved.state_dict().keys()


def test_gradient_of_interleaved_groups():
    norm = InterleavedGroupNorm(3, 6).double()
    x = torch.randn(2, 6, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(norm, (x,))


def test_the_paper_interleaves_16_groups_and_the_choice_is_science():
    words = ("preset=smoke", "norm.groups=2")
    spec = cloud_spec("preset=paper", "norm=gn_ws")
    assert (spec.norm.groups, spec.norm.interleaved) == (16, True)
    model, audit = build_model(PointcloudTask(spec, None), spec)
    assert {row.why for row in audit if row.role == "site"} == {"groups interleaved"}
    norms = [m for m in model.modules() if isinstance(m, nn.GroupNorm)]
    assert len(norms) == 12
    assert all(isinstance(norm, InterleavedGroupNorm) for norm in norms)
    ids = {run_id(cloud_spec(*words, f"norm.interleaved={flag}")) for flag in ("true", "false")}
    assert len(ids) == 2
    assert run_id(cloud_spec(*words)) in ids
    both = {
        run_id(cloud_spec(*words, "norm=bn", f"norm.interleaved={flag}"))
        for flag in ("true", "false")
    }
    assert len(both) == 1


def test_a_norm_without_interleaved_groups_refuses_them():
    spec = cloud_spec("preset=smoke", "norm=evonorm_s0", "norm.groups=4", "norm.interleaved=true")
    with pytest.raises(UsageError, match="is for gn, evonorm_s0"):
        build_model(PointcloudTask(spec, None), spec)

"""Neighbours against a brute-force search that shares nothing with ours."""

import numpy as np
import pytest
import torch
from torch import Tensor

from tasks.pointcloud import graph
from tasks.pointcloud.graph import gather_neighbours, nearest


def brute(x: Tensor, k: int) -> np.ndarray:
    """Return sorted distances (B, N, k) of the nearest points, in float64."""
    points = x.double().transpose(1, 2).numpy()
    differences = points[:, :, None] - points[:, None]
    return np.sort(np.linalg.norm(differences, axis=3), axis=2)[:, :, :k]


def distances(x: Tensor, neighbours: Tensor) -> np.ndarray:
    others = gather_neighbours(x.double(), neighbours)
    return (others - x.double().unsqueeze(3)).norm(dim=1).numpy()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("channels", "num", "k"), [(3, 64, 8), (32, 50, 20), (3, 7, 7), (1, 9, 1)])
def test_neighbours_are_the_nearest_nearest_first(channels, num, k, dtype):
    x = torch.randn(3, channels, num, dtype=dtype)
    found = nearest(x, k)
    assert found.shape == (3, num, k)
    assert all(len(set(row.tolist())) == k for row in found.flatten(0, 1))
    np.testing.assert_allclose(distances(x, found), brute(x, k), atol=1e-5)


def test_a_point_is_its_own_first_neighbour():
    x = torch.randn(2, 3, 40, dtype=torch.float64)
    assert torch.equal(nearest(x, 5)[..., 0], torch.arange(40).expand(2, -1))


def test_far_from_the_origin_float32_finds_the_same_neighbours():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 64)
    assert np.array_equal(nearest(x + 100, 8), nearest((x + 100).double(), 8))


@pytest.mark.parametrize("most", [1, 70, 64 * 64, 3 * 64 * 64])
def test_the_limit_on_memory_changes_no_neighbour(most, monkeypatch):
    x = torch.randn(5, 3, 64)
    whole = nearest(x, 8)
    monkeypatch.setattr(graph, "_MOST", most)
    assert torch.equal(nearest(x, 8), whole)


def test_neighbours_do_not_depend_on_the_other_clouds():
    x = torch.randn(6, 16, 64)
    together = nearest(x, 8)
    assert all(torch.equal(nearest(x[i : i + 1], 8)[0], together[i]) for i in range(6))


def test_ties_fall_the_same_way_every_time():
    grid = torch.cartesian_prod(*[torch.arange(4.0)] * 3).T.expand(3, -1, -1)
    found = nearest(grid, 5)
    assert torch.equal(nearest(grid.clone(), 5), found)
    assert torch.equal(found[0], found[2])
    np.testing.assert_allclose(distances(grid, found), brute(grid, 5), atol=1e-5)


def test_as_many_duplicates_as_there_are_points_are_found():
    x = torch.randn(1, 3, 4).repeat(1, 1, 3)
    assert distances(x, nearest(x, 3)).max() < 1e-6


def test_half_precision_is_widened():
    x = torch.randn(1, 3, 64)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nearest(x, 8), nearest(x.clone(), 8))
    with torch.autocast("cpu", torch.bfloat16):
        inside = nearest(x, 8)
    assert torch.equal(inside, nearest(x, 8))

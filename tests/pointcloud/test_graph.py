"""Neighbours against a brute-force search that shares nothing with ours."""

import numpy as np
import pytest
import torch
from torch import Tensor

from harness import compiled
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


NEEDS_NUMBA = pytest.mark.skipif(not compiled.available(), reason="needs numba")


@pytest.fixture(params=["torch", pytest.param("numba", marks=NEEDS_NUMBA)], autouse=True)
def form(request, monkeypatch):
    """Search with torch's own operations, and with the compiled ones."""
    if request.param == "torch":
        monkeypatch.setattr(compiled, "available", lambda: False)


def grid(num: int) -> Tensor:
    """Return clouds (2, 3, num) of many equal distances, exact in float32 even when centred."""
    half = torch.randint(-2, 3, (2, 3, num // 2)).float()
    return torch.cat([half, -half], dim=2)


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
    monkeypatch.setitem(graph._MOST, "cpu", most)
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


@pytest.mark.parametrize(
    ("num", "k"), [(64, 8), (64, 64), (200, 20), (300, 129), (1024, 20), (2, 1)]
)
def test_of_equal_distances_the_lower_index_is_nearer(num, k):
    x = grid(num)
    found = nearest(x, k)
    points = x.transpose(1, 2)
    squares = (points.unsqueeze(2) - points.unsqueeze(1)).square().sum(3)
    assert torch.equal(found, squares.sort(dim=2, stable=True).indices[..., :k])


@pytest.mark.parametrize(("num", "k"), [(100, 7), (1024, 20), (1000, 40)])
def test_indices_are_those_of_brute_force(num, k):
    x = torch.randn(2, 5, num, dtype=torch.float64)
    points = x.transpose(1, 2)
    squares = (points.unsqueeze(2) - points.unsqueeze(1)).square().sum(3)
    assert torch.equal(nearest(x, k), squares.argsort(dim=2)[..., :k])


def test_what_is_not_a_number_has_legal_neighbours():
    x = torch.randn(2, 3, 50)
    x[0, 1, 7] = torch.nan
    found = nearest(x, 9)
    assert 0 <= int(found.min()) <= int(found.max()) < 50
    assert torch.equal(found[1], nearest(x[1:], 9)[0])


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

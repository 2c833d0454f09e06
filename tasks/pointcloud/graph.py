"""The graph of nearest neighbours, exact and dense, which DGCNN builds anew before each layer."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.norm.layers import widened

_MOST = 2**22
"""Distances in memory at once: 16 MiB in float32, a whole cloud of 2,048 points."""


@torch.no_grad()
def nearest(x: Tensor, k: int) -> Tensor:
    """Find the ``k`` nearest points of each point within its cloud, itself included.

    Distances are Euclidean, in float32 or wider whatever the autocast, from coordinates centred on
    the cloud (their squares would otherwise cancel badly). Where several points are equally far,
    ``topk`` chooses: the same on every run of a machine.

    Args:
        x: coordinates or features, (B, C, N).
        k: neighbours, at most N.

    Returns:
        Indices of points, (B, N, k), nearest first.
    """
    points = widened(x).transpose(1, 2)  # (B, N, C)
    points = points - points.mean(1, keepdim=True)
    num_points = points.shape[1]
    clouds = max(1, _MOST // num_points**2)
    rows = max(1, _MOST // num_points)
    with torch.autocast(x.device.type, enabled=False):
        return torch.cat(
            [
                torch.cat([_rows(row, some, k) for row in some.split(rows, dim=1)], dim=1)
                for some in points.split(clouds)
            ]
        )


def _rows(queries: Tensor, points: Tensor, k: int) -> Tensor:
    """Return (B, R, k) of queries (B, R, C) among points (B, N, C)."""
    # |q - p|^2 without |q|^2, which is the same for all of a query's candidates.
    squares = points.square().sum(2).unsqueeze(1)
    closeness = torch.baddbmm(squares, queries, points.transpose(1, 2), alpha=-2)
    return closeness.topk(k, dim=2, largest=False).indices


def gather_neighbours(x: Tensor, neighbours: Tensor) -> Tensor:
    """Return the features of each point's neighbours.

    Args:
        x: features, (B, C, N).
        neighbours: indices of points, (B, N, k).

    Returns:
        (B, C, N, k).
    """
    flat = neighbours.flatten(1).unsqueeze(1).expand(-1, x.shape[1], -1)
    num_points, k = neighbours.shape[1:]
    return x.gather(2, flat).view(*x.shape[:2], num_points, k)

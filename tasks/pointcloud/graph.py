"""The graph of nearest neighbours, exact and dense, which DGCNN builds anew before each layer."""

from __future__ import annotations

import torch
from torch import Tensor

from harness import compiled
from harness.norm.layers import widened

_MOST = {"cpu": 2**17, "cuda": 2**25}
"""Distances in memory at once: 512 KiB in float32 never leave a core's L2 cache."""
_MOST_COMPILED = 128
"""Neighbours up to which the compiled selection, which inserts one by one, is the faster one."""


@torch.no_grad()
def nearest(x: Tensor, k: int) -> Tensor:
    """Find the ``k`` nearest points of each point within its cloud, itself included.

    Distances are Euclidean, in float32 or wider whatever the autocast, from coordinates centred on
    the cloud (their squares would otherwise cancel badly). Of points at equal distances those of
    lower index are nearer.

    Args:
        x: coordinates or features, (B, C, N).
        k: neighbours, at most N.

    Returns:
        Indices of points, (B, N, k), nearest first.
    """
    points = widened(x).transpose(1, 2)  # (B, N, C)
    points = points - points.mean(1, keepdim=True)
    num_clouds, num_points, _ = points.shape
    most = _MOST.get(x.device.type, _MOST["cuda"])
    clouds = max(1, most // num_points**2)
    rows = max(1, min(num_points, most // num_points))
    found = torch.empty(num_clouds, num_points, k, dtype=torch.int64, device=x.device)
    memory = points.new_empty(min(clouds, num_clouds) * rows * num_points)
    with torch.autocast(x.device.type, enabled=False):
        for some, to in zip(points.split(clouds), found.split(clouds), strict=True):
            # |q - p|^2 without |q|^2, which is the same for all of a query's candidates.
            squares = some.square().sum(2).unsqueeze(1)
            for queries, out in zip(some.split(rows, 1), to.split(rows, 1), strict=True):
                shape = (*queries.shape[:2], num_points)
                closeness = memory[: shape[0] * shape[1] * shape[2]].view(shape)
                torch.baddbmm(squares, queries, some.transpose(1, 2), alpha=-2, out=closeness)
                out.copy_(_smallest(closeness.flatten(0, 1), k).view_as(out))
    return found


def _smallest(values: Tensor, k: int) -> Tensor:
    """Return the columns of the k smallest of each row, ascending, of equal ones the first."""
    num = values.shape[1]
    if compiled.applies(values) and k <= _MOST_COMPILED:
        from tasks.pointcloud import kernels

        columns = torch.empty(len(values), k, dtype=torch.int64)
        # At least 3 k blocks, in vectors of 16, leave few values of blocks without a small one.
        blocks = min(num, -(-3 * k // 16) * 16)
        compiled.run(kernels.smallest, len(values), values, blocks, columns)
        return columns
    top, columns = values.topk(min(k + 1, num), dim=1, largest=False)
    # topk takes any of equal values, and the one after the last may be among them.
    tied = (top[:, 1:] == top[:, :-1]).any(1).nonzero().flatten()
    columns = columns[:, :k]
    if len(tied):
        columns[tied] = values[tied].sort(dim=1, stable=True).indices[:, :k]
    return columns


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

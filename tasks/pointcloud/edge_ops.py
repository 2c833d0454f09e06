"""Reductions over the edges of a graph, ``u_ij = p_j + q_i``, from tensors of points alone.

No tensor of all edges exists at any time. On CPUs with numba the loops are compiled; elsewhere they
are torch's own operations over as many points as fit a cache (CPU) or a fixed memory (CUDA). None
of them adds in an order that could change: on CUDA, sums over the edges that end at a point walk a
sorted list of them, where ``index_add`` would use atomics.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from harness import compiled

_MOST = {"cpu": 2**17, "cuda": 2**25}
"""Numbers in an intermediate tensor of edges: 512 KiB in float32 never leave a core's L2 cache."""


class Reduced(NamedTuple):
    """What is kept of all edges."""

    best: Tensor
    """The largest u of each point and channel, (B, N, O)."""
    slot: Tensor
    """The first of the k neighbours that has it, (B, N, O), uint8 if k allows."""
    rows: Tensor
    """Sum of u over a point's neighbours, (B, N, O)."""
    sums: Tensor
    """Sums of u and of its square over all of a cloud's edges, (2, B, O), float64."""


def reduce_edges(p: Tensor, q: Tensor, neighbours: Tensor) -> Reduced:
    """Reduce ``p_j + q_i`` over the neighbours j of each point i.

    Args:
        p: of the neighbour, (B, N, O), contiguous.
        q: of the point itself, (B, N, O), contiguous.
        neighbours: (B, N, k), contiguous.
    """
    k = neighbours.shape[2]
    kind = torch.uint8 if k <= 255 else torch.int32
    if not compiled.applies(p):
        return _reduce_stock(p, q, neighbours, kind)
    from tasks.pointcloud import kernels

    slot = torch.empty(p.shape, dtype=kind)
    sums = p.new_empty(2, p.shape[0], p.shape[2], dtype=torch.float64)
    out = Reduced(torch.empty_like(p), slot, torch.empty_like(p), sums)
    compiled.run(kernels.gather, kernels.num_tasks(p), p, q, neighbours, *out)
    return out


def _reduce_stock(p: Tensor, q: Tensor, neighbours: Tensor, kind: torch.dtype) -> Reduced:
    (clouds, num, channels), k = p.shape, neighbours.shape[2]
    # In reverse, so that the first of equal neighbours is the one of the largest number.
    points, indices = p.view(-1, channels), flat(neighbours.flip(2))
    best, slot = torch.empty_like(points), torch.empty(points.shape, dtype=kind, device=p.device)
    numbers = torch.arange(k, dtype=p.dtype, device=p.device).view(1, k, 1)
    each = max(1, _most(p) // (k * channels))
    for start in range(0, clouds * num, each):
        some = indices[start : start + each]
        values = points.index_select(0, some.flatten()).view(-1, k, channels)
        high = torch.amax(values, 1, out=best[start : start + each])
        # torch's maximum with indices takes ten times as long on CPUs, and a comparison whose
        # result is boolean four times as long as one in place.
        values.eq_(high.unsqueeze(1)).mul_(numbers)
        slot[start : start + each] = values.amax(1)
    best = best.view_as(p).add_(q)
    starts = torch.arange(0, indices.numel(), k, device=p.device)
    near = functional.embedding_bag(indices.flatten(), points, starts, mode="sum").view_as(p)
    rows = torch.add(near, q, alpha=k)
    # u^2 = p^2 + q (2 p + q), the first summed by points and their in-degrees.
    degree = torch.bincount(indices.flatten(), minlength=clouds * num).view(clouds, 1, num)
    squares = (degree.to(p.dtype) @ p.square()).squeeze(1) + near.add_(rows).mul_(q).sum(1)
    slot = slot.neg_().add_(k - 1).view(p.shape)  # uint8 wraps and comes back
    return Reduced(best, slot, rows, torch.stack([rows.sum(1), squares]).double())


def activation_gradient(
    grad: Tensor, out: Tensor, best: Tensor, slope: float
) -> tuple[Tensor, Tensor]:
    """Return the gradient of z for ``out = act(z)``, and its sums.

    Args:
        grad: of out, (B, N, O), contiguous; may be changed.
        out: (B, N, O).
        best: (B, N, O).
        slope: of the activation where z is not positive.

    Returns:
        The gradient, (B, N, O), and the sums of it and of its product with ``best`` over the
        points, (2, B, O), float64.
    """
    if not compiled.applies(grad):
        grad = torch.ops.aten.leaky_relu_backward(grad, out, slope, True)
        return grad, torch.stack([grad.sum(1), (grad * best).sum(1)]).double()
    from tasks.pointcloud import kernels

    sums = grad.new_empty(2, grad.shape[0], grad.shape[2], dtype=torch.float64)
    tasks = kernels.num_tasks(grad)
    compiled.run(kernels.activation_gradient, tasks, grad, out, best, slope, sums)
    return grad, sums


def scatter_edges(
    p: Tensor, q: Tensor, neighbours: Tensor, reduced: Reduced, grad: Tensor, constants: Tensor
) -> tuple[Tensor, Tensor]:
    """Sum ``du_ij = a g_i [j is i's slot] - c0 - c1 u_ij`` over the edges of each point.

    Args:
        p: as for ``reduce_edges``.
        q: as for ``reduce_edges``.
        neighbours: as for ``reduce_edges``.
        reduced: what that returned.
        grad: the g, (B, N, O), contiguous; changed.
        constants: the a, c0 and c1, (3, B, O), of the type of ``p``.

    Returns:
        The gradient of p, sums over the points i that have j as a neighbour, and of q, sums over
        the neighbours j of i; both (B, N, O).
    """
    if compiled.applies(p):
        from tasks.pointcloud import kernels

        dp = torch.empty_like(p)
        given = (p, q, neighbours, reduced.slot, reduced.rows, constants, dp, grad)
        compiled.run(kernels.scatter, kernels.num_tasks(p), *given)
        return dp, grad
    a, c0, c1 = constants.unsqueeze(2)
    indices = flat(neighbours)
    ends = Ends.of(indices)
    top = grad.mul_(a)
    dq = torch.addcmul(top, c1, reduced.rows, value=-1).sub_(indices.shape[1] * c0)
    dp = ends.sum(torch.addcmul(-c0, c1, q, value=-1).flatten(0, 1)).view_as(p)
    dp.addcmul_(p * ends.degree.view(*p.shape[:2], 1), c1, value=-1)
    top, slot = top.flatten(0, 1), reduced.slot.flatten(0, 1)
    if p.device.type != "cpu":
        return dp.add_(ends.sum_chosen(top, slot).view_as(p)), dq
    each = max(1, _most(p) // p.shape[2])
    for some, value, number in zip(*(x.split(each) for x in (indices, top, slot)), strict=True):
        dp.view(-1, p.shape[2]).scatter_add_(0, some.gather(1, number.long()), value)
    return dp, dq


class Ends(NamedTuple):
    """The edges sorted by the point they end at."""

    starts: Tensor
    """Of each edge, the point it starts at, (E,)."""
    order: Tensor
    """Of each edge, its number where edges are sorted by the point they start at, (E,)."""
    degree: Tensor
    """Of each point, the edges that end there, (P,)."""
    offsets: Tensor
    """Of each point, its first edge, (P,)."""

    @classmethod
    def of(cls, indices: Tensor) -> Ends:
        """Sort the edges that end at the points ``indices``, (P, k)."""
        num, k = indices.shape
        order = indices.flatten().int().sort(stable=True).indices
        degree = torch.bincount(indices.flatten(), minlength=num)
        own = torch.arange(num, device=indices.device).unsqueeze(1).expand(-1, k)
        return cls(own.flatten()[order], order, degree, degree.cumsum(0) - degree)

    def sum(self, values: Tensor) -> Tensor:
        """Sum the values (P, O) of the starts over the edges of each end."""
        return functional.embedding_bag(self.starts, values, self.offsets, mode="sum")

    def sum_chosen(self, values: Tensor, slot: Tensor) -> Tensor:
        """Sum as ``sum``, but only over the edges numbered ``slot`` (P, O) at their start."""
        edges = torch.arange(len(self.starts), device=values.device)
        chosen = (self.order % (len(edges) // len(values))).unsqueeze(1)
        width = max(1, _most(values) // len(edges))
        parts = [
            functional.embedding_bag(
                edges, some[self.starts] * (which[self.starts] == chosen), self.offsets, mode="sum"
            )
            for some, which in zip(values.split(width, 1), slot.split(width, 1), strict=True)
        ]
        return torch.cat(parts, dim=1)


def flat(neighbours: Tensor) -> Tensor:
    """Number the points of all clouds together: (B, N, k) to (B * N, k)."""
    clouds, num, _ = neighbours.shape
    first = torch.arange(0, clouds * num, num, device=neighbours.device).view(-1, 1, 1)
    return (neighbours + first).flatten(0, 1)


def _most(values: Tensor) -> int:
    return _MOST.get(values.device.type, _MOST["cuda"])

"""Loops that torch has no operation for, compiled by numba at their first use and then cached.

Import this module only where numba is installed (``harness.compiled``). Each kernel works
on a range of independent tasks, in an order that is always the same, and no task writes where
another one reads: the results have the same bits for any number of threads. The innermost loops run
over channels, for the compiler to vectorise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from harness import compiled

Array = NDArray[Any]
_P = ParamSpec("_P")
_R = TypeVar("_R")

BLOCK = 128
"""Channels of a task: their rows fill whole cache lines, and their accumulators stay in L1."""

# Contraction to fused multiply-adds changes a rounding, never an order.
_FAST = {"contract", "nsz"}


def _kernel(function: Callable[_P, _R]) -> Callable[_P, _R]:
    return compiled.jit(function, _FAST)


def _inlined(function: Callable[_P, _R]) -> Callable[_P, _R]:
    # A call for each neighbour would cost as much as the loop inside.
    return compiled.jit(function, _FAST, inline="always")


def num_tasks(points: Tensor) -> int:
    """Return in how many tasks the points (B, N, O) are worked on: blocks of channels."""
    clouds, _, channels = points.shape
    return clouds * -(-channels // BLOCK)


@_kernel
def _insert(value: float, column: int, top: Array, place: Array, held: int) -> int:
    """Insert into the ascending ``top``, of which ``held`` are filled; of equals, lower first.

    Returns:
        How many are filled now.
    """
    at, size = held, len(top)
    if held == size:
        at = size - 1
        if value > top[at] or (value == top[at] and column > place[at]):
            return held
    else:
        held += 1
    while at > 0 and (top[at - 1] > value or (top[at - 1] == value and place[at - 1] > column)):
        top[at] = top[at - 1]
        place[at] = place[at - 1]
        at -= 1
    top[at] = value
    place[at] = column
    return held


@_kernel
def smallest(values: Array, blocks: int, out: Array, first: int, last: int) -> None:
    """Find the k smallest of each row, ascending, of equal ones those of lower index.

    Column c belongs to block ``c mod blocks``. At least k blocks have a minimum up to the k-th
    smallest minimum, so that the k smallest values are up to it as well: of the other blocks
    nothing is looked at again.

    Args:
        values: (R, M).
        blocks: from k to M.
        out: (R, k), written: indices of columns; those of a row with NaN are legal ones.
        first: first row.
        last: behind the last row.
    """
    num, k = values.shape[1], out.shape[1]
    low = np.empty(blocks, values.dtype)
    top = np.empty(k, values.dtype)
    place = np.empty(k, np.int64)
    for r in range(first, last):
        row = values[r]
        for c in range(blocks):
            low[c] = row[c]
        for start in range(blocks, num, blocks):
            part = row[start : min(start + blocks, num)]
            for c in range(len(part)):
                low[c] = part[c] if part[c] < low[c] else low[c]
        held = 0
        for c in range(blocks):
            held = _insert(low[c], c, top, place, held)
        bound = top[k - 1]
        held = 0
        for c in range(blocks):
            if low[c] <= bound:
                for column in range(c, num, blocks):
                    if row[column] <= bound:
                        held = _insert(row[column], column, top, place, held)
        for s in range(k):
            out[r, s] = place[s] if s < held else s


@_inlined
def _visit_four(
    p0: Array, p1: Array, p2: Array, p3: Array, own: Array, s: int, to: tuple[Array, ...]
) -> None:
    """Let four neighbours, from slot ``s``, enter the accumulators of ``gather``."""
    high, where, total, square = to
    for o in range(len(own)):
        v0, v1, v2, v3 = p0[o], p1[o], p2[o], p3[o]
        u0, u1, u2, u3 = v0 + own[o], v1 + own[o], v2 + own[o], v3 + own[o]
        total[o] += (u0 + u1) + (u2 + u3)
        square[o] += (u0 * u0 + u1 * u1) + (u2 * u2 + u3 * u3)
        top, at = high[o], where[o]
        at = s if v0 > top else at
        top = v0 if v0 > top else top
        at = s + 1 if v1 > top else at
        top = v1 if v1 > top else top
        at = s + 2 if v2 > top else at
        top = v2 if v2 > top else top
        at = s + 3 if v3 > top else at
        top = v3 if v3 > top else top
        high[o], where[o] = top, at


@_inlined
def _visit(p0: Array, own: Array, s: int, to: tuple[Array, ...]) -> None:
    """Let one neighbour enter the accumulators of ``gather``."""
    high, where, total, square = to
    for o in range(len(own)):
        u0, top = p0[o] + own[o], high[o]
        total[o] += u0
        square[o] += u0 * u0
        where[o] = s if p0[o] > top else where[o]
        high[o] = p0[o] if p0[o] > top else top


@_kernel
def gather(
    p: Array,
    q: Array,
    neighbours: Array,
    best: Array,
    slot: Array,
    rows: Array,
    sums: Array,
    first: int,
    last: int,
) -> None:
    """Reduce ``u = p_j + q_i`` over the neighbours j of each point i: maximum, sum, squares.

    Args:
        p: (B, N, O).
        q: (B, N, O).
        neighbours: (B, N, k).
        best: (B, N, O), written: the maximum.
        slot: (B, N, O), written: the first neighbour that has it, from 0 to k - 1.
        rows: (B, N, O), written: the sum over the neighbours.
        sums: (2, B, O) float64, written: sums of u and of its square over all edges.
        first: first task, a block of channels of a cloud.
        last: behind the last task.
    """
    (_, num, channels), k = p.shape, neighbours.shape[2]
    blocks = (channels + BLOCK - 1) // BLOCK
    for task in range(first, last):
        b, start = task // blocks, task % blocks * BLOCK
        stop = min(start + BLOCK, channels)
        high, where = np.empty(stop - start, p.dtype), np.empty(stop - start, np.int32)
        total, square = np.empty(stop - start, p.dtype), np.empty(stop - start, p.dtype)
        totals, squares = sums[0, b, start:stop], sums[1, b, start:stop]
        totals[:] = 0
        squares[:] = 0
        for i in range(num):
            own, near = q[b, i, start:stop], neighbours[b, i]
            for o in range(stop - start):
                high[o], where[o], total[o], square[o] = -np.inf, 0, 0, 0
            for s in range(0, k - 3, 4):  # four neighbours for one visit to the accumulators
                p0, p1 = p[b, near[s], start:stop], p[b, near[s + 1], start:stop]
                p2, p3 = p[b, near[s + 2], start:stop], p[b, near[s + 3], start:stop]
                _visit_four(p0, p1, p2, p3, own, s, (high, where, total, square))
            for s in range(k // 4 * 4, k):
                _visit(p[b, near[s], start:stop], own, s, (high, where, total, square))
            highest, slots = best[b, i, start:stop], slot[b, i, start:stop]
            row = rows[b, i, start:stop]
            for o in range(stop - start):
                highest[o] = high[o] + own[o]
                slots[o] = where[o]
                row[o] = total[o]
                totals[o] += total[o]
                squares[o] += square[o]


@_kernel
def activation_gradient(
    grad: Array, out: Array, best: Array, slope: float, sums: Array, first: int, last: int
) -> None:
    """Turn the gradient of ``out = act(z)`` into that of z, in place, and sum it up.

    Args:
        grad: (B, N, O), changed.
        out: (B, N, O).
        best: (B, N, O).
        slope: of the activation where z is not positive.
        sums: (2, B, O) float64, written: sums of the gradient and of its product with ``best``.
        first: first task, a block of channels of a cloud.
        last: behind the last task.
    """
    num, channels = grad.shape[1:]
    blocks = (channels + BLOCK - 1) // BLOCK
    below = grad.dtype.type(slope)
    for task in range(first, last):
        b, start = task // blocks, task % blocks * BLOCK
        stop = min(start + BLOCK, channels)
        totals, products = sums[0, b, start:stop], sums[1, b, start:stop]
        totals[:] = 0
        products[:] = 0
        for i in range(num):
            g, y, u = grad[b, i, start:stop], out[b, i, start:stop], best[b, i, start:stop]
            for o in range(stop - start):
                value = g[o] if y[o] > 0 else g[o] * below
                g[o] = value
                totals[o] += value
                products[o] += value * u[o]


@_kernel
def _sort_by_end(neighbours: Array, first: Array, start: Array) -> None:
    """Sort the edges of a cloud by the point they end at, by counting.

    Args:
        neighbours: (N, k).
        first: (N + 1,), written: of each point, its first edge; at last the number of edges.
        start: (N * k,), written: of each edge, the point it starts at.
    """
    num, k = neighbours.shape
    first[:] = 0
    for i in range(num):
        for s in range(k):
            first[neighbours[i, s] + 1] += 1
    for j in range(num):
        first[j + 1] += first[j]
    for i in range(num):
        for s in range(k):
            start[first[neighbours[i, s]]] = i
            first[neighbours[i, s]] += 1
    for j in range(num, 0, -1):  # each now stands where the next one began
        first[j] = first[j - 1]
    first[0] = 0


@_inlined
def _add_rows(rows: Array, which: Array, start: int, stop: int, total: Array) -> None:
    """Add up some rows of (N, O), between two channels."""
    total[:] = 0
    fours = len(which) // 4 * 4
    for e in range(0, fours, 4):
        r0, r1 = rows[which[e], start:stop], rows[which[e + 1], start:stop]
        r2, r3 = rows[which[e + 2], start:stop], rows[which[e + 3], start:stop]
        for o in range(stop - start):
            total[o] += (r0[o] + r1[o]) + (r2[o] + r3[o])
    for e in range(fours, len(which)):
        r0 = rows[which[e], start:stop]
        for o in range(stop - start):
            total[o] += r0[o]


@_kernel
def scatter(
    p: Array,
    q: Array,
    neighbours: Array,
    slot: Array,
    rows: Array,
    constants: Array,
    dp: Array,
    dq: Array,
    first: int,
    last: int,
) -> None:
    """Sum ``du_ij = a g_i [j is i's slot] - c0 - c1 (p_j + q_i)`` over i and over j.

    Args:
        p: (B, N, O).
        q: (B, N, O).
        neighbours: (B, N, k).
        slot: (B, N, O), from 0 to k - 1.
        rows: (B, N, O), the sums of p_j + q_i over the neighbours of i.
        constants: (3, B, O), the a, c0 and c1.
        dp: (B, N, O), written: for each j the sum over those whose neighbour it is.
        dq: (B, N, O), the g; written: for each i the sum over its neighbours.
        first: first task, a block of channels of a cloud.
        last: behind the last task.
    """
    (_, num, channels), k = p.shape, neighbours.shape[2]
    blocks = (channels + BLOCK - 1) // BLOCK
    begin, ending = np.empty(num + 1, np.int64), np.empty(num * k, np.int64)
    edges = p.dtype.type(k)
    for task in range(first, last):
        b, start = task // blocks, task % blocks * BLOCK
        stop = min(start + BLOCK, channels)
        near, total = neighbours[b], np.empty(stop - start, p.dtype)
        a, c0 = constants[0, b, start:stop], constants[1, b, start:stop]
        c1 = constants[2, b, start:stop]
        _sort_by_end(near, begin, ending)
        for j in range(num):
            to, of = dp[b, j, start:stop], p[b, j, start:stop]
            _add_rows(q[b], ending[begin[j] : begin[j + 1]], start, stop, total)
            times = p.dtype.type(begin[j + 1] - begin[j])
            for o in range(stop - start):
                to[o] = -(times * (c0[o] + c1[o] * of[o]) + c1[o] * total[o])
        for i in range(num):
            slots, row = slot[b, i, start:stop], rows[b, i, start:stop]
            mine = dq[b, i, start:stop]
            for o in range(stop - start):
                total[o] = a[o] * mine[o]
                mine[o] = total[o] - edges * c0[o] - c1[o] * row[o]
            for o in range(stop - start):
                dp[b, near[i, slots[o]], start + o] += total[o]

"""EdgeConv without the tensor of edges, exactly.

With ``W = [W1, W2]`` over ``[x_i, x_j - x_i]`` the convolution of an edge is ``p_j + q_i``, where
``p = W2 x`` and ``q = (W1 - W2) x + b`` are of points: 1/k of the work. A norm of the kind of
``tasks.pointcloud.edge_norms`` and a rising activation keep the order of a channel's values, or
reverse it where gamma is negative, so that the maximum over the neighbours is that of
``sign(gamma) p_j``. Of all edges only that maximum, where it is, and sums remain
(``tasks.pointcloud.edge_ops``); the gradients follow from the same sums.

Nothing is approximated. In float64 values and gradients equal the plain form's to 1e-10, the
gradient of a tie goes to the first of the equal neighbours as in ``torch.max``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from harness.norm.layers import widened
from harness.norm.weight_standardization import WSConv2d
from tasks.pointcloud import edge_ops
from tasks.pointcloud.edge_norms import Moments, moments, observe
from tasks.pointcloud.graph import gather_neighbours


def edges(x: Tensor, neighbours: Tensor) -> Tensor:
    """Return ``[x_i, x_j - x_i]`` for every point i and neighbour j.

    The PyTorch authors' order is ``[x_j - x_i, x_i]``: the same network with the columns of the
    convolution exchanged.

    Args:
        x: (B, C, N).
        neighbours: (B, N, k).

    Returns:
        (B, 2C, N, k).
    """
    others = gather_neighbours(x, neighbours)
    own = x.unsqueeze(3)
    return torch.cat([own.expand_as(others), others - own], dim=1)


def edge_conv(block: nn.Module, x: Tensor, neighbours: Tensor, *, fused: bool = True) -> Tensor:
    """Compute ``y_i = max_j act(norm(W [x_i, x_j - x_i] + b))`` over the neighbours j of point i.

    Everything that an EdgeConv is passes through here.

    Args:
        block: ``conv``, a 1x1 convolution from 2C to O channels, then ``norm``, then ``act``.
        x: (B, C, N).
        neighbours: (B, N, k).
        fused: whether to avoid the tensor of edges where that is possible. If anything watches or
            changes what the modules of ``block`` do, such as a hook, it is not.

    Returns:
        (B, O, N); in float32 under autocast to a narrower type.
    """
    found = None
    if fused and not why_plain(block) and not _watched(block):
        found = moments(block.get_submodule("norm"), len(x))
        if found is not None and found.average is not None and neighbours[0].numel() < 2:
            found = None  # one value per statistic: let the norm itself say so
    if found is None:
        out: Tensor = block(edges(x, neighbours)).max(3).values
        return out
    with torch.autocast(x.device.type, enabled=False):
        return _without_edges(block, found, widened(x), neighbours)


def why_plain(block: nn.Module) -> str:
    """Return why ``block`` needs the tensor of edges, from its modules alone; empty if not."""
    conv, norm, act = (block.get_submodule(name) for name in ("conv", "norm", "act"))
    if type(conv) not in (nn.Conv2d, WSConv2d):
        return f"{type(conv).__name__} computes its own way"
    assert isinstance(conv, nn.Conv2d)
    plain = (conv.kernel_size, conv.stride, conv.padding, conv.groups)
    if plain != ((1, 1), (1, 1), (0, 0), 1):
        return "the convolution is not 1x1"
    if moments(norm, 1) is None:
        return f"{type(norm).__name__} needs more than means and variances"
    if type(act) is nn.ReLU or (type(act) is nn.LeakyReLU and act.negative_slope >= 0):
        return ""
    return f"{type(act).__name__} does not keep the order"


def _watched(block: nn.Module) -> bool:
    """Return whether the calls of the modules, or torch's functions, have an observer."""
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return True
    if torch._C._len_torch_function_stack() or torch._C._len_torch_dispatch_stack():
        return True
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    own = any(getattr(module, name) for module in block.modules() for name in hooks)
    return own or any(getattr(nn.modules.module, f"_global{name}") for name in hooks)


class _Layer(NamedTuple):
    """What the function below needs beside tensors."""

    moments: Moments
    slope: float
    sign: Tensor
    """1 or -1, (O,): the arguments are those of ``sign y``."""


def _without_edges(block: nn.Module, found: Moments, x: Tensor, neighbours: Tensor) -> Tensor:
    conv, norm, act = (block.get_submodule(name) for name in ("conv", "norm", "act"))
    assert isinstance(conv, nn.Conv2d)
    weight = conv.forward_weight() if isinstance(conv, WSConv2d) else conv.weight
    own, other = weight.flatten(1).to(x.dtype).chunk(2, dim=1)
    gamma, beta = getattr(norm, "weight", None), getattr(norm, "bias", None)
    bias = x.new_zeros(len(own)) if conv.bias is None else conv.bias.to(x.dtype)
    gamma = x.new_ones(len(own)) if gamma is None else gamma.to(x.dtype)
    beta = x.new_zeros(len(own)) if beta is None else beta.to(x.dtype)
    if neighbours.device.type == "cpu":
        _refuse_strangers(neighbours, x.shape[2])
    slope = act.negative_slope if isinstance(act, nn.LeakyReLU) else 0.0
    # Channels of negative gamma are turned about, so that the norm never reverses an order.
    sign = 1.0 - 2.0 * (gamma.detach() < 0).to(x.dtype)
    column = sign.unsqueeze(1)
    out, mean, var = _EdgeConv.apply(
        x.transpose(1, 2),
        own * column,
        other * column,
        bias * sign,
        gamma * sign,
        beta,
        neighbours.contiguous(),
        _Layer(found, slope, sign),
    )
    observe(norm, mean, var, neighbours[0].numel())
    result: Tensor = out.transpose(1, 2)
    return result


def _refuse_strangers(neighbours: Tensor, num_points: int) -> None:
    # The compiled loops do not check what they read.
    low, high = neighbours.aminmax()
    if low < 0 or high >= num_points:
        raise IndexError(f"neighbours {int(low)} to {int(high)} of {num_points} points")


class _EdgeConv(torch.autograd.Function):
    """The algebra; gamma is not negative here.

    u = p_j + q_i with x centred on its cloud, so that p and q are near 0; y = u + b0, where b0 is
    the rest of the convolution, of (b, c). z = a (u - e) + beta with a = gamma / deviation and
    e = mean - b0.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        x: Tensor,
        own: Tensor,
        other: Tensor,
        bias: Tensor,
        gamma: Tensor,
        beta: Tensor,
        neighbours: Tensor,
        layer: _Layer,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return y (B, N, O), and mean and variance of each (b, c)'s cell, (B, O) float64.

        Args:
            ctx: what backward needs.
            x: (B, N, C).
            own: W1, (O, C).
            other: W2, (O, C).
            bias: (O,).
            gamma: (O,).
            beta: (O,).
            neighbours: (B, N, k).
            layer: the rest.
        """
        middle = x.mean(1)  # (B, C)
        centred = x - middle.unsqueeze(1)
        p, q = centred @ other.t(), centred @ (own - other).t()
        base = torch.addmm(bias, middle, own.t()).double()
        reduced = edge_ops.reduce_edges(p, q, neighbours)
        _take_first(reduced, p, q, neighbours, gamma)
        num = neighbours[0].numel()
        mean, var = _cells(layer, reduced.sums / num, base)
        deviation = (var + layer.moments.eps).sqrt()
        shift = mean * layer.sign - base
        scale = gamma / deviation
        offset = beta - scale * shift
        out = torch.addcmul(
            offset.to(x.dtype).unsqueeze(1), reduced.best, scale.to(x.dtype).unsqueeze(1)
        )
        out = nn.functional.leaky_relu_(out, layer.slope) if layer.slope else out.relu_()
        ctx.mark_non_differentiable(mean, var)
        ctx.save_for_backward(
            centred, middle, own, other, gamma, neighbours, p, q, out, shift, deviation, *reduced
        )
        ctx.layer = layer  # type: ignore[attr-defined]
        return out, mean, var

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the eight arguments."""
        centred, middle, own, other, gamma, neighbours, p, q, out, shift, deviation, *rest = (
            ctx.saved_tensors
        )
        reduced = edge_ops.Reduced(*rest)
        average = ctx.layer.moments.average
        num = neighbours[0].numel()
        with torch.autocast(grad.device.type, enabled=False):
            own_copy = grad.clone(memory_format=torch.contiguous_format)
            slope = ctx.layer.slope
            grad, sums = edge_ops.activation_gradient(own_copy, out, reduced.best, slope)
            dbeta, products = sums
            dgamma = (products - shift * dbeta) / deviation
            a = gamma / deviation
            c0, c1 = torch.zeros_like(a), torch.zeros_like(a)
            if average is not None:
                sign = ctx.layer.sign
                c0 = sign * average(sign * gamma * dbeta / num) / deviation
                c1 = average(gamma * dgamma / num) / deviation.square()
            constants = torch.stack([a, c0 - c1 * shift, c1]).to(p.dtype)
            dp, dq = edge_ops.scatter_edges(p, q, neighbours, reduced, grad, constants)
            total = a * dbeta - num * (c0 + c1 * (reduced.sums[0] / num - shift))
            # u depends on W2 by x_j - x_i, and on W1 by x_i.
            dp -= dq
            flat = [one.flatten(0, 1) for one in (dp, dq, centred)]
            dother = flat[0].t() @ flat[2]
            down = flat[1].t() @ flat[2] + total.to(p.dtype).t() @ middle
            dx = torch.addmm(flat[0] @ other, flat[1], own)
        return (
            dx.view_as(centred),
            down,
            dother,
            total.sum(0).to(p.dtype),
            dgamma.sum(0).to(p.dtype),
            dbeta.sum(0).to(p.dtype),
            None,
            None,
        )


def _take_first(
    reduced: edge_ops.Reduced, p: Tensor, q: Tensor, neighbours: Tensor, gamma: Tensor
) -> None:
    """Where gamma is 0, all edges are equal: take the first, in place."""
    zero = (gamma == 0).nonzero().flatten()
    if len(zero):
        reduced.slot[:, :, zero] = 0
        first = neighbours[:, :, :1].expand(-1, -1, len(zero))
        reduced.best[:, :, zero] = p[:, :, zero].gather(1, first) + q[:, :, zero]


def _cells(layer: _Layer, means: Tensor, base: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance of y for each (b, c)'s cell, (B, O), from the means of u and u^2."""
    found = layer.moments
    if found.average is None:
        mean = torch.zeros_like(base) if found.mean is None else found.mean.expand_as(base)
        var = torch.ones_like(base) if found.var is None else found.var.expand_as(base)
        return mean.double(), var.double()
    first, second = means
    own = layer.sign * (first + base)
    mean = found.average(own)
    var = (second - first.square()).clamp(min=0) + (own - mean).square()
    return mean, found.average(var)

"""DGCNN with batch norm at every site, in its two published forms.

Wang et al., "Dynamic Graph CNN for Learning on Point Clouds" (2018), arXiv 1801.07829; which form
is whose stands in ``tasks.pointcloud.architectures``.

Edges are a dense axis, (B, C, N, k), because that is what every norm means by a sample: over
torch-geometric's flat edges, (E, C), group norm would normalise each edge by itself. The tests hold
``edge_conv`` equal to torch-geometric's ``EdgeConv``, which takes 1.5 to 2 times as long here.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tasks.pointcloud.architectures import ARCHITECTURES, Architecture
from tasks.pointcloud.graph import gather_neighbours, nearest

BARE = ("head.logits", "transform.matrix")
"""The layers that no norm follows."""

_NORMS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: nn.BatchNorm2d,
    nn.Conv1d: nn.BatchNorm1d,
    nn.Linear: nn.BatchNorm1d,
}


def normed(layer: nn.Conv2d | nn.Conv1d | nn.Linear, negative_slope: float) -> nn.Sequential:
    """Put batch norm and the activation after a layer.

    Args:
        layer: on edges (B, C, N, k), points (B, C, N) or clouds (B, C).
        negative_slope: of the activation; 0 is ReLU.
    """
    name, channels = (
        ("fc", layer.out_features)
        if isinstance(layer, nn.Linear)
        else (
            "conv",
            layer.out_channels,
        )
    )
    relu = nn.ReLU(inplace=True)
    act = nn.LeakyReLU(negative_slope, inplace=True) if negative_slope else relu
    norm = _NORMS[type(layer)](channels)
    return nn.Sequential(OrderedDict([(name, layer), ("norm", norm), ("act", act)]))


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


def edge_conv(block: nn.Module, x: Tensor, neighbours: Tensor) -> Tensor:
    """Compute ``y_i = max_j act(norm(W [x_i, x_j - x_i] + b))`` over the neighbours j of point i.

    Everything that an EdgeConv is passes through here.

    Args:
        block: ``normed`` of a 1x1 convolution from 2C to O channels.
        x: (B, C, N).
        neighbours: (B, N, k).

    Returns:
        (B, O, N).
    """
    out: Tensor = block(edges(x, neighbours)).amax(3)
    return out


class Transform(nn.Module):
    """The input transform net: a 3x3 matrix for each cloud, at first the identity.

    As T-Net (Qi et al. 2017, arXiv 1612.00593), but on edges; no loss keeps it orthogonal.
    """

    def __init__(self, shape: Architecture) -> None:
        super().__init__()
        (first, second, third), (fc1, fc2) = shape.transform_convs, shape.transform_fc
        bias, slope = shape.bias, shape.negative_slope
        self.edge1 = normed(nn.Conv2d(6, first, 1, bias=bias), slope)
        self.edge2 = normed(nn.Conv2d(first, second, 1, bias=bias), slope)
        self.embed = normed(nn.Conv1d(second, third, 1, bias=bias), slope)
        self.fc1 = normed(nn.Linear(third, fc1, bias=bias), slope)
        self.fc2 = normed(nn.Linear(fc1, fc2), slope)
        self.matrix = nn.Linear(fc2, 9)

    def forward(self, x: Tensor, neighbours: Tensor) -> Tensor:
        """Return the points (B, 3, N), turned, given their neighbours (B, N, k)."""
        features = self.edge2(self.edge1(edges(x, neighbours))).amax(3)
        pooled = self.embed(features).amax(2)
        matrix: Tensor = self.matrix(self.fc2(self.fc1(pooled))).unflatten(1, (3, 3))
        return matrix.transpose(1, 2) @ x  # each point as a row, times the matrix

    def start_as_identity(self) -> None:
        """Let the last layer give the identity for every cloud."""
        nn.init.zeros_(self.matrix.weight)
        with torch.no_grad():
            self.matrix.bias.copy_(torch.eye(3).flatten())


class DGCNN(nn.Module):
    """A classifier of point clouds.

    Args:
        name: of the architecture.
        k: neighbours of a point, itself included.
        edge: channels of the EdgeConvs.
        embedding: channels of the convolution over all of their outputs together.
        head: widths of the two normed fully connected layers.
        dropout: probability after each of these two.
        num_classes: width of the output.
    """

    def __init__(
        self,
        name: str,
        *,
        k: int,
        edge: Sequence[int],
        embedding: int,
        head: tuple[int, int],
        dropout: float,
        num_classes: int,
    ) -> None:
        super().__init__()
        shape = ARCHITECTURES[name]
        bias, slope = shape.bias, shape.negative_slope
        self.k, self.mean_pool = k, shape.mean_pool
        self.transform = Transform(shape) if shape.transform else None
        inputs = (3, *edge[:-1])
        self.edge = nn.ModuleList(
            normed(nn.Conv2d(2 * wide, out, 1, bias=bias), slope)
            for wide, out in zip(inputs, edge, strict=True)
        )
        self.embed = normed(nn.Conv1d(sum(edge), embedding, 1, bias=bias), slope)
        pooled = embedding * (2 if shape.mean_pool else 1)
        self.head = nn.Sequential()
        self.head.add_module("fc1", normed(nn.Linear(pooled, head[0], bias=bias), slope))
        self.head.add_module("drop1", nn.Dropout(dropout))
        self.head.add_module("fc2", normed(nn.Linear(head[0], head[1]), slope))
        self.head.add_module("drop2", nn.Dropout(dropout))
        self.head.add_module("logits", nn.Linear(head[1], num_classes))

    def forward(self, points: Tensor) -> Tensor:
        """Map clouds (B, N, 3) to logits (B, num_classes)."""
        x = points.transpose(1, 2)
        if self.transform is not None:
            x = self.transform(x, nearest(x, self.k))
        outputs = []
        for block in self.edge:
            x = edge_conv(block, x, nearest(x, self.k))
            outputs.append(x)
        x = self.embed(torch.cat(outputs, dim=1))
        pooled = [x.amax(2), x.mean(2)] if self.mean_pool else [x.amax(2)]
        logits: Tensor = self.head(torch.cat(pooled, dim=1))
        return logits


def start_as_published(model: DGCNN, *, bn_eps: float, bn_momentum: float) -> None:
    """Set the initial weights and batch norm's constants.

    ``dgcnn_tf``: Xavier-uniform weights, zero biases, the transform as the identity (its
    ``tf_util.py``, ``transform_nets.py``). ``dgcnn``: torch's own.

    Args:
        model: a new one.
        bn_eps: epsilon.
        bn_momentum: weight of a batch in the running averages.
    """
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.eps, module.momentum = bn_eps, bn_momentum
        elif model.transform is not None and isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    if model.transform is not None:
        model.transform.start_as_identity()

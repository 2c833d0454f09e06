"""DGCNN with batch norm at every site, in its two published forms.

Wang et al., "Dynamic Graph CNN for Learning on Point Clouds" (2018), arXiv 1801.07829; which form
is whose stands in ``tasks.pointcloud.architectures``.

Edges are a dense axis, (B, C, N, k), because that is what every norm means by a sample: over
torch-geometric's flat edges, (E, C), group norm would normalise each edge by itself. The tests hold
``edge_conv`` equal to torch-geometric's ``EdgeConv``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tasks.pointcloud.architectures import ARCHITECTURES, Architecture
from tasks.pointcloud.edge_conv import edge_conv, edges, why_plain
from tasks.pointcloud.graph import nearest

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
        features = self.edge2(self.edge1(edges(x, neighbours))).max(3).values
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
        fused: whether EdgeConvs may do without the tensor of edges.
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
        fused: bool = True,
    ) -> None:
        super().__init__()
        shape = ARCHITECTURES[name]
        bias, slope = shape.bias, shape.negative_slope
        self.k, self.mean_pool, self.fused = k, shape.mean_pool, fused
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
            x = edge_conv(block, x, nearest(x, self.k), fused=self.fused)
            outputs.append(x)
        x = self.embed(torch.cat(outputs, dim=1))
        pooled = [x.amax(2), x.mean(2)] if self.mean_pool else [x.amax(2)]
        logits: Tensor = self.head(torch.cat(pooled, dim=1))
        return logits

    def execution(self) -> dict[str, str]:
        """Return how each convolution over edges is executed, by path, for the audit."""
        said = {}
        for number, block in enumerate(self.edge):
            why = why_plain(block) if self.fused else "exec.fused=false"
            said[f"edge.{number}.conv"] = f"all edges ({why})" if why else "without edges"
        if self.transform is not None:
            said |= {f"transform.edge{i}.conv": "all edges (two in a row)" for i in (1, 2)}
        return said


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

"""DGCNN written out once more, point by point, to hold ours against: no modules, no dense trick."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Norm = Callable[[str, Tensor], Tensor]


def batch_norm_eval(weights: dict[str, Tensor], eps: float) -> Norm:
    """Return batch norm in evaluation, channels last."""

    def norm(path: str, x: Tensor) -> Tensor:
        mean, var = weights[f"{path}.running_mean"], weights[f"{path}.running_var"]
        return (x - mean) / (var + eps).sqrt() * weights[f"{path}.weight"] + weights[f"{path}.bias"]

    return norm


def logits(weights: dict[str, Tensor], cloud: Tensor, k: int, *, tf: bool, norm: Norm) -> Tensor:
    """Classify one cloud (N, 3); every row of a matrix is a point or an edge."""

    def layer(path: str, kind: str, x: Tensor) -> Tensor:
        kernel = weights[f"{path}.{kind}.weight"]
        y = x @ kernel.reshape(len(kernel), -1).T
        if f"{path}.{kind}.bias" in weights:
            y = y + weights[f"{path}.{kind}.bias"]
        y = norm(f"{path}.norm", y)
        return torch.where(y > 0, y, torch.zeros_like(y) if tf else 0.2 * y)

    def edge_rows(x: Tensor, i: int) -> Tensor:
        order = ((x - x[i]) ** 2).sum(1).argsort()[:k]
        return torch.stack([torch.cat([x[i], x[j] - x[i]]) for j in order])

    def edge_conv(path: str, x: Tensor) -> Tensor:
        return torch.stack(
            [layer(path, "conv", edge_rows(x, i)).max(0).values for i in range(len(x))]
        )

    x = cloud
    if tf:
        lifted = torch.stack(
            [
                layer("transform.edge2", "conv", layer("transform.edge1", "conv", edge_rows(x, i)))
                .max(0)
                .values
                for i in range(len(x))
            ]
        )
        pooled = layer("transform.embed", "conv", lifted).max(0, keepdim=True).values
        hidden = layer("transform.fc2", "fc", layer("transform.fc1", "fc", pooled))
        last = hidden @ weights["transform.matrix.weight"].T + weights["transform.matrix.bias"]
        x = x @ last.reshape(3, 3)
    features = []
    for number in range(4):
        x = edge_conv(f"edge.{number}", x)
        features.append(x)
    x = layer("embed", "conv", torch.cat(features, dim=1))
    pooled = x.max(0, keepdim=True).values
    if not tf:
        pooled = torch.cat([pooled, x.mean(0, keepdim=True)], dim=1)
    hidden = layer("head.fc2", "fc", layer("head.fc1", "fc", pooled))
    return (hidden @ weights["head.logits.weight"].T + weights["head.logits.bias"])[0]

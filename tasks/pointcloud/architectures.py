"""The two DGCNNs as numbers, so that planning need not build them. Their results never mix.

``dgcnn_tf`` is the one behind the published numbers of weight standardisation
(github.com/csrhddlam/dgcnn, TensorFlow, after the first version of Wang et al., arXiv 1801.07829);
``dgcnn`` is the authors' later one (github.com/WangYueFt/dgcnn, PyTorch).
"""

from __future__ import annotations

from dataclasses import dataclass

from harness.task import NormFacts


@dataclass(frozen=True)
class Architecture:
    """What tells the two apart; the widths are options of the model."""

    bias: bool
    """Whether the convolutions and the head's first layer have biases, though a norm follows."""
    negative_slope: float
    """Of the activation: 0 is ReLU."""
    mean_pool: bool
    """Whether the mean over the points stands beside their maximum."""
    transform: bool
    """Whether a small network first turns the points (the "input transform net")."""
    transform_convs: tuple[int, int, int] = (64, 128, 1024)
    """Channels of its convolutions: two on edges, one on points."""
    transform_fc: tuple[int, int] = (512, 256)
    """Widths of its normed fully connected layers."""


ARCHITECTURES = {
    "dgcnn_tf": Architecture(bias=True, negative_slope=0.0, mean_pool=False, transform=True),
    "dgcnn": Architecture(bias=False, negative_slope=0.2, mean_pool=True, transform=False),
}


def norm_facts(
    name: str, edge: tuple[int, ...], embedding: int, head: tuple[int, ...]
) -> NormFacts:
    """Describe the norm sites: in the head a cloud is a single value per channel.

    Args:
        name: of the architecture.
        edge: channels of the EdgeConvs.
        embedding: channels of the convolution over all of them.
        head: widths of the normed fully connected layers.
    """
    shape = ARCHITECTURES[name]
    widths = {*edge, embedding, *head}
    if shape.transform:
        widths |= {*shape.transform_convs, *shape.transform_fc}
    return NormFacts(tuple(sorted(widths)), 1, "the head's fully connected layers")

"""Each variant against its definition written plainly in torch: outputs and gradients in float64.

The lines are those of the public layers that the catalogue names, reduced to the formula.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.norm.catalogue import WS_VARIANTS
from harness.norm.weight_standardization import WS_CLASSES, standardize_weight


def authors(rows: Tensor) -> Tensor:
    centred = rows - rows.mean(1, keepdim=True)
    return centred / (centred.std(1, keepdim=True) + 1e-5)


def tf(rows: Tensor) -> Tensor:
    centred = rows - rows.mean(1, keepdim=True)
    return centred / (centred.square().mean(1, keepdim=True).sqrt() + 1e-5)


def bcn(rows: Tensor) -> Tensor:
    return (rows - rows.mean(1, keepdim=True)) / (rows.var(1, keepdim=True) + 1e-5).sqrt()


def timm(rows: Tensor) -> Tensor:
    return F.batch_norm(rows[None], None, None, training=True, momentum=0.0, eps=1e-6)[0]


def bit(rows: Tensor) -> Tensor:
    var, mean = torch.var_mean(rows, dim=1, keepdim=True, correction=0)
    return (rows - mean) / torch.sqrt(var + 1e-10)


def scaled(rows: Tensor) -> Tensor:
    gain = torch.full((len(rows),), rows.shape[1] ** -0.5, dtype=rows.dtype)
    return F.batch_norm(rows[None], None, None, gain, training=True, momentum=0.0, eps=1e-6)[0]


def centred(rows: Tensor) -> Tensor:
    return rows - rows.mean(1, keepdim=True)


def divided(rows: Tensor) -> Tensor:
    return rows / (rows.std(1, keepdim=True) + 1e-5)


DEFINITIONS: dict[str, Callable[[Tensor], Tensor]] = {
    definition.__name__: definition
    for definition in (authors, tf, bcn, timm, bit, scaled, centred, divided)
}
# name: (class, arguments, shape of an input); the fan-in is what makes one output value
LAYERS = {
    "conv1d": (nn.Conv1d, (4, 6, 3), {}, (2, 4, 9)),
    "conv2d": (nn.Conv2d, (4, 6, 3), {"padding": 1}, (2, 4, 6, 5)),
    "grouped": (nn.Conv2d, (4, 6, 3), {"groups": 2}, (2, 4, 6, 5)),
    "depthwise": (nn.Conv2d, (4, 8, 3), {"groups": 4}, (2, 4, 6, 5)),
    "conv3d": (nn.Conv3d, (2, 4, 2), {"stride": 2}, (1, 2, 5, 5, 5)),
    "linear": (nn.Linear, (6, 5), {}, (3, 6)),
    "transposed1d": (nn.ConvTranspose1d, (4, 6, 3), {"stride": 2}, (2, 4, 5)),
    "transposed2d": (nn.ConvTranspose2d, (4, 6, 3), {"groups": 2}, (2, 4, 5, 4)),
    "transposed3d": (nn.ConvTranspose3d, (3, 2, 2), {}, (1, 3, 4, 4, 4)),
}


def as_rows(weight: Tensor, groups: int) -> Tensor:
    """Lay a transposed convolution's ``(C_in, C_out / G, *kernel)`` out as one row a filter."""
    per_group = weight.unflatten(0, (groups, -1)).transpose(1, 2)  # (G, C_out / G, C_in / G, ...)
    return per_group.flatten(0, 1).flatten(1)


def by_definition(layer: nn.Module, weight: Tensor, define: Callable[[Tensor], Tensor]) -> Tensor:
    if not isinstance(layer, nn.modules.conv._ConvTransposeNd):
        return define(weight.flatten(1)).view_as(weight)
    groups, inner = layer.groups, weight.shape[0] // layer.groups
    rows = define(as_rows(weight, groups))
    per_group = rows.view(groups, weight.shape[1], inner, *weight.shape[2:])
    return per_group.transpose(1, 2).reshape(weight.shape)


def test_every_variant_has_a_definition():
    assert set(DEFINITIONS) == set(WS_VARIANTS)


@pytest.mark.parametrize("ws", DEFINITIONS)
@pytest.mark.parametrize("name", LAYERS)
def test_layers_equal_the_definition(name: str, ws: str):
    kind, args, kwargs, shape = LAYERS[name]
    layer = WS_CLASSES[kind](*args, **kwargs, ws=ws).double()
    plain = kind(*args, **kwargs).double()
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(shape, dtype=torch.float64)
    mine, theirs = (x.clone().requires_grad_() for _ in range(2))
    out = layer(mine)
    weight = by_definition(plain, plain.weight, DEFINITIONS[ws])
    state = {"weight": weight, "bias": plain.bias}
    expected = torch.func.functional_call(plain, state, (theirs,))
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-11)
    upstream = torch.randn_like(out)
    out.backward(upstream)
    expected.backward(upstream)
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=0, atol=1e-10)
    torch.testing.assert_close(layer.weight.grad, plain.weight.grad, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(layer.bias.grad, plain.bias.grad)


@pytest.mark.parametrize("ws", DEFINITIONS)
def test_small_weights_show_the_epsilons(ws: str):
    """At a deviation of 1e-3 the definitions differ by up to 70 %: no two may be mixed up."""
    rows = 1e-3 * torch.randn(5, 27, dtype=torch.float64)
    found = standardize_weight(rows, ws)
    torch.testing.assert_close(found, DEFINITIONS[ws](rows), rtol=1e-10, atol=1e-12)
    for other in set(DEFINITIONS) - {ws}:
        assert (found - DEFINITIONS[other](rows)).norm() > 1e-3 * found.norm()

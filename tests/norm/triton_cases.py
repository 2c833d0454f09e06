"""Triton's kernels on the CPU: ``test_together.py`` runs these with TRITON_INTERPRET=1."""

from __future__ import annotations

import copy
import os

import pytest
import torch
from torch import nn

from harness.norm import together
from harness.norm.catalogue import ws_variant
from harness.norm.standardize import Denominator, standardize_weight
from harness.norm.triton_rows import standardize_together
from harness.norm.weight_standardization import WeightStandardized, WSConv2d, WSConvTranspose2d
from harness.norm.window import standardised_once
from tests.norm.references import WHOLE

SHAPES = [(3, 5, 3, 3), (2, 1, 1, 1), (2, 1100), (1, 2), (4, 1, 3, 3), (2, 3, 2, 1, 2)]


@pytest.fixture(autouse=True)
def _as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together, "_DEVICES", ("cpu",))
    torch.manual_seed(os.getpid())


def layers(dtype: torch.dtype) -> list[tuple[torch.Tensor, str]]:
    """Return weights of all shapes and variants, some of equal weights and some channels_last."""
    found = []
    for place, shape in enumerate(SHAPES):
        weight = torch.randn(shape, dtype=torch.float64) + torch.randn(())
        if place in (0, 4):
            weight = weight.to(memory_format=torch.channels_last)
        if place in (2, 4):
            weight[1] = 0.1 if place == 2 else 0.0
        found.append((weight.to(dtype), WHOLE[place % len(WHOLE)]))
    return found


def deviation(weight: torch.Tensor) -> float:
    """Return the smallest standard deviation of a row that has one, else 1."""
    rows = weight.flatten(1).std(1, correction=0)
    return float(rows[rows > 1e-9].min()) if (rows > 1e-9).any() else 1.0


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # The interpreter cuts bfloat16 off where a GPU rounds.
    [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 2.0**-7)],
    ids=["float64", "float32", "bfloat16"],
)
def test_all_layers_in_one_launch_equal_the_formula(dtype: torch.dtype, tolerance: float):
    given = layers(dtype)
    weights = [weight.requires_grad_() for weight, _ in given]
    upstream = [torch.randn_like(weight).detach() for weight in weights]
    upstream[0] = upstream[0].contiguous()  # the weight is not
    denominators = [Denominator.of(ws_variant(v), w[0].numel()) for w, v in given]
    results = standardize_together(weights, denominators)
    torch.autograd.backward(results, upstream)
    for (weight, variant), result, gradient in zip(given, results, upstream, strict=True):
        exact = weight.detach().double().requires_grad_()
        expected = standardize_weight(exact, variant, fused=False)
        expected.backward(gradient.double())
        assert result.dtype == weight.grad.dtype == dtype
        assert result.stride() == weight.grad.stride() == weight.stride()
        # A gradient is what parts as large as this one leave of each other: nearly nothing where a
        # row has two weights, however close they are.
        part = float(gradient.abs().max()) / deviation(exact.detach())
        for found, right, least in ((result, expected, 1.0), (weight.grad, exact.grad, part)):
            size = max(1.0, least, float(right.detach().abs().max()))
            assert float((found.double() - right).abs().max().detach()) <= tolerance * size
    assert (results[2][1] == 0).all()
    assert (results[4][1] == 0).all()
    assert (weights[1].grad == 0).all()  # fan-in 1


class Net(nn.Module):
    """Layers that fit, one frozen, one that no forward uses, and some that do not fit."""

    def __init__(self) -> None:
        super().__init__()
        self.first = WSConv2d(2, 3, 3)
        self.frozen = WSConv2d(3, 4, 1).requires_grad_(False)
        self.last = WSConv2d(4, 3, 3, groups=1, ws="tf").to(memory_format=torch.channels_last)
        self.up = WSConvTranspose2d(3, 2, 2)
        self.centred = WSConv2d(2, 2, 1, ws="centred")
        self.plain = WSConv2d(2, 2, 1)
        self.plain.fused = False
        self.unused = WSConv2d(2, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.last(self.frozen(self.first(x)).tanh()).tanh()
        return self.plain(self.centred(self.up(x)))


def test_a_window_equals_standardising_each_time():
    model = Net().double()
    ws = [module for module in model.modules() if isinstance(module, WeightStandardized)]
    assert together.obstacle(torch.device("cpu")) is None
    bundles, alone = together.bundles(ws)
    assert ([len(own) for own in bundles], len(alone)) == ([4], 3)
    assert together.remark(model) == (
        "weights of 4 layers are standardised together, by triton; 3 one by one"
    )
    inputs = [torch.randn(2, 2, 6, 6, dtype=torch.float64) for _ in range(2)]
    found = []
    for once in (False, True):
        own = copy.deepcopy(model)
        with standardised_once(own, once):
            for x in inputs:
                own(x).tanh().sum().backward()
        found.append({name: p.grad for name, p in own.named_parameters() if p.grad is not None})
    each, together_ = found
    assert each.keys() == together_.keys()
    assert not any(name.startswith(("frozen.weight", "unused")) for name in each)
    for name, gradient in each.items():
        torch.testing.assert_close(together_[name], gradient, rtol=1e-11, atol=1e-12, msg=name)

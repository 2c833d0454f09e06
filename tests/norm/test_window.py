"""Standardising once per window, or again in the backward pass, changes no gradient."""

from __future__ import annotations

import copy
import os
import socket
from pathlib import Path

import pytest
import torch
from torch import multiprocessing, nn

from harness.distributed import Ranks
from harness.norm import window
from harness.norm.weight_standardization import WSConv2d
from harness.norm.window import standardised_again, standardised_once
from tests.norm.nets import net_2d, randomise_norms
from tests.norm.switching import switched

NUM_FORWARDS = 3


@pytest.fixture(params=["stock", "formula"])
def model(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(os.getpid())
    net = switched(randomise_norms(net_2d()), "gn_ws").double()
    for module in net.modules():
        if isinstance(module, WSConv2d):
            module.fused = request.param == "stock"
    return net


def images(dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    return [torch.randn(2, 3, 5, 5, dtype=dtype) for _ in range(NUM_FORWARDS)]


def gradients(
    model: nn.Module,
    inputs: list[torch.Tensor],
    *,
    once=False,
    again=False,
    bf16=False,
    scaler=None,
) -> dict[str, torch.Tensor]:
    model = copy.deepcopy(model)
    with standardised_once(model, once):
        for x in inputs:
            bf = torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16)
            with bf, standardised_again(again):
                loss = model(x).tanh().sum()
            (scaler.scale(loss) if scaler else loss).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance):
    assert found.keys() == expected.keys()
    top = max(float(value.abs().max()) for value in expected.values())
    for name, value in expected.items():
        assert float((found[name] - value).abs().max()) <= tolerance * top, name


def test_once_is_exact(model: nn.Module):
    inputs = images()
    assert_equal(gradients(model, inputs, once=True), gradients(model, inputs), 1e-12)


def test_once_under_autocast_equals_to_rounding(model: nn.Module):
    """Each forward's gradient is rounded to bfloat16 by the convolution, in both cases alike."""
    model, inputs = model.float(), images(torch.float32)
    each = gradients(model, inputs, bf16=True)
    assert_equal(gradients(model, inputs, bf16=True, once=True), each, 1e-5)
    assert any((each[k] - v).abs().max() > 1e-4 for k, v in gradients(model, inputs).items())


def test_once_with_a_gradient_scaler_and_clipping(model: nn.Module):
    inputs, results = images(), []
    for once in (False, True):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        own = copy.deepcopy(model)
        optimizer = torch.optim.SGD(own.parameters(), lr=0.1)
        with standardised_once(own, once):
            for x in inputs:
                scaler.scale(own(x).tanh().sum()).backward()
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(own.parameters(), 0.5)
        assert norm > 0.5
        scaler.step(optimizer)
        results.append({k: v.detach() for k, v in own.named_parameters()} | {"norm": norm})
    assert_equal(results[1], results[0], 1e-12)


def test_once_with_a_gradient_scaler_that_overflows(model: nn.Module):
    """What is not finite must reach the raw weights, for the scaler to skip the step."""
    model, inputs = model.float(), images(torch.float32)
    scaler = torch.amp.GradScaler("cpu", init_scale=3e38)
    found = gradients(model, inputs, once=True, scaler=scaler)
    assert not all(value.isfinite().all() for value in found.values())


@pytest.mark.parametrize("frozen", ["0", "3"])
def test_once_with_frozen_layers(model: nn.Module, frozen: str):
    model.get_submodule(frozen).requires_grad_(False)
    inputs = images()
    each = gradients(model, inputs)
    assert f"{frozen}.weight" not in each
    assert_equal(gradients(model, inputs, once=True), each, 1e-12)


def test_once_with_layers_that_no_forward_uses(model: nn.Module):
    model.add_module("unused", WSConv2d(2, 2, 1).double())
    model.forward = lambda x: nn.Sequential(*list(model)[:-1])(x)
    own = copy.deepcopy(model)
    own.forward = lambda x: nn.Sequential(*list(own)[:-1])(x)
    with standardised_once(own):
        own(images()[0]).sum().backward()
    assert own.unused.weight.grad is None


def test_once_with_a_compiled_model(model: nn.Module):
    inputs = images()
    expected = gradients(model, inputs)
    own = copy.deepcopy(model)
    compiled = torch.compile(own, backend="aot_eager")
    for _ in range(2):  # the second window reuses what the first compiled
        own.zero_grad()
        with standardised_once(own):
            for x in inputs:
                compiled(x).tanh().sum().backward()
        assert_equal({k: p.grad for k, p in own.named_parameters()}, expected, 1e-12)
    own.zero_grad()
    for x in inputs:
        compiled(x).tanh().sum().backward()
    assert_equal({k: p.grad for k, p in own.named_parameters()}, expected, 1e-12)


def test_an_error_inside_the_window_ends_it(model: nn.Module):
    with pytest.raises(KeyError), standardised_once(model):
        raise KeyError
    assert all("shared" not in vars(module) for module in model.modules())


@pytest.mark.parametrize("bf16", [False, True])
def test_again_has_the_same_bits(model: nn.Module, bf16: bool):
    model, inputs = model.float(), images(torch.float32)
    each = gradients(model, inputs, bf16=bf16)
    assert_equal(gradients(model, inputs, again=True, bf16=bf16), each, 0.0)


@pytest.mark.parametrize(
    ("bf16", "again", "expected"), [(0, 0, 1), (0, 1, 0), (1, 0, 1), (1, 1, 1)]
)
def test_again_keeps_no_standardised_weight(bf16: bool, again: bool, expected: int):
    """Under autocast the narrow copy is kept, as it is without standardisation."""
    layer = WSConv2d(4, 4, 3)
    kept: list[object] = []

    def pack(tensor: torch.Tensor) -> object:
        kept.append(window._forget(tensor) if again else tensor)
        return kept[-1]

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, window._recall)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bool(bf16)), hooks:
        layer(torch.randn(1, 4, 5, 5)).sum().backward()
    tensors = [one for one in kept if isinstance(one, torch.Tensor)]
    own = layer.weight.data_ptr()
    fresh = [t for t in tensors if t.shape == layer.weight.shape and t.data_ptr() != own]
    assert len(fresh) == expected


SHARES = ((0, 2), (2, 3))
"""Forwards of each rank: two of them, and one."""


def on_rank(rank: int, port: int, folder: str) -> dict[str, torch.Tensor]:
    torch.set_num_threads(1)
    os.environ |= {
        "WORLD_SIZE": "2",
        "RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    ranks = Ranks(torch.device("cpu"))
    model, inputs = torch.load(f"{folder}/work.pt", weights_only=False)
    with standardised_once(model):
        for x in inputs[slice(*SHARES[rank])]:
            model(x).tanh().sum().backward()
    ranks.sum_gradients(model.parameters())
    ranks.close()
    return {name: p.grad for name, p in model.named_parameters()}


def test_once_over_several_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(os.getpid())
    net, inputs = switched(randomise_norms(net_2d()), "gn_ws").double(), images()
    torch.save((net, inputs), tmp_path / "work.pt")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name in ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")  # restored afterwards
    context = multiprocessing.get_context("spawn")
    other = context.Process(target=on_rank, args=(1, port, str(tmp_path)))
    other.start()
    try:
        found = on_rank(0, port, str(tmp_path))
    finally:
        other.join(60)
    assert other.exitcode == 0
    assert_equal(found, gradients(net, inputs), 1e-12)

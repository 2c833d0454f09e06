"""All layers in one launch: Triton's kernels, interpreted, compiled, and on a GPU where one is."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from harness.norm import together
from harness.norm.standardize import COMPILED_FROM
from harness.norm.weight_standardization import WSConv2d
from harness.norm.window import standardised_once
from tests.norm.nets import net_2d, randomise_norms
from tests.norm.switching import switched

CPU = torch.device("cpu")


def test_kernels_are_exact_in_the_interpreter():
    """The flag counts while the kernels are imported, hence a process of its own."""
    pytest.importorskip("triton")
    cases = Path(__file__).with_name("triton_cases.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(cases)],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    assert "4 passed" in done.stdout


@pytest.mark.parametrize("name", ["_forward", "_backward"])
def test_kernels_compile_for_a_gpu(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Down to machine code, for which no GPU is needed."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from harness.norm import triton_rows

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = getattr(triton_rows, name)
    number = triton.language.float32
    constants = {"number": number, "wide": number, "block": triton_rows._BLOCK}
    types = {
        "addresses": "*i64",
        "denominators": "*fp64",
        "moments": "*fp32",
        "num_layers": "i32",
        "num_rows": "i32",
        **dict.fromkeys(constants, "constexpr"),
    }
    signature = {one: types.get(one, "*i32") for one in kernel.arg_names}
    source = ASTSource(kernel, signature, constants)
    target = GPUTarget("cuda", 80, 32)
    done = triton.compile(source, target=target, options={"enable_fp_fusion": False})
    assert done.asm["cubin"]


def test_on_a_cpu_small_layers_of_one_fan_in_are_together():
    alike = [WSConv2d(2, 3, 3), WSConv2d(18, 2, 1), WSConv2d(36, 4, 1, groups=2)]
    plain, other, longer = WSConv2d(2, 3, 3), WSConv2d(2, 3, 3, ws="tf"), WSConv2d(3, 2, 3)
    plain.fused = False
    large = [WSConv2d(64, 64, 3).to(memory_format=torch.channels_last), WSConv2d(128, 64, 3)]
    bundles, alone = together.bundles([large[0], *alike, plain, other, longer, large[1]])
    assert bundles == [alike, [other], [longer]]
    assert alone == [[large[0]], [plain], [large[1]]]
    assert together.remark(large[1]) is None


def test_what_is_standardised_at_once_is_bounded():
    layers = [WSConv2d(16, size, 3) for size in (400, 100, 1, 450, 10, 5)]
    found, alone = together.bundles(layers)
    assert not alone
    assert [layer for own in found for layer in own] == layers
    assert [sum(one.weight.numel() for one in own) for own in found] == [57600, 14544, 64800, 2160]
    assert all(sum(one.weight.numel() for one in own) < COMPILED_FROM for own in found)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("variant", ["authors", "bcn", "scaled"])
def test_together_has_the_bits_of_alone(dtype: torch.dtype, variant: str):
    torch.manual_seed(os.getpid())
    layers = [WSConv2d(4, size, 3, ws=variant).to(dtype) for size in (3, 1, 6, 2)]
    with torch.no_grad():
        layers[1].weight.fill_(0.3)
    layers[3].weight.requires_grad_(False)
    upstream = [torch.randn_like(layer.weight) for layer in layers]
    alone = [layer.standardized_weight() for layer in layers]
    torch.autograd.backward(alone[:2], upstream[:2])  # nothing comes back to the third
    expected = [layer.weight.grad for layer in layers]
    for layer in layers:
        layer.weight.grad = None
    results = together.standardize(layers)
    assert [one.requires_grad for one in results] == [True, True, True, False]
    torch.autograd.backward(results[:2], upstream[:2])
    assert all(torch.equal(a, b) for a, b in zip(alone, results, strict=True))
    assert [layer.weight.grad is None for layer in layers] == [False, False, True, True]
    assert all(torch.equal(layers[i].weight.grad, expected[i]) for i in range(2))


def test_a_single_forward_standardises_what_is_alone_by_itself():
    model = torch.nn.Sequential(WSConv2d(2, 3, 1), WSConv2d(3, 3, 1), WSConv2d(64, 128, 3))
    with standardised_once(model, forwards=1):
        assert [layer.shared is None for layer in model] == [False, False, True]
    with standardised_once(model, forwards=2):
        assert [layer.shared is None for layer in model] == [False, False, False]


def test_what_keeps_triton_from_running_is_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(together, "_DEVICES", ("cpu",))
    monkeypatch.setattr(together, "find_spec", lambda name: None)
    together.obstacle.cache_clear()
    try:
        layer = WSConv2d(2, 3, 1)
        assert not together.fits(layer)
        expected = "layer by layer, with torch's kernels: triton is not installed"
        assert expected in together.remark(layer)
        monkeypatch.undo()
        monkeypatch.setattr(together, "_DEVICES", ("cpu",))
        together.obstacle.cache_clear()
        assert "triton" in together.obstacle(CPU)  # no GPU's tensor: whatever the reason, said
    finally:
        together.obstacle.cache_clear()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_window_on_a_gpu(dtype: torch.dtype):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    device = torch.device("cuda")
    assert together.obstacle(device) is None
    model = switched(randomise_norms(net_2d()), "gn_ws").to(device, dtype)
    inputs = [torch.randn(2, 3, 5, 5, device=device, dtype=dtype) for _ in range(2)]
    found = []
    for once in (False, True):
        own = copy.deepcopy(model)
        with standardised_once(own, once):
            for x in inputs:
                own(x).tanh().sum().backward()
        found.append({name: p.grad for name, p in own.named_parameters()})
    tolerance = 1e-11 if dtype == torch.float64 else 1e-4
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=tolerance, atol=tolerance)

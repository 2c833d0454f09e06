import importlib
import sys
import types

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from harness.errors import EnvironmentProblem
from harness.norm.weight_standardization import standardize_weight
from tasks.detection import d2


def test_pure_python_build_complains_only_when_native_code_is_used() -> None:
    if isinstance(sys.modules["detectron2._C"], d2._MissingExtension):
        from detectron2 import _C

        with pytest.raises(EnvironmentProblem, match=r"nms_rotated.*pip install"):
            _ = _C.nms_rotated
        assert not hasattr(_C, "__path__")


def test_a_compiled_extension_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    package = importlib.import_module("detectron2")
    compiled = types.ModuleType("detectron2._C")
    monkeypatch.setitem(sys.modules, "detectron2._C", compiled)
    monkeypatch.setattr(package, "_C", compiled, raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    d2.import_detectron2()
    assert sys.modules["detectron2._C"] is compiled


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            ModuleNotFoundError("No module named 'detectron2'", name="detectron2"),
            "needs detectron2",
        ),
        (ImportError("undefined symbol: _ZN2at\nmore"), "undefined symbol"),
    ],
)
def test_a_missing_or_broken_installation_is_one_line(
    error: ImportError, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(name: str) -> None:
        raise error

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(EnvironmentProblem, match=said) as caught:
        d2.import_detectron2()
    assert "\n" not in str(caught.value)
    assert "make setup" in str(caught.value)
    assert caught.value.exit_code == 4


def conv(**options: object) -> d2.Conv2d:
    torch.manual_seed(0)
    return d2.Conv2d(
        6,
        8,
        3,
        stride=2,
        padding=1,
        groups=2,
        norm=torch.nn.GroupNorm(2, 8),
        activation=torch.nn.ReLU(),
        **options,
    )


@pytest.mark.parametrize("ws", ["authors", "tf"])
def test_retyped_conv_convolves_with_the_standardised_weight(ws: str) -> None:
    layer = conv(bias=True)
    names = list(layer.state_dict())
    x = torch.randn(2, 6, 9, 9)
    weight = standardize_weight(layer.weight, ws)
    expected = F.relu(layer.norm(F.conv2d(x, weight, layer.bias, 2, 1, 1, 2)))
    layer.__class__ = d2.WSDetectronConv2d
    layer.ws = ws
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=0)
    assert list(layer.state_dict()) == names
    assert f"ws={ws}" in repr(layer)


def test_constructed_conv_needs_neither_norm_nor_activation() -> None:
    layer = d2.WSDetectronConv2d(3, 4, 1)
    weight = layer.weight.detach().numpy().reshape(4, 3)
    centred = weight - weight.mean(1, keepdims=True)
    expected = centred / (weight.std(1, ddof=1, keepdims=True) + 1e-5)
    x = torch.randn(1, 3, 1, 1)
    found = layer(x).detach().numpy().reshape(4) - layer.bias.detach().numpy()
    np.testing.assert_allclose(found, expected @ x.numpy().reshape(3), rtol=1e-4, atol=1e-5)

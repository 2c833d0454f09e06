import copy
import importlib.util
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

import normbench
from harness.errors import AuditError
from harness.norm.catalogue import WS_VARIANTS
from harness.norm.surgery import convert
from harness.norm.weight_standardization import WSConv2d, WSLinear
from tests.norm.nets import NETS, randomise_norms


class Doubling(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


class WSDoubling(WSConv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def standardising(program: torch.export.ExportedProgram) -> int:
    """Count the operations of weight standardisation in an exported graph."""
    targets = [str(node.target) for node in program.graph.nodes]
    return sum("vector_norm" in target or "reciprocal" in target for target in targets)


@pytest.mark.parametrize("ws", WS_VARIANTS)
@pytest.mark.parametrize("net", NETS)
def test_folding_changes_classes_and_weights_but_no_output(net: str, ws: str):
    build, shape = NETS[net]
    model, stock = randomise_norms(build()), build()
    convert(model, "gn", groups=2, ws=ws)
    convert(stock, "gn", groups=2)
    model.eval()
    x = torch.randn(shape)
    expected = model(x)
    assert normbench.fold(model) == ["0", "3"]
    assert torch.equal(model(x), expected)
    assert [type(m) for m in model] == [type(m) for m in stock]
    assert repr(model) == repr(stock)
    stock.load_state_dict(model.state_dict())
    assert torch.equal(stock.eval()(x), expected)
    assert normbench.fold(model) == []


@pytest.mark.parametrize("norm", ["gn_ws", "bn_ws", "evonorm_s0_ws", "bcn_ws"])
def test_export_has_no_standardisation_left(norm: str):
    model = randomise_norms(NETS["2d"][0]()).eval()
    convert(model, norm, groups=4)
    x = torch.randn(2, 3, 6, 6)
    expected = model(x)
    folded = copy.deepcopy(model)
    assert len(normbench.fold(folded)) == 2
    whole, program = torch.export.export(model, (x,)), torch.export.export(folded, (x,))
    torch.testing.assert_close(whole.module()(x), expected)
    torch.testing.assert_close(program.module()(x), expected)
    assert standardising(whole) >= 2
    assert standardising(program) == 0
    assert any(isinstance(m, WSConv2d) for m in model.modules())


def test_onnx(tmp_path: Path):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"no {package}: the ONNX export cannot be tried")
    import onnx
    import onnxruntime

    model = torchvision.models.resnet18(num_classes=5).eval()
    convert(model, "gn_ws")
    x = torch.randn(1, 3, 32, 32)
    expected = model(x)
    normbench.fold(model)
    torch.onnx.export(model, (x,), tmp_path / "model.onnx", dynamo=True)
    kinds = {node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node}
    assert "ReduceL2" not in kinds
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-4)


def test_other_classes_are_folded_if_given():
    model = nn.Sequential(WSDoubling(3, 4, 1), WSLinear(2, 2))
    x = torch.randn(1, 3, 2, 2)
    expected = model(x)
    with pytest.raises(AuditError, match=r"0 \(WSDoubling\) stands for no known class"):
        normbench.fold(model)
    assert type(model[1]) is WSLinear
    assert normbench.fold(model, {Doubling: WSDoubling}) == ["0", "1"]
    assert type(model[0]) is Doubling
    assert torch.equal(model(x), expected)


def test_shared_layers_are_folded_once_and_shared_weights_refused():
    layer = WSConv2d(3, 3, 1)
    twice = nn.Sequential(layer, nn.ReLU(), layer)
    x = torch.randn(1, 3, 2, 2)
    expected = twice(x)
    assert normbench.fold(twice) == ["0"]
    assert torch.equal(twice(x), expected)
    tied = nn.Sequential(WSLinear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    with pytest.raises(AuditError, match="1 and 0 share a standardised weight"):
        normbench.fold(tied)
    assert type(tied[0]) is WSLinear


def test_detectrons_layer_is_folded():
    pytest.importorskip("detectron2")
    from tasks.detection.d2 import Conv2d, WSDetectronConv2d

    model = nn.Sequential(Conv2d(3, 4, 3, norm=nn.BatchNorm2d(4), activation=torch.relu))
    normbench.convert(model, "gn", groups=2)
    model[0].__class__, model[0].ws = WSDetectronConv2d, "authors"
    x = torch.randn(1, 3, 5, 5)
    expected = model(x)
    assert normbench.fold(model, {Conv2d: WSDetectronConv2d}) == ["0"]
    assert type(model[0]) is Conv2d
    assert torch.equal(model(x), expected)

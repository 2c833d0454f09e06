"""timm as an oracle: its standardised convolutions, and its models under the switch."""

import pytest
import torch
from torch import nn

from harness.norm.surgery import convert
from harness.norm.weight_standardization import WSConv2d

timm = pytest.importorskip("timm", reason="timm, the oracle, is not installed")

SHAPES = {
    "plain": {"padding": 1},
    "grouped": {"groups": 2, "stride": 2, "padding": 0},
    "depthwise": {"groups": 4, "padding": 1, "dilation": 2},
}


@pytest.mark.parametrize(("ws", "kind"), [("timm", "StdConv2d"), ("scaled", "ScaledStdConv2d")])
@pytest.mark.parametrize("shape", SHAPES)
def test_float64_forward_and_gradient_equal_timms(shape: str, ws: str, kind: str):
    from timm.layers import std_conv

    theirs = getattr(std_conv, kind)(4, 8, 3, bias=True, **SHAPES[shape]).double()
    ours = WSConv2d(4, 8, 3, ws=ws, **SHAPES[shape]).double()
    state = theirs.state_dict()
    if ws == "scaled":
        assert (state.pop("gain") == 1).all()
    ours.load_state_dict(state)
    x = torch.randn(2, 4, 9, 8, dtype=torch.float64)
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [conv(leaf) for conv, leaf in zip((ours, theirs), leaves, strict=True)]
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-12)
    upstream = torch.randn_like(outputs[0])
    for output in outputs:
        output.backward(upstream)
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad, rtol=0, atol=1e-11)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, rtol=0, atol=1e-11)
    torch.testing.assert_close(ours.bias.grad, theirs.bias.grad, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "efficientnet_b0"])
@pytest.mark.parametrize("norm", ["gn_ws", "ghost_bn_ws", "frn"])
def test_models_convert_in_one_line(name: str, norm: str):
    model = timm.create_model(name, num_classes=7)
    sites = sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    names = {key for key, _ in model.named_parameters()}
    stat_batch = 2 if norm.startswith("ghost") else None
    audit = convert(model, norm, groups=8, stat_batch=stat_batch)
    assert audit.num_norm_sites == sites
    assert {key for key, _ in model.named_parameters()} == names
    out = model(torch.randn(2, 3, 64, 64))
    assert out.shape == (2, 7)
    assert out.isfinite().all()
    out.sum().backward()

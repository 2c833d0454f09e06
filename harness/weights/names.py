"""One language for the names of a ResNet's weights, into which every layout is translated.

Both sides are translated, the file's keys and the model's, and weights go where the translations
agree. A name that is in no layout stands for itself.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Literal

Layout = Literal["torchvision", "detectron2", "caffe2", "bit"]

BACKBONE = "backbone/"
"""Prefix of what belongs to a ResNet's body, wherever a larger model keeps it."""

_WRAPPERS = ("module.", "_orig_mod.", "model.", "encoder.", "net.")
"""Prefixes of DataParallel, torch.compile and training code around a model."""
_BODY = r"(?:backbone\.(?:bottom_up\.|body\.)?|bottom_up\.)?"
PREFIXES = {word.rstrip(".") for word in _WRAPPERS} | {"backbone", "bottom_up", "body"}
"""Parts of a key that say where a network is kept, not what of it is meant."""
_END = r"(weight|bias|running_mean|running_var|num_batches_tracked)"
_TORCHVISION = re.compile(
    rf"{_BODY}((?:layer\d+\.\d+\.)?)(?:(conv|bn|gn)(\d)|downsample\.([01]))\.{_END}"
)
_DETECTRON2 = re.compile(
    rf"{_BODY}(?:stem\.conv1|res(\d+)\.(\d+)\.(?:conv(\d)|shortcut))(\.norm)?\.{_END}"
)
_CAFFE2 = re.compile(
    r"(?:(?:res_)?conv1|res(\d+)_(\d+)_branch(1|2[abc]))_"
    r"(?:(w|b)|[bg]n_(s|b|gamma|beta|rm|riv|running_mean|running_var))"
)
_CAFFE2_END = {
    **{"w": "weight", "b": "bias", "s": "weight", "gamma": "weight", "beta": "bias"},
    **{"rm": "running_mean", "riv": "running_var"},
    **{"running_mean": "running_mean", "running_var": "running_var"},
}
_HEAD = re.compile(r"(?:(?:fc|linear)\.(weight|bias)|(?:pred|fc1000)_([wb]))")
_BIT = re.compile(r"(?:.*/)?block(\d+)/unit(\d+)/([abc])/(proj/)?(?:standardized_conv2d/kernel)")
_BIT_NORM = re.compile(r"(?:.*/)?block(\d+)/unit(\d+)/([abc])/group_norm/(gamma|beta)")
_BIT_REST = {
    "root_block/standardized_conv2d/kernel": "stem.conv.weight",
    "group_norm/gamma": "norm.weight",
    "group_norm/beta": "norm.bias",
    "head/conv2d/kernel": "head.fc.weight",
    "head/conv2d/bias": "head.fc.bias",
}


def unwrap(keys: Collection[str]) -> dict[str, str]:
    """Return each key without the prefixes that training code puts before all of them."""
    short = {key: key for key in keys}
    while found := next(
        (one for one in _WRAPPERS if keys and all(k.startswith(one) for k in short.values())), None
    ):
        short = {key: name.removeprefix(found) for key, name in short.items()}
    return short


def layout(keys: Iterable[str]) -> Layout:
    """Tell the layout of a file from its keys; torchvision's is that of timm and most others."""
    for key in keys:
        if _CAFFE2.fullmatch(key):
            return "caffe2"
        if _DETECTRON2.fullmatch(key):
            return "detectron2"
        if "standardized_conv2d/" in key:
            return "bit"
    return "torchvision"


def common_name(key: str) -> str:
    """Translate one name.

    Args:
        key: of a file or a model, without wrappers.

    Returns:
        ``backbone/`` and torchvision's name for the body of a ResNet, torchvision's ``fc`` for its
        classifier, timm's name for BiT's; any other name as it is.
    """
    if found := _TORCHVISION.fullmatch(key):
        block, kind, number, side, end = found.groups()
        if side is not None:
            return f"{BACKBONE}{block}downsample.{side}.{end}"
        return f"{BACKBONE}{block}{'conv' if kind == 'conv' else 'bn'}{number}.{end}"
    if found := _DETECTRON2.fullmatch(key):
        stage, block, number, norm, end = found.groups()
        return _body(stage, block, number or ("1" if stage is None else None), bool(norm), end)
    if found := _CAFFE2.fullmatch(key):
        stage, block, branch, own, norm = found.groups()
        number = "1" if branch is None else {"2a": "1", "2b": "2", "2c": "3"}.get(branch)
        return _body(stage, block, number, own is None, _CAFFE2_END[own or norm])
    if found := _HEAD.fullmatch(key):
        return f"fc.{found[1] or _CAFFE2_END[found[2]]}"
    return _bit_name(key)


def _body(stage: str | None, block: str | None, number: str | None, norm: bool, end: str) -> str:
    """Name a layer of a stage (Caffe2 counts the stem as the first), or its norm."""
    place = f"layer{int(stage) - 1}.{block}." if stage else ""
    layer = f"downsample.{int(norm)}" if number is None else f"{'bn' if norm else 'conv'}{number}"
    return f"{BACKBONE}{place}{layer}.{end}"


def _bit_name(key: str) -> str:
    """Translate a name of Big Transfer's arrays to timm's ResNetV2."""
    if found := _BIT.fullmatch(key):
        place = f"stages.{int(found[1]) - 1}.blocks.{int(found[2]) - 1}"
        layer = "downsample.conv" if found[4] else f"conv{'abc'.index(found[3]) + 1}"
        return f"{place}.{layer}.weight"
    if found := _BIT_NORM.fullmatch(key):
        place = f"stages.{int(found[1]) - 1}.blocks.{int(found[2]) - 1}"
        end = {"gamma": "weight", "beta": "bias"}[found[4]]
        return f"{place}.norm{'abc'.index(found[3]) + 1}.{end}"
    return _BIT_REST.get(key.removeprefix("resnet/"), key)

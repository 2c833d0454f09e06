"""Small files in every layout that weights are published in, written from one network."""

from __future__ import annotations

import argparse
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from harness.norm.surgery import convert
from tasks.classification.architectures import ResNetShape
from tasks.classification.model import SmallResNet

WIDTH = 8
SHAPE = ResNetShape((2, 2, 2, 2), width=WIDTH, bottleneck=False)
"""The backbone of the smoke detector."""
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

State = Mapping[str, Tensor]


def network(norm: str = "gn_ws", num_classes: int = 7, shape: ResNetShape = SHAPE) -> nn.Module:
    """Return a classifier in float64 with fresh random weights, gains, shifts and averages."""
    model = SmallResNet(shape, num_classes)
    if norm != "bn":
        convert(model, norm, groups=4)
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            draw = torch.rand if name.endswith(("running_var", "bn1.weight")) else torch.randn
            value.copy_(draw(value.shape) * 0.3 + 0.5 * (value.ndim == 1))
    return model.double().eval()


def detectron2_names(state: State) -> dict[str, Tensor]:
    """Rename torchvision's keys, and turn the stem to BGR, by rules written for this test."""
    names = {}
    for key, value in state.items():
        new = re.sub(r"^layer(\d)", lambda found: f"res{int(found[1]) + 1}", key)
        new = re.sub(r"^(conv1|bn1)", r"stem.\1", new)
        new = re.sub(r"bn(\d)\.", r"conv\1.norm.", new)
        new = new.replace("downsample.0.", "shortcut.").replace("downsample.1.", "shortcut.norm.")
        new = new.replace("fc.", "linear.")
        names[new] = value[:, [2, 1, 0]] if key == "conv1.weight" else value
    return names


def caffe2_names(state: State, norm: str = "gn") -> dict[str, np.ndarray]:
    """Rename once more, to the names of Caffe2's blobs."""
    names = {}
    branches = {"conv1": "branch2a", "conv2": "branch2b", "shortcut": "branch1"}
    for key, value in detectron2_names(state).items():
        if key.endswith(("running_mean", "running_var", "num_batches_tracked")):
            continue
        layer, _, end = key.rpartition(".")
        normed = layer.endswith(".norm")
        parts = layer.removesuffix(".norm").split(".")
        if parts[0] == "linear":
            name = "pred"
        elif parts[0] == "stem":
            name = "conv1"
        else:
            name = f"{parts[0]}_{parts[1]}_{branches[parts[2]]}"
        suffix = {"weight": "s" if normed else "w", "bias": "b"}[end]
        names[f"{name}_{norm}_{suffix}" if normed else f"{name}_{suffix}"] = value.numpy()
    return names


def _pickled(path: Path, content: object, protocol: int = 2) -> None:
    path.write_bytes(pickle.dumps(content, protocol=protocol))


def _torchvision(path: Path, state: State) -> None:
    torch.save(dict(state), path)


def _authors(path: Path, state: State) -> None:
    """As pytorch-classification saves it: DataParallel's prefix, in the format before torch 1.6."""
    wrapped = {f"module.{key}": value for key, value in state.items()}
    content = {"epoch": 90, "state_dict": wrapped, "best_acc1": np.float64(76.3)}
    torch.save(content, path, _use_new_zipfile_serialization=False)


def _timm(path: Path, state: State) -> None:
    torch.save({"state_dict": dict(state), "args": argparse.Namespace(model="resnet")}, path)


def _mmdet(path: Path, state: State) -> None:
    names = {"backbone." + re.sub(r"bn([123])", r"gn\1", key): v for key, v in state.items()}
    torch.save({"meta": {"epoch": 1}, "state_dict": names}, path)


def _safetensors(path: Path, state: State) -> None:
    save_file({key: value.contiguous() for key, value in state.items()}, path)


def _caffe2(path: Path, state: State) -> None:
    blobs = caffe2_names(state) | {"conv1_w_momentum": np.zeros(3), "lr": 0.1}
    _pickled(path, {"blobs": blobs})


def _detectron2_pkl(path: Path, state: State) -> None:
    arrays = {key: value.numpy() for key, value in detectron2_names(state).items()}
    _pickled(path, {"model": arrays, "__author__": "somebody", "matching_heuristics": True}, 4)


def _detectron2_pth(path: Path, state: State) -> None:
    body = {f"backbone.bottom_up.{k}": v for k, v in detectron2_names(state).items()}
    (mean, std) = IMAGENET
    shown = {
        "pixel_mean": torch.tensor(mean[::-1], dtype=torch.float64).view(3, 1, 1) * 255,
        "pixel_std": torch.tensor(std[::-1], dtype=torch.float64).view(3, 1, 1) * 255,
    }
    torch.save({"model": body | shown, "iteration": 9}, path)


LAYOUTS: dict[str, Callable[[Path, State], None]] = {
    "torchvision": _torchvision,
    "authors": _authors,
    "timm": _timm,
    "mmdet": _mmdet,
    "safetensors": _safetensors,
    "caffe2": _caffe2,
    "detectron2.pkl": _detectron2_pkl,
    "detectron2.pth": _detectron2_pth,
}

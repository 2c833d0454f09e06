"""Weights by their name in torchvision or timm: downloaded once, by the library's own means."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor, nn

from harness.errors import DataError, EnvironmentProblem, UsageError, did_you_mean
from harness.task import Pictures
from harness.weights.source import Source
from harness.weights.trained import Trained


def full_name(source: Source) -> str:
    """Return what the library calls the weights, version included.

    Args:
        source: of kind ``torchvision`` (``NAME`` or ``NAME.WEIGHTS``) or ``timm``.

    Raises:
        UsageError: if the library has no such weights.
        EnvironmentProblem: if the library is not installed.
    """
    if source.kind == "torchvision":
        return Path(torchvision_weights(source.name).url).name
    return _timm_config(source.name)[1]


def torchvision_weights(name: str) -> Any:
    """Return the entry of torchvision's list of weights, the newest unless ``NAME.WEIGHTS``."""
    models = _library("torchvision").models
    network, _, version = name.partition(".")
    known = models.list_models()
    if network not in known:
        raise UsageError(f"init=torchvision:{name}: no such network.{did_you_mean(network, known)}")
    entries = models.get_model_weights(network)
    versions = [entry.name for entry in entries]
    if not versions or (version and version not in versions):
        legal = ", ".join(f"torchvision:{network}.{one}" for one in versions)
        raise UsageError(f"init=torchvision:{name}: no such weights. There are: {legal or 'none'}")
    return entries[version] if version else entries.DEFAULT


def fetch_torchvision(name: str) -> Path:
    """Return the file of torchvision's weights, downloaded unless it is in torch's hub folder.

    Raises:
        EnvironmentProblem: if it cannot be downloaded.
        DataError: if what was downloaded, or lies there, has another checksum than its name says.
    """
    url = torchvision_weights(name).url
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    if not path.is_file():
        digits = path.stem.rpartition("-")[2]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), digits, progress=False)
        except (URLError, OSError) as error:
            reason = str(getattr(error, "reason", error)).splitlines()[0]
            raise EnvironmentProblem(
                f"init=torchvision:{name}: {url} cannot be downloaded ({reason}): fetch it "
                f"elsewhere and put it at {path}, or give init=FILE"
            ) from None
        except RuntimeError as error:
            raise DataError(f"init=torchvision:{name}: {str(error).splitlines()[0]}") from None
    return path


def fetch_timm(name: str) -> tuple[Mapping[str, Tensor], Pictures, Trained]:
    """Return timm's weights, how they see pictures, and the norm that their network has.

    Raises:
        EnvironmentProblem: if they cannot be downloaded.
    """
    network, full = _timm_config(name)
    timm = _library("timm")
    try:
        model = timm.create_model(full, pretrained=True)
    except Exception as error:  # of the hub's client and all it rests on; their types vary
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise EnvironmentProblem(
            f"init=timm:{name}: the weights cannot be downloaded ({reason}); fetch them elsewhere "
            "and give init=FILE"
        ) from None
    mean, std = tuple(network.mean), tuple(network.std)
    return model.state_dict(), Pictures("rgb", mean, std), _norm_of(model)


def _timm_config(name: str) -> tuple[Any, str]:
    timm = _library("timm")
    network = name.partition(".")[0]
    if not timm.is_model(network):
        raise UsageError(
            f"init=timm:{name}: no such network.{did_you_mean(network, timm.list_models())}"
        )
    if name.partition(".")[2] and name not in timm.list_pretrained(f"{network}.*"):
        near = did_you_mean(name, timm.list_pretrained(f"{network}.*"))
        raise UsageError(f"init=timm:{name}: no such weights.{near}")
    config = timm.models.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise UsageError(f"init=timm:{name}: timm has no weights of this network")
    return config, f"{config.architecture}.{config.tag}" if config.tag else config.architecture


def _norm_of(model: nn.Module) -> Trained:
    """Read the norm from the classes of timm's own network."""
    kinds = {base.__name__ for module in model.modules() for base in type(module).__mro__}
    layers = {"bn": "_BatchNorm", "gn": "GroupNorm"}
    found = [layer for layer, kind in layers.items() if kind in kinds]
    variant = "timm" if any(kind.startswith("StdConv2d") for kind in kinds) else None
    if any(kind.startswith("ScaledStdConv2d") for kind in kinds):
        variant = "scaled"
    layer = found[0] if len(found) == 1 else None if found else "none"
    return Trained(layer, variant is not None, variant=variant, told_by="timm's network")


def _library(name: str) -> Any:
    if find_spec(name) is None:
        raise EnvironmentProblem(
            f"init={name}: needs the package {name}, which is not installed: uv pip install {name}"
        )
    return import_module(name)


def tensor_checksum(tensors: Mapping[str, Tensor]) -> str:
    """Return 16 hex digits of BLAKE2b over names, types, shapes and numbers."""
    digest = hashlib.blake2b()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]

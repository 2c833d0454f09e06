"""torchvision: and timm:, with a hub folder of our own and without a network."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from types import SimpleNamespace
from urllib.error import URLError

import pytest
import torch

from harness.errors import DataError, EnvironmentProblem, UsageError
from harness.schema import InitSection
from harness.weights import library
from harness.weights.find import find
from harness.weights.source import identity, parse


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def test_what_init_names():
    assert [parse(text).kind for text in (None, "scratch", "a/run:b", "run:x", "timm:y")] == [
        *("scratch", "scratch", "file", "run", "timm")
    ]


def test_torchvisions_names_are_its_files():
    assert identity(InitSection(source="torchvision:resnet18")) == (
        "torchvision:resnet18-f37072fd.pth"
    )
    newer, older = (
        identity(InitSection(source=f"torchvision:resnet50{version}"))
        for version in ("", ".IMAGENET1K_V1")
    )
    assert newer != older
    for name, words in (
        ("resnt18", "no such network. Did you mean 'resnet18'"),
        ("resnet18.V7", "There are: torchvision:resnet18.IMAGENET1K_V1"),
    ):
        with pytest.raises(UsageError, match=words):
            identity(InitSection(source=f"torchvision:{name}"))


def test_a_file_of_the_hub_is_checked_and_loaded(hub, tmp_path, monkeypatch):
    from torchvision.models import shufflenet_v2_x0_5

    model = shufflenet_v2_x0_5()
    torch.save(model.state_dict(), tmp_path / "file")
    digits = hashlib.sha256((tmp_path / "file").read_bytes()).hexdigest()[:8]
    digits = digits if any(one.isalpha() for one in digits) else pytest.skip("a hash of digits")
    entry = SimpleNamespace(url=f"https://nowhere.invalid/net-{digits}.pth")
    monkeypatch.setattr(library, "torchvision_weights", lambda name: entry)
    (hub / f"net-{digits}.pth").write_bytes((tmp_path / "file").read_bytes())
    found = find(InitSection(source="torchvision:net"), tmp_path)
    assert found.trained.name == "bn"
    assert all(torch.equal(found.tensors[k], v) for k, v in model.state_dict().items())
    (hub / f"net-{digits}.pth").write_bytes(b"PK half")
    with pytest.raises(DataError, match="damaged or not all there"):
        find(InitSection(source="torchvision:net"), tmp_path)


def test_no_network_is_one_line(hub, tmp_path, monkeypatch):
    def refused(*_, **__):
        raise URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refused)
    with pytest.raises(EnvironmentProblem, match=r"resnet18-f37072fd.pth cannot be down") as caught:
        find(InitSection(source="torchvision:resnet18"), tmp_path)
    assert str(hub) in str(caught.value)
    assert "\n" not in str(caught.value)


_TIMM = """
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

import timm
from harness.errors import EnvironmentProblem, UsageError
from harness.schema import InitSection
from harness.weights.find import find
from harness.weights.source import identity

init = InitSection(source="timm:test_resnet.r160_in1k")
assert identity(init) == identity(InitSection(source="timm:test_resnet")) == (
    "timm:test_resnet.r160_in1k"
)
for wrong in ("test_resnt", "test_resnet.x"):
    try:
        identity(InitSection(source=f"timm:{wrong}"))
        sys.exit(f"{wrong} was taken")
    except UsageError as error:
        assert "Did you mean" in str(error) or "no such weights" in str(error), error
try:
    find(init, Path("."))
    sys.exit("found without a file")
except EnvironmentProblem as error:
    assert "cannot be downloaded" in str(error) and chr(10) not in str(error), error
home = Path(sys.argv[1]) / "hub" / "models--timm--test_resnet.r160_in1k"
(home / "refs").mkdir(parents=True)
(home / "refs" / "main").write_text("0" * 40)
snapshot = home / "snapshots" / ("0" * 40)
snapshot.mkdir(parents=True)
model = timm.create_model("test_resnet")
for value in model.state_dict().values():
    value.copy_(torch.rand(value.shape)) if value.is_floating_point() else None
save_file(model.state_dict(), snapshot / "model.safetensors")
found = find(init, Path("."))
assert found.trained.name == "bn" and found.pictures.mean == (0.5, 0.5, 0.5), found.trained
for name, value in model.state_dict().items():
    assert torch.equal(found.tensors[name], value), name
"""


def test_timms_cache_is_used_and_its_absence_is_one_line(tmp_path):
    """In a process of its own: the hub's client reads its folder and its mode once."""
    import os

    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _TIMM, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_norm_of_timms_networks_is_that_of_their_modules():
    import timm

    for name, norm in (
        ("test_resnet", "bn"),
        ("test_nfnet", "none_ws"),
        ("test_convnext", "none"),
    ):
        assert library._norm_of(timm.create_model(name)).name == norm, name

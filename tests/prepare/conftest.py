"""The downloads of VOC and of ImageNet, with checksums that the product takes for the official."""

from __future__ import annotations

import hashlib
import sys
import types
from pathlib import Path

import pytest
from torchvision.datasets import imagenet

from tasks.classification.prepare import _DEVKIT
from tasks.segmentation import prepare as segmentation
from tests.prepare.downloads import JPG, MASK, VOC_TAR, WNIDS, picture, tar, voc_files, zipped


@pytest.fixture
def voc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return the two downloads of segmentation, in a folder with a space and an umlaut."""
    folder = tmp_path / "meine Däten 数据"
    folder.mkdir()
    official = tar(folder / VOC_TAR, voc_files())
    masks = {f"SegmentationClassAug/{n}.png": MASK for n in ("2007_a", "2007_b", "2007_c")}
    masks |= {"SegmentationClassAug/2008_d.png": MASK, "__MACOSX/SegmentationClassAug/._x.png": b""}
    digest = hashlib.md5(official.read_bytes()).hexdigest()
    monkeypatch.setitem(segmentation.LAYOUT.md5, VOC_TAR, digest)
    return [official, zipped(folder / "SegmentationClassAug.zip", masks)]


@pytest.fixture
def imagenet_downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return ImageNet's three archives with two classes; torchvision's reader, MATLAB faked."""
    folder = tmp_path / "ILSVRC downloads"
    folder.mkdir()
    inner = {}
    for wnid in WNIDS:
        path = tar(tmp_path / "inner", {f"{wnid}_{n}.JPEG": JPG for n in range(3)})
        inner[f"{wnid}.tar"] = path.read_bytes()
    tar(folder / "ILSVRC2012_img_train.tar", inner)
    val = {f"ILSVRC2012_val_{n:08}.JPEG": picture("jpeg", 50 * n) for n in (1, 2, 3)}
    tar(folder / "ILSVRC2012_img_val.tar", val)
    truth = {
        "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": b"2\n1\n2\n",
        "ILSVRC2012_devkit_t12/data/meta.mat": b"",
    }
    tar(folder / _DEVKIT, truth, "w:gz")
    synsets = [(1, WNIDS[0], "tench", "", 0), (2, WNIDS[1], "spaniel", "", 0)]
    synsets.append((3, "n00000001", "animal", "", 2))
    reader = types.ModuleType("scipy.io")
    reader.loadmat = lambda path, squeeze_me: {"synsets": synsets}
    package = types.ModuleType("scipy")
    package.io = reader
    monkeypatch.setitem(sys.modules, "scipy", package)
    monkeypatch.setitem(sys.modules, "scipy.io", reader)
    for key, (name, _) in imagenet.ARCHIVE_META.items():
        digest = hashlib.md5((folder / name).read_bytes()).hexdigest()
        monkeypatch.setitem(imagenet.ARCHIVE_META, key, (name, digest))
    return folder

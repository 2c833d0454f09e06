"""`--download` hands over to the libraries that offer the data, and else names their source."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path

import pytest

from tests.prepare.downloads import JPG, MESHES, WNIDS, prepare, tar, tree


def test_download_of_voc_goes_through_torchvision(voc, tmp_path, monkeypatch):
    root = tmp_path / "data"

    def fetch(folder, *, year, image_set, download):
        assert (folder, year, download) == (root / ".download", "2012", True)
        shutil.copy(voc[0], folder)

    monkeypatch.setattr("torchvision.datasets.VOCSegmentation", fetch)
    assert prepare(monkeypatch, "segmentation", f"data={root}", "--download") == 0
    assert (root / "VOCdevkit/VOC2012/JPEGImages/2007_a.jpg").read_bytes() == JPG
    assert not (root / ".download").exists()


def test_download_of_imagenette_goes_through_torchvision(tmp_path, monkeypatch):
    root = tmp_path / "data"
    names = [f"imagenette2/{s}/{w}/{w}_1.JPEG" for s in ("train", "val") for w in WNIDS]

    def fetch(folder, *, size, download):
        assert (folder, size, download) == (root / ".download", "full", True)
        tar(folder / "imagenette2.tgz", dict.fromkeys(names, JPG), "w:gz")

    monkeypatch.setattr("torchvision.datasets.Imagenette", fetch)
    assert prepare(monkeypatch, "classification", f"data={root}", "--download") == 0
    assert tree(root) == {n.removeprefix("imagenette2/"): JPG for n in names}


def test_download_of_meshes_goes_through_torch_geometric(tmp_path, monkeypatch):
    root = tmp_path / "data"

    class Fetch:
        def __init__(self, folder: str, name: str) -> None:
            assert (folder, name) == (str(root / ".download"), "40")
            for path, content in MESHES.items():
                (Path(folder, "raw", path).parent).mkdir(parents=True)
                Path(folder, "raw", path).write_bytes(content)
            self.process()  # neither reads the meshes
            self.load("nowhere")

    monkeypatch.setattr("torch_geometric.datasets.ModelNet", Fetch)
    words = ("pointcloud", f"data={root}", "data.format=meshes", "--download")
    assert prepare(monkeypatch, *words) == 0
    assert tree(root) == {f"ModelNet40/{name}": content for name, content in MESHES.items()}


@pytest.mark.parametrize(
    ("words", "module", "name"),
    [
        (["segmentation"], "torchvision.datasets", "VOCSegmentation"),
        (["classification"], "torchvision.datasets", "Imagenette"),
        (["pointcloud", "data.format=meshes"], "torch_geometric.datasets", "ModelNet"),
    ],
)
def test_without_network_the_source_is_named(tmp_path, monkeypatch, capsys, words, module, name):
    from urllib.error import URLError

    class Fail:
        def __init__(self, *args: object, **kwargs: object) -> None:
            raise URLError("Name or service not known")

    monkeypatch.setattr(importlib.import_module(module), name, Fail)
    assert prepare(monkeypatch, *words, f"data={tmp_path / 'a'}", "--download") == 3
    error = capsys.readouterr().err
    assert "Name or service not known" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "source"),
    [
        (["detection"], "cocodataset.org"),
        (["classification", "preset=paper"], "image-net.org"),
        (["pointcloud"], "shapenet.cs.stanford.edu"),
    ],
)
def test_what_no_library_offers_is_named(tmp_path, monkeypatch, capsys, words, source):
    assert prepare(monkeypatch, *words, f"data={tmp_path / 'a'}", "--download") == 3
    assert source in capsys.readouterr().err

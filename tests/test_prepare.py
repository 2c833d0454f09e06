"""Official downloads become data folders: whole, resumable, and nothing written outside them."""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import shutil
import stat
import sys
import tarfile
import types
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import imagenet

from harness import archives
from harness.cli import main
from tasks.classification.prepare import _DEVKIT
from tasks.segmentation import prepare as segmentation
from tasks.segmentation.voc import OFFICIAL_COUNTS

VOC_TAR = "VOCtrainval_11-May-2012.tar"


def prepare(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["normbench", "data", "prepare", *map(str, words)])
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0)


def picture(kind: str, value: int = 7) -> bytes:
    mode = "L" if kind == "png" else "RGB"
    file = io.BytesIO()
    Image.new(mode, (8, 8), value if mode == "L" else (value, 0, 0)).save(file, kind)
    return file.getvalue()


JPG, MASK = picture("jpeg"), picture("png")


def tar(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def tree(root: Path) -> dict[str, bytes]:
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def voc_files() -> dict[str, bytes]:
    base = "VOCdevkit/VOC2012/"
    files = {base + f"ImageSets/Segmentation/{name}.txt": b"" for name in ("trainval",)}
    files[base + "ImageSets/Segmentation/train.txt"] = b"2007_a\n2007_b\n"
    files[base + "ImageSets/Segmentation/val.txt"] = b"2007_c\n"
    files[base + "ImageSets/Segmentation/trainval.txt"] = b"2007_a\n2007_b\n2007_c\n"
    files[base + "Annotations/2007_a.xml"] = b"<not read/>"
    for name in ("2007_a", "2007_b", "2007_c", "2008_d"):
        files[base + f"JPEGImages/{name}.jpg"] = JPG
    for name in ("2007_a", "2007_b", "2007_c"):
        files[base + f"SegmentationClass/{name}.png"] = MASK
    return files


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


def test_segmentation(voc, tmp_path, monkeypatch, capsys):
    root = tmp_path / "wohin damit é"
    for name, count in (("train_aug", 3), ("val", 1)):
        monkeypatch.setitem(OFFICIAL_COUNTS, name, count)
    words = ("segmentation", "preset=paper", "init=scratch", f"data={root}")
    assert prepare(monkeypatch, *words, "--from", voc[0], "--from", voc[1]) == 0
    found = tree(root / "VOCdevkit" / "VOC2012")
    assert sum(name.startswith("JPEGImages/") for name in found) == 4
    assert found["SegmentationClassAug/2008_d.png"] == MASK
    assert not any("Annotations" in name or "partial" in name for name in found)
    # Every augmented mask that is not evaluated on is trained on.
    assert found["list/train_aug.txt"].decode().splitlines() == [
        f"/JPEGImages/{n}.jpg /SegmentationClassAug/{n}.png" for n in ("2007_a", "2007_b", "2008_d")
    ]
    assert found["list/val.txt"] == b"/JPEGImages/2007_c.jpg /SegmentationClassAug/2007_c.png\n"
    assert "the data are as they should be" in capsys.readouterr().out


def test_a_folder_of_downloads_or_of_their_content_serves_as_well(voc, tmp_path, monkeypatch):
    first, second = tmp_path / "one", tmp_path / "two"
    assert prepare(monkeypatch, "segmentation", f"data={first}", "--from", voc[0].parent) == 0
    assert prepare(monkeypatch, "segmentation", f"data={second}", "--from", first) == 0
    assert tree(first) == tree(second)


def test_own_lists_are_kept(voc, tmp_path, monkeypatch):
    lists = {
        "list/train_aug.txt": b"/JPEGImages/2008_d.jpg /SegmentationClassAug/2008_d.png\n",
        "list/val.txt": b"/JPEGImages/2007_c.jpg /SegmentationClassAug/2007_c.png\n",
    }
    zipped(voc[0].parent / "list.zip", lists)
    root = tmp_path / "VOC2012"
    assert prepare(monkeypatch, "segmentation", f"data={root}", "--from", voc[0].parent) == 0
    assert (root / "list/train_aug.txt").read_bytes() == lists["list/train_aug.txt"]


def test_a_damaged_official_tar_is_refused(voc, tmp_path, monkeypatch, capsys):
    content = bytearray(voc[0].read_bytes())
    content[len(content) // 2] ^= 1
    voc[0].write_bytes(content)
    root = tmp_path / "data"
    assert prepare(monkeypatch, "segmentation", f"data={root}", "--from", voc[0]) == 3
    assert "download it again" in capsys.readouterr().err
    assert not tree(root)


def test_an_interrupt_leaves_no_half_file_and_the_same_command_goes_on(
    voc, tmp_path, monkeypatch, capsys
):
    words = ("segmentation", f"data={tmp_path / 'data'}", "--from", voc[0])
    copy, written = shutil.copyfileobj, []

    def stopped(source, target, length):
        written.append(target.name)
        if len(written) == 5:
            target.write(source.read(3))
            raise KeyboardInterrupt
        copy(source, target, length)

    monkeypatch.setattr(archives.shutil, "copyfileobj", stopped)
    assert prepare(monkeypatch, *words) == 130
    root = tmp_path / "data" / "VOCdevkit" / "VOC2012"
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
    whole = {name.removeprefix("VOCdevkit/VOC2012/"): data for name, data in voc_files().items()}
    assert len(tree(root).items() & whole.items()) == 4
    # A hard kill leaves the unfinished file, and a file cut short by hand has another size.
    (root / "JPEGImages").mkdir(exist_ok=True)
    (root / "JPEGImages" / ".2007_b.jpg.partial").write_bytes(b"half")
    capsys.readouterr()

    written.clear()
    monkeypatch.setattr(archives.shutil, "copyfileobj", lambda *a: (written.append(1), copy(*a)))
    assert prepare(monkeypatch, *words) == 0, capsys.readouterr().err
    assert len(written) == len(whole) - 1 - 4  # less the annotation, and what was there
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert not list(root.rglob("*.partial"))
    assert whole.items() - tree(root).items() == {("Annotations/2007_a.xml", b"<not read/>")}


def coco_downloads(folder: Path) -> Path:
    folder.mkdir()
    annotations = {"annotations/captions_val2017.json": b"{}"}
    for split in ("train2017", "val2017"):
        names = [f"{split}/{number:012}.jpg" for number in (1, 2)]
        zipped(folder / f"{split}.zip", dict.fromkeys(names, JPG))
        images = [{"id": n, "file_name": f"{n:012}.jpg", "width": 8, "height": 8} for n in (1, 2)]
        box = {"bbox": [1, 1, 4, 4], "area": 16, "iscrowd": 0}
        box["segmentation"] = [[1, 1, 5, 1, 5, 5, 1, 5]]
        objects = [{"id": n, "image_id": n, "category_id": 1} | box for n in (1, 2)]
        content = {"images": images, "annotations": objects}
        content["categories"] = [{"id": 1, "name": "person"}]
        annotations[f"annotations/instances_{split}.json"] = json.dumps(content).encode()
    zipped(folder / "annotations_trainval2017.zip", annotations)
    return folder


def test_detection(tmp_path, monkeypatch):
    downloads, root = coco_downloads(tmp_path / "zips"), tmp_path / "coco"
    given = [word for path in sorted(downloads.iterdir()) for word in ("--from", path)]
    assert prepare(monkeypatch, "detection", f"data={root}", *given) == 0
    assert sorted(tree(root)) == [
        "annotations/instances_train2017.json",
        "annotations/instances_val2017.json",
        *(f"{split}/{n:012}.jpg" for split in ("train2017", "val2017") for n in (1, 2)),
    ]


def test_what_is_missing_is_named_with_its_source(tmp_path, monkeypatch, capsys):
    downloads = coco_downloads(tmp_path / "zips")
    words = ("detection", f"data={tmp_path / 'coco'}", "--from", downloads / "val2017.zip")
    assert prepare(monkeypatch, *words) == 3
    error = capsys.readouterr().err
    assert "annotations" in error
    assert "annotations_trainval2017.zip from cocodataset.org" in error


def test_a_damaged_zip_is_refused(tmp_path, monkeypatch, capsys):
    downloads, root = coco_downloads(tmp_path / "zips"), tmp_path / "coco"
    path = downloads / "val2017.zip"
    content = path.read_bytes()
    path.write_bytes(content[:60] + bytes(20) + content[80:])
    assert prepare(monkeypatch, "detection", f"data={root}", "--from", path) == 3
    assert "is damaged" in capsys.readouterr().err
    assert not tree(root)
    path.write_bytes(content[:-40])
    assert prepare(monkeypatch, "detection", f"data={root}", "--from", path) == 3
    assert "not a whole tar or zip file" in capsys.readouterr().err


WNIDS = ("n01440764", "n02102040")


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


def test_classification(imagenet_downloads, tmp_path, monkeypatch):
    before = tree(imagenet_downloads)
    root = tmp_path / "imagenet"
    assert prepare(monkeypatch, "classification", f"data={root}", "--from", imagenet_downloads) == 0
    found = tree(root)
    assert sorted(name for name in found if name.startswith("train")) == [
        f"train/{wnid}/{wnid}_{n}.JPEG" for wnid in WNIDS for n in range(3)
    ]
    for number, wnid in enumerate((WNIDS[1], WNIDS[0], WNIDS[1]), start=1):
        name = f"val/{wnid}/ILSVRC2012_val_{number:08}.JPEG"
        assert found.pop(name) == picture("jpeg", 50 * number)
    assert not [name for name in found if name.startswith("val")]
    assert tree(imagenet_downloads) == before  # nothing is left beside the archives


def test_val_needs_the_development_kit(imagenet_downloads, tmp_path, monkeypatch, capsys):
    words = ("classification", f"data={tmp_path / 'out'}", "--from")
    val = imagenet_downloads / "ILSVRC2012_img_val.tar"
    assert prepare(monkeypatch, *words, val) == 3
    assert f"give {_DEVKIT} (image-net.org) with --from too" in capsys.readouterr().err


def test_pictures_that_are_sorted_already(imagenet_downloads, tmp_path, monkeypatch):
    """The training archive with a folder val/ in class folders, and a packed ImageFolder."""
    val = tmp_path / "val"
    for wnid in WNIDS:
        (val / wnid).mkdir(parents=True)
        (val / wnid / "ILSVRC2012_val_00000009.JPEG").write_bytes(JPG)
    train = imagenet_downloads / "ILSVRC2012_img_train.tar"
    one, two = tmp_path / "one", tmp_path / "two"
    words = ("--from", train, "--from", val)
    assert prepare(monkeypatch, "classification", f"data={one}", *words) == 0
    packed = tar(tmp_path / "mine.tgz", {f"mine/{n}": c for n, c in tree(one).items()}, "w:gz")
    assert prepare(monkeypatch, "classification", f"data={two}", "--from", packed) == 0
    assert tree(one) == tree(two)


def modelnet_zip(path: Path) -> Path:
    files = {"shape_names.txt": b"cone\ncube\n"}
    for split in ("train", "test"):
        content = io.BytesIO()
        with h5py.File(content, "w") as file:
            rng = np.random.RandomState(0)
            file["data"] = rng.uniform(-0.5, 0.5, (4, 2048, 3)).astype(np.float32)
            file["label"] = np.array([[0], [1], [0], [1]], dtype=np.uint8)
        files[f"ply_data_{split}0.h5"] = content.getvalue()
        files[f"{split}_files.txt"] = f"data/somewhere/ply_data_{split}0.h5\n".encode()
        files[f"ply_data_{split}_0_id2file.json"] = b"[]"
    return zipped(path, {f"modelnet40_ply_hdf5_2048/{n}": c for n, c in files.items()})


def test_pointcloud(tmp_path, monkeypatch):
    archive = modelnet_zip(tmp_path / "modelnet40_ply_hdf5_2048.zip")
    assert prepare(monkeypatch, "pointcloud", f"data={tmp_path / 'a'}", "--from", archive) == 0
    found = tree(tmp_path / "a" / "modelnet40_ply_hdf5_2048")
    assert len(found) == 5
    assert not any(name.endswith(".json") for name in found)


OFF = b"OFF\n4 4 0\n0 0 0\n1 0 0\n0 1 0\n0 0 1\n3 0 1 2\n3 0 1 3\n3 0 2 3\n3 1 2 3\n"
MESHES = {f"{c}/{s}/{c}_0001.off": OFF for c in ("cone", "cube") for s in ("train", "test")}


def test_pointcloud_meshes(tmp_path, monkeypatch):
    archive = zipped(tmp_path / "ModelNet40.zip", {f"ModelNet40/{n}": c for n, c in MESHES.items()})
    words = ("pointcloud", f"data={tmp_path / 'a'}", "data.format=meshes", "--from", archive)
    assert prepare(monkeypatch, *words) == 0
    assert tree(tmp_path / "a" / "ModelNet40") == MESHES


def hostile(path: Path, kind: str) -> Path:
    """Write a zip or tar file with a good picture and one hostile entry."""
    good = {"train2017/1.jpg": JPG}
    names = {"parent": "train2017/../../../evil.jpg", "absolute": "/tmp/evil/train2017/evil.jpg"}
    names["windows"] = "train2017\\..\\evil.jpg"
    if kind in names:
        files = good | {names[kind]: JPG}
        return zipped(path, files) if path.suffix == ".zip" else tar(path, files)
    if path.suffix == ".zip":
        zipped(path, good | ({"train2017/2.jpg": bytes(10**7)} if kind == "bomb" else {}))
        if kind == "symlink":
            info = zipfile.ZipInfo("train2017/2.jpg")
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
            with zipfile.ZipFile(path, "a") as archive:
                archive.writestr(info, "/etc/passwd")
        return path
    if kind == "bomb":
        tar(path, good | {"train2017/2.jpg": bytes(10**7)}, "w:gz")
        return path
    tar(path, good)
    member = tarfile.TarInfo("train2017/2.jpg")
    member.type = {"symlink": tarfile.SYMTYPE, "hardlink": tarfile.LNKTYPE}.get(
        kind, tarfile.FIFOTYPE
    )
    member.linkname = "train2017/1.jpg" if kind == "hardlink" else "/etc/passwd"
    with tarfile.open(path, "a") as archive:
        archive.addfile(member)
    return path


@pytest.mark.parametrize(
    ("suffix", "kind"),
    [
        *((s, k) for s in ("zip", "tar") for k in ("parent", "absolute", "windows", "symlink")),
        *(("tar", kind) for kind in ("hardlink", "fifo")),
        *((suffix, "bomb") for suffix in ("zip", "tar.gz")),
    ],
)
def test_hostile_archives_are_refused_whole(tmp_path, monkeypatch, capsys, suffix, kind):
    archive = hostile(tmp_path / f"train2017.{suffix}", kind)
    root = tmp_path / "deep" / "data"
    root.mkdir(parents=True)
    assert prepare(monkeypatch, "detection", f"data={root}", "--from", archive) == 3
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "is not safe to unpack" in error
    assert set(tree(tmp_path)) == {archive.name}
    assert not Path("/tmp/evil").exists()


def test_a_full_disk_is_seen_before_anything_is_written(tmp_path, monkeypatch, capsys):
    downloads = coco_downloads(tmp_path / "zips")
    usage = types.SimpleNamespace(free=100)
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda path: usage)
    words = ("detection", f"data={tmp_path / 'a'}", "--from", downloads / "train2017.zip")
    assert prepare(monkeypatch, *words) == 3
    assert "are free" in capsys.readouterr().err
    assert not (tmp_path / "a" / "train2017").exists()


@pytest.mark.parametrize("task", ["detection", "segmentation", "classification", "pointcloud"])
def test_the_wrong_archive_is_named_in_one_line(tmp_path, monkeypatch, capsys, task):
    archive = zipped(tmp_path / "holiday.zip", {"beach/1.jpg": JPG})
    assert prepare(monkeypatch, task, f"data={tmp_path / 'a'}", "--from", archive) == 3
    error = capsys.readouterr().err
    assert error.startswith(f"error: {archive} holds nothing of")
    assert error.count("\n") == 1
    (tmp_path / "text").write_text("nothing packed")
    assert prepare(monkeypatch, task, f"data={tmp_path / 'a'}", "--from", tmp_path / "text") == 3
    assert prepare(monkeypatch, task, f"data={tmp_path / 'a'}", "--from", tmp_path / "no") == 3
    assert "does not exist" in capsys.readouterr().err


def test_two_at_once_do_not_mix(tmp_path, monkeypatch, capsys):
    downloads, root = coco_downloads(tmp_path / "zips"), tmp_path / "a"
    root.mkdir()
    with archives.FileLock(root / ".prepare.lock"):
        assert prepare(monkeypatch, "detection", f"data={root}", "--from", downloads) == 3
    assert "another `data prepare`" in capsys.readouterr().err


def test_a_folder_to_fill_and_a_source_are_needed(tmp_path, monkeypatch, capsys):
    assert prepare(monkeypatch, "detection", "--from", tmp_path) == 2
    assert "data=DIR" in capsys.readouterr().err
    assert prepare(monkeypatch, "detection", f"data={tmp_path}") == 2
    assert "cocodataset.org" in capsys.readouterr().err
    words = ("detection", f"data={tmp_path}", "--from", tmp_path, "--download")
    assert prepare(monkeypatch, *words) == 2


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

"""Official downloads, packed or not, become the folders that the tasks read."""

from __future__ import annotations

from tasks.classification.prepare import _DEVKIT
from tasks.segmentation.voc import OFFICIAL_COUNTS
from tests.prepare.downloads import (
    JPG,
    MASK,
    MESHES,
    WNIDS,
    coco_downloads,
    modelnet_zip,
    picture,
    prepare,
    tar,
    tree,
    zipped,
)


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


def test_pointcloud(tmp_path, monkeypatch):
    archive = modelnet_zip(tmp_path / "modelnet40_ply_hdf5_2048.zip")
    assert prepare(monkeypatch, "pointcloud", f"data={tmp_path / 'a'}", "--from", archive) == 0
    found = tree(tmp_path / "a" / "modelnet40_ply_hdf5_2048")
    assert len(found) == 5
    assert not any(name.endswith(".json") for name in found)


def test_pointcloud_meshes(tmp_path, monkeypatch):
    archive = zipped(tmp_path / "ModelNet40.zip", {f"ModelNet40/{n}": c for n, c in MESHES.items()})
    words = ("pointcloud", f"data={tmp_path / 'a'}", "data.format=meshes", "--from", archive)
    assert prepare(monkeypatch, *words) == 0
    assert tree(tmp_path / "a" / "ModelNet40") == MESHES


def test_a_folder_to_fill_and_a_source_are_needed(tmp_path, monkeypatch, capsys):
    assert prepare(monkeypatch, "detection", "--from", tmp_path) == 2
    assert "data=DIR" in capsys.readouterr().err
    assert prepare(monkeypatch, "detection", f"data={tmp_path}") == 2
    assert "cocodataset.org" in capsys.readouterr().err
    words = ("detection", f"data={tmp_path}", "--from", tmp_path, "--download")
    assert prepare(monkeypatch, *words) == 2

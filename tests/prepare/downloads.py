"""Writes small archives as the official downloads are laid out, and unpacks them as users do."""

from __future__ import annotations

import io
import json
import sys
import tarfile
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from harness.cli import main

VOC_TAR = "VOCtrainval_11-May-2012.tar"


WNIDS = ("n01440764", "n02102040")


OFF = b"OFF\n4 4 0\n0 0 0\n1 0 0\n0 1 0\n0 0 1\n3 0 1 2\n3 0 1 3\n3 0 2 3\n3 1 2 3\n"


MESHES = {f"{c}/{s}/{c}_0001.off": OFF for c in ("cone", "cube") for s in ("train", "test")}


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

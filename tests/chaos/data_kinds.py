"""The kinds of data that are tried: annotations, pictures, clouds and archives that are damaged."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import zipfile
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from harness import registry
from harness.archives import Layout, unpack
from harness.spec import build, parse_words
from tests.chaos.fuzz import Kind, command, nothing_left, refused
from tests.chaos.inputs import TEXTS, as_json, byte_edits, document_or_bytes, spoiled


def _embedded(task: str, *words: str) -> Path:
    made = build(task, parse_words(["preset=smoke", *words]))
    return registry.task_info(task).prepare(made, lambda *_: None)


def coco(folder: Path) -> Kind:
    """Damage COCO annotations; check them, train and evaluate on them."""
    import numpy as np
    from numpy.random import RandomState

    from tasks.detection import coco as form
    from tasks.detection.dataset import CocoImages
    from tasks.detection.evaluation import ground_truth, score

    root = folder / "coco"
    shutil.copytree(_embedded("detection", "data.num_train=2", "data.num_val=2"), root)
    paths = [form.annotation_file(root, split) for split in (form.TRAIN, form.VAL)]
    documents = [json.loads(path.read_text()) for path in paths]
    for document in documents:  # the fewer the objects, the more of the damage meets one
        document["annotations"] = document["annotations"][:4]
    assert command("data", "check", "detection", f"data={root}", "preset=smoke") == 0
    box = np.zeros((64, 64), dtype=np.uint8, order="F")
    box[3:9, 4:20] = 1
    made = build("detection", parse_words(["preset=smoke"]))

    def attempt(given: tuple[int, bytes]) -> int:
        which, content = given
        for path, document in zip(paths, documents, strict=True):
            path.write_bytes(as_json(document))
        paths[which].write_bytes(content)
        status = command("data", "check", "detection", f"data={root}", "preset=smoke")

        def use() -> None:
            train, val = (form.read_annotations(path) for path in paths)
            form.check_evaluated(val)
            images = CocoImages(root, form.TRAIN, train, made.data)
            for index in range(len(images)):
                images.sample(index, RandomState(0))
            images = CocoImages(root, form.VAL, val, made.data)
            images.evaluation_sample(0)
            from pycocotools import mask

            result = {
                "image_id": val.images[0]["id"],
                "category_id": val.category_ids[0],
                "bbox": [4.0, 3.0, 16.0, 6.0],
                "score": 0.5,
                "segmentation": mask.encode(box),
            }
            score(ground_truth(val), [result])

        used = refused(use)
        return max(status, used)

    drawn = st.integers(0, 1).flatmap(
        lambda which: st.tuples(st.just(which), document_or_bytes(documents[which], as_json))
    )
    return Kind(drawn, attempt)


def voc_folders(folder: Path) -> Kind:
    """Damage files of a VOC folder; check it and train on it."""
    from numpy.random import RandomState

    from tasks.segmentation import voc
    from tasks.segmentation.dataset import VocImages

    root = folder / "VOC2012"
    shutil.copytree(_embedded("segmentation", "data.num_train=2", "data.num_val=2"), root)
    whole = {path: path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
    made = build("segmentation", parse_words(["preset=smoke"]))
    assert command("data", "check", "segmentation", f"data={root}", "preset=smoke") == 0
    damage = st.tuples(
        st.sampled_from(sorted(whole)),
        st.sampled_from(["spoil", "spoil", "text", "remove", "empty", "folder", "loop", "swap"]),
        byte_edits,
        st.lists(TEXTS, max_size=3),
    )

    def hurt(path: Path, how: str, changes: Any, words: list[str]) -> None:
        if how == "spoil":
            path.write_bytes(spoiled(whole[path], changes))
            return
        if how == "text":
            path.write_text("\n".join(words), encoding="utf-8")
            return
        path.unlink()
        match how:
            case "empty":
                path.touch()
            case "folder":
                path.mkdir()
            case "loop":
                path.symlink_to(path.name)
            case "swap":
                path.write_bytes(whole[sorted(whole)[len(words)]])

    def attempt(given: list[Any]) -> int:
        try:
            for path, how, changes, words in given:
                mend(path)
                hurt(path, how, changes, words)
            status = command("data", "check", "segmentation", f"data={root}", "preset=smoke")

            def use() -> None:
                voc.fingerprint(root, "train")
                pairs = voc.read_split(root, voc.list_files(root, "train")["train"])
                images = VocImages(pairs, made.data, len(voc.class_names(root)))
                for index in range(min(3, len(images))):
                    images.sample(index, RandomState(0))
                    images.evaluation_sample(index)

            return max(status, refused(use))
        finally:
            for path, *_ in given:
                mend(path)

    def mend(path: Path) -> None:
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)
        path.write_bytes(whole[path])

    return Kind(st.lists(damage, min_size=1, max_size=3), attempt)


def pictures(folder: Path) -> Kind:
    """Damage pictures and masks of many kinds, and read them as the three tasks do."""
    import numpy as np
    from PIL import Image

    from tasks.classification.images import read_rgb
    from tasks.detection.dataset import read_bgr
    from tasks.segmentation.dataset import read_pair
    from tasks.segmentation.voc import Pair

    pixels = np.random.RandomState(0).randint(0, 255, (12, 16, 3)).astype(np.uint8)
    rgb = Image.fromarray(pixels)
    forms = {
        "png": rgb,
        "jpg": rgb,
        "gif": rgb.quantize(8),
        "bmp": rgb,
        "tif": rgb,
        "webp": rgb,
        "p.png": rgb.quantize(4),
        "l.png": rgb.convert("L"),
        "la.png": rgb.convert("LA"),
        "rgba.png": rgb.convert("RGBA"),
        "i.png": Image.fromarray(pixels[..., 0].astype(np.uint16) * 200),
        "1.png": rgb.convert("1"),
        "cmyk.jpg": rgb.convert("CMYK"),
        "ppm": rgb,
    }
    whole: dict[str, bytes] = {}
    for name, image in forms.items():
        with io.BytesIO() as file:
            kind = {"jpg": "jpeg", "tif": "tiff"}.get(end := name.rpartition(".")[2], end)
            image.save(file, kind)
            whole[name] = file.getvalue()
    good, mask = folder / "good.png", folder / "mask.png"
    good.write_bytes(whole["png"])
    mask.write_bytes(whole["p.png"])

    def attempt(given: tuple[str, Any]) -> int:
        name, changes = given
        path = folder / f"x.{name}"
        path.write_bytes(spoiled(whole[name], changes))
        record = {"file_name": str(path), "height": 12, "width": 16}
        return max(
            refused(lambda: read_rgb(path)),
            refused(lambda: read_bgr(record)),
            refused(lambda: read_pair(Pair("x", path, mask), 21)),
            refused(lambda: read_pair(Pair("x", good, path), 21)),
        )

    return Kind(st.tuples(st.sampled_from(sorted(whole)), byte_edits), attempt)


def clouds(folder: Path) -> Kind:
    """Damage HDF5 files of clouds, or write others of another shape and type; then read them."""
    import h5py
    import numpy as np

    from tasks.pointcloud import clouds as form

    draws = np.random.RandomState(0)
    form.write(folder, "train", draws.randn(5, 8, 3).astype(np.float32), np.arange(5) % 3)
    whole = (folder / "ply_data_train0.h5").read_bytes()
    path = folder / "x.h5"
    kinds = ["f4", "f8", "f2", "i4", "u1", "S4", "c8", "bool"]
    arrays = st.fixed_dictionaries(
        {
            name: st.tuples(
                st.sampled_from(kinds), st.lists(st.integers(0, 4), max_size=4), st.booleans()
            )
            for name in ("data", "label")
        }
    )

    def attempt(given: tuple[str, Any]) -> int:
        how, drawn = given
        if how == "bytes":
            path.write_bytes(spoiled(whole, drawn))
        else:
            with h5py.File(path, "w") as file:
                for name, (kind, shape, group) in drawn.items():
                    if group and not shape:
                        file.create_group(name)
                    else:
                        file.create_dataset(name, data=np.zeros(shape, dtype=kind))
        return max(
            refused(lambda: form.read_file(path, 4, 3)),
            refused(lambda: form.read_file(path, None, 3)),
            refused(lambda: form.count(path)),
        )

    return Kind(
        st.one_of(st.tuples(st.just("bytes"), byte_edits), st.tuples(st.just("arrays"), arrays)),
        attempt,
    )


def archives(folder: Path) -> Kind:
    """Damage archives, or name their entries at will; then unpack them."""
    layout = Layout(place=lambda path: path, archives=("a.zip",), downloads="pictures")
    files = {f"pictures/{i}.jpg": bytes([i]) * 300 for i in range(4)}
    root = folder / "inner" / "data"

    def packed(how: str, content: dict[str, bytes]) -> bytes:
        with io.BytesIO() as out:
            if how == "zip":
                with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
                    for name, data in content.items():
                        archive.writestr(name, data)
            else:
                mode: Any = {"tar": "w", "gz": "w:gz", "xz": "w:xz"}[how]
                with tarfile.open(fileobj=out, mode=mode) as tar:
                    for name, data in content.items():
                        header = tarfile.TarInfo(name)
                        header.size = len(data)
                        tar.addfile(header, io.BytesIO(data))
            return out.getvalue()

    names = st.one_of(
        TEXTS, st.sampled_from(["../x", "/etc/x", "a/../../x", "a", "a/b", "a\\b", "C:/x", "./y"])
    ).filter(lambda name: name and "\0" not in name)
    kinds = st.sampled_from(["zip", "tar", "gz", "xz"])
    drawn = st.one_of(
        st.builds(lambda how, changes: spoiled(packed(how, files), changes), kinds, byte_edits),
        st.builds(packed, kinds, st.dictionaries(names, st.binary(max_size=9), max_size=4)),
    )

    def attempt(content: bytes) -> int:
        archive = folder / "a.zip"
        archive.write_bytes(content)
        status = refused(lambda: unpack([archive], root, layout, lambda *_: None))
        nothing_left(folder)
        beside = {path.name for path in folder.iterdir()} | {p.name for p in root.parent.iterdir()}
        assert beside <= {"a.zip", "inner", "data"}, beside
        shutil.rmtree(root, ignore_errors=True)
        return status

    return Kind(drawn, attempt)

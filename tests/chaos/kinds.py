"""The kinds of inputs that are tried: what is damaged, and the command or loader that meets it."""

from __future__ import annotations

import io
import itertools
import json
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from harness import registry, spec
from harness.archives import Layout, unpack
from harness.journal import Journal
from harness.record import RunDir
from harness.spec import build, dump_spec, keys, parse_words
from tests.chaos.fuzz import Kind, command, judge, nothing_left, refused
from tests.chaos.inputs import (
    TEXTS,
    VALUES,
    as_json,
    as_lines,
    as_yaml,
    byte_edits,
    damaged,
    edits,
    spoiled,
)
from tests.harness.test_collect import record_of, store

TASKS = ("detection", "segmentation", "classification", "pointcloud")
TABLE = {
    "task": "toy",
    "title": "Tiny",
    "caption": "c",
    "metrics": ["m0"],
    "seeds": "0..1",
    "base": {"steps": 4},
    "rows": {"norm": ["gn", "gn_ws"]},
    "columns": [{"label": "one", "batch.micro": 1}, {"label": "two", "batch.micro": 2}],
    "reference": "gn",
}


def document_or_bytes(document: Any, write: Callable[[Any], bytes]) -> st.SearchStrategy[bytes]:
    """Draw a file: a document with damaged places, or with damaged bytes."""
    whole = write(document)
    return st.one_of(
        edits.map(lambda changes: write(damaged(document, changes))),
        byte_edits.map(lambda changes: spoiled(whole, changes)),
    )


def overrides(folder: Path) -> Kind:
    """Draw ``key=value`` words for ``plan``; most keys are known."""
    values = st.one_of(TEXTS, VALUES.map(lambda value: yaml.safe_dump(value).strip()))

    def words_for(task: str) -> st.SearchStrategy[tuple[str, list[tuple[str, str]]]]:
        own = st.sampled_from(sorted(keys(task)))
        pairs = st.lists(st.tuples(own, values), min_size=1, max_size=2)
        foreign = st.lists(st.tuples(TEXTS, values), max_size=2)
        return st.tuples(st.just(task), st.one_of(pairs, pairs, pairs, foreign))

    def attempt(drawn: tuple[str, list[tuple[str, str]]]) -> int:
        task, pairs = drawn
        words = [f"{key}={value}".replace("\0", "") for key, value in pairs]
        status = command("plan", "--results", str(folder / "results"), "--", task, *words)
        assert not (folder / "results").exists()
        return status

    return Kind(st.sampled_from(TASKS).flatmap(words_for), attempt)


def recipes(folder: Path) -> Kind:
    """Damage a recipe, and plan a run of it."""
    configs, numbers = folder / "configs", itertools.count()
    shutil.copytree(spec.configs_dir(), configs)
    spec.configs_dir = lambda: configs
    merged = {task: spec.recipe(task, "smoke") for task in TASKS}
    drawn = st.sampled_from(TASKS).flatmap(
        lambda task: st.tuples(st.just(task), document_or_bytes(merged[task], as_yaml))
    )

    def attempt(given: tuple[str, bytes]) -> int:
        task, content = given
        path = configs / task / f"p{next(numbers)}.yaml"
        path.write_bytes(content)
        try:
            return command("plan", task, f"preset={path.stem}", "--results", str(folder / "none"))
        finally:
            path.unlink()

    return Kind(drawn, attempt)


def tables(folder: Path) -> Kind:
    """Damage a file of tables, and plan all of them."""
    numbers = itertools.count()

    def attempt(content: bytes) -> int:
        path = folder / f"{next(numbers)}.yaml"
        path.write_bytes(content)
        try:
            return command(
                "plan", "--all", "--tables", str(path), "--results", str(folder / "none")
            )
        finally:
            path.unlink()

    return Kind(document_or_bytes({"mini": {"tiny": TABLE}}, as_yaml), attempt)


def records(folder: Path) -> Kind:
    """Damage a record among good ones, and report."""
    results, path = folder / "results", folder / "tables.yaml"
    path.write_bytes(as_yaml({"mini": {"tiny": TABLE | {"columns": [{"label": "c"}]}}}))
    store(results, record_of(0))
    bad = store(results, record_of(1))
    whole = json.loads(bad.record.read_text())

    def attempt(content: bytes) -> int:
        bad.record.write_bytes(content)
        status = command("report", "--results", str(results), "--tables", str(path))
        nothing_left(results)
        return status

    return Kind(document_or_bytes(whole, as_json), attempt)


def run_folders(folder: Path) -> Kind:
    """Damage what a run that is not done left behind, then look at it and plan to resume it."""
    words = ("plan", "toy", "--results", str(folder))
    run = RunDir(folder, spec_id := _toy_run(folder))
    environment = {"device": "cpu", "packages": {"torch": "2"}, "flags": {"a": 1}, "changed": []}
    rows: list[Any] = [{"event": "start", "step": 0}]
    rows += [
        {"event": "train", "step": 1, "loss": 2.0, "eta_s": 1.0, "images_per_s": 3.0},
        {"event": "evaluation", "step": 1, "metrics": {"m0": 3.0}},
        {"event": "stage", "stage": "evaluating", "done": 1, "total": 2},
    ]
    files = {
        run.spec: (yaml.safe_load(run.spec.read_text()), as_yaml),
        run.failure: ({"exit_code": 6, "message": "no", "step": 2}, as_json),
        run.environment: (environment, as_json),
        run.metrics: (rows, as_lines),
    }
    drawn = st.sampled_from(sorted(files)).flatmap(
        lambda path: st.tuples(st.just(path), document_or_bytes(*files[path]), st.booleans())
    )
    assert spec_id

    def attempt(given: tuple[Path, bytes, bool]) -> int:
        path, content, failed = given
        for other, (document, write) in files.items():
            other.write_bytes(write(document))
        if not failed:
            run.failure.unlink()
        run.checkpoint.touch()
        path.write_bytes(content)
        command("status", "--results", str(folder))
        status = command(*words)
        with Journal(run.metrics, 1, enabled=True):
            pass
        from harness.report.curves import read_curve

        read_curve(run.metrics)
        nothing_left(folder)
        return status

    return Kind(drawn, attempt)


def _toy_run(folder: Path, *words: str) -> str:
    """Make the folder of a run of the toy task; return its id."""
    from harness.identity import run_id

    made = build("toy", parse_words(words))
    run = RunDir(folder, run_id(made))
    run.path.mkdir(parents=True)
    run.spec.write_text(dump_spec(made))
    return run.id


def checkpoints(folder: Path) -> Kind:
    """Damage a checkpoint, sealed again or not, and let a worker go on from it."""
    import torch

    from harness import checkpoint, worker
    from tests.harness.sittings import sit, sit_until

    words = ("exec.checkpoint_s=0", "norm=bn", "optim.momentum=0.9")
    run = RunDir(folder, _toy_run(folder, *words))
    sit_until(run, 2)
    whole = run.checkpoint.read_bytes()
    content = torch.load(run.checkpoint, weights_only=True)
    spec_text = run.spec.read_text()
    assert worker

    def attempt(given: tuple[str, Any]) -> int:
        how, changes = given
        shutil.rmtree(run.path)
        run.path.mkdir()
        run.spec.write_text(spec_text)
        if how == "bytes":
            run.checkpoint.write_bytes(spoiled(whole, changes))
        else:
            with run.checkpoint.open("wb") as file:
                checkpoint._write(file, _with_tensors(damaged(content, changes)))
        code, failure = sit(run)
        if code:
            assert failure
            judge(failure.exit_code, "", f"error: {failure.message}\n")
        else:
            assert run.record.is_file()
        nothing_left(folder)
        return code

    return Kind(
        st.one_of(st.tuples(st.just("bytes"), byte_edits), st.tuples(st.just("sealed"), edits)),
        attempt,
    )


def _with_tensors(document: Any) -> Any:
    """Return what torch can save; text becomes plain."""
    if isinstance(document, dict):
        return {key: _with_tensors(value) for key, value in document.items()}
    return document


def weights(folder: Path) -> Kind:
    """Damage a file of initial weights, and load it."""
    import torch

    from harness.weights.read import read

    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    path = folder / "weights.pt"
    content = {"model": dict(model.state_dict()), "epoch": 3}
    torch.save(content, path)
    whole = path.read_bytes()

    def attempt(given: tuple[str, Any]) -> int:
        how, changes = given
        if how == "bytes":
            path.write_bytes(spoiled(whole, changes))
        else:
            torch.save(damaged(content, changes), path)
        return refused(lambda: read(path))

    return Kind(
        st.one_of(st.tuples(st.just("bytes"), byte_edits), st.tuples(st.just("tree"), edits)),
        attempt,
    )


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


KINDS: dict[str, tuple[int, Callable[[Path], Kind]]] = {
    "overrides": (18, overrides),
    "recipes": (14, recipes),
    "tables.yaml": (12, tables),
    "records": (4, records),
    "run folders": (6, run_folders),
    "checkpoints": (4, checkpoints),
    "weights": (10, weights),
    "COCO json": (6, coco),
    "VOC folders": (6, voc_folders),
    "pictures": (8, pictures),
    "HDF5": (6, clouds),
    "archives": (6, archives),
}
"""Share of the inputs, in per cent, and what makes a kind; each gets a folder of its own."""

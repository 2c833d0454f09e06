"""From a file to a model: the same features, every key accounted for, and what is refused."""

from __future__ import annotations

import csv
import hashlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.errors import DataError, UsageError
from harness.record import RunDir
from harness.registry import task_class, task_info
from harness.spec import build
from harness.weights import known, start
from harness.worker import build_model
from tasks.classification.architectures import ResNetShape
from tests.weights import files

CAFFE2 = ((122.7717, 115.9465, 102.9801), (1.0, 1.0, 1.0))
"""Mean and deviation of RGB in 0..255, Detectron's ``PIXEL_MEANS`` turned round."""
SMALL = {
    "classification": ["model.name=resnet_mini_detection", "model.width=8", "data.size=64"],
    "detection": [],
    "segmentation": [],
}


def begin(task: str, results: Path, *words: str):
    """Do what the worker does; return the model in float64, the report's rows and the rest."""
    pairs = [tuple(word.split("=", 1)) for word in ("preset=smoke", "precision=fp64", *words)]
    spec = build(task, pairs)
    run = RunDir(results, "run")
    run.path.mkdir(parents=True, exist_ok=True)
    origin = start.prepare(spec, run, resumed=False)
    working = task_class(task_info(task))(origin.spec, None)
    model, audit = build_model(working, spec)
    model = model.double().eval()
    facts, remarks = start.apply(origin, model, audit, run, working.backbone, write=True)
    rows = list(csv.DictReader(run.weights.read_text().splitlines()))
    return model, rows, facts, remarks, origin


def source_features(model, pixels, mean, std) -> torch.Tensor:
    """Return the last maps of the network that the file was written from (pixels: RGB, 0..255)."""
    shape = (1, 3, 1, 1)
    x = (pixels - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)
    x = model.maxpool(model.relu(model.bn1(model.conv1(x))))
    for stage in model.stages:
        x = model.get_submodule(stage)(x)
    return x


def scaled(pictures) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(255 * value for value in part) for part in pictures)


@pytest.mark.parametrize("layout", files.LAYOUTS)
def test_a_detector_sees_the_same_features_in_the_same_picture(layout, tmp_path):
    """Names, colours, mean and deviation at once: R-CNN shows BGR, its own mean and deviation."""
    origin = files.network("gn_ws")
    files.LAYOUTS[layout](tmp_path / "weights", origin.state_dict())
    words = (f"init={tmp_path / 'weights'}", "init.norm=gn_ws")
    if layout == "detectron2.pkl":  # its mean and deviation are nowhere written
        mean, std = files.IMAGENET
        shown = [[255 * value for value in reversed(part)] for part in (mean, std)]
        words += (f"model.pixel_mean={shown[0]}", f"model.pixel_std={shown[1]}")
    model, rows, facts, remarks, _ = begin("detection", tmp_path, *words)
    pixels = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.float64)
    images = model.preprocess_image([{"image": pixels[0].flip(0)}])
    found = model.backbone.bottom_up(images.tensor)["res5"]
    shown = CAFFE2 if layout == "caffe2" else scaled(files.IMAGENET)
    expected = source_features(origin, pixels, *shown)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert facts.norm == "gn_ws"
    stem = next(row for row in rows if row["parameter"] == "backbone.bottom_up.stem.conv1.weight")
    turned = not layout.startswith(("caffe2", "detectron2"))
    assert ("turned from rgb to bgr" in stem["why"]) == turned
    assert facts.num_loaded == len(origin.state_dict()) - 2
    skipped = [row for row in rows if row["status"] == "skipped"]
    left = {row["why"] for row in skipped if row["key"].endswith("weight")}
    head = "linear" if layout.startswith("detectron2") else "fc"
    assert left == (set() if layout == "caffe2" else {f"the model has no {head}"})
    assert (facts.pictures is None) == (layout == "detectron2.pkl")
    assert any("mean and deviation" in one or "pictures are shown" in one for one in remarks)


@pytest.mark.parametrize("layout", ["authors", "caffe2", "safetensors"])
def test_a_classifier_likewise_and_its_classes_are_skipped_in_words(layout, tmp_path):
    origin = files.network("gn_ws", num_classes=7)
    files.LAYOUTS[layout](tmp_path / "weights", origin.state_dict())
    words = [f"init={tmp_path / 'weights'}", "init.norm=gn_ws", *SMALL["classification"]]
    model, rows, _, remarks, new = begin("classification", tmp_path, *words)
    pixels = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.float64)
    mean, std = scaled((new.spec.data.mean, new.spec.data.std))
    shown = CAFFE2 if layout == "caffe2" else scaled(files.IMAGENET)
    expected = source_features(origin, pixels, *shown)
    torch.testing.assert_close(
        source_features(model, pixels, mean, std), expected, rtol=1e-9, atol=1e-9
    )
    why = {row["why"] for row in rows if row["parameter"].startswith("fc.")}
    assert why == {"fc gives 7 numbers in the file, 12 in the model"}
    assert "fc gives 7 numbers in the file, 12 in the model (2)" in remarks[0]


def test_a_resumed_run_shows_pictures_as_before_without_the_file(tmp_path):
    state = files.network("gn_ws").state_dict()
    files.LAYOUTS["torchvision"](tmp_path / "weights", state)
    words = (f"init={tmp_path / 'weights'}", "init.norm=gn_ws")
    _, _, facts, _, first = begin("detection", tmp_path, *words)
    spec = build("detection", [("preset", "smoke"), ("init", str(tmp_path / "weights"))])
    (tmp_path / "weights").unlink()
    again = start.prepare(spec, RunDir(tmp_path, "run"), resumed=True)
    assert again.spec.model.pixel_mean == pytest.approx(first.spec.model.pixel_mean)
    assert again.spec.model.pixel_std == pytest.approx(first.spec.model.pixel_std)
    assert again.spec.model.pixel_mean != spec.model.pixel_mean
    assert start.apply(again, None, None, None, "", write=True) == (facts, [])


def test_equal_classes_are_loaded(tmp_path):
    origin = files.network("gn_ws", num_classes=12)
    files.LAYOUTS["torchvision"](tmp_path / "weights", origin.state_dict())
    words = [f"init={tmp_path / 'weights'}", "init.norm=gn_ws", *SMALL["classification"]]
    model, rows, facts, _, _ = begin("classification", tmp_path, *words)
    assert {row["status"] for row in rows} == {"loaded"}
    assert facts.num_loaded == len(rows) == len(model.state_dict())
    for name, value in origin.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)


def test_every_key_of_both_sides_has_one_row(tmp_path):
    origin = files.network("gn_ws", shape=ResNetShape((1, 1, 1), 8, False, small_stem=True))
    state = origin.state_dict() | {"extra.weight": torch.ones(2, dtype=torch.float16)}
    state["conv1.weight"] = state["conv1.weight"].float()
    torch.save({"state_dict": state | {"epochs": 3}}, tmp_path / "weights")
    words = (f"init={tmp_path / 'weights'}", "init.norm=gn_ws")
    model, rows, facts, remarks, _ = begin("segmentation", tmp_path, *words)
    keys = [row["key"] for row in rows if row["key"]]
    parameters = [row["parameter"] for row in rows if row["parameter"]]
    assert sorted(keys) == sorted([*state, "epochs"])
    assert sorted(parameters) == sorted(model.state_dict())
    by_key = {row["key"]: row for row in rows}
    assert by_key["epochs"]["why"] == "not a tensor"
    assert by_key["extra.weight"]["why"] == "the model has no extra"
    assert by_key["conv1.weight"]["why"] == "cast from float32 to float64"
    missing = {row["why"] for row in rows if row["status"] == "missing"}
    assert "classifier.0 starts at random" in missing
    counted = facts.num_loaded + facts.num_skipped + facts.num_missing
    assert counted == len(rows)
    assert all(f"{row['status']}" in remarks[0] for row in rows)


@pytest.mark.parametrize(
    ("norm", "told", "message"),
    [
        ("gn_ws", "", "nothing tells under which norm"),
        ("gn_ws", "gn", "trained without weight standardisation"),
        ("gn", "gn_ws", "trained with weight standardisation"),
        ("bn", "gn", "trained under gn, not bn"),
        ("gn_ws", "bn", None),
    ],
)
def test_weights_of_another_norm_are_refused_with_the_reason(norm, told, message, tmp_path):
    state = files.network("bn" if told == "bn" else "gn").state_dict()
    files.LAYOUTS["torchvision"](tmp_path / "weights", state)
    words = [f"init={tmp_path / 'weights'}", f"norm={norm}", *SMALL["classification"]]
    words += [f"init.norm={told}"] if told else []
    with pytest.raises(UsageError, match=message or "trained under bn, not gn") as caught:
        begin("classification", tmp_path, *words)
    assert "\n" not in str(caught.value)
    _, rows, facts, remarks, _ = begin(
        "classification", tmp_path, *words, "init.allow_mismatch=true"
    )
    assert remarks[0].startswith("loaded nonetheless (init.allow_mismatch): ")
    assert facts.norm == (told or "?(_ws?)")
    if told == "bn":
        averages = {row["why"] for row in rows if "running" in row["key"]}
        assert averages == {"the model's norm keeps no averages"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer1.0.conv1.weight": torch.ones(8, 8, 1, 1)}, "weights of another network"),
        ({"layer1.0.conv1.weight": torch.full((8, 8, 3, 3), torch.nan)}, "not finite"),
        ({"layer1.2.conv1.weight": torch.ones(8, 8, 3, 3)}, "layer1.2.conv1.weight is left over"),
        ({"layer4.1.conv2.weight": None}, "res5.1.conv2 is not in the file"),
    ],
)
def test_another_network_is_refused(change, message, tmp_path):
    state = dict(files.network("gn").state_dict()) | change
    state = {key: value for key, value in state.items() if value is not None}
    torch.save(state, tmp_path / "weights")
    words = [f"init={tmp_path / 'weights'}", "init.norm=gn", "norm=gn"]
    with pytest.raises(DataError, match=message):
        begin("detection", tmp_path, *words)


def test_nothing_in_common_is_said(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "weights")
    with pytest.raises(DataError, match="holds none of this model's"):
        begin("segmentation", tmp_path, f"init={tmp_path / 'weights'}", "init.norm=gn_ws")


def test_the_order_of_colours_can_be_declared(tmp_path):
    state = files.network("gn_ws").state_dict()
    files.LAYOUTS["torchvision"](tmp_path / "weights", state)
    words = [f"init={tmp_path / 'weights'}", "init.norm=gn_ws", *SMALL["classification"]]
    model, *_ = begin("classification", tmp_path, *words, "init.colours=bgr")
    assert torch.equal(model.conv1.weight, state["conv1.weight"].flip(1))
    assert build("classification", [("init.colours", "bgr")]).init.colours == "bgr"


def test_names_and_checksums_of_published_files(tmp_path, monkeypatch):
    state = files.network("gn_ws").state_dict()
    path = tmp_path / "R-101-GN-WS.pth.tar"
    files.LAYOUTS["authors"](path, state)
    with pytest.raises(DataError, match=r"not the file that its name says .MD5"):
        begin("detection", tmp_path, f"init={path}")
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setitem(known._AUTHORS_MD5, path.name, md5)
    # 32 groups as published, 4 in the smoke preset: told by the checksum alone, and refused.
    with pytest.raises(UsageError, match=r"with 32 groups, not 4 .told by its MD5"):
        begin("detection", tmp_path, f"init={path}")
    digits = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    monkeypatch.setitem(known._MIRRORED, digits, False)
    other = tmp_path / "any"
    other.write_bytes(path.read_bytes())
    with pytest.raises(UsageError, match=r"without weight standardisation .told by its SHA-256"):
        begin("detection", tmp_path, f"init={other}")
    wrong = tmp_path / "resnet-1234abcd.pth"
    wrong.write_bytes(path.read_bytes())
    with pytest.raises(DataError, match="SHA-256 begins with"):
        begin("detection", tmp_path, f"init={wrong}")
    dated = tmp_path / "resnet-20260101.pth"
    dated.write_bytes(path.read_bytes())
    monkeypatch.delitem(known._MIRRORED, digits)
    assert known.check(dated) is None


def test_big_transfers_arrays_go_where_timm_puts_them(tmp_path):
    """timm's own reader of these files is the oracle."""
    from timm.layers import BatchNormAct2d, GroupNormAct, StdConv2d
    from timm.models.resnetv2 import ResNetV2, _load_weights

    from harness.norm.surgery import convert
    from harness.weights.find import find
    from harness.weights.load import load

    def build_timm(**options) -> torch.nn.Module:
        return ResNetV2([2, 1], channels=(16, 32), stem_chs=8, num_classes=5, **options)

    theirs = build_timm(conv_layer=StdConv2d, norm_layer=partial(GroupNormAct, num_groups=4))
    arrays = _big_transfer(theirs.state_dict())
    with (tmp_path / "BiT.npz").open("wb") as file:
        np.savez(file, **arrays)
    with torch.no_grad():
        _load_weights(theirs, str(tmp_path / "BiT.npz"))
    ours = build_timm(norm_layer=BatchNormAct2d)
    audit = convert(ours, "gn_ws", groups=4)
    weights = find(build("classification", [("init", str(tmp_path / "BiT.npz"))]).init, tmp_path)
    report = load(ours, weights, audit, colours="rgb")
    assert weights.layout == "bit"
    assert weights.pictures.mean == (0.5, 0.5, 0.5)
    assert report.count("missing", "skipped") == 0
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name


def _big_transfer(state) -> dict[str, np.ndarray]:
    """Draw arrays of the names and axes that google-research/big_transfer publishes."""
    arrays = {}
    for name, value in state.items():
        parts = name.split(".")
        if name.startswith("stages"):
            layer = parts[4]
            unit = f"resnet/block{int(parts[1]) + 1}/unit{int(parts[3]) + 1:02d}"
            if layer == "downsample":
                key = f"{unit}/a/proj/standardized_conv2d/kernel"
            else:
                place = f"{unit}/{'abc'[int(layer[-1]) - 1]}"
                end = {"weight": "gamma", "bias": "beta"}[parts[-1]]
                is_conv = layer.startswith("conv")
                key = f"{place}/{'standardized_conv2d/kernel' if is_conv else f'group_norm/{end}'}"
        else:
            key = {
                "stem.conv.weight": "resnet/root_block/standardized_conv2d/kernel",
                "norm.weight": "resnet/group_norm/gamma",
                "norm.bias": "resnet/group_norm/beta",
                "head.fc.weight": "resnet/head/conv2d/kernel",
                "head.fc.bias": "resnet/head/conv2d/bias",
            }[name]
        draw = np.random.randn(*value.shape).astype(np.float32)
        arrays[key] = draw.transpose(2, 3, 1, 0) if draw.ndim == 4 else draw
    return arrays

"""Every layout's names become one language; held against the libraries' own converters."""

from __future__ import annotations

import torch

from harness.weights.names import BACKBONE, common_name, layout, unwrap
from tasks.classification.architectures import RESNETS, shape_of
from tasks.classification.model import build_classifier
from tasks.detection.architectures import CLASSIFIERS
from tests.weights import files


def body(names) -> set[str]:
    found = {common_name(name) for name in names}
    return {name for name in found if name.startswith(BACKBONE)}


def test_the_layouts_of_one_network_agree():
    state = files.network("bn").state_dict()
    ours = body(state)
    assert len(ours) == len(state) - 2  # all but the classifier
    assert body(f"backbone.bottom_up.{name}" for name in files.detectron2_names(state)) == ours
    learnt = {name for name in ours if name.endswith(("weight", "bias"))}
    assert body(files.caffe2_names(state)) == body(files.caffe2_names(state, "bn")) == learnt
    assert {common_name(name) for name in files.caffe2_names(state)} - learnt == {
        "fc.weight",
        "fc.bias",
    }


def test_caffe2_names_go_where_detectron2_puts_them():
    from detectron2.checkpoint.c2_model_loading import convert_basic_c2_names

    import tasks.detection.d2  # noqa: F401  # makes detectron2 importable

    names = [
        f"{place}_{end}"
        for place in ("conv1", "res2_0_branch1", "res4_22_branch2b", "res5_2_branch2c")
        for end in ("w", "gn_s", "gn_b", "bn_s", "bn_b", "bn_rm", "bn_riv")
    ] + ["res_conv1_bn_s", "res_conv1_bn_b", "pred_w", "pred_b"]
    for ours, theirs in zip(names, convert_basic_c2_names(names), strict=True):
        assert common_name(ours) == common_name(theirs), ours
        assert common_name(ours) not in (ours, theirs)


def test_the_authors_resnet101_is_312_tensors_and_the_backbones_hold_each():
    from tasks.segmentation.info import SegmentationModel
    from tasks.segmentation.model import build_deeplab

    with torch.device("meta"):
        model, _ = build_classifier("resnet101", 1000)
        section = SegmentationModel(name="deeplabv3_r101", head="published", rates=(6, 12, 18))
        deeplab = build_deeplab(section, 21)
    file = [f"module.{name}" for name, _ in model.named_parameters() if "fc." not in name]
    assert len(file) == 312
    names = {common_name(name) for name in unwrap(file).values()}
    assert names == {n for n in body(name for name, _ in deeplab.named_parameters())}
    assert layout(unwrap(file).values()) == "torchvision"


def test_the_network_that_pretrains_is_the_backbone():
    """By name and shape, for every detector and both presets of segmentation."""
    from harness.pretrain import pretraining
    from harness.spec import build
    from tasks.detection.model import build_detector
    from tasks.segmentation.model import build_deeplab

    presets = {
        "detection": ("mini", "smoke", "paper", "paper_faster_x101"),
        "segmentation": ("mini", "smoke", "paper"),
    }
    for task, names in presets.items():
        for preset in names:
            spec = build(task, [("preset", preset), ("init", "pretrain")])
            before = pretraining(spec)
            with torch.device("meta"):
                model, _ = build_classifier(before.model.name, 5, before.model.width)
                target = (
                    build_detector(spec.model, 3, "image")
                    if task == "detection"
                    else build_deeplab(spec.model, 3)
                )
            shapes = [
                {
                    common_name(name): value.shape
                    for name, value in net.state_dict().items()
                    if common_name(name).startswith(BACKBONE) and "batches" not in name
                }
                for net in (model, target)
            ]
            assert shapes[0] == shapes[1], (task, preset)


def test_a_classifier_is_named_for_every_backbone():
    assert set(CLASSIFIERS.values()) <= set(RESNETS)
    assert shape_of("resnet_mini_detection", 8).width == 8
    assert shape_of("resnet_mini_detection", None).width == 24


def test_only_what_all_keys_share_is_unwrapped():
    assert unwrap(["module.model.a", "module.model.b"]) == {
        "module.model.a": "a",
        "module.model.b": "b",
    }
    assert unwrap(["model.a", "b"]) == {"model.a": "model.a", "b": "b"}

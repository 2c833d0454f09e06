"""What was found by ``python -m tests.chaos`` and by people in data: each once as a test."""

from __future__ import annotations

import json
import shutil

import pytest

from harness.errors import DataError
from harness.registry import task_info
from harness.spec import build, parse_words
from tasks.detection import coco
from tasks.segmentation import voc

COCO = {
    "images": [{"id": 1, "file_name": "a.jpg", "width": 9, "height": 9}],
    "annotations": [
        {
            "id": 1,
            "image_id": 1,
            "category_id": 1,
            "bbox": [1, 1, 5, 5],
            "area": 25,
            "iscrowd": 0,
            "segmentation": [[1, 1, 6, 1, 6, 6]],
        }
    ],
    "categories": [{"id": 1, "name": "x"}],
}


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("images", {"id": "1"}, "images.0..id is '1', not an integer"),
        ("images", {"id": True}, "not an integer"),
        ("images", {"width": 0}, "1 to 65,536 pixels"),
        ("images", {"height": 2.5}, "1 to 65,536 pixels"),
        ("images", {"file_name": ".."}, "not a file's name"),
        ("images", {"file_name": 5}, "not a file's name"),
        ("annotations", {"bbox": [1, 1, 5]}, "not four numbers"),
        ("annotations", {"bbox": [1, 1, 5, float("nan")]}, "not four numbers"),
        ("annotations", {"bbox": [1, 1, 5, 10**400]}, "not four numbers"),
        ("annotations", {"bbox": [1, 1, 5, "5"]}, "not four numbers"),
        ("annotations", {"bbox": [1, 1, 5, 1e12]}, "not four numbers"),
        ("images", {"width": 10**12}, "1 to 65,536 pixels"),
        ("annotations", {"area": float("nan")}, "not a number"),
        ("annotations", {"segmentation": [[1, 1, 6, 1, 1e9, 6]]}, "neither polygons"),
        ("annotations", {"segmentation": [[1, 1, float("nan"), 1, 9, 6]]}, "neither polygons"),
        ("annotations", {"area": None}, "not a number"),
        ("annotations", {"iscrowd": 7}, "not 0 or 1"),
        ("annotations", {"category_id": [1]}, "not an integer"),
        ("annotations", {"segmentation": [[1, 1, 6, 1, None, 6]]}, "neither polygons"),
        ("annotations", {"segmentation": [5]}, "neither polygons"),
        ("annotations", {"segmentation": {"size": [9, 8], "counts": [81]}}, "neither polygons"),
        ("annotations", {"segmentation": {"size": [9, 9], "counts": [80]}}, "neither polygons"),
        ("annotations", {"segmentation": {"size": [9, 9], "counts": [90, -9]}}, "neither polyg"),
        ("annotations", {"segmentation": {"size": [9, 9]}}, "neither polygons"),
    ],
)
def test_coco_values_that_libraries_would_choke_on(tmp_path, part, change, words):
    """Some of these made pycocotools read past the end of its memory, and end the process."""
    path, content = tmp_path / "a.json", json.loads(json.dumps(COCO))
    path.write_text(json.dumps(content))
    coco.check_evaluated(coco.read_annotations(path))
    content[part][0].update(change)
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=words) as caught:
        coco.read_annotations(path)
    assert "\n" not in str(caught.value)


def test_coco_twins_and_depths(tmp_path):
    path = tmp_path / "a.json"
    for part in ("images", "categories"):
        path.write_text(json.dumps(COCO | {part: COCO[part] * 2}))
        with pytest.raises(DataError, match=f"two of its {part} have one id"):
            coco.read_annotations(path)
    path.write_text("[" * 100_000)
    with pytest.raises(DataError, match="is not JSON"):
        coco.read_annotations(path)


@pytest.mark.parametrize("lacks", ["area", "iscrowd", "segmentation"])
def test_coco_is_looked_through_for_the_evaluation_before_training(tmp_path, lacks):
    path, content = tmp_path / "a.json", json.loads(json.dumps(COCO))
    del content["annotations"][0][lacks]
    path.write_text(json.dumps(content))
    annotations = coco.read_annotations(path)
    with pytest.raises(DataError, match="annotation 1 lacks"):
        coco.check_evaluated(annotations)
    if lacks == "segmentation":
        coco.check_evaluated(annotations, masks=False)


@pytest.mark.parametrize("name", ["a" * 300, "~nobody_at_all"])
@pytest.mark.parametrize("task", ["detection", "segmentation", "classification", "pointcloud"])
def test_folders_that_cannot_be(tmp_path, task, name):
    from harness.plan import plan

    (cell,) = plan(task, [f"data={name}"], tmp_path)
    assert (cell.state, cell.exit_code) == ("impossible", 3)
    assert "cannot be a folder" in cell.reason


def test_a_picture_that_claims_to_be_enormous(tmp_path):
    from tasks.detection.dataset import read_bgr
    from tasks.detection.inspection import open_image

    path = tmp_path / "x.gif"
    path.write_bytes(
        b"GIF89a\xff\xff\xff\xff\x80\x00\x00" + b"\0" * 6 + b",\0\0\0\0\xff\xff\xff\xff\0\x02"
    )
    for opened in (
        lambda: read_bgr({"file_name": str(path), "height": 1, "width": 1}),
        lambda: open_image(path, 1, 1),
    ):
        with pytest.raises(DataError, match="cannot be read"):
            opened()


def test_a_mask_that_is_a_dead_link(tmp_path):
    words = ["preset=smoke", "data.num_train=2", "data.num_val=1"]
    made = build("segmentation", parse_words(words))
    source = task_info("segmentation").prepare(made, lambda *_: None)
    root = shutil.copytree(source, tmp_path / "VOC2012")
    mask = next((root / "SegmentationClass").glob("train*"))
    mask.unlink()
    mask.symlink_to(mask.name)
    with pytest.raises(DataError, match="cannot be read"):
        voc.fingerprint(root, "train")

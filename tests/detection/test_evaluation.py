from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.structures import Boxes
from pycocotools import mask as coco_mask

from tasks.detection import coco, evaluation
from tasks.detection.d2 import Instances
from tasks.detection.dataset import CocoImages
from tasks.detection.info import DetectionData
from tests.detection.conftest import detection_spec, detection_task

# pycocotools 2.0.11 under NumPy 2: `decode` warns, and its result is right.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def read(root: Path) -> coco.Annotations:
    return coco.read_annotations(coco.annotation_file(root, coco.VAL))


def truth_as_results(annotations: coco.Annotations) -> list[dict[str, Any]]:
    """Feed the objects back as detections; crowds are nobody's detection."""
    index = evaluation.ground_truth(annotations)
    results = []
    for item in annotations.content["annotations"]:
        if not item["iscrowd"]:
            region = index.annToRLE(item)
            results.append(
                {
                    "image_id": item["image_id"],
                    "category_id": item["category_id"],
                    "bbox": list(item["bbox"]),
                    "segmentation": region,
                    "score": 1.0,
                }
            )
    return results


def scores(annotations: coco.Annotations, results: list[dict[str, Any]]) -> dict[str, float]:
    metrics = evaluation.score(evaluation.ground_truth(annotations), results)
    return {metric.name: metric.value for metric in metrics}


def assert_truth_is_perfect(annotations: coco.Annotations) -> None:
    found = scores(annotations, truth_as_results(annotations))
    assert {"box_AP", "mask_AP", "box_AP50", "mask_AP75"} <= found.keys()
    assert found == dict.fromkeys(found, 100.0)


def test_ground_truth_of_embedded_data_scores_100(smoke_root: Path) -> None:
    assert_truth_is_perfect(read(smoke_root))


def test_ground_truth_of_real_data_scores_100(coco_samples: Path) -> None:
    assert_truth_is_perfect(read(coco_samples))


def test_no_detection_at_all_scores_0(smoke_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = scores(read(smoke_root), [])
    assert found["box_AP"] == found["mask_AP"] == 0.0
    assert capsys.readouterr().out == ""


def test_sizes_without_objects_are_left_out(smoke_root: Path) -> None:
    found = scores(read(smoke_root), [])
    assert "box_APs" in found
    assert "box_APl" not in found  # 64 px pictures have no object of 96 px


def test_metrics_say_what_they_are(smoke_root: Path) -> None:
    annotations = read(smoke_root)
    for metric in evaluation.score(evaluation.ground_truth(annotations), []):
        assert metric.unit == "%"
        assert metric.n_eval == len(annotations.images)
        assert metric.split == "val2017"
        assert metric.protocol.startswith("pycocotools")
        assert metric.higher_is_better


class Oracle(torch.nn.Module):
    """Detects the one thing in the picture, exactly."""

    def forward(self, samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
        found = Instances((samples[0]["height"], samples[0]["width"]))
        found.pred_boxes = Boxes(torch.tensor([[1.0, 2.0, 4.0, 6.0]]))
        found.scores = torch.tensor([0.5])
        found.pred_classes = torch.tensor([1])
        found.pred_masks = torch.zeros(1, *found.image_size, dtype=torch.bool)
        found.pred_masks[0, 2:6, 1:4] = True
        return [{"instances": found}]


def test_detections_carry_the_datas_own_categories_and_pixels(smoke_root: Path) -> None:
    annotations = read(smoke_root)
    ids = annotations.category_ids
    assert ids != list(range(1, len(ids) + 1))  # there are gaps to cross
    images = CocoImages(smoke_root, coco.VAL, annotations, DetectionData(min_size=64))
    told: list[tuple[str, int, int]] = []
    results = list(evaluation.predict(Oracle(), images, ids, lambda *args: told.append(args)))
    assert len(results) == len(images) == len(told)
    assert results[0]["category_id"] == ids[1]
    assert results[0]["bbox"] == [1, 2, 3, 4]
    assert int(coco_mask.area(results[0]["segmentation"])) == 12
    assert told[-1] == ("evaluate", len(images), len(images))


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_the_model_itself_is_evaluated_in_either_precision(precision: torch.dtype) -> None:
    spec = detection_spec("preset=smoke", "model.test.min_score=0.0")
    task = detection_task(spec)
    torch.manual_seed(0)
    model = task.build_model().to(precision)
    metrics = task.evaluate(model, torch.device("cpu"), lambda *_: None)
    assert {"box_AP", "mask_AP"} <= {metric.name for metric in metrics}
    assert all(0 <= metric.value <= 100 for metric in metrics)


def test_a_model_that_sees_nothing_scores_0() -> None:
    spec = detection_spec("preset=smoke", "model.test.min_score=0.99")
    task = detection_task(spec)
    metrics = task.evaluate(task.build_model(), torch.device("cpu"), lambda *_: None)
    assert all(metric.value == 0 for metric in metrics)

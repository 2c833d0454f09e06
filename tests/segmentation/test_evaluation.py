"""mIoU against hand counts, and predictions that are what was counted."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tasks.segmentation import evaluation, voc
from tasks.segmentation.dataset import VocImages
from tasks.segmentation.info import SegmentationData


def matrix(truth: list[list[int]], found: list[list[int]], classes: int) -> evaluation.Counts:
    return evaluation.confusion(
        np.array(truth, dtype=np.uint8), np.array(found, dtype=np.uint8), classes
    )


def values(counts: evaluation.Counts) -> dict[str, float]:
    return {metric.name: metric.value for metric in evaluation.score(counts, 1)}


def test_counted_by_hand() -> None:
    truth = [[0, 0, 1, 1], [0, 2, 2, 255], [255, 255, 1, 0]]
    found = [[0, 1, 1, 1], [0, 2, 0, 2], [1, 0, 0, 0]]
    counts = matrix(truth, found, 3)
    assert counts.tolist() == [[3, 1, 0], [1, 2, 0], [1, 0, 1]]
    # IoU: 3 / (4 + 5 - 3), 2 / (3 + 3 - 2), 1 / (2 + 1 - 1)
    assert values(counts)["mIoU"] == pytest.approx(100 * (3 / 6 + 2 / 4 + 1 / 2) / 3)
    assert values(counts)["pixel_acc"] == pytest.approx(100 * 6 / 9)


def test_the_matrix_is_summed_before_the_ratio() -> None:
    """Over the whole set, not the mean over images: 5 / 8, not (1 / 1 + 4 / 7) / 2."""
    first = matrix([[1]], [[1]], 2)
    second = matrix([[1] * 7], [[1] * 4 + [0] * 3], 2)
    assert values(first + second)["mIoU"] == pytest.approx(100 * (0 + 5 / 8) / 2)


def test_a_class_that_is_nowhere_counts_zero() -> None:
    assert values(matrix([[0, 0]], [[0, 0]], 4))["mIoU"] == pytest.approx(25)


def test_pixels_to_ignore_count_nowhere() -> None:
    truth = np.full((4, 4), voc.IGNORE, dtype=np.uint8)
    assert not evaluation.confusion(truth, np.ones_like(truth), 3).any()
    assert values(matrix([[255]], [[0]], 2)) == {"mIoU": 0.0, "pixel_acc": 0.0}


class Echo(nn.Module):
    """Predicts the class that the red channel holds, as if it had learnt it."""

    def __init__(self) -> None:
        super().__init__()
        self.dummy = nn.Parameter(torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        classes = (images[:, 0] * 255).round().long().clamp(0, 20)
        return nn.functional.one_hot(classes, 21).permute(0, 3, 1, 2).to(images)


@pytest.mark.parametrize("save", [True, False])
def test_prediction_to_metric_and_to_png(tmp_path: Path, save: bool) -> None:
    rng = np.random.RandomState(0)
    pairs, agree, total = [], 0, 0
    for name, (height, width) in {"a": (5, 9), "b": (12, 4)}.items():
        truth = rng.choice([0, 3, 20, 255], (height, width)).astype(np.uint8)
        found = rng.choice([0, 3, 20], (height, width)).astype(np.uint8)
        Image.fromarray(np.repeat(found[..., None], 3, axis=2)).save(tmp_path / f"{name}.png")
        evaluation.save_mask(truth, tmp_path / f"{name}_mask.png")
        pairs.append(voc.Pair(name, tmp_path / f"{name}.png", tmp_path / f"{name}_mask.png"))
        agree += int((found == truth).sum())
        total += int((truth != 255).sum())
    data = SegmentationData(crop=10, mean=(0, 0, 0), std=(1, 1, 1))
    told: list[tuple[str, int, int]] = []
    counts = evaluation.predict(
        Echo(),
        VocImages(pairs, data, 21),
        torch.device("cpu"),
        lambda *args: told.append(args),
        tmp_path / "out" if save else None,
    )
    assert counts.sum() == total, "padding is not counted"
    assert values(counts)["pixel_acc"] == pytest.approx(100 * agree / total)
    assert told == [("evaluate", 1, 2), ("evaluate", 2, 2)]
    assert (tmp_path / "out").exists() == save
    if save:
        with Image.open(tmp_path / "out" / "a.png") as mask, Image.open(pairs[0].image) as image:
            assert (mask.mode, mask.size) == ("P", (9, 5))
            assert mask.getpalette() == voc.palette()
            assert np.array_equal(np.asarray(mask), np.asarray(image)[..., 0])

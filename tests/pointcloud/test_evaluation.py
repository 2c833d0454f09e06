"""Both accuracies against counts made by hand."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from harness.share import Share
from tasks.pointcloud import evaluation
from tasks.pointcloud.clouds import Clouds

CPU = torch.device("cpu")


def clouds_of(labels: list[int], num_classes: int, points: np.ndarray | None = None) -> Clouds:
    if points is None:
        points = np.random.RandomState(0).randn(len(labels), 5, 3)
    names = tuple(f"class{i}" for i in range(num_classes))
    return Clouds(points.astype(np.float32), np.array(labels, dtype=np.int64), names)


class Oracle(nn.Module):
    """Answers with the label that is written into the first coordinate of a cloud."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes, self.sizes = num_classes, []
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, points: Tensor) -> Tensor:
        self.sizes.append(len(points))
        return nn.functional.one_hot(points[:, 0, 1].long(), self.num_classes).float()


def labels_of(model, held, votes, progress=lambda *_: None) -> np.ndarray:
    return evaluation.in_order([evaluation.predict(model, held, votes, CPU, progress)])


def test_shares_of_several_processes_are_put_in_order():
    """Five batches over three processes: none is seen twice, and the order is that of the data."""
    labels = [i % 7 for i in range(4 * 32 + 5)]
    points = np.zeros((len(labels), 1, 3))
    points[:, 0, 1] = labels
    held = clouds_of(labels, 7, points)
    ranks = [SimpleNamespace(rank=rank, world=3) for rank in range(3)]
    parts = [
        evaluation.predict(Oracle(7), held, 1, CPU, lambda *_: None, Share(one)) for one in ranks
    ]
    assert [sorted(part) for part in parts] == [[0, 96], [32, 128], [64]]
    assert evaluation.in_order(parts).tolist() == labels


def test_every_one_of_2468_shapes_counts():
    """ModelNet40's number: 77 batches of 32 and one of 4, whose shapes count like all others."""
    labels = [i % 40 for i in range(2468)]
    points = np.zeros((2468, 1, 3))
    points[:, 0, 1] = labels  # y, which no vote turns
    points[2464:, 0, 1] = 39 - np.array(labels[2464:])  # the last four are wrong
    held, model = clouds_of(labels, 40, points), Oracle(40)
    told: list[tuple[int, int]] = []
    found = labels_of(model, held, 1, lambda _, done, total: told.append((done, total)))
    assert (sum(model.sizes), model.sizes[-1]) == (2468, 4)
    assert told[-1] == (2468, 2468)
    overall, by_class = evaluation.score(found, held, 1)
    assert overall.value == pytest.approx(100 * 2464 / 2468)
    assert overall.n_eval == by_class.n_eval == 2468
    # Classes 0 to 27 have 62 shapes, the others 61; the wrong four are of classes 24 to 27.
    assert labels[2464:] == [24, 25, 26, 27]
    assert by_class.value == pytest.approx(100 * (36 + 4 * 61 / 62) / 40)
    share = 2464 / 2468
    assert overall.se == pytest.approx(100 * math.sqrt(share * (1 - share) / 2468))
    assert "every test shape" in overall.protocol
    assert "all 40 classes" in by_class.protocol


def test_a_class_without_a_test_shape_is_left_out_and_said():
    held = clouds_of([0, 0, 0, 2, 3, 3], num_classes=5)  # of 1 and 4 there is none
    found = np.array([0, 0, 1, 2, 4, 3])
    overall, by_class = evaluation.score(found, held, 1)
    assert overall.value == pytest.approx(100 * 4 / 6)
    assert by_class.value == pytest.approx(100 * (2 / 3 + 1 + 1 / 2) / 3)
    assert "mean over the 3 of 5 classes that have test shapes" in by_class.protocol


def test_votes_are_views_turned_about_y_whose_logits_are_summed():
    seen = []

    class Watch(Oracle):
        def forward(self, points: Tensor) -> Tensor:
            seen.append(points.clone())
            # Only the view that is turned by half the circle sees x < 0, and it shouts loudest.
            return torch.where(
                points[:, 0, :1] < -0.99, torch.tensor([[0.0, 5]]), torch.tensor([[1.0, 0]])
            )

    held = clouds_of([1, 1], 2, np.tile([1.0, 0.5, 0.0], (2, 3, 1)))
    found = labels_of(Watch(2), held, 4)
    assert found.tolist() == [1, 1]  # 5 against 3 x 1
    assert torch.equal(seen[0], torch.from_numpy(held.points)), "the first view is the cloud itself"
    for view, points in enumerate(seen):
        angle = 2 * math.pi * view / 4
        x, y, z = points[0, 0].tolist()
        assert (x, y, z) == pytest.approx((math.cos(angle), 0.5, math.sin(angle)), abs=1e-6)
    once = labels_of(Watch(2), held, 1)
    assert once.tolist() == [0, 0]
    assert "4 views turned about y, logits summed" in evaluation.score(found, held, 4)[0].protocol
    assert "1 view" in evaluation.score(once, held, 1)[0].protocol

"""What a micro-batch may change in detection, and what it must not (see docs/detection.md)."""

import warnings
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.structures import Boxes
from torch import Tensor

from harness.rng import drawing
from tasks.detection import d2
from tasks.detection.losses import AnchorGenerator, PerImageBoxPredictor, sample_labels
from tests.detection.residual import (
    difference,
    double_model,
    gradient,
    samples_of,
    split_differences,
)

FEW = ("data.num_train=16", "data.num_val=4")


@pytest.mark.parametrize("norm", ["gn", "gn_ws"])
def test_image_normalizer_makes_micro_batches_of_equal_images_exact(norm: str) -> None:
    task, model = double_model("preset=smoke", f"norm={norm}", "loss.normalizer=image")
    samples = samples_of(task, 4)
    whole = gradient(task, model, samples, 4)
    assert difference(gradient(task, model, samples, 1), whole) < 1e-12
    assert difference(gradient(task, model, samples, 2), whole) < 1e-12


def test_image_normalizer_does_not_make_batch_norm_independent_of_the_batch() -> None:
    task, model = double_model("preset=smoke", "norm=bn", "loss.normalizer=image")
    samples = samples_of(task, 4)
    assert difference(gradient(task, model, samples, 1), gradient(task, model, samples, 4)) > 0.05


def test_residual_of_the_published_normaliser_and_of_padding(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The first rows of the table in docs/detection.md: the mini network, GN, float64."""
    found = {}
    for mode in ("image", "stock"):
        task, model = double_model("norm=gn", f"loss.normalizer={mode}", *FEW)
        for kind, value in split_differences(task, model, samples_of(task, 8)).items():
            found[mode, kind] = value
    with capsys.disabled():
        for (mode, kind), value in found.items():
            print(f"\n8x1 against 1x8, loss.normalizer={mode}, {kind}: {value:.1e}", end="")
    assert found["image", "equal sizes"] < 1e-12
    assert found["stock", "equal sizes"] > 1e-3
    for mode in ("image", "stock"):
        assert found[mode, "mixed sizes"] > 1e-2
        assert found[mode, "global draws"] > 1e-2


def test_at_one_image_a_forward_both_normalisers_are_the_same() -> None:
    parts = []
    for mode in ("stock", "image"):
        task, model = double_model("preset=smoke", f"loss.normalizer={mode}")
        with drawing(0, 0, [0]):
            losses = task.loss(model, samples_of(task, 1))
        parts.append({name: float(total.detach()) for name, (total, _) in losses.items()})
    assert parts[0] == pytest.approx(parts[1], rel=1e-12)


def test_counts_are_known_before_the_forward_and_are_its_own() -> None:
    task, model = double_model("preset=smoke")
    batch = samples_of(task, 3)
    assert {name: n for name, (_, n) in task.loss(model, batch).items()} == task.counts(batch)


class TestSampling:
    labels = torch.tensor([-1] * 5 + [0] * 60 + [1] * 3 + [2] * 40)

    def draw(self, position: int, ids: Sequence[int], step: int = 0) -> tuple[Tensor, Tensor]:
        with drawing(7, step, ids):
            return sample_labels(self.labels, 32, 0.25, 0, "roi", position)

    def test_takes_the_asked_share_of_each_kind(self) -> None:
        positive, negative = self.draw(0, [3])
        assert len(positive) == 8
        assert len(negative) == 24
        assert bool((self.labels[positive] > 0).all())
        assert bool((self.labels[negative] == 0).all())
        assert len(set(positive.tolist())) == 8

    def test_fills_up_with_negatives_where_positives_are_few(self) -> None:
        labels = torch.tensor([0] * 50 + [1])
        positive, negative = sample_labels(labels, 32, 0.25, 0, "rpn", 0)
        assert (len(positive), len(negative)) == (1, 31)
        positive, negative = sample_labels(labels[-1:], 32, 0.25, 0, "rpn", 0)
        assert (len(positive), len(negative)) == (1, 0)

    def test_depends_on_the_image_the_step_and_the_site_alone(self) -> None:
        alone = self.draw(0, [3])
        torch.manual_seed(1)
        among_others = self.draw(2, [8, 9, 3])
        assert all(torch.equal(a, b) for a, b in zip(alone, among_others, strict=True))
        assert not torch.equal(alone[1], self.draw(0, [4])[1])
        assert not torch.equal(alone[1], self.draw(0, [3], step=1)[1])
        with drawing(7, 0, [3]):
            elsewhere = sample_labels(self.labels, 32, 0.25, 0, "rpn", 0)
        assert not torch.equal(alone[1], elsewhere[1])

    def test_never_touches_the_global_generator(self) -> None:
        task, model = double_model("preset=smoke")
        batch = samples_of(task, 2)
        before = torch.get_rng_state(), np.random.get_state()[1].copy()
        with drawing(0, 0, [0, 1]):
            task.loss(model, batch)
        assert torch.equal(torch.get_rng_state(), before[0])
        assert np.array_equal(np.random.get_state()[1], before[1])


def test_image_box_loss_is_the_mean_of_detectron2s_per_image() -> None:
    """By hand on ragged regions: 3 of one image and 5 of another."""
    torch.manual_seed(0)
    weights = d2.Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0))
    options = {"box2box_transform": weights, "num_classes": 4}
    ours = PerImageBoxPredictor(8, **options)
    theirs = d2.FastRCNNOutputLayers(8, **options)
    theirs.load_state_dict(ours.state_dict())
    proposals, features = [], []
    for num in (3, 5):
        boxes = torch.rand(num, 4) * 10
        boxes[:, 2:] += boxes[:, :2] + 1
        one = d2.Instances((30, 30))
        one.proposal_boxes = Boxes(boxes)
        one.gt_boxes = Boxes(boxes + 0.5)
        one.gt_classes = torch.arange(num) % 5
        proposals.append(one)
        features.append(torch.randn(num, 8))
    with d2.EventStorage():
        found = ours.losses(ours(torch.cat(features)), proposals)
        parts = [theirs.losses(theirs(x), [p]) for x, p in zip(features, proposals, strict=True)]
        pooled = theirs.losses(theirs(torch.cat(features)), proposals)
    for name, value in found.items():
        torch.testing.assert_close(value, (parts[0][name] + parts[1][name]) / 2)
        assert abs(float((value - pooled[name]).detach())) > 1e-6


def test_a_batch_without_any_positive_region_has_no_mask_loss() -> None:
    task, model = double_model("preset=smoke", "norm=bn")
    sample = samples_of(task, 1)[0]
    nothing = sample | {"instances": sample["instances"][:0]}
    with drawing(0, 0, [0]):
        losses = task.loss(model, [nothing])
    assert float(losses["loss_mask"][0].detach()) == 0
    torch.stack([total for total, _ in losses.values()]).sum().backward()


def test_anchors_equal_detectron2s() -> None:
    options = {
        "sizes": [[12.0], [24.0]],
        "aspect_ratios": [[0.5, 1.0, 2.0]],
        "strides": [4, 8],
        "offset": 0.5,
    }
    maps = [torch.zeros(1, 1, 5, 7), torch.zeros(1, 1, 3, 4)]
    with warnings.catch_warnings():  # torch warns once a process, so perhaps not here
        warnings.filterwarnings("ignore", message=".*meshgrid")
        expected = DefaultAnchorGenerator(**options)(maps)
    for ours, theirs in zip(AnchorGenerator(**options)(maps), expected, strict=True):
        torch.testing.assert_close(ours.tensor, theirs.tensor, rtol=0, atol=0)

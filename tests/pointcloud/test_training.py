"""The recipes in numbers, and gradients that do not depend on how a step is split."""

import math

import numpy as np
import pytest
import torch
from numpy.random import RandomState

from harness.distributed import Ranks
from harness.feed import Steps, steps_per_epoch
from harness.loop import Trainer
from harness.plan import impossible
from harness.registry import task_info
from harness.schedule import lr_factor
from harness.worker import build_model
from tasks.pointcloud.augment import about_y, augment
from tasks.pointcloud.task import PointcloudTask
from tests.pointcloud.conftest import cloud_spec, cloud_task

INFO = task_info("pointcloud")
CPU = torch.device("cpu")


@pytest.mark.parametrize("preset", ["paper", "paper_dgcnn"])
def test_an_epoch_of_modelnet40_has_307_steps(preset):
    spec = cloud_spec(f"preset={preset}")
    assert steps_per_epoch(9840, spec.batch.size, spec.batch.tail) == 307
    assert 4 * (2048 // 32) + 1648 // 32 == 307, "as with partial batches dropped in each file"
    assert spec.steps == 250 * 307 == 76_750


def test_the_learning_rate_is_tensorflows_staircase():
    spec = cloud_spec("preset=paper")
    rates = [
        spec.optim.lr * lr_factor(spec.schedule, step, spec.steps) for step in range(spec.steps)
    ]
    samples = 32 * np.arange(spec.steps)
    closed = np.maximum(1e-3 * 0.7 ** (samples // 200_000), 1e-5)
    np.testing.assert_allclose(rates, closed, rtol=1e-12)
    assert len(set(np.round(rates, 12))) == 13, "12 drops"
    assert rates[-1] == pytest.approx(1.38e-5, rel=4e-3)


def test_the_decay_of_the_averages_ends_at_the_recipes():
    samples = 32 * np.arange(76_750)
    decay = np.minimum(0.99, 1 - 0.5 * 0.5 ** (samples // 200_000))
    assert 1 - cloud_spec("preset=paper").model.bn_momentum == decay[-1] == 0.99
    last = int((decay == 0.99).sum())
    assert last == 39_250
    assert last * math.log10(0.99) < -170, "what is left of all that was before"


def test_smoothing_is_each_recipes_own():
    logits = torch.randn(5, 40, dtype=torch.float64)
    labels = torch.tensor([0, 3, 3, 39, 7])
    log = logits.log_softmax(1)
    hot = torch.nn.functional.one_hot(labels, 40).double()
    spread = {
        "paper": 0.8 * hot + 0.2 / 40,
        "paper_dgcnn": 0.8 * hot + 0.2 / 39 * (1 - hot),
    }
    for preset, targets in spread.items():
        task = PointcloudTask(cloud_spec(f"preset={preset}"), None)
        model = torch.nn.Linear(3, 1).double()
        model.forward = lambda points: logits
        batch = torch.zeros(5, 4, 3), labels
        total, count = task.loss(model, batch)["loss_ce"]
        assert count == 5 == task.counts(batch)["loss_ce"]
        torch.testing.assert_close(total, -(targets * log).sum())


def test_augmentation_of_dgcnn_tf_is_that_of_a_hand_made_order():
    points = RandomState(0).randn(50, 3).astype(np.float32)
    drawn = RandomState(4)
    found = augment("dgcnn_tf", points, RandomState(4))
    angle, noise = drawn.uniform(0, 2 * math.pi), drawn.normal(0, 0.01, (50, 3)).clip(-0.05, 0.05)
    scale, tilt = drawn.uniform(0.8, 1.25), drawn.normal(0, 0.06, 3).clip(-0.18, 0.18)
    shift = drawn.uniform(-0.1, 0.1, 3)
    x, y, z = points.astype(np.float64).T
    turned = np.stack(
        [
            math.cos(angle) * x - math.sin(angle) * z,
            y,
            math.sin(angle) * x + math.cos(angle) * z,
        ],
        axis=1,
    )
    scaled = (turned + noise) * scale
    back = (found - shift) @ np.linalg.inv(rotation(tilt))
    np.testing.assert_allclose(back, scaled, atol=1e-5)
    assert found.dtype == np.float32


def rotation(angles: np.ndarray) -> np.ndarray:
    """Rz Ry Rx, each from the exponential of its generator."""
    out = np.eye(3)
    for axis, angle in zip((2, 1, 0), angles[::-1], strict=True):
        i, j = [(1, 2), (2, 0), (0, 1)][axis]
        generator = np.zeros((3, 3))
        generator[j, i], generator[i, j] = 1, -1
        step = np.eye(3) + math.sin(angle) * generator
        out = out @ (step + (1 - math.cos(angle)) * generator @ generator)
    return out


def test_augmentation_of_dgcnn_stretches_shifts_and_shuffles():
    points = RandomState(0).randn(60, 3).astype(np.float32)
    found = augment("dgcnn", points, RandomState(1))
    assert not np.array_equal(found[:, 0].argsort(), points[:, 0].argsort())
    for axis in range(3):
        a, b = np.sort(points[:, axis]), np.sort(found[:, axis])
        stretch, shift = np.polyfit(a, b, 1)
        assert 2 / 3 <= stretch <= 3 / 2
        assert -0.2 <= shift <= 0.2
        np.testing.assert_allclose(b, stretch * a + shift, atol=1e-4)


def test_no_augmentation_is_none_and_a_seed_repeats_it():
    points = RandomState(0).randn(8, 3).astype(np.float32)
    assert augment("none", points, RandomState(0)) is points
    for name in ("dgcnn_tf", "dgcnn"):
        a, b = (augment(name, points, RandomState(5)) for _ in range(2))
        assert np.array_equal(a, b)
    np.testing.assert_allclose(about_y(0.3) @ about_y(-0.3), np.eye(3), atol=1e-12)


def gradients(*words: str) -> dict[str, torch.Tensor]:
    """Return the gradients of the first step, caught before the optimiser uses them."""
    spec = cloud_spec("preset=smoke", "precision=fp64", "batch.size=6", *words)
    task = cloud_task(spec)
    model, _ = build_model(task, spec)
    chunk = spec.batch.micro
    trainer = Trainer(task, model.double().train(), spec, Ranks(CPU), CPU, chunk=chunk)
    caught = {}

    def catch(step, parts):
        caught.update({n: p.grad.clone() for n, p in trainer.model.named_parameters()})

    trainer._update = catch
    trainer.step(Steps(task, task.train_data(), spec, chunk=chunk, rank=0, world=1)[0], 0)
    return caught


TF = ("model.name=dgcnn_tf", "model.dropout=0.5")


@pytest.mark.parametrize("norm", ["gn", "gn_ws"])
@pytest.mark.parametrize("words", [(), TF, (*TF, "norm.interleaved=true")])
def test_gradients_do_not_depend_on_the_split_with_dropout(norm, words):
    whole = gradients(f"norm={norm}", "batch.micro=6", *words)
    for micro in (1, 2, 3):
        split = gradients(f"norm={norm}", f"batch.micro={micro}", *words)
        for name, value in whole.items():
            torch.testing.assert_close(split[name], value, rtol=1e-9, atol=1e-12, msg=name)


def test_gradients_under_bn_do_depend_on_the_split():
    whole, split = (gradients("norm=bn", f"batch.micro={micro}") for micro in (6, 2))
    name = "edge.0.conv.weight"
    assert not torch.allclose(whole[name], split[name], rtol=0.01)


@pytest.mark.parametrize("preset", ["mini", "paper", "paper_dgcnn"])
@pytest.mark.parametrize("norm", ["bn", "bn_ws"])
def test_micro_batches_of_one_cloud_are_refused_in_the_plan(norm, preset):
    reason = impossible(cloud_spec(f"preset={preset}", f"norm={norm}", "batch.micro=1"))
    assert reason is not None
    assert "1 value per channel at the head's fully connected layers" in reason
    assert "batch.micro=2" in reason


@pytest.mark.parametrize(("num_train", "refused"), [(33, True), (34, False), (48, False)])
def test_a_last_micro_batch_of_one_cloud_is_refused_in_the_plan(num_train, refused):
    words = ("norm=bn", "batch.micro=2", f"data.num_train={num_train}")
    reason = impossible(cloud_spec(*words))
    assert (reason is not None) == refused
    if reason is not None:
        assert "last micro-batch" in reason
    assert impossible(cloud_spec(*words, "batch.tail=drop")) is None
    assert impossible(cloud_spec(*words, "norm=gn_ws", "batch.micro=1")) is None


def test_more_neighbours_than_points_are_refused():
    reason = impossible(cloud_spec("model.k=33", "preset=smoke"))
    assert reason is not None
    assert "model.k=33" in reason
    assert impossible(cloud_spec("model.k=32", "preset=smoke")) is None


def test_embedded_meshes_are_refused():
    reason = impossible(cloud_spec("data.format=meshes"))
    assert reason is not None
    assert "give data=DIR" in reason


def test_groups_that_do_not_divide_are_refused():
    reason = impossible(cloud_spec("norm.groups=24"))
    assert reason is not None
    assert "norm.groups=" in reason

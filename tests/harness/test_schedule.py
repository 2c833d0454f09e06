"""Learning rates against their closed forms."""

from __future__ import annotations

import math

import pytest

from harness.schedule import lr_factor
from harness.schema import ScheduleSection


def test_constant():
    assert lr_factor(ScheduleSection(), 5, 10) == 1


def test_cosine_starts_at_one_and_ends_near_zero():
    schedule = ScheduleSection(name="cosine")
    assert lr_factor(schedule, 0, 100) == 1
    assert lr_factor(schedule, 50, 100) == pytest.approx(0.5)
    assert lr_factor(schedule, 99, 100) == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.99)))


def test_cosine_after_warmup():
    schedule = ScheduleSection(name="cosine", warmup_steps=10)
    assert lr_factor(schedule, 0, 110) == 0
    assert lr_factor(schedule, 5, 110) == 0.5
    assert lr_factor(schedule, 60, 110) == pytest.approx(0.5)


def test_poly_of_the_voc_recipe():
    schedule = ScheduleSection(name="poly", power=0.9)
    assert 0.007 * lr_factor(schedule, 0, 33_100) == 0.007
    assert lr_factor(schedule, 33_099, 33_100) == pytest.approx((1 / 33_100) ** 0.9)


def test_multistep_of_the_coco_recipe():
    schedule = ScheduleSection(
        name="multistep", drops=(300_000, 340_000), warmup_steps=500, warmup_factor=1 / 3
    )
    at = [0.01 * lr_factor(schedule, step, 360_000) for step in (0, 250, 500, 299_999)]
    assert at == pytest.approx([0.01 / 3, 0.01 * 2 / 3, 0.01, 0.01])
    late = [0.01 * lr_factor(schedule, step, 360_000) for step in (300_000, 339_999, 340_000)]
    assert late == pytest.approx([1e-3, 1e-3, 1e-4])


def test_floor():
    schedule = ScheduleSection(name="multistep", drops=tuple(range(1, 20)), gamma=0.7, floor=0.01)
    assert lr_factor(schedule, 19, 20) == 0.01

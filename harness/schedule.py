"""The learning rate as a pure function of the step, so that resuming cannot shift it."""

from __future__ import annotations

import math

from harness.schema import ScheduleSection


def lr_factor(schedule: ScheduleSection, step: int, steps: int) -> float:
    """Return the factor on the base learning rate for a 0-based optimiser step.

    Args:
        schedule: the schedule's parameters.
        step: the step about to be taken, in ``[0, steps)``.
        steps: the number of steps of the whole run.

    Returns:
        The factor, in ``[0, 1]``. During warm-up it rises linearly from ``warmup_factor`` at
        step 0 to 1 at ``warmup_steps`` and multiplies the schedule proper (as in detectron2's
        and maskrcnn-benchmark's ``WarmupMultiStepLR``). ``poly`` is DeepLab's
        ``(1 - step / steps) ** power``.
    """
    if schedule.name == "constant":
        factor = 1.0
    elif schedule.name == "cosine":
        start = min(schedule.warmup_steps, steps)
        done = max(0, step - start) / max(1, steps - start)
        factor = 0.5 * (1 + math.cos(math.pi * done))
    elif schedule.name == "poly":
        factor = (1 - step / steps) ** schedule.power
    else:
        factor = schedule.gamma ** sum(step >= drop for drop in schedule.drops)
    factor = max(factor, schedule.floor)
    if step < schedule.warmup_steps:
        alpha = step / schedule.warmup_steps
        factor *= schedule.warmup_factor * (1 - alpha) + alpha
    return factor

"""A run's identity: a hash of what can change its numbers, and of nothing else."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from harness.norm.catalogue import NORMS, WS_VARIANTS
from harness.registry import task_info
from harness.schema import Spec


def stat_batch(spec: Spec) -> int | None:
    """Return how many images each batch statistic sees; None where there is none."""
    if NORMS[spec.norm.layer].batch_independent:
        return None
    if spec.batch.ghost:
        return spec.batch.ghost
    return spec.batch.micro * (spec.devices if spec.batch.stat == "sync" else 1)


def science(spec: Spec) -> dict[str, Any]:
    """Return the canonical, resolved description that the identity hashes.

    Paths become fingerprints and checksums; options that the chosen norm, optimiser or schedule
    does not read are left out; so are devices, workers and everything else under ``exec``.

    Raises:
        DataError: if real data or initial weights are missing.
    """
    info = task_info(spec.task)
    norm: dict[str, Any] = {"layer": spec.norm.layer, "ws": spec.norm.ws}
    norm["numerics"] = NORMS[spec.norm.layer].numerics
    if NORMS[spec.norm.layer].uses_groups:
        norm["groups"] = spec.norm.groups
        if spec.norm.interleaved:
            norm["interleaved"] = True
    if spec.norm.ws:
        norm["ws_numerics"] = WS_VARIANTS[spec.norm.ws].numerics
        norm["scope"] = spec.norm.scope
    batch: dict[str, Any] = {"size": spec.batch.size, "stat": stat_batch(spec)}
    if spec.batch.tail != "keep":
        batch["tail"] = spec.batch.tail
    if not info.separable:
        # Padding and per-forward loss averages tie the numbers to the micro-batch itself.
        batch["micro"] = spec.batch.micro
    optim = spec.optim.model_dump(mode="json")
    del optim["betas" if spec.optim.name == "sgd" else "momentum"]
    schedule = spec.schedule.model_dump(mode="json")
    used = {"multistep": {"drops", "gamma"}, "poly": {"power"}}.get(spec.schedule.name, set())
    schedule = {k: v for k, v in schedule.items() if k not in {"drops", "gamma", "power"} - used}
    content: dict[str, Any] = {
        "task": spec.task,
        "numerics": info.numerics,
        "preset": spec.preset,
        "model": spec.model.model_dump(mode="json"),
        "norm": norm,
        "batch": batch,
        "optim": optim,
        "schedule": schedule,
        "steps": spec.steps,
        "precision": spec.precision,
        "seed": spec.seed,
        "data": spec.data.model_dump(mode="json", exclude=set(spec.data.not_science))
        | {"fingerprint": info.fingerprint(spec)},
        "loss": spec.loss.model_dump(mode="json"),
        "init": init_checksum(spec),
    }
    if spec.bn_eval != "running":
        content["bn_eval"] = spec.bn_eval
    return content


def init_checksum(spec: Spec) -> str:
    """Return ``scratch`` or the checksum of the file of initial weights.

    Raises:
        DataError: if the file is missing.
    """
    from harness.errors import DataError

    if spec.init.source in (None, "scratch"):
        return "scratch"
    try:
        with open(str(spec.init.source), "rb") as file:  # noqa: PTH123
            return hashlib.file_digest(file, "blake2b").hexdigest()[:16]
    except OSError as error:
        raise DataError(f"init={spec.init.source}: {error.strerror}") from None


def run_id(spec: Spec) -> str:
    """Return e.g. ``detection-gn_ws-mb1-s0-3f9a1c2e``; for people to read, never parsed back."""
    canonical = json.dumps(science(spec), sort_keys=True, separators=(",", ":"))
    digest = hashlib.blake2b(canonical.encode(), digest_size=4).hexdigest()
    return f"{spec.task}-{spec.norm.name}-mb{spec.batch.micro}-s{spec.seed}-{digest}"

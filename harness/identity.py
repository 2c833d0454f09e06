"""A run's identity: a hash of what can change its numbers, and of nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from harness.norm.catalogue import NORMS, WS_VARIANTS
from harness.registry import task_info
from harness.schema import Spec
from harness.weights import source


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
    does not read are left out; so are workers and everything else under ``exec``, and devices,
    unless the norm is one whose numbers depend on them (brn, est_bcn).

    Raises:
        DataError: if real data or initial weights are missing.
    """
    content = _described(spec)
    content["data"]["fingerprint"] = task_info(spec.task).fingerprint(spec)
    content["init"] = source.identity(spec.init)
    return content


def cell_id(spec: Spec) -> str:
    """Return what a run is to a table: 8 hex digits, equal for all seeds of a table's cell.

    Real data and files of weights lie elsewhere on each machine, and may not be there when a table
    is made: which they were stands in the record, and tables say where records differ in it. Of a
    run that the weights come from, its own cell is a part.
    """
    content = _described(spec)
    embedded = spec.data.embedded and spec.data.root is None
    if embedded:
        content["data"]["fingerprint"] = task_info(spec.task).fingerprint(spec)
    return cell_of(content, embedded=embedded)


def cell_of(science: Mapping[str, Any], *, embedded: bool) -> str:
    """Return the ``cell_id`` of the run that ``science`` describes.

    Args:
        science: of a spec, or of a record.
        embedded: whether its data are the embedded ones, whose fingerprint tells cells apart.
    """
    content = {k: v for k, v in science.items() if k not in ("seed", "numerics", "init")}
    content["norm"] = {k: v for k, v in content["norm"].items() if not k.endswith("numerics")}
    if not embedded:
        content["data"] = {k: v for k, v in content["data"].items() if k != "fingerprint"}
    return _digest(content)


def confounds(a: Spec, b: Spec) -> list[str]:
    """Return what two runs differ in besides their norm and their seed, in words."""
    left, right = (dict(flat(_described(spec))) for spec in (a, b))
    return [
        f"{key} {left.get(key)} against {right.get(key)}"
        for key in sorted(left.keys() | right.keys())
        if left.get(key) != right.get(key)
        and key not in ("seed", "numerics", "preset")
        and not belongs_to_norm(key, a, b)
    ]


def belongs_to_norm(key: str, a: Spec, b: Spec) -> bool:
    """Tell whether a differing entry of ``science`` is the switch itself, or follows from it."""
    if key != "batch.stat":
        return key.startswith("norm.")
    # What a statistic sees is the norm's affair, unless it comes from another micro-batch.
    sees_batch = not any(NORMS[spec.norm.layer].batch_independent for spec in (a, b))
    return not sees_batch or (a.batch.micro, a.devices) == (b.batch.micro, b.devices)


def flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Iterate over the leaves of nested mappings, by dotted key."""
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _digest(content: dict[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(canonical.encode(), digest_size=4).hexdigest()


def _described(spec: Spec) -> dict[str, Any]:
    """Return ``science`` without what must be read from the machine."""
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
    known = NORMS[spec.norm.layer]
    if spec.devices > 1 and not (known.batch_independent or known.uses_batch_norm):
        # Averages that a norm also trains with: every device has its own for the length of a step.
        batch["devices"] = spec.devices
    if spec.batch.tail != "keep":
        batch["tail"] = spec.batch.tail
    if not info.separable(spec):
        # Padding and per-forward loss averages tie the numbers to the micro-batch itself.
        batch["micro"] = spec.batch.micro
    data = spec.data.model_dump(mode="json", exclude=set(spec.data.not_science))
    if spec.data.on_corrupt == "error":
        del data["on_corrupt"]  # the key came later than results, and changes none of them
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
        "data": data,
        "loss": spec.loss.model_dump(mode="json"),
    }
    if spec.bn_eval != "running":
        content["bn_eval"] = spec.bn_eval
    if spec.init.cell:  # files are no part of a cell; what another run was pretrained by is
        content["init.cell"] = spec.init.cell
    return content


def run_id(spec: Spec) -> str:
    """Return e.g. ``detection-bn-mb1-s0-3f9a1c2e``; for people to read, never parsed back.

    The micro-batch (or what else a statistic sees) is there only where it can change a number.
    """
    content = science(spec)
    return f"{_name(spec, content['batch'])}-{_digest(content)}"


def run_name(spec: Spec) -> str:
    """Return the readable part of ``run_id``."""
    return _name(spec, _described(spec)["batch"])


def _name(spec: Spec, batch: Mapping[str, Any]) -> str:
    sees = batch.get("micro", batch["stat"])
    micro = f"-mb{sees}" if sees else ""
    return f"{spec.task}-{spec.norm.name}{micro}-s{spec.seed}"

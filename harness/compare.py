"""The proof that two runs differ in their normalisation alone, or a name for what else differs.

Both are resolved and built as they would be trained. Everything that can change a number is
compared: the canonical description that the identity hashes, and of the two models every layer,
initial weight, frozen parameter, learning rate and decay.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from harness.errors import DataError
from harness.identity import belongs_to_norm, flat, science
from harness.norm.audit import AuditRow, NormAudit
from harness.norm.catalogue import norm_info
from harness.optim import parameter_groups
from harness.schema import Spec

_NOT_SCIENCE = {"exec", "devices"}
_NUM_SHOWN = 5
"""Names shown of a list of differences."""


@dataclass(frozen=True)
class Built:
    """A spec with its model after surgery and freezing, and the audit of it."""

    spec: Spec
    model: nn.Module
    audit: NormAudit


@dataclass(frozen=True)
class Comparison:
    """What the norm changes, what was found equal, and what else differs."""

    intended: tuple[str, ...]
    equal: tuple[str, ...]
    confounds: tuple[str, ...]


def compare(a: Built, b: Built) -> Comparison:
    """Compare two runs in everything that can change a number."""
    left, right = _flat_science(a.spec, b.spec)
    confounds = [
        f"{key}: {left.get(key)!r} against {right.get(key)!r}"
        for key in sorted(left.keys() | right.keys())
        if left.get(key) != right.get(key) and not belongs_to_norm(key, a.spec, b.spec)
    ]
    shared = [key for key in left if left.get(key) == right.get(key)]
    equal = [f"{len(shared)} entries of the canonical description"]
    for what, problems, count in (
        _layers(a, b),
        _names(a, b),
        _initial_weights(a, b),
        _optimiser(a, b),
    ):
        confounds += problems
        if not problems:
            equal.append(f"{count} {what}")
    return Comparison(tuple(_intended(a, b)), tuple(equal), tuple(confounds))


def _flat_science(a: Spec, b: Spec) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        contents = [science(spec) for spec in (a, b)]
    except DataError:  # real data that are elsewhere: compare what was asked for instead
        contents = [spec.model_dump(mode="json", exclude=_NOT_SCIENCE) for spec in (a, b)]
    left, right = (dict(flat(content)) for content in contents)
    return left, right


def _intended(a: Built, b: Built) -> Iterator[str]:
    left, right = _flat_science(a.spec, b.spec)
    for key in sorted(left.keys() | right.keys()):
        if key.endswith("numerics"):
            continue  # versions of our code, of no interest to readers
        if left.get(key) != right.get(key) and belongs_to_norm(key, a.spec, b.spec):
            yield f"{key}: {left.get(key)} against {right.get(key)}"
    sites, others = _by_path(a.audit, "site"), _by_path(b.audit, "site")
    changed = [path for path in sites.keys() & others if _norm(sites[path]) != _norm(others[path])]
    yield f"{len(changed)} of {len(sites)} norm sites"
    layers, others = _by_path(a.audit, "layer"), _by_path(b.audit, "layer")
    changed = [path for path in layers.keys() & others if layers[path].ws != others[path].ws]
    yield f"weight standardisation of {len(changed)} of {len(layers)} layers"


def _norm(row: AuditRow) -> tuple[str, int | None]:
    return row.norm_after, row.groups


def _by_path(audit: NormAudit, role: str) -> dict[str, AuditRow]:
    return {row.path: row for row in audit if row.role == role}


_Check = tuple[str, list[str], int]


def _layers(a: Built, b: Built) -> _Check:
    """Compare convolutions and Linears, and where the norm sites are."""

    def described(built: Built, row: AuditRow) -> tuple[object, ...]:
        # Without the variant, which is the switch's own doing.
        hyper = built.model.get_submodule(row.path).extra_repr().partition(", ws=")[0]
        return row.kind, row.role, row.fan_in, row.paired_with, hyper, row.trainable

    def layers(built: Built) -> dict[str, tuple[object, ...]]:
        return {
            row.path: ("site", row.paired_with) if row.role == "site" else described(built, row)
            for row in built.audit
        }

    left, right = layers(a), layers(b)
    wrong = sorted(p for p in left.keys() | right.keys() if left.get(p) != right.get(p))
    return "layers and norm sites, frozen or not", _told("layer or freezing", wrong), len(left)


def _names(a: Built, b: Built) -> _Check:
    """Compare parameter names, but for those that a norm declares to add."""
    names = [_parameters(built.model).keys() for built in (a, b)]
    sites = [row.path for row in a.audit if row.role == "site"]
    own = {
        f"{site}.{name}"
        for site in sites
        for built in (a, b)
        for name in ("weight", "bias", *norm_info(built.spec.norm.layer).own_parameters)
    }
    wrong = sorted((names[0] ^ names[1]) - own)
    return "parameter names", _told("parameter", wrong), len(names[0] & names[1])


def _initial_weights(a: Built, b: Built) -> _Check:
    left, right = _parameters(a.model), _parameters(b.model)
    shared = left.keys() & right.keys()
    wrong = sorted(name for name in shared if not _same(left[name], right[name]))
    return "initial tensors, bit for bit", _told("initial value", wrong), len(shared)


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)


def _optimiser(a: Built, b: Built) -> _Check:
    """Compare the base learning rate and decay of every trained parameter that both have."""
    left, right = _rules(a), _rules(b)
    shared = left.keys() & right.keys()
    wrong = sorted(name for name in shared if left[name] != right[name])
    return "learning rates and decays", _told("learning rate or decay", wrong), len(shared)


def _rules(built: Built) -> dict[str, tuple[object, object]]:
    rules: dict[int, tuple[object, object]] = {}
    for group in parameter_groups(built.model, built.spec.optim):
        for parameter in group["params"]:  # type: ignore[attr-defined]
            rules[id(parameter)] = (group["base_lr"], group["weight_decay"])
    named = built.model.named_parameters()
    return {name: rules[id(p)] for name, p in named if id(p) in rules}


def _parameters(model: nn.Module) -> dict[str, torch.Tensor]:
    return dict(model.named_parameters(remove_duplicate=False))


def _told(what: str, wrong: list[str]) -> list[str]:
    if not wrong:
        return []
    rest = f" and {len(wrong) - _NUM_SHOWN} more" if len(wrong) > _NUM_SHOWN else ""
    return [f"{what} of {', '.join(wrong[:_NUM_SHOWN])}{rest}"]

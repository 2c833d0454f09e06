"""Under which norm weights were trained, and whether a run may start from them, without torch.

A network trained with standardised weights computes something else without the standardisation, and
the other way round, although every shape and name agrees: the failure most often reported of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from harness.errors import UsageError
from harness.norm.catalogue import NORMS, parse_norm
from harness.schema import NormSection

_ALIKE = frozenset({"authors", "tf", "bcn", "timm", "bit"})
"""Variants that differ by epsilon and one constant a layer, which the norm after it divides out."""


@dataclass(frozen=True)
class Trained:
    """How a network was normalised while its weights were trained, as far as it is known."""

    layer: str | None = None
    """Name in ``NORMS``; None where nobody knows."""
    standardised: bool | None = None
    """Whether under weight standardisation; None where nobody knows."""
    groups: int | None = None
    variant: str | None = None
    told_by: str = "nothing"
    """What this is known from, in words."""
    estimated: bool = False
    """Whether ``standardised`` was estimated from the numbers, and not told."""

    @property
    def name(self) -> str:
        """Return the name in the grammar of norms, with ``?`` for what is not known."""
        suffix = {True: "_ws", False: "", None: "(_ws?)"}[self.standardised]
        return (self.layer or "?") + suffix


def of_norm(norm: NormSection, told_by: str) -> Trained:
    """Return what a run's own norm says."""
    groups = norm.groups if NORMS[norm.layer].uses_groups else None
    return Trained(norm.layer, norm.ws is not None, groups, norm.ws, told_by)


def declared(name: str, seen: Trained) -> Trained:
    """Return what ``init.norm=NAME`` declares of weights.

    Args:
        name: in the grammar of norms.
        seen: what the weights say of themselves.

    Raises:
        UsageError: if there is no such norm, or what the weights say contradicts it.
    """
    parsed = parse_norm(name)
    said = Trained(parsed["layer"], parsed["ws"] is not None, told_by=f"init.norm={name}")
    wrong = seen.layer is not None and seen.layer != said.layer
    if not seen.estimated and seen.standardised not in (None, said.standardised):
        wrong = True
    if wrong:
        raise UsageError(
            f"init.norm={name} contradicts the weights, which are of {seen.name} ({seen.told_by})"
        )
    return said


def mismatch(trained: Trained, norm: NormSection) -> str | None:
    """Return why a run under ``norm`` may not start from these weights, or None."""
    if trained.layer is None or trained.standardised is None:
        return _unknown(trained)
    reasons = []
    if norm.layer == "frozen_bn":
        fits = trained.layer in ("bn", "frozen_bn")
    else:
        fits = trained.layer == norm.layer
    if not fits:
        folded = " (its averages are folded into gain and shift)"
        which = folded if trained.layer == "frozen_bn" else ""
        reasons.append(f"under {trained.layer}{which}, not {norm.layer}")
    elif trained.groups not in (None, norm.groups) and NORMS[norm.layer].uses_groups:
        reasons.append(f"with {trained.groups} groups, not {norm.groups}")
    if trained.standardised != (norm.ws is not None):
        reasons.append(f"with{'' if trained.standardised else 'out'} weight standardisation")
    elif trained.variant and norm.ws and not {trained.variant, norm.ws} <= {norm.ws, *_alike(norm)}:
        reasons.append(f"with norm.ws={trained.variant}, not {norm.ws}")
    if not reasons:
        return None
    return (
        f"the weights were trained {' and '.join(reasons)} (told by {trained.told_by}), but this "
        f"run has norm={norm.name}: give weights of {norm.name}, or init.allow_mismatch=true to "
        "load these nonetheless"
    )


def _alike(norm: NormSection) -> frozenset[str]:
    return _ALIKE if norm.ws in _ALIKE else frozenset()


def _unknown(trained: Trained) -> str:
    if trained.layer is None:
        return (
            "nothing tells under which norm the weights were trained: declare it, e.g. "
            "init.norm=gn_ws"
        )
    return (
        f"the weights are of {trained.layer} ({trained.told_by}), but whether they were trained "
        "with weight standardisation cannot be seen in them: declare it by "
        f"init.norm={trained.layer} or init.norm={trained.layer}_ws"
    )

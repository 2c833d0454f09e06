"""The one list of norms and of weight standardisations, readable without importing torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Protocol, TypedDict

from harness.errors import UsageError, did_you_mean
from harness.norm.entries import OWN_NORMS, OWN_VARIANTS
from harness.norm.info import NormInfo, WSVariant

__all__ = [
    "ENTRY_POINT_GROUP",
    "NORMS",
    "WS_VARIANTS",
    "NormChoice",
    "NormInfo",
    "NormLike",
    "ParsedNorm",
    "WSVariant",
    "legal_names",
    "load_factory",
    "norm_info",
    "parse_norm",
    "ws_variant",
]

ENTRY_POINT_GROUP = "normbench.norms"
"""Entry-point group in which another package names its ``NormInfo`` objects."""


class NormLike(Protocol):
    """What surgery reads of a choice of norm: ours, or a section of a validated spec."""

    @property
    def layer(self) -> str:
        """Name in ``NORMS``."""
        ...

    @property
    def groups(self) -> int:
        """Number of channel groups, for norms that use them."""
        ...

    @property
    def ws(self) -> str | None:
        """Name in ``WS_VARIANTS``, or None for weights as they are."""
        ...

    @property
    def scope(self) -> str:
        """``followed_by_norm`` or ``backbone``: which layers are standardised."""
        ...


@dataclass(frozen=True, slots=True)
class NormChoice:
    """A choice of norm for users of the library; the spec's ``norm`` section looks the same."""

    layer: str
    groups: int = 32
    ws: str | None = None
    scope: str = "followed_by_norm"
    stat_batch: int | None = None
    """Samples that each statistic of ``ghost_bn`` sees; in a spec it is ``batch.stat``."""


class ParsedNorm(TypedDict):
    """The parts that the sugar ``<layer>[_ws]`` stands for."""

    layer: str
    ws: str | None


WS_VARIANTS: dict[str, WSVariant] = {variant.name: variant for variant in OWN_VARIANTS}


@cache
def _foreign_norms() -> dict[str, EntryPoint]:
    """Return the norms that installed packages declare, found once and not yet imported."""
    return {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}


class _Catalogue(Mapping[str, NormInfo]):
    """Our norms, then those of other packages, which are imported only when they are looked up."""

    def __init__(self, own: tuple[NormInfo, ...]) -> None:
        self._own = {info.name: info for info in own}

    def __getitem__(self, name: str) -> NormInfo:
        if name in self._own:
            return self._own[name]
        point = _foreign_norms()[name]
        info = point.load()
        if not isinstance(info, NormInfo) or info.name != name:
            raise UsageError(
                f"entry point {name!r} of {ENTRY_POINT_GROUP} ({point.value}) must be a "
                f"harness.norm.catalogue.NormInfo named {name!r}, but is {info!r}"
            )
        return info

    def __contains__(self, name: object) -> bool:
        return name in self._own or name in _foreign_norms()

    def __iter__(self) -> Iterator[str]:
        yield from self._own
        yield from (name for name in _foreign_norms() if name not in self._own)

    def __len__(self) -> int:
        return sum(1 for _ in self)


NORMS: Mapping[str, NormInfo] = _Catalogue(OWN_NORMS)
"""Every registered norm by name. A new one is one entry in ``entries``, or one entry point."""


def legal_names() -> list[str]:
    """Return every name that ``parse_norm`` accepts, e.g. ``gn`` and ``gn_ws``."""
    return [name + suffix for name in NORMS for suffix in ("", "_ws")]


def parse_norm(name: str) -> ParsedNorm:
    """Read the grammar ``<layer>[_ws]``.

    Args:
        name: for example ``"gn_ws"``.

    Returns:
        The layer and the variant of weight standardisation, e.g.
        ``{"layer": "gn", "ws": "authors"}``; the variant is None without ``_ws``.

    Raises:
        UsageError: if there is no such norm; the message names the nearest legal ones.
    """
    if name in NORMS:
        return {"layer": name, "ws": None}
    layer = name.removesuffix("_ws")
    if layer != name and layer in NORMS:
        return {"layer": layer, "ws": NORMS[layer].default_ws}
    legal = legal_names()
    raise UsageError(f"unknown norm {name!r}.{did_you_mean(name, legal)} Norms: {', '.join(legal)}")


def norm_info(name: str) -> NormInfo:
    """Return the entry of layer ``name`` (without ``_ws``).

    Raises:
        UsageError: if there is no such norm.
    """
    if name not in NORMS:
        raise UsageError(
            f"unknown norm layer {name!r}.{did_you_mean(name, NORMS)} Layers: {', '.join(NORMS)}"
        )
    return NORMS[name]


def ws_variant(name: str) -> WSVariant:
    """Return the definition called ``name``.

    Raises:
        UsageError: if there is no such variant.
    """
    if name not in WS_VARIANTS:
        raise UsageError(
            f"unknown weight standardisation {name!r}.{did_you_mean(name, WS_VARIANTS)} "
            f"Variants: {', '.join(WS_VARIANTS)}"
        )
    return WS_VARIANTS[name]


def load_factory(info: NormInfo) -> Any:
    """Import the function that builds ``info``'s norm."""
    module, _, function = info.factory.partition(":")
    return getattr(import_module(module), function)

"""The one list of norms and of weight standardisations, readable without importing torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Protocol, TypedDict

from harness.errors import UsageError, did_you_mean

ENTRY_POINT_GROUP = "normbench.norms"
"""Entry-point group in which another package names its ``NormInfo`` objects."""


@dataclass(frozen=True, slots=True)
class WSVariant:
    """One published definition of weight standardisation.

    Every variant subtracts the mean of an output filter and divides by its deviation; they differ
    in the number the squares are divided by, and in the size and place of epsilon.
    """

    name: str
    unbiased: bool
    """Whether the variance divides by fan-in - 1 (True) or by fan-in (False)."""
    eps: float
    eps_inside_root: bool
    """Whether the deviation is ``sqrt(var + eps)`` (True) or ``sqrt(var) + eps`` (False)."""
    scaled: bool
    """Whether the result is multiplied by ``1 / sqrt(fan-in)``."""
    source: str
    numerics: int = 1
    """Raised whenever a change of code changes the numbers."""


@dataclass(frozen=True, slots=True)
class NormInfo:
    """What the machine must know of a norm before it imports torch."""

    name: str
    title: str
    paper: str
    batch_independent: bool
    """Whether a sample's output and gradient are the same whatever else is in the batch."""
    statistics: str
    """The axes that share a mean and variance, in words."""
    factory: str
    """``module:function`` that builds the norm; see ``harness.norm.layers`` for its contract."""
    uses_groups: bool = False
    min_values: int = 1
    """The smallest number of values that one statistic must see in training."""
    numerics: int = 1
    """Raised whenever a change of code changes the numbers."""
    default_ws: str = "authors"
    """The variant that ``<name>_ws`` stands for."""


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


class ParsedNorm(TypedDict):
    """The parts that the sugar ``<layer>[_ws]`` stands for."""

    layer: str
    ws: str | None


_WS_VARIANTS = (
    WSVariant(
        "authors",
        unbiased=True,
        eps=1e-5,
        eps_inside_root=False,
        scaled=False,
        source="Qiao et al. 2019, arXiv 1903.10520; joe-siyuan-qiao/WeightStandardization",
    ),
    WSVariant(
        "tf",
        unbiased=False,
        eps=1e-5,
        eps_inside_root=False,
        scaled=False,
        source="the same authors' TensorFlow layer; csrhddlam/dgcnn",
    ),
    WSVariant(
        "bcn",
        unbiased=True,
        eps=1e-5,
        eps_inside_root=True,
        scaled=False,
        source="Qiao et al. 2019, arXiv 1911.09738; joe-siyuan-qiao/Batch-Channel-Normalization",
    ),
    WSVariant(
        "timm",
        unbiased=False,
        eps=1e-6,
        eps_inside_root=True,
        scaled=False,
        source="huggingface/pytorch-image-models, timm/layers/std_conv.py, StdConv2d",
    ),
    WSVariant(
        "bit",
        unbiased=False,
        eps=1e-10,
        eps_inside_root=True,
        scaled=False,
        source="Kolesnikov et al. 2020, arXiv 1912.11370; google-research/big_transfer (PyTorch)",
    ),
    # timm's layer also learns a gain per output channel, initially 1. Ours has none: surgery must
    # not add parameters, or pretrained files would no longer load.
    WSVariant(
        "scaled",
        unbiased=False,
        eps=1e-6,
        eps_inside_root=True,
        scaled=True,
        source="Brock et al. 2021, arXiv 2101.08692; timm ScaledStdConv2d with its gain fixed at 1",
    ),
)
WS_VARIANTS: dict[str, WSVariant] = {variant.name: variant for variant in _WS_VARIANTS}

_OWN_NORMS = (
    NormInfo(
        "bn",
        title="batch normalisation",
        paper="Ioffe and Szegedy 2015, arXiv 1502.03167",
        batch_independent=False,
        statistics="per channel, over batch and space; running averages in evaluation",
        factory="harness.norm.layers:keep_bn",
        min_values=2,
    ),
    NormInfo(
        "gn",
        title="group normalisation",
        paper="Wu and He 2018, arXiv 1803.08494",
        batch_independent=True,
        statistics="per sample and group of channels, over the group's channels and space",
        factory="harness.norm.layers:build_gn",
        uses_groups=True,
    ),
    NormInfo(
        "frozen_bn",
        title="batch normalisation with fixed statistics and affine",
        paper="He et al. 2015, arXiv 1512.03385, appendix A",
        batch_independent=True,
        statistics="none: the running averages of the model it was made from, as constants",
        factory="harness.norm.layers:build_frozen_bn",
    ),
    NormInfo(
        "ln",
        title="layer normalisation: group normalisation with one group",
        paper="Ba, Kiros and Hinton 2016, arXiv 1607.06450",
        batch_independent=True,
        statistics="per sample, over all channels and space",
        factory="harness.norm.layers:build_ln",
    ),
    NormInfo(
        "in",
        title="instance normalisation, affine",
        paper="Ulyanov, Vedaldi and Lempitsky 2016, arXiv 1607.08022",
        batch_independent=True,
        statistics="per sample and channel, over space",
        factory="harness.norm.layers:build_in",
        min_values=2,
    ),
    NormInfo(
        "none",
        title="no normalisation: the per-channel gain and shift alone",
        paper="control; with scaled weight standardisation Brock et al. 2021, arXiv 2101.08692",
        batch_independent=True,
        statistics="none",
        factory="harness.norm.layers:build_none",
        default_ws="scaled",
    ),
)


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


NORMS: Mapping[str, NormInfo] = _Catalogue(_OWN_NORMS)
"""Every registered norm by name. A new one is one entry above, or one entry point elsewhere."""


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

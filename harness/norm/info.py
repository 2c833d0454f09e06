"""What is declared of a norm and of a weight standardisation, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class WSVariant:
    """One published definition of weight standardisation.

    Every whole one subtracts the mean of an output filter and divides by its deviation; they differ
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
    half: Literal["centred", "divided"] | None = None
    """Only one of the two steps, for ablations: the mean is subtracted, or the deviation divided
    by."""


@dataclass(frozen=True, slots=True)
class NormInfo:
    """What the machine must know of a norm before it imports torch.

    ``normbench selftest`` measures what is declared here; where it is not true, the norm fails.
    A property that is None is measured only.
    """

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
    interleaves: bool = False
    """Whether its groups may be interleaved (``norm.interleaved``)."""
    min_values: int = 1
    """The smallest number of values that one statistic must see in training."""
    numerics: int = 1
    """Raised whenever a change of code changes the numbers."""
    default_ws: str = "authors"
    """The variant that ``<name>_ws`` stands for."""
    train_is_eval: bool | None = None
    """Whether training and evaluation mode give the same output."""
    shift_invariant: bool | None = None
    """Whether adding one number to the whole input changes nothing, in training mode."""
    scale_invariant: bool | None = None
    """The same for multiplying the whole input, up to epsilon."""
    uses_batch_norm: bool = False
    """Whether its batch statistics are those of a torch batch norm, itself or a child, which may
    see other images (``batch.stat``), execute chunks and be re-estimated (``bn_eval``)."""
    own_parameters: tuple[str, ...] = ()
    """Names of the parameters it adds to gamma and beta, e.g. ``alpha`` or ``channel.weight``."""
    short_for: str = ""
    """``sync`` or ``ghost`` if the name stands for ``bn`` with that ``batch.stat``, else empty."""
    constraints: str = ""
    """What users must know before they choose it, in words."""

    @property
    def takes_flat(self) -> bool:
        """Whether it normalises ``(B, C)``, where a sample has one value per channel."""
        return not self.batch_independent or self.min_values == 1

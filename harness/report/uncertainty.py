"""How far a difference between norms can be trusted, in numbers and in words.

Runs of one seed start from the same weights and see the same data in the same order under every
norm, so norms are compared seed by seed. What the seeds show is the noise of training; the noise of
the evaluated sample, which all runs share, is ``binomial_se``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import ArrayLike, NDArray

ALPHA = 0.05
"""Level of every test; intervals are of 1 - ALPHA."""
POWER = 0.8
"""Chance to find a difference that is there, for which seeds are counted (Cohen 1988)."""
_MOST_SEEDS = 1000
_ROUND_OFF = 1e-9
"""Spread below this share of the values is round-off, not noise."""


@dataclass(frozen=True)
class Summary:
    """Mean and spread over seeds, in the metric's unit."""

    mean: float
    sd: float | None
    """Standard deviation with n - 1; None for one seed."""
    n: int


@dataclass(frozen=True)
class Difference:
    """A norm less the reference norm, paired by seed, in the metric's unit."""

    mean: float
    """NaN where no seed is common."""
    sd: float | None
    """Of the differences; None for fewer than two seeds."""
    low: float | None
    """Lower end of the 95 % interval; None without spread to build one from."""
    high: float | None
    p: float | None
    """Two-sided p of the paired t test; None where there is no interval."""
    seeds: tuple[int, ...]
    """Those that both have, ascending."""
    p_holm: float | None = None
    """The same, corrected for the comparisons that it was made with (``corrected``)."""

    @property
    def n(self) -> int:
        """Return the number of pairs."""
        return len(self.seeds)


def summary(values: ArrayLike | pd.Series[float]) -> Summary:
    """Return the mean, standard deviation and number of values.

    Args:
        values: (n,), one a seed.

    Raises:
        ValueError: if there is none, or one is not a number.
    """
    array = _finite(values)
    if not len(array):
        raise ValueError("no value to summarise")
    sd = float(array.std(ddof=1)) if len(array) > 1 else None
    return Summary(float(array.mean()), sd, len(array))


def paired(a: pd.Series[float], b: pd.Series[float]) -> Difference:
    """Compare two norms seed by seed: ``a`` less ``b``.

    The interval and p are Student's, over the differences of the seeds that both have. Equal
    differences have no spread to build an interval from: p is 1 if they are all 0, else None.

    Args:
        a: one value a seed, indexed by seed.
        b: the same of the reference norm.

    Raises:
        ValueError: if a seed occurs twice, or a value is not a number.
    """
    for series in (a, b):
        if not series.index.is_unique:
            twice = sorted(set(series.index[series.index.duplicated()]))
            raise ValueError(f"seed {twice[0]} occurs twice: average or choose first")
    seeds = sorted(set(a.index) & set(b.index))
    left, right = _finite(a.loc[seeds]), _finite(b.loc[seeds])
    names = tuple(int(seed) for seed in seeds)
    differences = left - right
    if len(names) < 2:
        mean = float(differences[0]) if names else math.nan
        return Difference(mean, None, None, None, None, names)
    mean, sd = float(differences.mean()), float(differences.std(ddof=1))
    scale = max(np.abs(left).max(), np.abs(right).max())
    if sd <= _ROUND_OFF * scale:
        equal = abs(mean) <= _ROUND_OFF * scale
        return Difference(0.0 if equal else mean, 0.0, None, None, 1.0 if equal else None, names)
    se, df = sd / math.sqrt(len(names)), len(names) - 1
    half = _t_quantile(df) * se
    return Difference(mean, sd, mean - half, mean + half, _t_p(mean / se, df), names)


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Correct p values for having made all these tests at once (Holm 1979).

    The smallest is multiplied by their number m, the next by m - 1, and so on; none comes out below
    a smaller one, nor above 1.

    Args:
        ps: of each test, in any order; None where none was made, which does not count.

    Returns:
        In the same order, None where it was None.

    Raises:
        ValueError: if one does not lie in [0, 1].
    """
    made = [(p, index) for index, p in enumerate(ps) if p is not None]
    corrected: list[float | None] = [None] * len(ps)
    highest = 0.0
    for rank, (p, index) in enumerate(sorted(made)):
        if not 0 <= p <= 1:
            raise ValueError(f"p = {p} does not lie in [0, 1]")
        highest = max(highest, min(1.0, (len(made) - rank) * p))
        corrected[index] = highest
    return corrected


def corrected(differences: Sequence[Difference]) -> list[Difference]:
    """Return the differences of one family of comparisons, each with its ``p_holm``."""
    ps = holm([difference.p for difference in differences])
    return [replace(one, p_holm=p) for one, p in zip(differences, ps, strict=True)]


def binomial_se(percent: float, n: int) -> float:
    """Return the standard error of a share of independent samples, in percentage points.

    Args:
        percent: the share, 0..100.
        n: evaluated samples.

    Raises:
        ValueError: if the share is none, or there is no sample.
    """
    if not 0 <= percent <= 100 or n < 1:
        raise ValueError(f"{percent} % of {n} samples is not a share")
    share = percent / 100
    return 100 * math.sqrt(share * (1 - share) / n)


def seeds_needed(
    sd: float, difference: float, power: float = POWER, alpha: float = ALPHA
) -> int | None:
    """Return how many seeds a paired t test needs to find a difference of this size.

    Its power at n seeds is that of the noncentral t with n - 1 degrees of freedom and noncentrality
    ``difference / sd * sqrt(n)`` (Cohen 1988, Statistical Power Analysis, chapter 2).

    Args:
        sd: standard deviation of the paired differences.
        difference: their true mean, of either sign.
        power: chance to find it.
        alpha: level of the test, two-sided.

    Returns:
        2 or more; None where a thousand are not enough.

    Raises:
        ValueError: if ``sd`` is negative, or power and alpha are not 0 < alpha < power < 1.
    """
    if sd < 0 or not 0 < alpha < power < 1:
        raise ValueError(f"sd={sd}, power={power}, alpha={alpha}: not a test")
    if difference == 0:
        return None
    if sd == 0:
        return 2
    effect, low, high = abs(difference) / sd, 1, _MOST_SEEDS
    if _power(effect, high, alpha) < power:
        return None
    while high - low > 1:  # power grows with n: low is too few, high is enough
        middle = (low + high) // 2
        low, high = (low, middle) if _power(effect, middle, alpha) >= power else (middle, high)
    return high


def verdict(difference: Difference, *, higher_is_better: bool) -> str:
    """Say in words what a difference to the reference norm is worth.

    ``p_holm`` decides where there is one, else ``p``; the interval is the single comparison's.

    Args:
        difference: from ``paired`` or ``corrected``.
        higher_is_better: of the metric; where it is not, "better" or "worse" is said too.
    """
    mean, n = difference.mean, difference.n
    if not n:
        return "not comparable: no seed in common"
    size = f"{'above' if mean > 0 else 'below'} by {abs(mean):.2f}" if mean else "equal"
    value = "" if higher_is_better or not mean else f" ({'worse' if mean > 0 else 'better'})"
    if n == 1:
        return f"{size}{value} in the one common seed: no interval from one seed"
    if difference.low is None or difference.high is None:
        return f"{size}{value} in each of {n} seeds: no spread to judge it by"
    p = difference.p if difference.p_holm is None else difference.p_holm
    assert p is not None  # with an interval there is a test
    test = ("p<0.001" if p < 0.001 else f"p={p:.3f}") + " (Holm)" * (difference.p_holm is not None)
    if p < ALPHA:
        low, high = sorted((abs(difference.low), abs(difference.high)))
        return f"{size} [{low:.2f}, {high:.2f}]{value}, {test}"
    interval = f"[{difference.low:.2f}, {difference.high:.2f}]"
    return f"within noise: {mean:+.2f} {interval}, {test} ({n} seeds; {_advice(difference)})"


def _advice(difference: Difference) -> str:
    assert difference.sd is not None
    needed = seeds_needed(difference.sd, difference.mean)
    if needed is None:
        return f"more than {_MOST_SEEDS} would be needed to resolve a difference of this size"
    if needed <= difference.n:
        return "enough for this comparison alone, not for all that were made"
    return f"about {needed} would resolve a difference of this size"


def half_interval(standard_error: float, degrees: int, level: float) -> float:
    """Return half the width of Student's interval.

    Args:
        standard_error: of the estimate.
        degrees: of freedom.
        level: e.g. 0.99.
    """
    return _t_quantile(degrees, 1 - level) * standard_error


def _finite(values: ArrayLike | pd.Series[float]) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not np.isfinite(array).all():
        raise ValueError("values must be finite numbers, one a seed")
    return array


def _t_quantile(df: int, alpha: float = ALPHA) -> float:
    """Return what Student's t exceeds in size with probability ``alpha``."""
    from scipy import special

    return float(special.stdtrit(df, 1 - alpha / 2))


def _t_p(t: float, df: int) -> float:
    from scipy import special

    return float(2 * special.stdtr(df, -abs(t)))


def _power(effect: float, n: int, alpha: float) -> float:
    from scipy import special

    critical, shift = _t_quantile(n - 1, alpha), effect * math.sqrt(n)
    tails = special.nctdtr(n - 1, shift, [critical, -critical])
    # scipy returns NaN for some shifts from about 37 on, where both are below 1e-3.
    below, far_below = np.nan_to_num(tails)
    return float(1 - below + far_below)

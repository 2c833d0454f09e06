"""Differences between norms are trusted as far as Student, Holm and the seeds allow."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from harness.report.uncertainty import (
    Difference,
    binomial_se,
    corrected,
    holm,
    paired,
    seeds_needed,
    summary,
    verdict,
)

PS = st.lists(st.none() | st.floats(0, 1), max_size=12)
PERCENT = st.floats(0, 100)


def series(*values: float, start: int = 0) -> pd.Series:
    return pd.Series(values, index=range(start, start + len(values)), dtype="float64")


def test_summary_by_hand():
    found = summary(series(60.0, 62.0, 64.0))
    assert (found.mean, found.sd, found.n) == (62.0, 2.0, 3)
    assert summary([61.5]) == summary(series(61.5))
    assert summary([61.5]).sd is None


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [[1.0, 2.0]]])
def test_summary_refuses_what_is_no_value(values):
    with pytest.raises(ValueError, match=r"no value|one a seed"):
        summary(values)


def test_paired_by_hand():
    """Differences 1, 2, 3: mean 2, sd 1, se 1/sqrt(3), t = 3.4641 with 2 degrees of freedom.

    Student's distribution with 2 degrees of freedom is closed: P(|T| > t) = 1 - t / sqrt(t^2 + 2),
    and its 97.5 % quantile is 4.30265.
    """
    found = paired(series(61.0, 63.0, 65.0), series(60.0, 61.0, 62.0))
    assert (found.mean, found.sd, found.n, found.seeds) == (2.0, 1.0, 3, (0, 1, 2))
    t = 2 * math.sqrt(3)
    assert found.p == pytest.approx(1 - t / math.sqrt(t**2 + 2), rel=1e-12)
    assert found.low == pytest.approx(2 - 4.30265273 / math.sqrt(3), rel=1e-8)
    assert found.high == pytest.approx(2 + 4.30265273 / math.sqrt(3), rel=1e-8)


@pytest.mark.parametrize("n", [2, 3, 5, 20])
def test_paired_equals_scipys_test_of_related_samples(n):
    rng = np.random.default_rng(n)
    a, b = series(*rng.normal(70, 2, n)), series(*rng.normal(69, 2, n))
    found, expected = paired(a, b), stats.ttest_rel(a, b)
    interval = expected.confidence_interval(0.95)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-9)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-9)


def test_paired_compares_only_common_seeds_whatever_their_order():
    a = pd.Series([5.0, 3.0, 9.0], index=[2, 1, 7])
    found = paired(a, pd.Series([1.0, 1.0, 100.0], index=[1, 2, 3]))
    assert (found.seeds, found.mean) == ((1, 2), 3.0)
    assert paired(a, a.iloc[::-1]).mean == 0


def test_paired_says_what_it_cannot_know():
    one = paired(series(61.0), series(60.0))
    assert (one.mean, one.sd, one.low, one.high, one.p, one.n) == (1.0, None, None, None, None, 1)
    none = paired(series(61.0), series(60.0, start=1))
    assert math.isnan(none.mean)
    assert none.n == 0
    with pytest.raises(ValueError, match="seed 3 occurs twice"):
        paired(pd.Series([1.0, 2.0], index=[3, 3]), series(1.0))
    with pytest.raises(ValueError, match="finite"):
        paired(series(math.nan), series(1.0))


def test_paired_without_spread():
    equal = paired(series(61.0, 62.0, 63.1), series(61.0, 62.0, 63.1))
    assert (equal.mean, equal.low, equal.p) == (0.0, None, 1.0)
    # 61.1 - 60.0 and 63.2 - 62.1 differ by round-off alone.
    shifted = paired(series(61.1, 62.2, 63.2), series(60.0, 61.1, 62.1))
    assert shifted.mean == pytest.approx(1.1)
    assert (shifted.low, shifted.high, shifted.p) == (None, None, None)


@given(st.lists(st.tuples(PERCENT, PERCENT), min_size=2, max_size=8), st.floats(-50, 50))
def test_paired_properties(pairs, shift):
    a, b = (series(*values) for values in zip(*pairs, strict=True))
    found, turned, moved = paired(a, b), paired(b, a), paired(a + shift, b + shift)
    assert turned.mean == pytest.approx(-found.mean, abs=1e-9)
    assert moved.mean == pytest.approx(found.mean, abs=1e-9)
    if found.low is None:
        assert found.sd == 0
        return
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low), abs=1e-9)
    assert found.low <= found.mean <= found.high
    assert turned.p == pytest.approx(found.p)
    # 95 % interval and test at 5 % are one and the same.
    if abs(found.p - 0.05) > 1e-6:
        assert (found.p < 0.05) == (not found.low <= 0 <= found.high)


def test_holm_by_hand():
    """Holm 1979: sorted .01 .02 .03 .04 times 4 3 2 1 is .04 .06 .06 .04, then never falling."""
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.02]) == [0.02]
    assert holm([]) == []
    assert holm([None, 0.02, None, 0.5]) == [None, 0.04, None, 0.5]
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    with pytest.raises(ValueError, match="does not lie"):
        holm([0.2, math.nan])


@given(PS)
def test_holm_properties(ps):
    found = holm(ps)
    made = [(p, q) for p, q in zip(ps, found, strict=True) if p is not None]
    assert [q is None for q in found] == [p is None for p in ps]
    assert all(p <= q <= min(1.0, len(made) * p) or q == pytest.approx(p) for p, q in made)
    for first, corrected_first in made:  # order is kept
        assert all(corrected_first <= q for p, q in made if p > first)
    # No more is rejected than by single tests, and no less than by Bonferroni's correction.
    for alpha in (0.01, 0.05):
        rejected = sum(q <= alpha for _, q in made)
        assert sum(len(made) * p <= alpha for p, _ in made) <= rejected
        assert rejected <= sum(p <= alpha for p, _ in made)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.randoms())
def test_holm_does_not_depend_on_the_order(ps, random):
    order = list(range(len(ps)))
    random.shuffle(order)
    found = holm(ps)
    assert holm([ps[i] for i in order]) == [found[i] for i in order]


def test_binomial_se_by_hand():
    assert binomial_se(50, 100) == 5.0
    assert binomial_se(90, 900) == pytest.approx(1.0)
    assert binomial_se(76.28, 50_000) == pytest.approx(0.190, abs=5e-4)
    assert binomial_se(0, 10) == binomial_se(100, 10) == 0
    for percent, n in ((101, 10), (-1, 10), (50, 0)):
        with pytest.raises(ValueError, match="not a share"):
            binomial_se(percent, n)


def test_seeds_needed_by_published_tables():
    """Pairs for a two-sided paired t test at 5 % (G*Power 3.1; Cohen 1988, section 2.4)."""
    assert seeds_needed(1, 1) == 10
    assert seeds_needed(1, 0.8) == 15
    assert seeds_needed(1, 0.5) == 34
    assert seeds_needed(1, 0.2) == 199
    assert seeds_needed(1, 0.5, power=0.9) == 44
    assert seeds_needed(2, -1) == 34


def test_seeds_needed_at_its_ends():
    assert seeds_needed(1, 0) is None
    assert seeds_needed(0, 1) == 2
    assert seeds_needed(1, 1e-6) is None
    assert seeds_needed(1e-9, 1) == 2
    for bad in ((-1, 1, 0.8, 0.05), (1, 1, 1.0, 0.05), (1, 1, 0.8, 0.0)):
        with pytest.raises(ValueError, match="not a test"):
            seeds_needed(*bad)


@given(st.floats(0.05, 60), st.sampled_from([0.5, 0.8, 0.95]), st.sampled_from([0.01, 0.05]))
def test_seeds_needed_is_the_least_with_that_power(effect, power, alpha):
    def reached(n: int) -> float:
        shift, critical = effect * math.sqrt(n), stats.t.isf(alpha / 2, n - 1)
        # From about 30 on scipy's noncentral t may be NaN; its power is 1 there.
        return 1.0 if shift > 30 and n > 2 else stats.nct.sf(critical, n - 1, shift)

    found = seeds_needed(1, effect, power, alpha)
    if found is None:
        assert reached(1000) < power
        return
    # The other tail, left out here, adds less than this.
    assert reached(found) >= power - 1e-3 or effect > 30
    assert found == 2 or reached(found - 1) < power


def test_simulated_power_is_as_promised():
    effect, n = 1.0, 10
    rng = np.random.default_rng(0)
    found = stats.ttest_1samp(rng.normal(effect, 1, (4000, n)), 0, axis=1).pvalue < 0.05
    assert seeds_needed(1, effect) == n
    assert 0.78 < found.mean() < 0.84


def difference(*values: float) -> Difference:
    return paired(series(*values), series(*(0.0 for _ in values)))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((2.5, 2.7, 2.9), "above by 2.70 [2.20, 3.20], p=0.002"),
        ((-2.5, -2.7, -2.9), "below by 2.70 [2.20, 3.20], p=0.002"),
        ((2.699, 2.7, 2.701), "above by 2.70 [2.70, 2.70], p<0.001"),
        (
            (-0.5, 1.0, 1.0),
            "within noise: +0.50 [-1.65, 2.65], p=0.423 "
            "(3 seeds; about 26 would resolve a difference of this size)",
        ),
        (
            (-1.0, 1.0, 0.01),
            "within noise: +0.00 [-2.48, 2.49], p=0.996 "
            "(3 seeds; more than 1000 would be needed to resolve a difference of this size)",
        ),
        ((1.5,), "above by 1.50 in the one common seed: no interval from one seed"),
        ((0.0,), "equal in the one common seed: no interval from one seed"),
        ((), "not comparable: no seed in common"),
        ((0.0, 0.0), "equal in each of 2 seeds: no spread to judge it by"),
        ((-1.0, -1.0), "below by 1.00 in each of 2 seeds: no spread to judge it by"),
    ],
)
def test_verdict(values, words):
    assert verdict(difference(*values), higher_is_better=True) == words


def test_verdict_where_lower_is_better():
    below = verdict(difference(-2.5, -2.7, -2.9), higher_is_better=False)
    assert below == "below by 2.70 [2.20, 3.20] (better), p=0.002"
    assert verdict(difference(1.0), higher_is_better=False).startswith("above by 1.00 (worse) in")
    assert "better" not in verdict(difference(0.0), higher_is_better=False)


def test_verdict_heeds_the_correction():
    first = difference(2.4, 2.7, 3.2)  # p of 0.007 alone
    family = corrected([first, *(replace(first, p=0.5) for _ in range(9))])
    assert family[0].p_holm == pytest.approx(10 * first.p)
    words = verdict(family[0], higher_is_better=True)
    assert words.startswith("within noise: +2.77 [")
    assert words.endswith(
        "(Holm) (3 seeds; enough for this comparison alone, not for all that were made)"
    )
    assert verdict(corrected([first])[0], higher_is_better=True).endswith("p=0.007 (Holm)")


def test_scipy_is_imported_only_where_it_is_used():
    code = (
        "import sys, harness.report.uncertainty;"
        "print('scipy' in sys.modules, 'pandas' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]

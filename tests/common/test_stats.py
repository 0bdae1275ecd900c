"""Paired intervals and p values, Holm, spread: known cases, exact enumeration, coverage, order of the input."""

from __future__ import annotations

import itertools
import math
import statistics
import warnings
from fractions import Fraction
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rankwright.common.errors import UserError
from rankwright.common.stats import (
    Difference,
    Spread,
    holm,
    mean_interval,
    paired_difference,
    randomisation_test,
    spread,
)


def as_values(numbers: list[float]) -> dict[str, float]:
    return {f"q{i}": number for i, number in enumerate(numbers)}


def difference(numbers: list[float], **options: float) -> Difference:
    return paired_difference(dict.fromkeys(as_values(numbers), 0.0), as_values(numbers), resamples=999, **options)  # type: ignore[arg-type]


def test_mean_is_tuned_minus_base() -> None:
    found = paired_difference({"a": 0.5, "b": 0.1}, {"b": 0.2, "a": 0.9}, resamples=999)
    assert found.mean == pytest.approx(0.25)
    assert found.queries == 2
    assert found.low <= found.mean <= found.high


def test_equal_to_an_independent_bca() -> None:
    numbers = np.random.default_rng(3).normal(0.03, 0.2, size=80)
    found = paired_difference(dict.fromkeys(as_values(list(numbers)), 0.0), as_values(list(numbers)), resamples=20000)
    # Efron's formulas, written out; another random stream, so only close.
    rng = np.random.default_rng(99)
    means = np.sort(rng.choice(numbers, size=(20000, 80)).mean(axis=1))
    normal = NormalDist()
    z0 = normal.inv_cdf(float((means < numbers.mean()).mean()))
    jackknife = (numbers.sum() - numbers) / 79
    centred = jackknife.mean() - jackknife
    acceleration = (centred**3).sum() / (6 * (centred**2).sum() ** 1.5)

    def end(z: float) -> float:
        level = normal.cdf(z0 + (z0 + z) / (1 - acceleration * (z0 + z)))
        return float(np.quantile(means, level))

    assert found.low == pytest.approx(end(-1.959964), abs=0.003)
    assert found.high == pytest.approx(end(1.959964), abs=0.003)


def test_interval_is_about_as_wide_as_the_normal_one() -> None:
    numbers = np.random.default_rng(0).normal(0.05, 0.3, size=400)
    found = difference(list(numbers))
    half = 1.96 * numbers.std(ddof=1) / math.sqrt(400)
    assert found.high - found.low == pytest.approx(2 * half, rel=0.15)


def test_equal_everywhere_gives_width_zero() -> None:
    assert difference([0.0] * 50) == Difference(0.0, 0.0, 0.0, 50, 0)
    found = difference([0.3 - 0.1, 0.2, 0.1 + 0.1] * 2)
    assert found.low == found.high == found.mean == pytest.approx(0.2)
    assert mean_interval([0.5, 0.5]) == (0.5, 0.5)


def test_one_query_says_nothing() -> None:
    assert difference([0.4]) == Difference(0.4, -1.0, 1.0, 1, 1)


@pytest.mark.parametrize(("differ", "confidence", "few"), [(5, 0.95, True), (6, 0.95, False), (5, 0.9, False)])
def test_an_interval_of_too_few_queries_that_differ_reaches_zero(differ: int, confidence: float, few: bool) -> None:
    # Of n that all gain, 2 of 2^n sign patterns have a sum as far from 0: p = 2^(1 - n), .0625 for five.
    assert (2 / 2**differ > 1 - confidence) == few
    for sign in (1, -1):
        numbers = [sign * (0.3 + 0.01 * i) for i in range(differ)] + [0.0] * 200
        found = difference(numbers, confidence=confidence)
        assert (found.queries, found.differ) == (200 + differ, differ)
        assert (found.low <= 0 <= found.high) == few
        # Without it the bootstrap is sure.
        in_order = [number for _, number in sorted(as_values(numbers).items())]
        low, high = mean_interval(in_order, confidence=confidence, resamples=999)
        assert (found.low, found.high) == ((min(low, 0.0), max(high, 0.0)) if few else (low, high))


@given(st.lists(st.floats(-1, 1, width=16), min_size=1, max_size=8), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_never_nan_never_a_warning(numbers: list[float], seed: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = difference(numbers, seed=seed)
    assert all(math.isfinite(x) for x in (found.mean, found.low, found.high))
    assert found.low <= found.high


def test_pure_and_independent_of_order() -> None:
    numbers = as_values(list(np.random.default_rng(1).normal(0, 1, size=30)))
    base = dict.fromkeys(numbers, 0.1)
    backwards = dict(reversed(numbers.items()))
    assert paired_difference(base, numbers, resamples=999) == paired_difference(base, backwards, resamples=999)
    other = paired_difference(base, numbers, resamples=999, seed=1)
    assert other != paired_difference(base, numbers, resamples=999)


def test_higher_confidence_is_wider() -> None:
    numbers = list(np.random.default_rng(2).normal(0, 1, size=40))
    narrow, wide = difference(numbers, confidence=0.8), difference(numbers, confidence=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_different_queries_are_refused() -> None:
    with pytest.raises(UserError, match=r"2 queries are in only one .*'a'"):
        paired_difference({"a": 0.1, "c": 0}, {"b": 0.1, "c": 0})
    with pytest.raises(UserError, match="no query"):
        paired_difference({}, {})
    with pytest.raises(UserError, match=r"'a'.*not finite"):
        paired_difference({"a": 0.1, "c": 0}, {"a": math.nan, "c": 0})


def p_value(numbers: list[float], **options: int) -> float:
    return randomisation_test(dict.fromkeys(as_values(numbers), 0.0), as_values(numbers), **options)


def enumerated(numbers: list[Fraction]) -> Fraction:
    """The share of all sign patterns whose sum is at least as far from 0, in exact arithmetic."""
    observed = abs(sum(numbers))
    sums = [
        abs(sum(s * x for s, x in zip(signs, numbers, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(numbers))
    ]
    return Fraction(sum(total >= observed for total in sums), len(sums))


def test_p_of_cases_worked_out_by_hand() -> None:
    # Only all-plus and all-minus are as far out as three equal gains: 2 of 8.
    assert p_value([0.1, 0.1, 0.1]) == 0.25
    # Sums of |1 + 2 - 4|, that is 1, are reached or passed by all 8 patterns.
    assert p_value([0.1, 0.2, -0.4]) == 1.0
    # 0.1 + 0.2 + 0.4 - 0.05: besides it and its mirror only 0.1 + 0.2 + 0.4 + 0.05 and its mirror: 4 of 16.
    assert p_value([0.1, 0.2, 0.4, -0.05]) == 0.25
    # One query could as well have had the other sign; equal systems cannot be told apart.
    assert p_value([0.3]) == p_value([0.0, 0.0]) == p_value([1e-16, 1e-17, 0.0]) == 1.0
    # 0.1 + 0.2 and 0.3 cancel in two ways that rounding tells apart: no pattern is nearer to 0 than the observed.
    assert p_value([0.1, 0.2, -0.3, 0.0001]) == 1.0
    # Queries that are equal do not count, however many: still 2 of 8, without a draw.
    assert p_value([0.1, 0.0, 0.1, 0.1] + [0.0] * 50) == 0.25
    assert p_value([0.0] * 50 + [0.3]) == 1.0
    # Ten gains: 2 of 1024.
    assert p_value([0.1 + 0.01 * i for i in range(10)]) == pytest.approx(2 / 1024)


# Steps of 1/3, so that sums tie in truth and differ by rounding.
thirds = st.lists(st.integers(-30, 30).map(lambda n: Fraction(n, 30)), min_size=1, max_size=8)


@given(thirds)
@settings(max_examples=80, deadline=None)
def test_p_of_few_queries_is_exact(numbers: list[Fraction]) -> None:
    assert p_value([float(x) for x in numbers]) == pytest.approx(float(enumerated(numbers)), abs=1e-12)


def test_p_of_many_queries_is_near_the_exact_one_and_a_t_test() -> None:
    rng = np.random.default_rng(5)
    few = rng.integers(-20, 40, size=14)
    exact = float(enumerated([Fraction(int(x), 50) for x in few]))
    assert p_value([x / 50 for x in few], resamples=9999) == pytest.approx(exact, abs=0.02)
    assert p_value([x / 50 for x in few], resamples=2**14) == pytest.approx(exact, abs=1e-12)
    # By the central limit theorem the two tests agree for many queries.
    many = rng.normal(0.02, 0.2, size=300)
    assert p_value(list(many)) == pytest.approx(stats.ttest_1samp(many, 0).pvalue, abs=0.015)


def test_p_is_never_zero() -> None:
    assert p_value([0.5] * 200, resamples=499) == pytest.approx(1 / 500)
    assert p_value([0.5 + i / 1e5 for i in range(9000)], resamples=499) == pytest.approx(1 / 500)


@given(
    st.lists(st.floats(-1, 1, width=16), min_size=1, max_size=20),
    st.integers(0, 3),
    st.randoms(use_true_random=False),
)
@settings(max_examples=60, deadline=None)
def test_p_has_no_favourite(numbers: list[float], seed: int, random: object) -> None:
    base, tuned = dict.fromkeys(as_values(numbers), 0.25), as_values(numbers)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        p = randomisation_test(base, tuned, resamples=199, seed=seed)
    assert 0 < p <= 1
    assert randomisation_test(tuned, base, resamples=199, seed=seed) == p
    ids = list(tuned)
    random.shuffle(ids)  # type: ignore[attr-defined]
    assert randomisation_test(base, {q: tuned[q] for q in ids}, resamples=199, seed=seed) == p


def test_under_chance_p_is_small_as_often_as_it_says() -> None:
    rng = np.random.default_rng(8)
    found = [
        p_value(list(rng.choice([-0.3, 0.1, 0.5], size=25) * rng.choice([-1, 1], size=25)), resamples=199)
        for _ in range(300)
    ]
    assert np.mean([p <= 0.1 for p in found]) == pytest.approx(0.1, abs=0.05)
    assert np.mean([p <= 0.5 for p in found]) == pytest.approx(0.5, abs=0.1)


def test_the_randomisation_test_refuses_what_the_interval_refuses() -> None:
    with pytest.raises(UserError, match="only one"):
        randomisation_test({"a": 0.1}, {"b": 0.1})
    with pytest.raises(UserError, match="no query"):
        randomisation_test({}, {})
    with pytest.raises(UserError, match="not finite"):
        randomisation_test({"a": 0.1}, {"a": math.inf})


def test_holm_worked_out_by_hand() -> None:
    # 4 x 0.005, 3 x 0.01, 2 x 0.03, 1 x 0.04 raised to the one before.
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert found == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    assert list(found) == ["a", "b", "c", "d"]
    assert holm({}) == {}
    assert holm({1: 0.7, 2: 0.6}) == {1: 1.0, 2: 1.0}
    with pytest.raises(UserError, match=r"b: 1\.5 is not a p value"):
        holm({"a": 0.1, "b": 1.5})


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_rejects_what_the_stepwise_rule_rejects(p_values: list[float]) -> None:
    named = dict(enumerate(p_values))
    adjusted = holm(named)
    assert all(p <= adjusted[n] <= 1 for n, p in named.items())
    order = sorted(named, key=lambda n: named[n])
    assert [adjusted[n] for n in order] == sorted(adjusted.values())
    # Holm's own procedure at a level, written down as he did: stop at the first that is not small enough.
    for level in (0.05, 0.3):
        failed = [place for place, n in enumerate(order) if (len(order) - place) * named[n] > level]
        rejected = set(order[: failed[0]] if failed else order)
        assert {n for n in named if adjusted[n] <= level} == rejected


def test_spread_over_seeds() -> None:
    found = spread([0.6, 0.7, 0.65])
    # Deviations -0.05, 0.05, 0 from 0.65: sqrt(0.005 / 2).
    assert (found.count, found.low, found.high) == (3, 0.6, 0.7)
    assert (found.mean, found.deviation) == (pytest.approx(0.65), pytest.approx(0.05))
    assert spread([0.5]) == Spread(1, 0.5, None, 0.5, 0.5)
    for bad in ([], [0.1, math.nan]):
        with pytest.raises(UserError, match="at least one number"):
            spread(bad)


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=8))
def test_spread_is_that_of_the_standard_library(values: list[float]) -> None:
    found = spread(values)
    assert found.mean == pytest.approx(statistics.fmean(values), abs=1e-12)
    assert found.deviation == pytest.approx(statistics.stdev(values), abs=1e-12)
    assert found.low <= found.high

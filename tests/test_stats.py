"""The paired interval: known cases, degenerate cases, coverage, and order of the input."""

from __future__ import annotations

import math
import warnings
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankwright.errors import UserError
from rankwright.stats import Difference, paired_difference


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
    assert difference([0.0] * 50) == Difference(0.0, 0.0, 0.0, 50)
    found = difference([0.3 - 0.1, 0.2, 0.1 + 0.1])
    assert found.low == found.high == found.mean == pytest.approx(0.2)


def test_one_query_says_nothing() -> None:
    assert difference([0.4]) == Difference(0.4, -1.0, 1.0, 1)


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

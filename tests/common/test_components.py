"""Differences over seeds: by hand, against Welch's test, and how often a true null is called different."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from rankwright.common.components import MOST_QUERIES, MOST_SEEDS, POWER, detectable, difference_over_seeds, needed
from rankwright.common.errors import UserError


def drawn(random: np.random.Generator, seeds: int, queries: int, seed_sd: float, gain: float = 0.0) -> list[np.ndarray]:
    """Two ways of training, `gain` apart; deviations of query by way .08, of the residual .10."""
    query_Q = random.normal(0.5, 0.2, queries)
    found = []
    for way in range(2):
        own_Q = random.normal(0, 0.08, queries)
        seed_S1 = random.normal(0, seed_sd, (seeds, 1))
        found.append(query_Q + own_Q + seed_S1 + random.normal(0, 0.1, (seeds, queries)) + way * gain)
    return found


@pytest.mark.parametrize(
    ("seeds", "queries", "seed_sd"), [(3, 250, 0.005), (3, 250, 0.01), (3, 250, 0.02), (3, 1000, 0.01), (5, 1000, 0.01)]
)
def test_a_null_is_called_different_as_often_as_it_should_be(seeds: int, queries: int, seed_sd: float) -> None:
    random = np.random.default_rng(0)
    wrong = naive = 0
    for _ in range(2000):
        base, tuned = drawn(random, seeds, queries, seed_sd)
        found = difference_over_seeds(base, tuned)
        wrong += found.low > 0 or found.high < 0
        d = tuned.mean(axis=0) - base.mean(axis=0)
        naive += abs(d.mean()) > 1.96 * d.std(ddof=1) / queries**0.5
    # Below .03 only where hardly anything is of the seeds: each part holds what query and seed do together.
    assert (0.02 if seed_sd < 0.01 else 0.03) <= wrong / 2000 <= 0.07
    # What resampling queries alone would call different.
    assert naive > wrong and (seed_sd < 0.01 or naive / 2000 > 0.1)


def test_the_detectable_difference_is_found_as_often_as_promised() -> None:
    random = np.random.default_rng(1)
    # Of the mean over three seeds of each side: own parts of queries, and a third of the residuals.
    deviation = (2 * 0.08**2 + 2 * 0.1**2 / 3) ** 0.5
    gain = detectable(250, 3, query_deviation=deviation, seed_deviation=(0.01**2 + 0.1**2 / 250) ** 0.5)
    assert 0.02 < gain < 0.05
    found = [difference_over_seeds(*drawn(random, 3, 250, 0.01, gain)) for _ in range(1000)]
    assert sum(d.low > 0 for d in found) / 1000 == pytest.approx(POWER, abs=0.07)
    assert np.median([d.detectable for d in found]) == pytest.approx(gain, rel=0.15)
    assert detectable(250, 6, query_deviation=deviation, seed_deviation=0.01) < gain


def test_power_beside_naive_tests_at_the_same_error() -> None:
    """A difference of .03, three seeds, 250 queries: naive tests get the critical value that errs as often as ours."""
    random = np.random.default_rng(4)

    def statistics(gain: float) -> np.ndarray:
        rows = []
        for _ in range(2000):
            base, tuned = drawn(random, 3, 250, 0.01, gain)
            first, d = tuned[0] - base[0], tuned.mean(axis=0) - base.mean(axis=0)
            naive = [abs(x.mean()) / (x.std(ddof=1) / 250**0.5) for x in (first, d)]
            rows.append([1 - difference_over_seeds(base, tuned).p, *naive])
        return np.array(rows)

    null, real = statistics(0.0), statistics(0.03)
    ours, one_seed, mean_of_seeds = (real > np.quantile(null, 0.95, axis=0)).mean(axis=0)
    assert ours > one_seed + 0.1
    # No trial knows that critical value of the means of seeds, which needs the variance of seeds: the price of
    # estimating it from three of each side is bounded.
    assert ours > mean_of_seeds - 0.12
    # At the critical values that they state, naive tests err two to four times as often: that is no power.
    assert (null[:, 1:] > 1.96).mean(axis=0).min() > 0.1 > (null[:, 0] > 0.95).mean()


def test_needed_seeds_and_queries_find_the_difference_as_often_as_promised() -> None:
    random = np.random.default_rng(5)
    found = [needed(*drawn(random, 3, 250, 0.005), 0.03) for _ in range(300)]
    seeds = int(np.median([one.seeds or MOST_SEEDS for one in found]))
    queries = int(np.median([one.queries or MOST_QUERIES for one in found]))
    assert 3 <= seeds < 20 and 100 < queries < 2000
    for number, of in ((seeds, 250), (3, queries)):
        shown = [difference_over_seeds(*drawn(random, number, of, 0.005, 0.03)).low > 0 for _ in range(400)]
        assert 0.65 <= np.mean(shown) <= 0.95
    # More of what is not the trouble does not help.
    loud = needed(*drawn(random, 3, 250, 0.05), 0.005)
    assert loud.queries is None
    values = drawn(random, 3, 250, 0.01)
    sizes = [needed(*values, size) for size in (0.02, 0.03, 0.05, 0.1)]
    assert [one.seeds or MOST_SEEDS + 1 for one in sizes] == sorted(
        (one.seeds or MOST_SEEDS + 1 for one in sizes), reverse=True
    )


def test_by_hand() -> None:
    base = np.array([[0.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    tuned = np.array([[1.0, 1.0, 1.0], [1.0, 2.0, 1.5]])
    found = difference_over_seeds(base, tuned)
    d = np.array([0.5, 0.5, 0.75])
    parts = [d.var(ddof=1) / 3, (1 / 3 - 1) ** 2 / 2 / 2, (1 - 1.5) ** 2 / 2 / 2]
    df = sum(parts) ** 2 / (parts[0] ** 2 / 2 + parts[1] ** 2 + parts[2] ** 2)
    half = stats.t.ppf(0.975, df) * sum(parts) ** 0.5
    assert (found.mean, found.df) == (pytest.approx(d.mean()), pytest.approx(df))
    assert (found.low, found.high) == (pytest.approx(d.mean() - half), pytest.approx(d.mean() + half))
    assert found.p == pytest.approx(2 * stats.t.sf(d.mean() / sum(parts) ** 0.5, df))
    assert found.seeds == (2, 2) and found.queries == 3


def test_without_a_part_of_queries_it_is_welchs_test() -> None:
    random = np.random.default_rng(2)
    base_S1, tuned_S1 = random.normal(0, 1, (4, 1)), random.normal(0.3, 3, (6, 1))
    found = difference_over_seeds(np.repeat(base_S1, 9, axis=1), np.repeat(tuned_S1, 9, axis=1))
    welch = stats.ttest_ind(tuned_S1[:, 0], base_S1[:, 0], equal_var=False)
    interval = welch.confidence_interval()
    assert (found.p, found.df) == (pytest.approx(welch.pvalue), pytest.approx(welch.df))
    assert (found.low, found.high) == (pytest.approx(interval.low), pytest.approx(interval.high))


def test_a_system_that_is_not_trained_has_one_row() -> None:
    random = np.random.default_rng(3)
    base_1Q, tuned_SQ = random.random((1, 40)), random.random((3, 40))
    found = difference_over_seeds(base_1Q, tuned_SQ)
    assert found.seeds == (1, 3) and found.low < found.mean < found.high
    other = difference_over_seeds(tuned_SQ, base_1Q)
    assert (other.mean, other.p) == (pytest.approx(-found.mean), pytest.approx(found.p))
    # No seed changes anything: what is left is the paired t test over queries.
    same = difference_over_seeds(base_1Q, np.repeat(tuned_SQ[:1], 3, axis=0))
    assert same.p == pytest.approx(stats.ttest_rel(tuned_SQ[0], base_1Q[0]).pvalue)


def test_equal_values_and_mistakes() -> None:
    same = difference_over_seeds(np.ones((2, 3)), np.ones((2, 3)))
    assert (same.mean, same.low, same.high, same.p) == (0, 0, 0, 1.0)
    assert difference_over_seeds(np.zeros((2, 3)), np.ones((2, 3))).p == 0.0
    for base, tuned, words in (
        (np.ones((2, 3)), np.ones((2, 4)), "the same queries"),
        (np.ones((2, 1)), np.ones((2, 1)), "two or more"),
        (np.ones((1, 3)), np.ones((1, 3)), "two seeds"),
        (np.ones((2, 3)), np.full((2, 3), np.nan), "not finite"),
    ):
        with pytest.raises(UserError, match=words):
            difference_over_seeds(base, tuned)
    with pytest.raises(UserError, match="two seeds"):
        detectable(10, 1, query_deviation=1, seed_deviation=1)

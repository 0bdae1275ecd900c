"""Two ways of training, several seeds of each, the same queries: their difference by variance components.

Shapes: S seeds, Q queries. A value_SQ holds one measure of each query for each seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rankwright.common.errors import UserError

# The chance that `detectable` promises to find such a difference with.
POWER = 0.8
# What needed() looks for at most.
MOST_SEEDS, MOST_QUERIES = 100, 1_000_000


@dataclass(frozen=True, slots=True)
class SeedDifference:
    """Mean of tuned - base over queries and seeds, with an interval for other queries and other seeds.

    seeds: of base and tuned; a system that is not trained has one, and no variance over seeds
    df: degrees of freedom of the t distribution; p: two-sided, for no difference
    query_deviation: of the queries' differences, seed_deviation: of the means of a seed, pooled over both
    detectable: the smallest true difference that such a comparison would show with a chance of POWER
    """

    mean: float
    low: float
    high: float
    p: float
    df: float
    queries: int
    seeds: tuple[int, int]
    query_deviation: float
    seed_deviation: float
    detectable: float


def by_seed(values: Sequence[Mapping[str, float]]) -> np.ndarray:
    """values_SQ of the values of each seed by query id: the queries of the first in the order of their ids."""
    order = sorted(values[0])
    return np.array([[one[q] for q in order] for one in values])


def difference_over_seeds(base_SQ: np.ndarray, tuned_SQ: np.ndarray, *, confidence: float = 0.95) -> SeedDifference:
    """The difference of the means with a t interval whose variance has a part of queries and one of seeds.

    base_SQ, tuned_SQ: the same queries in the same order; as many seeds as there are, at least two of one side. A side
    with one row is taken as a system that is not trained, whose seed changes nothing.

    variance = s2(d_Q) / Q + s2_base / S_base + s2_tuned / S_tuned, where d_Q is the difference of the means over seeds
    for each query and s2_X the variance of the means over queries of side X. Degrees of freedom by Satterthwaite.
    Each part also holds what query and seed do together, so the sum is a little too large rather than too small.

    Raises UserError for other queries, fewer than two, no side with two seeds, or a value that is not finite.
    Source: Searle, Casella and McCulloch 1992 (variance components); Satterthwaite 1946.
    """
    sides = [np.asarray(values, dtype=np.float64) for values in (base_SQ, tuned_SQ)]
    queries = sides[0].shape[-1]
    if any(side.ndim != 2 or side.shape[1] != queries for side in sides) or queries < 2:
        raise UserError("two runs over seeds: both need the same queries, two or more")
    if max(len(side) for side in sides) < 2:
        raise UserError("two runs over seeds: one of them needs two seeds or more")
    if not all(np.isfinite(side).all() for side in sides):
        raise UserError("two runs over seeds: the value of a measure is not finite: evaluate again")
    difference_Q = sides[1].mean(axis=0) - sides[0].mean(axis=0)
    of_queries = float(difference_Q.var(ddof=1))
    of_seeds = [float(side.mean(axis=1).var(ddof=1)) if len(side) > 1 else 0.0 for side in sides]
    counts = tuple(len(side) for side in sides)
    trained = [(variance, count) for variance, count in zip(of_seeds, counts, strict=True) if count > 1]
    error, df = _error(of_queries, queries, trained)
    half = _quantile(0.5 + confidence / 2, df) * error
    mean = float(difference_Q.mean())
    pooled = sum(v * (n - 1) for v, n in trained) / sum(n - 1 for _, n in trained)
    return SeedDifference(
        mean,
        mean - half,
        mean + half,
        _p_value(mean, error, df),
        df,
        queries,
        (counts[0], counts[1]),
        of_queries**0.5,
        pooled**0.5,
        _detectable(error, df, confidence),
    )


def detectable(
    queries: int, seeds: int, *, query_deviation: float, seed_deviation: float, confidence: float = 0.95
) -> float:
    """The smallest true difference of two trained systems that so many queries and seeds show, with a chance of POWER.

    The deviations as in SeedDifference. Raises UserError for fewer than two queries or two seeds.
    """
    if queries < 2 or seeds < 2:
        raise UserError("a difference over seeds: needs two queries and two seeds or more")
    error, df = _error(query_deviation**2, queries, [(seed_deviation**2, seeds)] * 2)
    return _detectable(error, df, confidence)


@dataclass(frozen=True, slots=True)
class Needed:
    """What would show a true difference with a chance of POWER: so many seeds of each side with the queries that there
    are, or so many queries with the seeds that there are. None: MOST_SEEDS or MOST_QUERIES would not.
    """

    difference: float
    seeds: int | None
    queries: int | None


def needed(base_SQ: np.ndarray, tuned_SQ: np.ndarray, difference: float, *, confidence: float = 0.95) -> Needed:
    """How many seeds or queries would show a true difference of this size between two ways of training.

    base_SQ, tuned_SQ: as difference_over_seeds takes them, with two seeds or more of both. What query and seed do
    together is estimated alone, since more seeds make it smaller in the part of the queries, and more queries in that
    of the seeds. What is measured at other numbers is then their sum, as difference_over_seeds has it.
    """
    sides = (base_SQ, tuned_SQ)
    queries, seeds = base_SQ.shape[1], min(len(side) for side in sides)
    rests = [_rest(side) for side in sides]
    rest = float(np.mean(rests))
    measured = float((tuned_SQ.mean(axis=0) - base_SQ.mean(axis=0)).var(ddof=1))
    of_query = max(0.0, measured - sum(one / len(side) for one, side in zip(rests, sides, strict=True)))
    of_seed = max(0.0, float(np.mean([side.mean(axis=1).var(ddof=1) for side in sides])) - rest / queries)

    def shows(queries: int, seeds: int) -> bool:
        parts = _error(of_query + 2 * rest / seeds, queries, [(of_seed + rest / queries, seeds)] * 2)
        return _detectable(*parts, confidence) <= difference

    return Needed(
        difference,
        _fewest(lambda n: shows(queries, n), MOST_SEEDS),
        _fewest(lambda n: shows(n, seeds), MOST_QUERIES),
    )


def _rest(values_SQ: np.ndarray) -> float:
    """Variance of what is left of one side's values without the means of its queries and of its seeds."""
    seeds, queries = values_SQ.shape
    left = values_SQ - values_SQ.mean(axis=0) - values_SQ.mean(axis=1, keepdims=True) + values_SQ.mean()
    return float((left**2).sum() / ((seeds - 1) * (queries - 1)))


def _fewest(shows: Callable[[int], bool], most: int) -> int | None:
    """The smallest number from 2 to `most` that shows it; what one shows, more show too."""
    if not shows(most):
        return None
    low, high = 1, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if shows(middle) else (middle, high)
    return high


def _error(of_queries: float, queries: int, of_seeds: Sequence[tuple[float, int]]) -> tuple[float, float]:
    """(standard error of the difference, its degrees of freedom). of_seeds: (variance, seeds) of each trained side."""
    parts = [(of_queries / queries, queries - 1), *((variance / count, count - 1) for variance, count in of_seeds)]
    variance = sum(part for part, _ in parts)
    below = sum(part**2 / df for part, df in parts)
    return variance**0.5, variance**2 / below if below > 0 else float(queries - 1)


def _detectable(error: float, df: float, confidence: float) -> float:
    return (_quantile(0.5 + confidence / 2, df) + _quantile(POWER, df)) * error


def _quantile(probability: float, df: float) -> float:
    # scipy.stats takes a second to import, also for commands that compare nothing.
    from scipy import stats

    return float(stats.t.ppf(probability, df))


def _p_value(mean: float, error: float, df: float) -> float:
    from scipy import stats

    if error == 0:
        return 1.0 if mean == 0 else 0.0
    return float(2 * stats.t.sf(abs(mean) / error, df))

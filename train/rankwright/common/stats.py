"""Two systems on the same queries: the difference with its interval and p value; many comparisons; several seeds."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from rankwright.common.errors import UserError
from rankwright.common.plurals import counted

# Differences that agree to this count as equal. Otherwise the bootstrap would resample rounding noise.
SAME = 1e-12
# Resamples held at once, which bounds memory: BATCH times the number of queries, in float64.
BATCH = 500
# Two sums of differences are ties when they agree to this share of the sum of all sizes.
TIE = 1e-9
RESAMPLES = 9999

Name = TypeVar("Name")


@dataclass(frozen=True, slots=True)
class Difference:
    """tuned - base: the mean over the queries, its confidence interval, their number, and how many of them differ."""

    mean: float
    low: float
    high: float
    queries: int
    differ: int


def paired_difference(
    base: Mapping[str, float],
    tuned: Mapping[str, float],
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Difference:
    """Mean of tuned - base over the queries, with a BCa bootstrap interval that resamples queries.

    base, tuned: query id -> value of one measure, the same queries in both, in any order. A pure function of
    the values and the seed. A single query gives no information about the spread, so its interval is -1 to 1, all
    that a measure from 0 to 1 allows. An interval that rests on very few queries that differ is made to reach 0: see
    too_few. Raises UserError when the queries differ, there are none, or a value is not finite.
    Source: Efron 1987 (BCa); Sakai 2006, Smucker et al. 2007 (bootstrap for retrieval measures).
    """
    values = _differences(base, tuned)
    low, high = mean_interval(values, confidence=confidence, resamples=resamples, seed=seed)
    differ = int((np.abs(values) > SAME).sum())
    if too_few(differ, confidence):
        low, high = min(low, 0.0), max(high, 0.0)
    return Difference(float(values.mean()), low, high, len(values), differ)


def too_few(differ: int, confidence: float) -> bool:
    """Whether no result of so many queries that differ could be told from chance at this confidence.

    The smallest p value of a two-sided paired randomisation test is 2^(1 - n): six queries are needed at 95 %. The
    bootstrap would be sure with three, since hardly any of its resamples leaves out all of them.
    """
    return 2.0 ** (1 - differ) > 1 - confidence


def mean_interval(
    values: Sequence[float] | np.ndarray, *, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """BCa interval of the mean, -1 to 1 at least for a single value; of width 0 where all values are equal."""
    numbers = np.asarray(values, dtype=np.float64)
    mean = float(numbers.mean())
    if len(numbers) == 1:
        return min(-1.0, mean), max(1.0, mean)
    if float(np.ptp(numbers)) <= SAME:
        return mean, mean
    return _interval(numbers, confidence, resamples, seed)


def wilson_interval(hits: int, count: int) -> tuple[float, float]:
    """The interval of 95 % of a share of `count` independent cases; 0 to 1 of none. It holds for shares near 0 and 1.

    Source: Wilson 1927.
    """
    if count == 0:
        return 0.0, 1.0
    z = 1.959964
    share, more = hits / count, z * z / count
    middle, half = share + more / 2, z * math.sqrt(share * (1 - share) / count + more / (4 * count))
    return max(0.0, (middle - half) / (1 + more)), min(1.0, (middle + half) / (1 + more))


def _differences(base: Mapping[str, float], tuned: Mapping[str, float]) -> np.ndarray:
    """tuned - base of each query, in the order of the ids. Raises UserError as paired_difference does."""
    if set(base) != set(tuned):
        odd = sorted(set(base) ^ set(tuned))
        raise UserError(
            f"{counted(len(odd), 'query is', 'queries are')} in only one of the two results (such as "
            f"{odd[0]!r}): evaluate both on the "
            "same queries"
        )
    if not base:
        raise UserError("no query to compare: both results are empty")
    query_ids = sorted(base)
    values = np.array([tuned[q] - base[q] for q in query_ids], dtype=np.float64)
    if not np.isfinite(values).all():
        bad = query_ids[int(np.flatnonzero(~np.isfinite(values))[0])]
        raise UserError(f"query {bad!r}: the value of a measure is not finite: evaluate again")
    return values


def _interval(values: np.ndarray, confidence: float, resamples: int, seed: int) -> tuple[float, float]:
    """BCa, or percentiles where BCa is not defined (all resamples on one side of the mean)."""
    # scipy.stats takes a second to import, also for commands that compare nothing.
    from scipy import stats

    for method in ("BCa", "percentile"):
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            interval = stats.bootstrap(
                (values,),
                np.mean,
                vectorized=True,
                n_resamples=resamples,
                batch=BATCH,
                confidence_level=confidence,
                method=method,
                random_state=np.random.default_rng(seed),
            ).confidence_interval
        low, high = float(interval.low), float(interval.high)
        if math.isfinite(low) and math.isfinite(high):
            return low, high
    raise AssertionError("percentiles of finite values are finite")


@dataclass(frozen=True, slots=True)
class Spread:
    """The spread of several numbers, one for each seed. deviation: of a sample (ddof 1); None for a single number."""

    count: int
    mean: float
    deviation: float | None
    low: float
    high: float


def randomisation_test(
    base: Mapping[str, float], tuned: Mapping[str, float], *, resamples: int = RESAMPLES, seed: int = 0
) -> float:
    """p value, in (0, 1], of the two-sided paired randomisation test.

    base, tuned: query id -> value of one measure, the same queries in both, in any order. If the systems do not
    differ, each query's difference could as well have the other sign. p is the share of sign patterns whose sum is at
    least as far from 0 as the observed one. Through scipy.stats.permutation_test: exact, by all 2^n patterns, where
    2^n <= resamples for the n queries that differ at all (up to 13 by default); else by `resamples` random patterns
    and the observed one, so that p is at least 1 / (resamples + 1) and never 0.
    Raises UserError when the queries differ, there are none, or a value is not finite.
    Source: Fisher 1935; Smucker, Allan and Carterette 2007; Phipson and Smyth 2010 (never p = 0).
    """
    values = _differences(base, tuned)
    # Queries without a difference change no sum.
    values = values[np.abs(values) > SAME]
    if len(values) < 2:
        return 1.0
    sizes = float(np.abs(values).sum())

    def distance(signed: np.ndarray, axis: int) -> np.ndarray:
        # Rounding must not separate true ties (1/3 + 1/3 + 1/3 and 1).
        ties: np.ndarray = np.rint(np.abs(signed.sum(axis=axis)) / (sizes * TIE))
        return ties

    from scipy import stats

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        p = stats.permutation_test(
            (values,),
            distance,
            permutation_type="samples",
            vectorized=True,
            n_resamples=resamples,
            batch=BATCH,
            alternative="greater",
            random_state=np.random.default_rng(seed),
        ).pvalue
    return float(p)


def holm(p_values: Mapping[Name, float]) -> dict[Name, float]:
    """p values adjusted for all comparisons together: the adjusted values <= alpha have a family-wise error <= alpha.

    For m p values in ascending order, adjusted p_(i) = max over j <= i of min(1, (m - j + 1) p_(j)). The names and
    their order stay the same. Raises UserError for a value outside 0 to 1.
    Source: Holm 1979.
    """
    adjusted: dict[Name, float] = {}
    largest = 0.0
    for place, name in enumerate(_ascending(p_values)):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[name]))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p_values}


def benjamini_hochberg(p_values: Mapping[Name, float]) -> dict[Name, float]:
    """p values adjusted for all comparisons: among those <= q, an expected share of at most q is wrong.

    For m p values in ascending order, adjusted p_(i) = min over j >= i of min(1, m / j p_(j)). It holds for independent
    comparisons and those that depend positively on each other, as those with one default do. The names and their order
    stay the same. Raises UserError for a value outside 0 to 1.
    Source: Benjamini and Hochberg 1995; Benjamini and Yekutieli 2001 (positive dependence).
    """
    adjusted: dict[Name, float] = {}
    smallest = 1.0
    order = _ascending(p_values)
    for place in range(len(order), 0, -1):
        name = order[place - 1]
        smallest = min(smallest, len(order) / place * p_values[name])
        adjusted[name] = smallest
    return {name: adjusted[name] for name in p_values}


def _ascending(p_values: Mapping[Name, float]) -> list[Name]:
    for name, p in p_values.items():
        if not 0 <= p <= 1:
            raise UserError(f"{name}: {p} is not a p value: it must be from 0 to 1")
    return sorted(p_values, key=lambda n: p_values[n])


def spread(values: Sequence[float]) -> Spread:
    """Mean, standard deviation (ddof 1), smallest and largest. Raises UserError for no value or one not finite."""
    if not values or not all(map(math.isfinite, values)):
        raise UserError(f"{list(values)}: at least one number is needed, all finite: evaluate every seed")
    numbers = np.array(values, dtype=np.float64)
    deviation = float(numbers.std(ddof=1)) if len(values) > 1 else None
    return Spread(len(values), float(numbers.mean()), deviation, min(values), max(values))


@dataclass(frozen=True, slots=True)
class Share:
    """`part` of `whole` things, which lie in `groups` groups (queries), with a 95 % interval."""

    part: int
    whole: int
    groups: int
    share: float
    low: float
    high: float


def clustered_share(parts: Sequence[int], wholes: Sequence[int], *, seed: int = 0, resamples: int = RESAMPLES) -> Share:
    """sum(parts) / sum(wholes), with a percentile bootstrap interval.

    parts, wholes: one number for each group, wholes above 0. The bootstrap resamples groups, because things of one
    group resemble each other. Where all or nothing is counted no resample differs; the interval is then the exact
    binomial one (Clopper and Pearson 1934) with the groups as trials. A pure function of its arguments.
    Raises UserError without groups. Source: Efron and Tibshirani 1993, ch. 8 (resampling clusters).
    """
    if not wholes or min(wholes) < 1:
        raise UserError("a share needs at least one group, none of them empty")
    part, whole, groups = sum(parts), sum(wholes), len(wholes)
    if part in (0, whole):
        end = 0.025 ** (1 / groups)
        low, high = (0.0, 1 - end) if part == 0 else (end, 1.0)
        return Share(part, whole, groups, part / whole, low, high)
    rng = np.random.default_rng(seed)
    both = np.array([parts, wholes], dtype=np.float64)
    shares = []
    for _ in range(0, resamples, BATCH):
        part_B, whole_B = both[:, rng.integers(groups, size=(BATCH, groups))].sum(axis=2)
        shares.append(part_B / whole_B)
    low, high = np.percentile(np.concatenate(shares), (2.5, 97.5)).tolist()
    return Share(part, whole, groups, part / whole, low, high)

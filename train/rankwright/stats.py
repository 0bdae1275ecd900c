"""Intervals for the difference of two systems on the same queries."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

from rankwright.errors import UserError

# Differences that agree to this are equal: the bootstrap would resample rounding noise.
SAME = 1e-12
# Resamples held at once, which bounds memory: BATCH times the number of queries, in float64.
BATCH = 500


@dataclass(frozen=True, slots=True)
class Difference:
    """tuned - base: the mean over the queries, its confidence interval, and the number of queries."""

    mean: float
    low: float
    high: float
    queries: int


def paired_difference(
    base: Mapping[str, float],
    tuned: Mapping[str, float],
    *,
    confidence: float = 0.95,
    resamples: int = 9999,
    seed: int = 0,
) -> Difference:
    """Mean of tuned - base over the queries, with a BCa bootstrap interval that resamples queries.

    base, tuned: query id -> value of one measure, the same queries in both, in any order. A pure function of
    the values and the seed. Equal differences everywhere give an interval of width 0; one query gives no
    information about the spread, so the interval is all that a measure from 0 to 1 allows, -1 to 1.
    Raises UserError when the queries differ, there are none, or a value is not finite.
    Source: Efron 1987 (BCa); Sakai 2006, Smucker et al. 2007 (bootstrap for retrieval measures).
    """
    if set(base) != set(tuned):
        odd = sorted(set(base) ^ set(tuned))
        raise UserError(
            f"{len(odd)} queries are in only one of the two results (such as {odd[0]!r}): evaluate both on the "
            "same queries"
        )
    if not base:
        raise UserError("no query to compare: both results are empty")
    query_ids = sorted(base)
    values = np.array([tuned[q] - base[q] for q in query_ids], dtype=np.float64)
    if not np.isfinite(values).all():
        bad = query_ids[int(np.flatnonzero(~np.isfinite(values))[0])]
        raise UserError(f"query {bad!r}: the value of a measure is not finite: evaluate again")
    mean, queries = float(values.mean()), len(values)
    if queries == 1:
        return Difference(mean, min(-1.0, mean), max(1.0, mean), queries)
    if float(np.ptp(values)) <= SAME:
        return Difference(mean, mean, mean, queries)
    low, high = _interval(values, confidence, resamples, seed)
    return Difference(mean, low, high, queries)


def _interval(values: np.ndarray, confidence: float, resamples: int, seed: int) -> tuple[float, float]:
    """BCa, or percentiles where BCa has no answer (all resamples on one side of the mean)."""
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

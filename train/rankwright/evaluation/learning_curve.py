"""Would more training data help? A curve through the means on dev of several shares of it, and its gain at twice all.

Shapes: K sizes, S seeds, Q dev queries, B resamples, G points of the drawn curve.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rankwright.common.components import by_seed
from rankwright.common.stats import BATCH
from rankwright.evaluation.metrics import HEADLINE

# The exponents c that are tried; 0 is a line in log n.
EXPONENTS = np.linspace(0.0, 2.0, 41)
# With fewer sizes a power law is not determined.
LEAST_FOR_POWER = 3
# A gain of nDCG@10 below this is hardly one.
HARDLY = 0.01
RESAMPLES = 2000
DRAWN = 33


@dataclass(frozen=True, slots=True)
class Size:
    """Runs with one number of training queries. values: nDCG@10 on dev of each seed."""

    queries: int
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return sum(self.values) / len(self.values)


@dataclass(frozen=True, slots=True)
class LearningCurve:
    """The fit. kind: `power` for a - b n^-c with 0 <= c <= 2 and a <= 1, `line` for a + b log n; exponent: c.

    gain, low, high: predicted at twice the largest size, with a 95 % interval. seeds_known: it holds for other seeds
    too, not for other queries alone. answer: `yes` for an interval above 0 and a gain of HARDLY or more, `hardly` where
    the whole interval is below HARDLY. drawn: (queries, value of the fit, low, high), where low and high are the
    interval of the difference from the largest size, laid around the fit's value there.
    """

    sizes: tuple[Size, ...]
    kind: Literal["power", "line"]
    exponent: float
    gain: float
    low: float
    high: float
    seeds_known: bool
    answer: Literal["yes", "hardly", "cannot tell"]
    sentence: str
    drawn: tuple[tuple[float, float, float, float], ...]


def learning_curve(
    runs: Mapping[int, Sequence[Mapping[str, float]]], *, resamples: int = RESAMPLES, seed: int = 0
) -> LearningCurve | None:
    """The curve through these runs; None for fewer than two sizes. A pure function of its arguments.

    runs: number of training queries -> the values of each seed by dev query, the same queries in all.

    The interval is that of the fits to resampled means. Dev queries are resampled together for all sizes. To each mean
    of S seeds a normal deviate is added, with the variance of the seeds' means divided by S, as in
    components.difference_over_seeds. That variance is pooled over the sizes and drawn anew with its own degrees of
    freedom in each resample: resampling three seeds would lose a third of it.
    Source: Mukherjee et al. 2003, Viering and Loog 2023 (power laws of learning curves).
    """
    numbers = sorted(runs)
    if len(numbers) < 2:
        return None
    values = [by_seed(runs[n]) for n in numbers]
    means_KQ = np.array([one.mean(axis=0) for one in values])
    parts = [(float(one.mean(axis=1).var(ddof=1)), len(one)) for one in values if len(one) > 1]
    resampled_BK = _resampled(means_KQ, [len(one) for one in values], parts, resamples, np.random.default_rng(seed))
    exponents = EXPONENTS if len(numbers) >= LEAST_FOR_POWER else EXPONENTS[:1]
    ratios_K = np.array(numbers) / numbers[-1]
    # The last two points are all queries and twice as many.
    ratios_G = np.append(np.geomspace(ratios_K[0], 2, DRAWN)[:-1], [1.0, 2.0])
    fitted_G, exponent = _fit(means_KQ.mean(axis=1)[None], ratios_K, ratios_G, exponents)
    resampled_BG, _ = _fit(resampled_BK, ratios_K, ratios_G, exponents)
    gain = float(fitted_G[0, -1] - fitted_G[0, -2])
    low_G, high_G = np.percentile(resampled_BG - resampled_BG[:, -2:-1], (2.5, 97.5), axis=0)
    all_known = len(parts) == len(values)
    low, high = float(low_G[-1]), float(high_G[-1])
    answer = _answer(gain, low, high) if all_known else "cannot tell"
    order = np.argsort(ratios_G)
    at = fitted_G[0, -2]
    return LearningCurve(
        tuple(Size(n, tuple(one.mean(axis=1).tolist())) for n, one in zip(numbers, values, strict=True)),
        "power" if len(exponents) > 1 else "line",
        float(exponent[0]),
        gain,
        low,
        high,
        all_known,
        answer,
        _sentence(answer, numbers, gain, low, high, all_known),
        tuple(
            (float(ratios_G[g]) * numbers[-1], float(fitted_G[0, g]), float(at + low_G[g]), float(at + high_G[g]))
            for g in order
        ),
    )


def _resampled(
    means_KQ: np.ndarray,
    seeds: Sequence[int],
    parts: Sequence[tuple[float, int]],
    resamples: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """means_BK for other queries and, where some size has two seeds, other seeds. parts: (variance, seeds)."""
    sizes, queries = means_KQ.shape
    even = np.full(queries, 1 / queries)
    batches = [min(BATCH, resamples - start) for start in range(0, resamples, BATCH)]
    drawn = [rng.multinomial(queries, even, size=size) @ means_KQ.T / queries for size in batches]
    means_BK: np.ndarray = np.concatenate(drawn)
    df = sum(count - 1 for _, count in parts)
    if df:
        pooled = sum(variance * (count - 1) for variance, count in parts) / df
        scale_B1 = np.sqrt(pooled * df / rng.chisquare(df, (resamples, 1)))
        means_BK = means_BK + scale_B1 * rng.standard_normal((resamples, sizes)) / np.sqrt(seeds)
    return means_BK


def _fit(
    means_BK: np.ndarray, ratios_K: np.ndarray, ratios_G: np.ndarray, exponents: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(values_BG, exponent_B) of the least squares fit to each row, over all exponents.

    ratios: sizes, as shares of the largest.
    """
    rows = len(means_BK)
    best_B, exponent_B = np.full(rows, np.inf), np.zeros(rows)
    values_BG = np.zeros((rows, len(ratios_G)))
    middle_B1 = means_BK.mean(axis=1, keepdims=True)
    for c in exponents:
        x_K, x_G = _powers(ratios_K, c), _powers(ratios_G, c)
        deviation_K = x_K - x_K.mean()
        slope_B1 = ((means_BK - middle_B1) @ deviation_K / (deviation_K @ deviation_K))[:, None]
        start_B1 = middle_B1 - slope_B1 * x_K.mean()
        if c > 0:
            # No curve may end above 1: those that would end there.
            z_K = 1 / c - x_K
            bounded_B1 = ((1 - means_BK) @ z_K / (z_K @ z_K))[:, None]
            over_B1 = start_B1 + slope_B1 / c > 1
            slope_B1 = np.where(over_B1, bounded_B1, slope_B1)
            start_B1 = np.where(over_B1, 1 - bounded_B1 / c, start_B1)
        error_B = ((means_BK - start_B1 - slope_B1 * x_K) ** 2).sum(axis=1)
        better_B = error_B < best_B
        best_B[better_B], exponent_B[better_B] = error_B[better_B], c
        values_BG[better_B] = (start_B1 + slope_B1 * x_G)[better_B]
    # The line in log n has no end.
    return np.minimum(values_BG, 1.0), exponent_B


def _powers(ratios: np.ndarray, exponent: float) -> np.ndarray:
    """(1 - r^-c) / c, which rises with r, is 0 at 1, and log r in the limit of c = 0."""
    found: np.ndarray = np.log(ratios) if exponent == 0 else (1 - ratios**-exponent) / exponent
    return found


def _answer(gain: float, low: float, high: float) -> Literal["yes", "hardly", "cannot tell"]:
    # A power law never ends to rise: a lower end that is only just above 0 means nothing.
    if round(low, 3) > 0 and gain >= HARDLY:
        return "yes"
    return "hardly" if high < HARDLY else "cannot tell"


def _sentence(answer: str, sizes: Sequence[int], gain: float, low: float, high: float, seeds_known: bool) -> str:
    begins = {
        "yes": "More data would help",
        "hardly": "More data would hardly help",
        "cannot tell": "Cannot tell whether more data would help",
    }[answer]
    more = "" if seeds_known else ", for other queries only: seed variance unknown"
    if len(sizes) < LEAST_FOR_POWER:
        more += "; two sizes give a line in log n alone, which promises too much where a curve bends"
    return (
        f"{begins}: with twice the training queries, {2 * sizes[-1]:,} for {sizes[-1]:,}, the fit predicts "
        f"{gain:+.3f} [{low:+.3f}, {high:+.3f}] in {HEADLINE} on dev{more}."
    )

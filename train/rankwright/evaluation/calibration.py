"""Calibration of scores: one temperature, reliability, thresholds, and an alarm for scores that carry no probability.

Shapes: N pairs. scores_N are raw scores (logits); relevant_N is true for relevant pairs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit

from rankwright.common.errors import UserError

BINS = 10
PROBABILITIES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
# The search for 1/T covers this factor around 1 / (mean size of the scores), both ways.
RANGE = 1e6
# From about these scores on a sigmoid in this type is exactly 1. Servers of 16 bits get there much earlier, and a raw
# score cannot be had back from such a probability.
SATURATED = {name: bits * math.log(2) for name, bits in (("fp32", 24), ("fp16", 12), ("bf16", 9))}
# Below this it differs from 0 by less than 1e-13; there every type still tells scores apart, but no threshold of use.
LOWEST = -30.0
SATURATED_SHARE = 0.01
# The share of cases in which a relevant pair is above another one, ties as half. Chance gives 0.5.
LEAST_AUC = 0.55
# If the middle 90 % of all scores lie within this width, in logits, every probability is nearly the same.
LEAST_WIDTH = 0.1


@dataclass(frozen=True, slots=True)
class Fitted:
    """A temperature. note: why it stayed 1 and was not fitted, or None."""

    temperature: float
    note: str | None = None


def _arrays(scores: Sequence[float], relevant: Sequence[bool]) -> tuple[np.ndarray, np.ndarray]:
    """scores_N in fp64, relevant_N."""
    return np.asarray(scores, dtype=np.float64), np.asarray(relevant, dtype=bool)


def fit_temperature(scores: Sequence[float], relevant: Sequence[bool]) -> Fitted:
    """The T > 0 that minimises the log loss of sigmoid(score / T). It is one factor, so the order does not change.

    The log loss is the mean of -log of the probability given to the truth. It is convex in 1/T, and its derivative has
    one root where there is a minimum. Where there is none, T is 1 with a note:
    - without pairs, or with pairs of one kind only;
    - when the sign of the score is right for all pairs (the loss falls as T goes to 0);
    - when a constant probability of 1/2 is better than any T (the loss falls as T grows). This is usual after list
      losses, which leave the level of the scores free.
    Multiplying all scores by c multiplies T by c. The probabilities fit the share of relevant pairs in these lists:
    lists of another depth or another first stage have another share.
    Source: Platt 1999, Guo et al. 2017 (arXiv 1706.04599).
    """
    scores_N, relevant_N = _arrays(scores, relevant)
    if not np.isfinite(scores_N).all():
        raise UserError("calibration: a score is not a finite number: the model that gave it is broken")
    # Above 0 where a pair is scored right.
    signed_N = np.where(relevant_N, scores_N, -scores_N)
    found = int(relevant_N.sum())
    if not len(signed_N):
        return Fitted(1.0, "there are no pairs to fit a temperature to: it stays 1")
    if found in (0, len(signed_N)):
        kind = "no" if found == 0 else "every"
        return Fitted(1.0, f"{kind} pair is relevant, so no temperature can be fitted: it stays 1")

    def slope(log_inverse: float) -> float:
        """Derivative of the loss by 1/T."""
        return float(-(signed_N * expit(-signed_N * math.exp(log_inverse))).mean())

    if signed_N.mean() <= 0:
        # The slope at 1/T = 0, where every probability is 1/2.
        return Fitted(
            1.0,
            "the level of the scores is off: a probability of 1/2 everywhere would fit better than any temperature (a "
            "list loss leaves the level free). The temperature stays 1: use the scores for the order only",
        )
    if signed_N.min() >= 0:
        return Fitted(1.0, "the sign of the score is right for every pair, so no temperature is best: it stays 1")
    middle = -math.log(float(np.abs(signed_N).mean()))
    low, high = middle - math.log(RANGE), middle + math.log(RANGE)
    if not slope(low) < 0 < slope(high):
        return Fitted(1.0, "the best temperature lies beyond any sensible range: it stays 1")
    # Takes long to import, and few commands fit a temperature.
    from scipy.optimize import brentq

    return Fitted(math.exp(-brentq(slope, low, high, xtol=1e-12)))


def reliability(
    scores: Sequence[float], relevant: Sequence[bool], *, temperature: float = 1.0, bins: int = BINS
) -> tuple[float, list[dict[str, float]]]:
    """Expected calibration error of sigmoid(score / temperature), and its bins from low to high.

    Bins have equal mass: a pair is in bin floor(bins * (pairs with a smaller score) / N). So each bin holds about
    N / bins pairs, equal scores share a bin, and a bin may be empty; empty bins are left out. The error is the sum over
    bins of their share of the pairs times |mean probability - share of relevant pairs|. Bins of equal width would put
    nearly all pairs of a reranker's lists into one bin. With few pairs the estimate is too high, because chance moves
    every bin away from the diagonal.
    Source: Guo et al. 2017 (arXiv 1706.04599), section 2; Nixon et al. 2019 (arXiv 1904.01685), adaptive bins.
    """
    scores_N, relevant_N = _arrays(scores, relevant)
    probability_N = expit(scores_N / temperature)
    smaller_N = np.searchsorted(np.sort(scores_N), scores_N, side="left")
    bin_N = smaller_N * bins // max(1, len(scores_N))
    error, rows = 0.0, []
    for number in np.unique(bin_N):
        inside_N = bin_N == number
        mean, share = float(probability_N[inside_N].mean()), float(relevant_N[inside_N].mean())
        error += inside_N.mean() * abs(mean - share)
        rows.append(
            {
                "low": float(probability_N[inside_N].min()),
                "high": float(probability_N[inside_N].max()),
                "pairs": int(inside_N.sum()),
                "mean_probability": mean,
                "relevant_share": share,
            }
        )
    return float(error), rows


def thresholds(
    scores: Sequence[float], relevant: Sequence[bool], *, temperature: float
) -> list[dict[str, float | None]]:
    """For each calibrated probability: what is kept when pairs below it are dropped.

    score: the raw score at that probability; kept: the share of pairs kept. Precision is None where nothing is kept.
    Recall counts the relevant pairs in the lists, and is None where there are none.
    """
    scores_N, relevant_N = _arrays(scores, relevant)
    rows: list[dict[str, float | None]] = []
    for probability in PROBABILITIES:
        score = temperature * math.log(probability / (1 - probability))
        kept_N = scores_N >= score
        kept, right, all_relevant = int(kept_N.sum()), int((kept_N & relevant_N).sum()), int(relevant_N.sum())
        rows.append(
            {
                "probability": probability,
                "score": score,
                "precision": right / kept if kept else None,
                "recall": right / all_relevant if all_relevant else None,
                "f1": 2 * right / (kept + all_relevant) if kept + all_relevant else None,
                "kept": kept / len(scores_N) if len(scores_N) else 0.0,
            }
        )
    return rows


def spread_alarm(scores: Sequence[float], relevant: Sequence[bool]) -> str | None:
    """A sentence when the scores carry no probability: all equal, saturated, too narrow, or no better than chance."""
    scores_N, relevant_N = _arrays(scores, relevant)
    if len(scores_N) < 2:
        return None
    if float(np.ptp(scores_N)) == 0:
        return f"all {len(scores_N):,} scores are equal ({scores_N[0]:.4g}): the model ranks nothing"
    highest = SATURATED["fp32"]
    saturated = float(((scores_N >= highest) | (scores_N < LOWEST)).mean())
    if saturated > SATURATED_SHARE:
        return (
            f"{saturated:.1%} of the scores are above {highest:.1f}, where a sigmoid of 32 bits is exactly 1, or below "
            f"{LOWEST:g}, where it is 0 to twelve digits: lower train.learning_rate or train for fewer steps"
        )
    found = int(relevant_N.sum())
    others = len(scores_N) - found
    if found and others:
        from scipy.stats import rankdata

        above = float(rankdata(scores_N)[relevant_N].sum()) - found * (found + 1) / 2
        auc = above / (found * others)
        if auc < LEAST_AUC:
            return (
                f"relevant and other documents have nearly the same scores: a relevant one is above another one in "
                f"{auc:.0%} of all pairs of them (50% is chance): do not use a threshold"
            )
    low, high = np.quantile(scores_N, [0.05, 0.95])
    if high - low < LEAST_WIDTH:
        return f"90 % of the scores lie within {high - low:.2g} of each other: every probability is nearly the same"
    return None


def summary(scores: Sequence[float], relevant: Sequence[bool], *, queries: int, temperature: float) -> dict[str, Any]:
    """All figures of one set, as calibration.json holds them. saturated: type -> share of pairs of probability 1."""
    scores_N, relevant_N = _arrays(scores, relevant)
    error, plain = reliability(scores, relevant)
    error_fitted, fitted = reliability(scores, relevant, temperature=temperature)
    kinds = {"relevant": scores_N[relevant_N], "others": scores_N[~relevant_N]}
    return {
        "queries": queries,
        "pairs": len(scores_N),
        "relevant": int(relevant_N.sum()),
        "ece": error,
        "ece_fitted": error_fitted,
        "bins": plain,
        "bins_fitted": fitted,
        "spread": {k: np.quantile(v, [0.05, 0.5, 0.95]).tolist() if len(v) else None for k, v in kinds.items()},
        "saturated": {t: float((scores_N >= s).mean()) if len(scores_N) else 0.0 for t, s in SATURATED.items()},
        "alarm": spread_alarm(scores, relevant),
    }

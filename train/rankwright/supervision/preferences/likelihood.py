"""The likelihood of answers to "document A answers the query better than document B": logistic or normal.

Shapes: N candidates of one query, K answers, J judges. Everything is fp64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from scipy.special import expit, log_expit, log_ndtr

from rankwright.common.plurals import counted

LOG_SQRT_2PI = 0.5 * float(np.log(2 * np.pi))


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """K answers to "which of two documents is better?". Their order changes no result, not even in the last bit.

    first, second: int_K, numbers of the documents (or queries) shown first and second, from 0. first_wins: fp64_K in
    [0, 1], the probability of the first, or 1, 0.5 for a tie, 0. judge: int_K, numbers from 0. weight: fp64_K, at
    least 0, such as the weight of the judge. Calls that failed are left out: they are not answers.
    Raises ValueError for arrays of different lengths, a document compared with itself, and values out of range.
    """

    first: np.ndarray
    second: np.ndarray
    first_wins: np.ndarray
    # A scalar counts for every answer.
    judge: np.ndarray = field(default_factory=lambda: np.zeros((), np.int64))
    weight: np.ndarray = field(default_factory=lambda: np.ones(()))
    # What is known of the difference beforehand, fp64_K: across queries, the difference of the fitted scores.
    lead: np.ndarray = field(default_factory=lambda: np.zeros(()))

    def __post_init__(self) -> None:
        count = len(self.first)
        for name in ("first", "second", "first_wins", "judge", "weight", "lead"):
            whole = name in ("first", "second", "judge")
            values = np.asarray(getattr(self, name), dtype=np.int64 if whole else np.float64)
            if values.shape not in ((), (count,)):
                raise ValueError(f"answers: {name} has the shape {values.shape}, for {counted(count, 'answer')}")
            object.__setattr__(self, name, np.broadcast_to(values, (count,)))
        if not ((self.first_wins >= 0) & (self.first_wins <= 1)).all():
            raise ValueError("answers: first_wins must be from 0 to 1")
        if not (np.isfinite(self.weight) & (self.weight >= 0) & np.isfinite(self.lead)).all():
            raise ValueError("answers: weights must be finite and at least 0, leads finite")
        if count and min(self.first.min(), self.second.min(), self.judge.min()) < 0:
            raise ValueError("answers: a number of a document or judge is below 0")
        if (self.first == self.second).any():
            raise ValueError("answers: a document is compared with itself")
        # Sums of floats depend on their order, and answers arrive in any order.
        order_K = np.lexsort((self.lead, self.weight, self.first_wins, self.judge, self.second, self.first))
        for name in ("first", "second", "first_wins", "judge", "weight", "lead"):
            object.__setattr__(self, name, getattr(self, name)[order_K])

    def __len__(self) -> int:
        return len(self.first)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How scores are fitted.

    model: bradley_terry (logistic), or thurstone (normal). ridge: precision of the normal prior of a score; without it
    the scores of a document that won all its comparisons would be infinite. order_bias: whether each judge may prefer
    the document that is shown first; its bias has the prior N(0, 1). prior_weights: the weights of the prior scores
    among which fit_pooled chooses, growing. least_queries: below this number of queries fit_pooled uses the prior only
    with a clear lead, and notes it.
    """

    model: Literal["bradley_terry", "thurstone"] = "bradley_terry"
    ridge: float = 0.25
    order_bias: bool = True
    prior_weights: tuple[float, ...] = (0.0, 0.25, 0.5, 1.0, 2.0)
    least_queries: int = 30

    def __post_init__(self) -> None:
        if not (np.isfinite(self.ridge) and self.ridge > 0):
            raise ValueError(f"ridge: {self.ridge}: must be above 0")
        if not self.prior_weights or list(self.prior_weights) != sorted(set(self.prior_weights)):
            raise ValueError(f"prior_weights: {self.prior_weights}: must grow")


DEFAULT = Settings()


def logistic(z_K: np.ndarray, wins_K: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log likelihood of each answer, its derivative by z, and minus the second derivative."""
    p_K = expit(z_K)
    return wins_K * log_expit(z_K) + (1 - wins_K) * log_expit(-z_K), wins_K - p_K, p_K * expit(-z_K)


def normal(z_K: np.ndarray, wins_K: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As logistic, with the normal distribution function in place of the logistic one."""
    log_up_K, log_down_K = log_ndtr(z_K), log_ndtr(-z_K)
    log_density_K = -0.5 * z_K * z_K - LOG_SQRT_2PI
    up_K, down_K = np.exp(log_density_K - log_up_K), np.exp(log_density_K - log_down_K)
    curvature_K = wins_K * up_K * (up_K + z_K) + (1 - wins_K) * down_K * (down_K - z_K)
    # Rounding may take it below 0 far out in the tail, where it is tiny.
    return (
        wins_K * log_up_K + (1 - wins_K) * log_down_K,
        wins_K * up_K - (1 - wins_K) * down_K,
        np.maximum(curvature_K, 0),
    )


Link = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]
LINKS: Mapping[str, Link] = {"bradley_terry": logistic, "thurstone": normal}


def judge_count(answers: Sequence[Answers], biases: np.ndarray | None) -> int:
    """The number of judges. Raises ValueError where `biases` has too few."""
    found = max((int(a.judge.max()) + 1 for a in answers if len(a)), default=0)
    if biases is None:
        return max(found, 1)
    if len(biases) < found:
        raise ValueError(f"biases: of {counted(len(biases), 'judge')}, the answers are of {found}")
    return len(biases)

"""A judge of pairs whose truth is known: latent relevance, noise, order bias and failures, all pure in the content.

The model: a query has 2 to 11 relevant candidates; their latent relevance is N(5, 1), that of the others N(0, 1). The
judge prefers the document shown first with the probability sigmoid(latent difference + bias + N(0, noise^2)). The prior
scores are the latent relevance + N(0, 2.4^2), which alone reach an nDCG@10 of about 0.65 on 100 candidates; a useless
prior is noise alone. Separation and noise were chosen so that the designs reach about the published figures.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, ndtri

from rankwright.common.hashing import stable_hash
from rankwright.supervision.preferences.design import Pair
from rankwright.supervision.preferences.likelihood import Answers

SEPARATION = 5.0
PRIOR_NOISE = 2.4


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """One query's candidates: latent relevance, whether relevant, prior scores (useful, and useless), each of N."""

    query_id: str
    latent: np.ndarray
    relevant: np.ndarray
    prior: np.ndarray
    useless_prior: np.ndarray

    def __len__(self) -> int:
        return len(self.latent)

    def ndcg(self, scores: np.ndarray, depth: int = 10) -> float:
        """nDCG with gains 0 and 1; equal scores in the order of the candidates, which is random."""
        discount = 1 / np.log2(np.arange(2, depth + 2))
        gains = self.relevant[np.argsort(-scores, kind="stable")[:depth]]
        return float(gains @ discount[: len(gains)] / discount[: min(depth, int(self.relevant.sum()))].sum())


def judged_query(seed: int, number: int, count: int = 100) -> Judged:
    rng = np.random.default_rng([seed, number])
    relevant = np.zeros(count, dtype=bool)
    relevant[rng.permutation(count)[: int(rng.integers(2, 12))]] = True
    latent = rng.standard_normal(count) + SEPARATION * relevant
    prior = latent + PRIOR_NOISE * rng.standard_normal(count)
    return Judged(f"q{number}", latent, relevant, prior, rng.standard_normal(count))


@dataclass(frozen=True, slots=True)
class Judge:
    """failures: share of calls that bring no answer. soft: answers are the judge's probabilities; else its votes."""

    noise: float = 0.7
    bias: float = 0.8
    failures: float = 0.0
    soft: bool = False
    seed: int = 0

    def answer(self, query_id: str, first: float, second: float, call: object) -> float | None:
        """Whether the first of two latent relevances wins; None for a failure. call: what tells calls apart."""
        fails, noise, vote = (
            (stable_hash(name, self.seed, query_id, call) + 0.5) / 2**64 for name in ("fails", "noise", "vote")
        )
        if fails < self.failures:
            return None
        probability = float(expit(first - second + self.bias + self.noise * ndtri(noise)))
        return probability if self.soft else float(vote < probability)

    def answers(self, query: Judged, pairs: Iterable[Pair]) -> Answers:
        """Answers about numbered candidates; failed calls are left out."""
        found = [(i, j, self.answer(query.query_id, query.latent[i], query.latent[j], (i, j))) for i, j in pairs]
        return answers_of([(i, j, wins) for i, j, wins in found if wins is not None])


def answers_of(rows: Sequence[tuple[int, int, float]]) -> Answers:
    """Answers of one judge from (first, second, first wins)."""
    return Answers(*(np.array(column) for column in zip(*rows, strict=True))) if rows else EMPTY


EMPTY = Answers(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))

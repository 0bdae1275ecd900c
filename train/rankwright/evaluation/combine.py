"""The choice of weight and depth with which a reranker and the first stage are combined, on dev queries alone.

Shapes: D depths, W weights, Q queries. values_DWQ holds the measure of each query for each depth and weight.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rankwright.common.errors import UserError
from rankwright.common.stats import SAME, too_few
from rankwright.data.collection import Qrels
from rankwright.evaluation.metrics import LINEAR, Scale, check_measures, falling, measure_run
from rankwright.recipe.schema import LEAST_DEV_QUERIES
from rankwright.rerankers.combination import Combination, normaliser_of, standardised, zscores
from rankwright.retrieval.candidates import tie_order

WEIGHTS = tuple(step / 20 for step in range(21))
# How many standard errors the best must be better than the preferred end by, before it is left: a one-sided test at
# 95 %. With one standard error, scores at random got a weight in 10 to 21 of 100 draws of 40 dev queries on simulated
# lists, and in 45 on the quickstart's. Chosen after trying several rules on the same simulations.
LEAVE_END = 1.645
REPEATS = 50
# The most queries of a test set that are cross-fitted: every order of every list is made and measured.
CROSS_FITTED_QUERIES = 2000
FIRST_STAGE = "first_stage"


@dataclass(frozen=True, slots=True)
class ScoredList:
    """The list of one query in the first stage's order: ids, the first stage's scores, the reranker's."""

    query_id: str
    document_ids: Sequence[str]
    first_stage: Sequence[float | None]
    reranker: Sequence[float]


@dataclass(frozen=True, slots=True)
class Chosen:
    """What was chosen, and by what: see as_json."""

    combination: Combination
    queries: int
    note: str | None = None
    weights: tuple[dict[str, float], ...] = ()
    depths: tuple[dict[str, float], ...] = ()

    def as_json(self) -> dict[str, Any]:
        """What combine.json holds besides measure, rule and inputs.

        weights, depths: for each weight at the largest depth, and each depth at the chosen weight: the mean on dev, how
        much the best is above it, and the paired standard error of that difference.
        """
        c = self.combination
        found = {"weight": c.weight, "depth": c.depth, "normaliser": c.normaliser, "dev_queries": self.queries}
        return {**found, "note": self.note, "weights": list(self.weights), "depths": list(self.depths)}


def depths_within(depths: Sequence[int], limit: int) -> tuple[int, ...]:
    """The depths that are tried on lists of `limit` documents, each once and ascending."""
    return tuple(sorted({min(depth, limit) for depth in depths}))


def grid_values(
    lists: Sequence[ScoredList],
    qrels: Qrels,
    measure: str,
    depths: Sequence[int],
    normaliser: str,
    scale: Scale = LINEAR,
) -> np.ndarray:
    """values_DWQ of a measure, by all judgements, for every depth, weight and list. scale: what labels mean to it.

    Orders of a query that are equal as far as the measure looks are measured once.
    """
    cutoff = _cutoff(measure)
    tops: dict[str, dict[tuple[str, ...], int]] = {}
    place_DWQ = np.empty((len(depths), len(WEIGHTS), len(lists)), dtype=np.int64)
    for q, one in enumerate(lists):
        seen = tops.setdefault(one.query_id, {})
        for d, depth in enumerate(depths):
            for w, order in enumerate(_orders(one, depth, normaliser)):
                top = tuple(one.document_ids[place] for place in order[:cutoff])
                place_DWQ[d, w, q] = seen.setdefault(top, len(seen))
    run = {f"{n} {q}": falling(top) for q, seen in tops.items() for top, n in seen.items()}
    judged = {f"{n} {q}": qrels[q] for q, seen in tops.items() for n in seen.values()}
    values = measure_run(run, judged, [measure], scale).per_query[measure]
    found_DWQ = np.empty(place_DWQ.shape)
    for q, one in enumerate(lists):
        value_N = np.array([values[f"{n} {one.query_id}"] for n in range(len(tops[one.query_id]))])
        found_DWQ[:, :, q] = value_N[place_DWQ[:, :, q]]
    return found_DWQ


def _cutoff(measure: str) -> int | None:
    """How far down a list the measure looks; None: to its end."""
    params = check_measures([measure])[measure].params
    return None if params.get("judged_only") else params.get("cutoff")


def _orders(one: ScoredList, depth: int, normaliser: str) -> list[list[int]]:
    """For each weight the places of the list in their new order, as candidates.ranked orders combined scores."""
    reranker_N = zscores(one.reranker[:depth])
    first_N = standardised(one.first_stage[:depth], normaliser)
    ties = [(tie_order(one.query_id, document_id), document_id) for document_id in one.document_ids[:depth]]
    tie_N = np.argsort(sorted(range(len(ties)), key=lambda n: ties[n]))
    tail = list(range(depth, len(one.document_ids)))
    weighted = (weight * reranker_N + (1 - weight) * first_N for weight in WEIGHTS)
    return [[*np.lexsort((tie_N, -score_N)).tolist(), *tail] for score_N in weighted]


def choose(values_DWQ: np.ndarray, prefer: str = FIRST_STAGE) -> tuple[int, int]:
    """(index of the depth, index of the weight) by the rule.

    The weight is chosen at the largest depth. The preferred end, weight 0 (prefer reranker: 1), is kept unless the best
    is better by LEAVE_END standard errors, in at least as many queries as a paired test needs. Otherwise it is the
    middle one of those whose mean is within one paired standard error of the best one's. Then the depth with the best
    mean at that weight. Equal means count as the one nearer to the preferred end, which is the smallest depth (prefer
    reranker: the largest). Raises UserError for a value that is not finite.

    Source: the one-standard-error rule of Breiman et al. 1984, which takes the smallest one. On simulated lists, for
    first stages and rerankers of every strength tried and 40 to 120 dev queries, the middle weight had the higher mean
    on other queries, by up to .01, and the higher 5th percentile; the smallest depth within one standard error lost up
    to .007. On real ones the smallest weight gave up a gain (recipes/RESULTS.md).
    """
    if not np.isfinite(values_DWQ).all():
        raise UserError("combine: the value of a measure is not finite: evaluate again")
    values_WQ = values_DWQ[-1]
    order = _from_end(values_WQ, prefer)
    near = _near_best(values_WQ, order)
    weight = near[(len(near) - 1) // 2] if _leaves_end(values_WQ, order) else order[0]
    values_DQ = values_DWQ[:, weight]
    return _best(values_DQ, _from_end(values_DQ, prefer)), weight


def _from_end(values_CQ: np.ndarray, prefer: str) -> range:
    """The C choices, from the preferred end."""
    last = len(values_CQ) - 1
    return range(last + 1) if prefer == FIRST_STAGE else range(last, -1, -1)


def _near_best(values_CQ: np.ndarray, order: Sequence[int]) -> list[int]:
    """The choices within one standard error of the best one, in their order."""
    best = _best(values_CQ, order)
    lost = {choice: _lost(values_CQ, best, choice) for choice in order}
    return [choice for choice, (mean, error) in lost.items() if mean <= error + SAME]


def _leaves_end(values_CQ: np.ndarray, order: Sequence[int]) -> bool:
    """Whether the best choice is surely better than the first of the order."""
    best, end = _best(values_CQ, order), order[0]
    differ = int((np.abs(values_CQ[best] - values_CQ[end]) > SAME).sum())
    lost, error = _lost(values_CQ, best, end)
    return lost > LEAVE_END * error + SAME and not too_few(differ, 0.95)


def _best(values_CQ: np.ndarray, order: Iterable[int]) -> int:
    mean_C = values_CQ.mean(axis=1)
    return next(choice for choice in order if mean_C[choice] >= mean_C.max() - SAME)


def _lost(values_CQ: np.ndarray, best: int, choice: int) -> tuple[float, float]:
    """(how much the mean of `best` is above that of `choice`, the paired standard error of this)."""
    difference_Q = values_CQ[best] - values_CQ[choice]
    queries = len(difference_Q)
    error = float(difference_Q.std(ddof=1)) / queries**0.5 if queries > 1 else 0.0
    return float(difference_Q.mean()), error


def _curve(values_CQ: np.ndarray, name: str, choices: Sequence[float], prefer: str) -> tuple[dict[str, float], ...]:
    best = _best(values_CQ, _from_end(values_CQ, prefer))
    rows = []
    for number, choice in enumerate(choices):
        lost, error = _lost(values_CQ, best, number)
        rows.append({name: choice, "mean": float(values_CQ[number].mean()), "lost": lost, "standard_error": error})
    return tuple(rows)


def fit(
    lists: Sequence[ScoredList],
    qrels: Qrels,
    measure: str,
    depths: Sequence[int],
    prefer: str,
    scale: Scale = LINEAR,
) -> Chosen:
    """Choose weight and depth on the lists of dev queries; weight 1 with a note where there are too few of them."""
    lists = [one for one in lists if any(map(scale.is_relevant, qrels[one.query_id].values()))]
    normaliser = normaliser_of([[s for s in one.first_stage if s is not None] for one in lists])
    if len(lists) < LEAST_DEV_QUERIES:
        note = f"only {len(lists)} dev queries have a relevant document, {LEAST_DEV_QUERIES} are needed"
        return Chosen(Combination(1.0, normaliser), len(lists), note)
    values_DWQ = grid_values(lists, qrels, measure, depths, normaliser, scale)
    depth, weight = choose(values_DWQ, prefer)
    return Chosen(
        Combination(WEIGHTS[weight], normaliser, depths[depth]),
        len(lists),
        weights=_curve(values_DWQ[-1], "weight", WEIGHTS, prefer),
        depths=_curve(values_DWQ[:, weight], "depth", depths, prefer),
    )


def cross_fitted(values_DWQ: np.ndarray, prefer: str = FIRST_STAGE, *, seed: int = 0) -> np.ndarray | None:
    """Value of each query when weight and depth are chosen on the other half: the mean over REPEATS random halvings.

    No query is measured by a choice that it had a part in. None for fewer than 2 * LEAST_DEV_QUERIES queries.
    """
    queries = values_DWQ.shape[2]
    if queries < 2 * LEAST_DEV_QUERIES:
        return None
    random = np.random.default_rng(seed)
    total_Q = np.zeros(queries)
    for _ in range(REPEATS):
        shuffled = random.permutation(queries)
        halves = shuffled[: queries // 2], shuffled[queries // 2 :]
        for fitted, measured in (halves, halves[::-1]):
            depth, weight = choose(values_DWQ[:, :, fitted], prefer)
            total_Q[measured] += values_DWQ[depth, weight, measured]
    return total_Q / REPEATS


def scored_lists(
    candidates: Mapping[str, Sequence[Any]], reranked: Mapping[str, Mapping[str, float]], query_ids: Iterable[str]
) -> list[ScoredList]:
    """The lists of these queries that hold a document, from candidates and a reranker's scores of them."""
    return [
        ScoredList(
            q,
            [c.document_id for c in candidates[q]],
            [c.score for c in candidates[q]],
            [reranked[q][c.document_id] for c in candidates[q]],
        )
        for q in query_ids
        if candidates.get(q)
    ]

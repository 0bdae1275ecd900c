"""Weight and depth of the combination with the first stage: the rule, on simulated rerankers of known worth."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankwright.common.errors import UserError
from rankwright.evaluation.combine import (
    LEAST_DEV_QUERIES,
    WEIGHTS,
    ScoredList,
    choose,
    cross_fitted,
    depths_within,
    fit,
    grid_values,
)
from rankwright.evaluation.metrics import measure_run
from rankwright.rerankers.combination import Combination, combined_run

DISCOUNT_N = 1 / np.log2(np.arange(2, 12))
DEPTHS = (10, 20)
LAST = len(WEIGHTS) - 1


def standard(score_QN: np.ndarray) -> np.ndarray:
    spread_Q1 = score_QN.std(axis=1, keepdims=True)
    return (score_QN - score_QN.mean(axis=1, keepdims=True)) / np.where(spread_Q1 > 0, spread_Q1, 1)


def ndcg(relevant_QN: np.ndarray, score_QN: np.ndarray) -> np.ndarray:
    """nDCG@10 of lists that hold all relevant documents."""

    def gain(by_QN: np.ndarray) -> np.ndarray:
        order_QN = np.argsort(-by_QN, axis=1, kind="stable")[:, :10]
        gain_Q: np.ndarray = (np.take_along_axis(relevant_QN, order_QN, axis=1) * DISCOUNT_N).sum(axis=1)
        return gain_Q

    return gain(score_QN) / gain(relevant_QN)


def values_of(relevant_QN: np.ndarray, first_QN: np.ndarray, reranker_QN: np.ndarray) -> np.ndarray:
    """values_DWQ by the formula of the documents, for lists that are ordered by the first stage."""
    below_QN = np.broadcast_to(-1e9 - np.arange(first_QN.shape[1]), first_QN.shape)
    found = []
    for depth in DEPTHS:
        for weight in WEIGHTS:
            head_QN = weight * standard(reranker_QN[:, :depth]) + (1 - weight) * standard(first_QN[:, :depth])
            found.append(ndcg(relevant_QN, np.concatenate([head_QN, below_QN[:, depth:]], axis=1)))
    return np.array(found).reshape(len(DEPTHS), len(WEIGHTS), -1)


def lists(random: np.random.Generator, queries: int, strength: float = 2.5) -> tuple[np.ndarray, np.ndarray]:
    """(relevant_QN, first_QN): lists of 20 with one to three relevant documents, best first by the first stage."""
    relevant_QN = (random.random((queries, 20)).argsort(axis=1) < random.integers(1, 4, (queries, 1))).astype(float)
    first_QN = strength * relevant_QN + random.normal(size=relevant_QN.shape)
    order_QN = np.argsort(-first_QN, axis=1)
    return np.take_along_axis(relevant_QN, order_QN, axis=1), np.take_along_axis(first_QN, order_QN, axis=1)


def test_a_reranker_of_noise_gets_no_weight() -> None:
    weights, gains = [], []
    for draw in range(200):
        random = np.random.default_rng(draw)
        relevant_QN, first_QN = lists(random, 140)
        values_DWQ = values_of(relevant_QN, first_QN, random.normal(size=first_QN.shape))
        depth, weight = choose(values_DWQ[:, :, :40])
        weights.append(WEIGHTS[weight])
        gains.append((values_DWQ[depth, weight, 40:] - values_DWQ[0, 0, 40:]).mean())
    assert np.mean(np.array(weights) == 0) >= 0.95
    assert np.percentile(gains, 5) >= -0.003


def test_a_perfect_reranker_loses_nothing() -> None:
    losses = []
    for draw in range(50):
        random = np.random.default_rng(draw)
        relevant_QN, first_QN = lists(random, 140)
        values_DWQ = values_of(relevant_QN, first_QN, relevant_QN + random.normal(size=first_QN.shape) * 0.05)
        dev_WQ = values_DWQ[-1, :, :40]
        depth, weight = choose(values_DWQ[:, :, :40])
        lost_Q = dev_WQ[LAST] - dev_WQ[weight]
        assert lost_Q.mean() <= lost_Q.std(ddof=1) / 40**0.5 + 1e-12
        losses.append((values_DWQ[-1, LAST, 40:] - values_DWQ[depth, weight, 40:]).mean())
        assert choose(values_DWQ[:, :, :40], "reranker") == (1, LAST)
    assert np.mean(losses) <= 0.005


def test_halves_that_complement_each_other_are_better_together() -> None:
    for draw in range(20):
        random = np.random.default_rng(draw)
        # Each finds the relevant documents of every other query.
        relevant_QN, first_QN = lists(random, 240, strength=0.0)
        own_Q1 = (np.arange(240) % 2 == 0)[:, None]
        first_QN = random.normal(size=first_QN.shape) + 4 * relevant_QN * own_Q1
        order_QN = np.argsort(-first_QN, axis=1)
        relevant_QN, first_QN = (np.take_along_axis(one, order_QN, axis=1) for one in (relevant_QN, first_QN))
        reranker_QN = random.normal(size=first_QN.shape) + 4 * relevant_QN * ~own_Q1
        values_DWQ = values_of(relevant_QN, first_QN, reranker_QN)
        depth, weight = choose(values_DWQ[:, :, :80])
        test_DW = values_DWQ[:, :, 80:].mean(axis=2)
        assert test_DW[depth, weight] >= max(test_DW[-1, 0], test_DW[-1, LAST]) + 0.05


@given(st.integers(0, 10**6), st.sampled_from(["first_stage", "reranker"]))
@settings(max_examples=50, deadline=None)
def test_the_depth_is_the_best_and_of_equal_ones_the_nearest(seed: int, prefer: str) -> None:
    random = np.random.default_rng(seed)
    # Halves have exact means, and often equal ones.
    value_CQ = random.integers(0, 3, (4, 8)) / 2
    depth, weight = choose(np.repeat(value_CQ[:, None, :], 3, axis=1), prefer)
    best = np.flatnonzero(value_CQ.mean(axis=1) == value_CQ.mean(axis=1).max())
    assert depth == best[0 if prefer == "first_stage" else -1]
    # All weights are equal, so the preferred end is taken.
    assert weight == (0 if prefer == "first_stage" else 2)


def test_the_end_is_left_only_where_the_gain_is_sure() -> None:
    def values(gain: float, queries: int) -> np.ndarray:
        value_WQ = np.zeros((2, 40))
        value_WQ[1, :queries] = gain
        return value_WQ[None]

    # Five queries of 40 that gain are more than two standard errors, and fewer than any paired test needs.
    assert choose(values(1.0, 5)) == (0, 0)
    assert choose(values(1.0, 6)) == (0, 1)
    with pytest.raises(UserError, match="not finite"):
        choose(np.full((1, 2, 3), np.nan))


def test_a_good_reranker_gets_the_middle_of_the_weights_that_are_near_the_best() -> None:
    gains = []
    for draw in range(40):
        random = np.random.default_rng(draw)
        relevant_QN, first_QN = lists(random, 1080, strength=1.5)
        values_DWQ = values_of(relevant_QN, first_QN, 2.5 * relevant_QN + random.normal(size=first_QN.shape))
        dev_WQ, test_W = values_DWQ[-1, :, :80], values_DWQ[-1, :, 80:].mean(axis=1)
        best = int(dev_WQ.mean(axis=1).argmax())
        lost_WQ = dev_WQ[best] - dev_WQ
        near = [w for w in range(LAST + 1) if lost_WQ[w].mean() <= lost_WQ[w].std(ddof=1) / 80**0.5]
        weight = choose(values_DWQ[:, :, :80])[1]
        assert weight in (near[(len(near) - 1) // 2], near[len(near) // 2])
        gains.append(test_W[weight] - test_W[near[0]])
        assert test_W[weight] >= test_W[LAST] - 0.01
    # The smallest one, which the usual rule takes, gives up some of the gain.
    assert np.mean(gains) >= 0.001


def scored(seed: int, queries: int, length: int = 20) -> tuple[list[ScoredList], dict[str, dict[str, float]]]:
    random = np.random.default_rng(seed)
    made, qrels = [], {}
    for number in range(queries):
        ids = [f"d {number} {place}" for place in range(length)]
        first = sorted(random.integers(0, 9, length).tolist(), reverse=True)
        made.append(ScoredList(f"q {number}", ids, first, random.integers(-4, 5, length).tolist()))
        qrels[f"q {number}"] = dict.fromkeys(random.choice(ids, 3, replace=False), 1.0)
    return made, qrels


@pytest.mark.parametrize("measure", ["nDCG@10", "MRR@10", "AP", "R@5"])
def test_the_grid_is_what_the_combined_runs_measure(measure: str) -> None:
    made, qrels = scored(3, 6)
    reranked = {one.query_id: dict(zip(one.document_ids, one.reranker, strict=True)) for one in made}
    first = {one.query_id: dict(zip(one.document_ids, one.first_stage, strict=True)) for one in made}
    for normaliser in ("zscore", "reciprocal_rank"):
        values_DWQ = grid_values(made, qrels, measure, DEPTHS, normaliser)
        for (d, depth), w in itertools.product(enumerate(DEPTHS), (0, 7, LAST)):
            run = combined_run(reranked, first, Combination(WEIGHTS[w], normaliser, depth))
            values = measure_run(run, qrels, [measure]).per_query[measure]
            assert values_DWQ[d, w].tolist() == [values[one.query_id] for one in made]


def test_too_few_dev_queries_choose_nothing() -> None:
    made, qrels = scored(0, LEAST_DEV_QUERIES + 1)
    # A query without a relevant document does not count.
    few, qrels = made[:-1], {**qrels, made[0].query_id: {made[0].document_ids[0]: 0.0}}
    chosen = fit(few, qrels, "nDCG@10", DEPTHS, "first_stage")
    assert (chosen.combination, chosen.queries) == (Combination(), LEAST_DEV_QUERIES - 1)
    assert chosen.note == "only 19 dev queries have a relevant document, 20 are needed"
    chosen = fit(made, qrels, "nDCG@10", DEPTHS, "first_stage")
    assert chosen.note is None and chosen.queries == LEAST_DEV_QUERIES
    assert [row["weight"] for row in chosen.weights] == list(WEIGHTS)
    assert min(row["lost"] for row in chosen.weights) == 0 and all(row["lost"] >= 0 for row in chosen.depths)


def test_a_cross_fitted_query_has_no_part_in_its_own_choice() -> None:
    random = np.random.default_rng(0)
    relevant_QN, first_QN = lists(random, 80)
    values_DWQ = values_of(relevant_QN, first_QN, relevant_QN + random.normal(size=first_QN.shape))
    values_Q = cross_fitted(values_DWQ, seed=1)
    assert values_Q is not None
    assert values_DWQ[-1, 0].mean() < values_Q.mean() <= values_DWQ.mean(axis=2).max() + 1e-12
    assert np.array_equal(values_Q, cross_fitted(values_DWQ, seed=1))
    # What a query is worth changes its own value, and not those of the others by way of the half it is measured in.
    changed_DWQ = values_DWQ.copy()
    changed_DWQ[:, :, 0] = 1 - changed_DWQ[:, :, 0]
    assert cross_fitted(changed_DWQ, seed=1)[0] != values_Q[0]
    assert cross_fitted(values_DWQ[:, :, :39]) is None


def test_depths_are_capped_by_the_lists() -> None:
    assert depths_within((10, 20, 50, 100), 30) == (10, 20, 30)
    assert depths_within((100, 50), 7) == (7,)

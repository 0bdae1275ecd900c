"""The order of simulated candidates, recovered from a noisy judge with an order bias: how good, and at what cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest

from rankwright.supervision.preferences.design import Pair, cycles, first_cycle, generator, next_round
from rankwright.supervision.preferences.fit import Fit, Pooled, Query, fit, fit_pooled, standardised
from rankwright.supervision.preferences.likelihood import DEFAULT, Settings
from rankwright.supervision.preferences.refinement import average_overlap
from support.preference_judge import Judge, Judged, answers_of, judged_query

QUERIES = 60
SEED = 11
JUDGE = Judge(noise=0.7, bias=0.8)
WITHOUT, FORCED = Settings(prior_weights=(0.0,)), Settings(prior_weights=(1.0,))


@cache
def simulated() -> tuple[Judged, ...]:
    return tuple(judged_query(SEED, number) for number in range(QUERIES))


@dataclass(frozen=True)
class Recovered:
    """What was pooled after the first cycle; the fits at the end; their mean nDCG@10."""

    pooled: Pooled
    fits: list[Fit]

    @property
    def ndcg(self) -> float:
        return quality([found.scores for found in self.fits])


def quality(scores: Sequence[np.ndarray]) -> float:
    return float(np.mean([q.ndcg(s) for q, s in zip(simulated(), scores, strict=True)]))


def asked_so_far(judge: Judge, pairs: Sequence[Sequence[Pair]], useful: bool = True) -> list[Query]:
    """The answers to the pairs of each query, with the useful or the useless prior."""
    return [
        Query(judge.answers(q, asked), len(q), standardised(q.prior if useful else q.useless_prior))
        for q, asked in zip(simulated(), pairs, strict=True)
    ]


def all_fits(queries: Sequence[Query], pooled: Pooled, settings: Settings = DEFAULT) -> list[Fit]:
    return [fit(q.answers, q.count, pooled.prior_weight * q.prior, settings, pooled.biases) for q in queries]  # type: ignore[operator]


@cache
def asked_top_heavy(useful: bool, settings: Settings, calls: int = 200) -> tuple[Pooled, list[list[Pair]]]:
    """One cycle; the biases and the prior's weight pooled; then rounds of 50 calls. What was pooled, and the pairs."""
    pairs = [first_cycle(len(q), generator(SEED, q.query_id, 0)) for q in simulated()]
    queries = asked_so_far(JUDGE, pairs, useful)
    pooled = fit_pooled(queries, settings)
    for number in range(1, 1 + (calls - 100) // 50):
        for query, asked, found in zip(simulated(), pairs, all_fits(queries, pooled), strict=True):
            asked += next_round(found, asked, 50, generator(SEED, query.query_id, number))
        queries = asked_so_far(JUDGE, pairs, useful)
    assert {len(asked) for asked in pairs} == {calls}
    return pooled, pairs


@cache
def top_heavy(useful: bool, settings: Settings, calls: int = 200) -> Recovered:
    """The pairs of asked_top_heavy, with the biases pooled again."""
    pooled, pairs = asked_top_heavy(useful, settings, calls)
    queries = asked_so_far(JUDGE, pairs, useful)
    final = fit_pooled(queries, replace(settings, prior_weights=(pooled.prior_weight,)))
    return Recovered(replace(pooled, biases=final.biases), all_fits(queries, final))


@cache
def in_cycles(number: int) -> list[list[Pair]]:
    return [
        [pair for cycle in cycles(len(q), number, generator(SEED, q.query_id, 0)) for pair in cycle]
        for q in simulated()
    ]


def test_200_calls_recover_the_order_better_than_the_prior() -> None:
    assert quality([q.prior for q in simulated()]) == pytest.approx(0.65, abs=0.05)
    assert top_heavy(True, DEFAULT).ndcg >= 0.90
    assert top_heavy(True, WITHOUT).ndcg >= 0.83


def test_cycles_need_400_calls_for_what_top_heavy_pairs_reach_with_200() -> None:
    queries = asked_so_far(JUDGE, in_cycles(4))
    pooled = fit_pooled(queries, WITHOUT)
    reached = quality([found.scores for found in all_fits(queries, pooled)])
    assert reached == pytest.approx(0.84, abs=0.03)
    assert top_heavy(True, WITHOUT).ndcg > reached - 0.03


def test_the_evidence_keeps_a_useful_prior_and_drops_a_useless_one() -> None:
    useful, useless = top_heavy(True, DEFAULT), top_heavy(False, DEFAULT)
    assert useful.pooled.prior_weight == 1
    assert useful.pooled.evidence[1.0] > useful.pooled.evidence[0.0] + 50
    assert useless.pooled.prior_weight == 0
    assert useless.pooled.evidence[0.0] > useless.pooled.evidence[1.0] + 50
    # So a useless prior costs nothing; trusted all the same, it costs.
    without, forced = top_heavy(False, WITHOUT), top_heavy(False, FORCED)
    assert useless.ndcg == without.ndcg
    assert 0.03 <= without.ndcg - forced.ndcg <= 0.1
    assert useful.ndcg > without.ndcg


def refits(more: Mapping[int, int]) -> list[Fit]:
    """The fits after 200 calls for each query, and so many more, near the top, for those of these numbers."""
    pooled, pairs = asked_top_heavy(True, DEFAULT)
    longer = [list(asked) for asked in pairs]
    for number, found in enumerate(all_fits(asked_so_far(JUDGE, pairs), pooled)):
        if number in more:
            rng = generator(SEED, simulated()[number].query_id, 9)
            longer[number] += next_round(found, pairs[number], more[number], rng)
    return all_fits(asked_so_far(JUDGE, longer), pooled)


def ndcg_of(fits: Sequence[Fit], which: Iterable[int] = range(QUERIES)) -> float:
    return float(np.mean([simulated()[n].ndcg(fits[n].scores) for n in which]))


def test_calls_where_a_student_disagrees_are_worth_as_much_as_calls_about_all_queries() -> None:
    """Refinement of a fifth of the queries by 50 calls each, against ten more calls for every query."""
    before = refits({})
    rng = np.random.default_rng(SEED)
    overlaps = []
    for query, found in zip(simulated(), before, strict=True):
        student = query.latent + 1.5 * rng.standard_normal(len(query))
        overlaps.append(average_overlap(np.argsort(-student).tolist(), np.argsort(-found.scores).tolist()))
    doubtful = np.argsort(overlaps)[: QUERIES // 5].tolist()
    # The scores are worse where the student disagrees, and calls mend that.
    assert ndcg_of(before, doubtful) < ndcg_of(before)
    refined = refits(dict.fromkeys(doubtful, 50))
    assert ndcg_of(refined, doubtful) > ndcg_of(before, doubtful) + 0.03
    spread = refits(dict.fromkeys(range(QUERIES), 10))
    assert ndcg_of(refined) > ndcg_of(before) + 0.005 and abs(ndcg_of(refined) - ndcg_of(spread)) < 0.01


def test_calls_find_relevant_documents_that_people_labelled_and_the_scores_put_low() -> None:
    before = refits({})
    low = []
    for number, (query, found) in enumerate(zip(simulated(), before, strict=True)):
        labelled = found.scores[np.flatnonzero(query.relevant)[0]]
        low += [number] if (found.scores > labelled).sum() >= 10 else []
    assert 3 <= len(low) <= 15 and ndcg_of(before, low) < ndcg_of(before) - 0.03
    assert ndcg_of(refits(dict.fromkeys(low, 50)), low) > ndcg_of(before, low) + 0.03


@pytest.mark.parametrize("judge", [JUDGE, Judge(noise=0.0, bias=-0.5), Judge(noise=0.7, bias=0.8, soft=True)])
def test_the_pooled_bias_is_that_of_the_judge(judge: Judge) -> None:
    pooled = fit_pooled(asked_so_far(judge, in_cycles(1)))
    assert abs(pooled.biases[0] - judge.bias) <= 0.2
    assert pooled.deviations[0] < 0.1


def test_pooling_beats_a_bias_for_each_query() -> None:
    queries = asked_so_far(JUDGE, in_cycles(2))
    alone = [fit(q.answers, q.count, q.prior).biases[0] for q in queries]
    pooled = fit_pooled(queries, FORCED)
    assert np.std(alone) > 4 * pooled.deviations[0]
    assert np.std(alone) > 0.1


def test_missing_answers_move_no_document() -> None:
    """30 % of the calls fail: neither the mean moves, nor the documents that lost most answers as the first."""
    failing = replace(JUDGE, failures=0.3)
    complete, partial = asked_so_far(JUDGE, in_cycles(4)), asked_so_far(failing, in_cycles(4))
    left = sum(len(q.answers) for q in partial) / sum(len(q.answers) for q in complete)
    assert left == pytest.approx(0.7, abs=0.01)
    pooled, less = fit_pooled(complete), fit_pooled(partial, FORCED)
    assert pooled.prior_weight == less.prior_weight
    assert abs(pooled.biases[0] - less.biases[0]) < 3 * less.deviations[0]
    before = all_fits(complete, pooled)
    lost = [lost_as_first(every, some) > 0 for every, some in zip(complete, partial, strict=True)]

    def moved(after: Sequence[Fit]) -> float:
        """Mean change, in standard deviations, of the documents that lost more answers as the first."""
        for old, new in zip(before, after, strict=True):
            assert abs(new.scores.mean() - old.scores.mean()) < 0.05 * new.deviations.mean()
        changes = [
            ((new.scores - old.scores) / new.deviations)[which]
            for old, new, which in zip(before, after, lost, strict=True)
        ]
        return float(np.concatenate(changes).mean())

    assert abs(moved(all_fits(partial, less))) < 0.05
    # Counted as votes for the first, the failures would move them, whatever the bias makes up for.
    votes = [failures_for_the_first(q, query) for q, query in zip(simulated(), partial, strict=True)]
    assert moved(all_fits(votes, fit_pooled(votes, FORCED))) > 0.2


def lost_as_first(every: Query, some: Query) -> np.ndarray:
    """For each document, the answers that are missing where it was shown first, minus those where it was second."""
    first = np.bincount(every.answers.first, minlength=100) - np.bincount(some.answers.first, minlength=100)
    second = np.bincount(every.answers.second, minlength=100) - np.bincount(some.answers.second, minlength=100)
    lost: np.ndarray = first - second
    return lost


def failures_for_the_first(simulated_query: Judged, query: Query) -> Query:
    """The same query with the wrong answer 1 for each failed call."""
    calls = [(i, j) for i, j in in_cycles(4)[int(simulated_query.query_id[1:])]]
    known = {
        (i, j): t for i, j, t in zip(query.answers.first, query.answers.second, query.answers.first_wins, strict=True)
    }
    return replace(query, answers=answers_of([(i, j, known.get((i, j), 1.0)) for i, j in calls]))

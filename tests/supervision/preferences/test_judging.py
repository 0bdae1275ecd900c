"""Judging against a real server of a judge whose truth is known: what METHODS of the field promise, on small lists."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from judge_server import JudgeServer, running_judge
from preference_judge import Judge as Simulated
from preference_judge import Judged, judged_query
from scipy.special import expit

from rankwright.recipe import teacher
from rankwright.rerankers.client import Limits
from rankwright.supervision.preferences.answers import AnswerFile, judged_reply
from rankwright.supervision.preferences.asking import Asker
from rankwright.supervision.preferences.fit import standardised
from rankwright.supervision.preferences.judges import Judge
from rankwright.supervision.preferences.judging import (
    JudgedList,
    Judging,
    ask_across,
    bind_design,
    calls_per_query,
    judge_lists,
)

QUERIES, DOCUMENTS, BIAS = 30, 20, 0.8
LISTS = [judged_query(7, number, DOCUMENTS) for number in range(QUERIES)]


def answers_of(simulated: Simulated) -> Callable[[str, str, str], float | None]:
    """The judge as the server asks it: query and passages are the numbers that stand for them."""
    by_id = {one.query_id: one for one in LISTS}

    def answer(query: str, first: str, second: str) -> float | None:
        latent = by_id[query].latent
        return simulated.answer(query, latent[int(first)], latent[int(second)], (first, second))

    return answer


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[JudgeServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with running_judge(answers_of(Simulated(bias=BIAS))) as one:
        yield one


def settings_of(server: JudgeServer, **pairs: Any) -> teacher.Pairs:
    entry = {"name": "j", "url": server.url, "model": "m"}
    return teacher.Pairs.model_validate({"judges": (entry,), "depth": DOCUMENTS, **pairs})


def judging(
    server: JudgeServer, folder: Path, prior: Callable[[Judged], np.ndarray] | None, **pairs: Any
) -> tuple[Judging, Asker]:
    settings = settings_of(server, **pairs)
    lists = [
        JudgedList(
            one.query_id,
            one.query_id,
            "find",
            [str(number) for number in range(len(one))],
            str,
            None if prior is None else standardised(prior(one)),
        )
        for one in LISTS
    ]
    judges = [Judge(settings.judges[0], Limits(retries=9, backoff_seconds=0.01))]
    asker = Asker(judges, AnswerFile(folder / "answers.jsonl", judged_reply), settings.budget, 8)
    return judge_lists(lists, settings, asker, 0, lambda count: None), asker


def ndcg(found: Judging) -> float:
    by_id = {one.query_id: one for one in LISTS}
    return statistics.fmean(
        by_id[one.query_id].ndcg(scored.scores) for one, scored in zip(found.lists, found.scored, strict=True)
    )


def test_the_order_and_the_bias_are_found_with_two_calls_for_each_document(server: JudgeServer, tmp_path: Path) -> None:
    server.failing = 0.05
    found, asker = judging(server, tmp_path, lambda one: one.prior)
    assert asker.sent == 2 * QUERIES * DOCUMENTS and len(server.asked) > asker.sent, "failed requests are asked again"
    assert found.first.prior_weight >= 0.5 and found.first.evidence[1.0] - found.first.evidence[0.0] > 10
    assert abs(found.pooled.biases[0] - BIAS) <= 0.25 and found.pooled.deviations[0] < 0.15
    alone = statistics.fmean(one.ndcg(one.prior) for one in LISTS)
    assert ndcg(found) >= 0.90 > alone
    assert found.rounds == [QUERIES * DOCUMENTS, QUERIES * DOCUMENTS // 2, QUERIES * DOCUMENTS // 2]
    # The same answers without the prior of the first stage: nothing is asked twice, and the order is found too.
    again, asker = judging(server, tmp_path, None)
    assert asker.sent < 2 * QUERIES * DOCUMENTS and ndcg(again) >= 0.83


def test_a_useless_prior_switches_itself_off(server: JudgeServer, tmp_path: Path) -> None:
    cycle = {"design": {"cycles": {"count": 1}}}
    useless, asker = judging(server, tmp_path, lambda one: one.useless_prior, **cycle)
    assert useless.first.prior_weight == 0.0 and asker.sent == QUERIES * DOCUMENTS
    without, asker = judging(server, tmp_path, None, **cycle)
    assert asker.sent == 0
    for one, other in zip(useless.scored, without.scored, strict=True):
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-9)


def test_calls_across_queries_put_them_on_one_scale(server: JudgeServer, tmp_path: Path) -> None:
    """Every query has a level of its own, which answers about its own documents cannot show."""
    by_id = {one.query_id: one for one in LISTS}
    levels = {one.query_id: 3.0 * np.sin(number) for number, one in enumerate(LISTS)}

    def value(query: str, document: str) -> float:
        return float(by_id[query].latent[int(document)] + levels[query])

    server.across = lambda query, a, other, b: float(expit(value(query, a) - value(other, b) + 0.5))
    found, asker = judging(server, tmp_path, None, design={"cycles": {"count": 2}})
    settings = settings_of(server, across_queries=4)
    across = ask_across(found, settings, asker, 0, lambda count: None)
    assert len(across.rows) == 4 * QUERIES == asker.sent - 2 * QUERIES * DOCUMENTS
    best = [float(np.sort(by_id[one.query_id].latent)[-5:].mean()) + levels[one.query_id] for one in found.lists]
    plain = [float(np.sort(one.scores)[-5:].mean()) for one in found.scored]
    alone = np.corrcoef(best, plain)[0, 1]
    calibrated = np.corrcoef(best, np.array(plain) + across.offsets)[0, 1]
    assert calibrated > 0.85 > alone + 0.2 and abs(across.biases[0] - 0.5) < 0.4
    # A budget that has ended asks nothing more.
    asker.over = "teacher.pairs.budget.calls: spent"
    nothing = ask_across(found, settings, asker, 0, lambda count: None)
    assert not nothing.rows and not nothing.offsets.any()


def test_designs_and_their_calls() -> None:
    def settings(**pairs: Any) -> teacher.Pairs:
        entry = {"name": "j", "url": "http://h", "model": "m"}
        return teacher.Pairs.model_validate({"judges": (entry,), "depth": 50, **pairs})

    assert calls_per_query(settings()) == 100
    assert calls_per_query(settings(design={"cycles": {}})) == 200
    assert calls_per_query(settings(budget={"calls_per_query": 77})) == 77
    plan = bind_design(settings(design={"top_heavy": {"cycles": 2, "round": 9, "mean_place": 3.0}}))
    assert (plan.cycles, plan.round, plan.mean_place) == (2, 9, 3.0)

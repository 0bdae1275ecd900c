"""Refinement against a real server of a judge whose truth is known: what is chosen, what further calls are worth."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from judge_server import JudgeServer, running_judge
from preference_judge import Judge as Simulated
from test_judging import BIAS, DOCUMENTS, LISTS, QUERIES, answers_of, judging, settings_of

from rankwright.common.errors import UserError
from rankwright.recipe.teacher import Refine
from rankwright.supervision.preferences.answers import AnswerFile, judged_reply
from rankwright.supervision.preferences.asking import Asker
from rankwright.supervision.preferences.judges import Judge
from rankwright.supervision.preferences.judging import JudgedList, Judging
from rankwright.supervision.preferences.refinement import (
    Doubt,
    average_overlap,
    doubts,
    refined,
    refinement_figures,
    replay,
)

BY_ID = {one.query_id: one for one in LISTS}
SHARE, CALLS = 0.4, 30
# One cycle alone leaves much to ask.
FIRST = {"design": {"cycles": {"count": 1}}}
REFINE = {"student": "x", "share": SHARE, "calls_per_query": CALLS, "positives_below": None}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[JudgeServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with running_judge(answers_of(Simulated(bias=BIAS))) as one:
        yield one


def student() -> dict[str, list[float]]:
    """A student that has learned something: the latent relevance with noise."""
    rng = np.random.default_rng(5)
    return {one.query_id: (one.latent + 1.5 * rng.standard_normal(len(one))).tolist() for one in LISTS}


def ndcg(found: Judging, chosen: Sequence[Doubt]) -> float:
    wanted = {doubt.query_id for doubt in chosen}
    return statistics.fmean(
        BY_ID[one.query_id].ndcg(scored.scores)
        for one, scored in zip(found.lists, found.scored, strict=True)
        if one.query_id in wanted
    )


def replayed(
    server: JudgeServer, folder: Path, found: Judging, text: Any = str, **budget: int
) -> tuple[Judging, Asker, Any]:
    """The state of a judging, from its calls and the answers in `folder` alone; with the settings of a refinement."""
    settings = settings_of(server, **FIRST, refine=REFINE, budget=budget)
    lists = [JudgedList(one.query_id, one.query, one.instruction, one.ids, text, one.prior) for one in found.lists]
    shown = {one.query_id: list(one.rows) for one in found.lists}
    asker = Asker([Judge(settings.judges[0])], AnswerFile(folder / "answers.jsonl", judged_reply), settings.budget, 8)
    made = replay(lists, shown, settings, asker, lambda count: None, left_out=found.left_out, seed=0)
    return made, asker, settings


def test_average_overlap_is_the_mean_share_of_the_best() -> None:
    # k = 1: 0 of 1; k = 2: 1 of 2 (0); k = 3: 2 of 3; k = 4: 3 of 4.
    assert average_overlap([0, 1, 2, 3, 4], [5, 0, 1, 2, 6], 4) == pytest.approx((0 + 1 / 2 + 2 / 3 + 3 / 4) / 4)
    assert average_overlap([0, 1], [1, 0]) == 0.5, "two documents: the first place, and both"


@given(st.permutations(range(14)), st.permutations(range(14)))
def test_average_overlap_is_symmetric_and_one_only_for_equal_tops(one: list[int], other: list[int]) -> None:
    value = average_overlap(one, other)
    assert 0 <= value <= 1 and value == average_overlap(other, one)
    assert (value == 1) == (one[:10] == other[:10])


def test_further_calls_improve_the_order_where_the_student_disagrees(server: JudgeServer, tmp_path: Path) -> None:
    server.answer = answers_of(Simulated(noise=1.5, bias=BIAS))
    found, _ = judging(server, tmp_path, lambda one: one.prior, **FIRST)
    asked = len(server.asked)
    before, asker, settings = replayed(server, tmp_path, found)
    # The same state without a call.
    assert len(server.asked) == asked and asker.sent == 0
    assert before.rounds == found.rounds and before.first.prior_weight == found.first.prior_weight
    for one, other in zip(before.scored, found.scored, strict=True):
        np.testing.assert_array_equal(one.scores, other.scores)
    chosen = doubts(before, student(), {}, settings.refine)
    assert len(chosen) == round(SHARE * QUERIES)
    worth = ndcg(before, chosen)
    after = refined(before, chosen, settings, asker, lambda count: None, seed=0)
    assert len(server.asked) - asked == CALLS * len(chosen) == asker.sent
    assert ndcg(after, chosen) > worth + 0.03
    figures = refinement_figures(before, after, chosen, student())
    assert figures["calls"] == asker.sent and figures["queries"] == len(chosen) == len(figures["chosen"])
    for name, grows in (("sd", False), ("overlap", True), ("top_overlap", True)):
        was, now = figures[name]
        assert now > was if grows else now < 0.9 * was, name
    # The others were asked nothing.
    wanted = {doubt.query_id for doubt in chosen}
    assert all((len(one.rows) == DOCUMENTS) == (one.query_id not in wanted) for one in after.lists)
    # A second refinement goes on from the first.
    second, asker, settings = replayed(server, tmp_path, after)
    assert asker.sent == 0 and second.rounds == after.rounds and len(second.rounds) > len(before.rounds)
    for one, other in zip(second.scored, after.scored, strict=True):
        np.testing.assert_array_equal(one.scores, other.scores)


def test_queries_are_chosen_by_the_student_and_by_what_people_found(server: JudgeServer, tmp_path: Path) -> None:
    found, _ = judging(server, tmp_path, None, **FIRST)
    agrees = {one.query_id: scored.scores.tolist() for one, scored in zip(found.lists, found.scored, strict=True)}
    every = Refine(student="x", share=1)
    assert doubts(found, agrees, {}, every) == [], "nothing to ask where both agree"
    first, second, third = (one.query_id for one in found.lists[:3])
    turned = {**agrees, first: [-score for score in agrees[first]]}
    order = np.argsort(-np.array(agrees[second]), kind="stable").tolist()
    best = np.argsort(-np.array(agrees[third]), kind="stable").tolist()
    # Place 11; and one of two relevant documents on top.
    relevant = {second: {str(order[10]), str(order[15])}, third: {str(best[0]), str(best[19])}}
    chosen = doubts(found, turned, relevant, every)
    assert [(doubt.query_id, doubt.place) for doubt in chosen] == [(second, 11), (first, None)]
    # Of 20 documents turned round, none of the ten best is the same.
    assert [(doubt.disagreement, doubt.overlap) for doubt in chosen] == [(1.0, 1.0), (1.0, 0.0)]
    assert [doubt.query_id for doubt in doubts(found, turned, relevant, every.model_copy(update={"share": 0.01}))] == [
        second
    ]
    student_alone = every.model_copy(update={"positives_below": None})
    assert [doubt.query_id for doubt in doubts(found, turned, relevant, student_alone)] == [first]


def test_answers_about_other_texts_and_a_spent_budget_are_refused(server: JudgeServer, tmp_path: Path) -> None:
    found, _ = judging(server, tmp_path, None, **FIRST)
    asked = len(server.asked)
    with pytest.raises(UserError, match=r"refine\.student: query q\d+ and two .* were shown to j in other words there"):
        replayed(server, tmp_path, found, text=lambda document: f"{document} again")
    with pytest.raises(UserError, match=r"budget\.calls: 599 of 599 spent: .*, and nothing is asked yet: answers of"):
        replayed(server, tmp_path, found, calls=QUERIES * DOCUMENTS - 1)
    before, asker, settings = replayed(server, tmp_path, found, calls=QUERIES * DOCUMENTS)
    chosen = doubts(before, student(), {}, settings.refine)
    with pytest.raises(UserError, match=r"budget\.calls: 600 of 600 spent"):
        refined(before, chosen, settings, asker, lambda count: None, seed=0)
    assert len(server.asked) == asked

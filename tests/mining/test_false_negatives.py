"""Estimates of false negatives: by hand, as shares with intervals, and of the files of a run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankwright.common.errors import UserError
from rankwright.common.stats import Share, clustered_share
from rankwright.data.collection import Collection
from rankwright.mining.false_negatives import (
    MEANINGS,
    above_teacher,
    kept_when_held_out,
    read_estimate,
    relevant_among_judged,
    share_text,
)
from rankwright.mining.filters import MiningView, bind_filters
from rankwright.mining.pools import Negative
from rankwright.retrieval.candidates import Candidate

SET = Collection(
    "set",
    {"p1": "The bond", "p2": "the  BOND", "p3": "a loan", "n1": "a river", "n2": "a town", "bad": "a sofa"},
    {"one": "bond?", "three": "bonds?", "none": "nothing"},
    {"one": {"p1": 1.0, "bad": 0.0}, "three": {"p1": 1.0, "p2": 2.0, "p3": 1.0}, "none": {"bad": 0.0}},
)


def listed(*ids: str) -> list[Candidate]:
    return [Candidate(d, 10.0 - rank, rank) for rank, d in enumerate(ids, start=1)]


LISTS = {"one": listed("n1", "p1", "bad"), "three": listed("p3", "n1", "p1", "n2", "p2"), "none": listed("bad")}
EMPTY = Collection("", {}, {}, {})


def test_negatives_above_the_relevant_document_by_hand() -> None:
    def negative(document_id: str, **changes: Any) -> Negative:
        return replace(Negative(document_id, "bm25", 1, 1.0, "unjudged"), **changes)

    pools = {
        "one": (negative("bad", source="judged"), negative("n1"), negative("n2", label=None)),
        "three": (negative("n1"), negative("n2"), negative("p9", label=1.0)),
        "none": (negative("n1"),),
    }
    scores = {"one": {"p1": 2.0, "n1": 1.0}, "three": {"p1": -3.0, "p2": 0.0, "p3": 5.0, "n1": 6.0, "n2": 4.5}}
    assert above_teacher([SET], pools, scores) == ([0, 1], [1, 2])


def test_judged_documents_among_the_retrieved_by_hand() -> None:
    assert relevant_among_judged([SET], LISTS) == ([1, 3, 0], [2, 3, 1])
    # Where only relevant ones are judged it would be 1 whatever is retrieved.
    only = replace(SET, qrels={"one": {"p1": 1.0}})
    assert relevant_among_judged([only], LISTS) == ([], [])


def held_out(options: dict[str, dict[str, Any]], **changes: Any) -> tuple[list[int], list[int]]:
    view = MiningView(EMPTY, "bm25", {}, {}, **changes)
    return kept_when_held_out([SET], LISTS, bind_filters(options), view)


def test_relevant_documents_left_out_in_turn_by_hand() -> None:
    # p1 and p2 are one text: each gives the other away; p3 does not.
    assert held_out({}) == ([1], [3])
    # It is the first hit.
    assert held_out({"rank_window": {"first": 2}}) == ([0], [3])
    assert held_out({"rank_window": {"last": 1}}) == ([1], [3])
    # Its retrieved score is the best: 9, and 7 the best of the others.
    assert held_out({"margin": {"absolute": 0.0}}) == ([0], [3])
    scores = {"three": {"p1": 1.0, "p2": 0.0, "p3": 2.0}}
    asked: list[set[str]] = []

    def teacher(wanted: Any) -> Any:
        asked.append({d for documents in wanted.values() for d in documents})
        return scores

    assert held_out({"teacher": {}}, teacher=teacher) == ([0], [3])
    assert held_out({"teacher": {"margin": -2.0}}, teacher=teacher) == ([1], [3])
    # No filter of texts removes what is promoted or soft, and it is no negative either.
    assert held_out({"teacher": {"above": "promote"}}, teacher=teacher) == ([0], [3])
    assert held_out({"teacher": {"above": "soft"}}, teacher=teacher) == ([0], [3])
    # Asked about nothing but relevant documents, which have scores anyway.
    assert all(documents <= {"p1", "p2", "p3"} for documents in asked)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 5)).map(lambda t: (min(t), t[1])), min_size=1, max_size=20))
def test_a_share_lies_in_its_interval_and_order_does_not_decide_it(counts: list[tuple[int, int]]) -> None:
    parts, wholes = zip(*counts, strict=True)
    share = clustered_share(parts, wholes, resamples=500)
    assert 0 <= share.low <= share.share <= share.high <= 1
    assert share == clustered_share(parts, wholes, resamples=500)
    assert (share.part, share.whole, share.groups) == (sum(parts), sum(wholes), len(counts))


def test_intervals_against_what_is_known() -> None:
    # Groups of one: the binomial share, whose normal interval is 0.3 +- 0.0898.
    share = clustered_share([1] * 30 + [0] * 70, [1] * 100)
    assert (share.low, share.high) == (pytest.approx(0.21, abs=0.015), pytest.approx(0.39, abs=0.015))
    # The same things in fewer, equal groups say less.
    grouped = clustered_share([10] * 3 + [0] * 7, [10] * 10)
    assert grouped.high - grouped.low > 2 * (share.high - share.low)
    # Nothing seen in 100: not above 3.6 %, the exact interval.
    assert clustered_share([0] * 100, [2] * 100).high == pytest.approx(0.0362, abs=1e-4)
    assert clustered_share([2] * 100, [2] * 100).low == pytest.approx(1 - 0.0362, abs=1e-4)
    with pytest.raises(UserError, match="at least one group"):
        clustered_share([], [])


def test_facts_come_back_and_are_spelled() -> None:
    values = {"part": 31, "whole": 1000, "groups": 140, "share": 0.031, "low": 0.02, "high": 0.044}
    ((words, share),) = read_estimate({"above_positive": values})
    assert words == MEANINGS["above_positive"]
    assert share == Share(**values)  # type: ignore[arg-type]
    assert share_text(share) == "3.1 % [2.0, 4.4] (31 of 1,000, of 140 queries)"
    assert read_estimate({}) == []
    with pytest.raises(UserError, match="not an estimate"):
        read_estimate({"judged": {"part": 1}})

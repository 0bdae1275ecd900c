"""The filter `teacher`: what is above the relevant document less a margin is dropped, promoted or soft."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankwright.common.errors import UserError
from rankwright.data.collection import Collection
from rankwright.mining.filters import FILTERS, Decided, MiningView, check_filters
from rankwright.recipe.schema import Mine
from rankwright.retrieval.candidates import Candidate

DOCUMENTS = [f"d{n}" for n in range(8)]
QUERIES = ("one", "several", "none")
QRELS = {"one": {"p1": 1.0, "bad": 0.0}, "several": {"p1": 2.0, "p2": 1.0}, "none": {"bad": 0.0}}
SET = Collection(
    "set", {d: f"text of {d}" for d in [*DOCUMENTS, "p1", "p2", "bad"]}, {q: f"what is {q}?" for q in QUERIES}, QRELS
)
SCORE = st.floats(-20, 20, allow_nan=False)
SCORES = st.fixed_dictionaries({q: st.fixed_dictionaries(dict.fromkeys(SET.corpus, SCORE)) for q in QUERIES})


def decide(scores: Mapping[str, Mapping[str, float]], **options: Any) -> Decided:
    asked: list[Mapping[str, Sequence[str]]] = []

    def teacher(wanted: Mapping[str, Sequence[str]]) -> dict[str, dict[str, float]]:
        asked.append(wanted)
        return {q: {d: scores[q][d] for d in documents} for q, documents in wanted.items()}

    candidates = {q: [Candidate(d, 9.0 - n, n + 1) for n, d in enumerate(DOCUMENTS)] for q in QUERIES}
    view = MiningView(SET, "bm25", candidates, candidates, teacher=teacher)
    decided: Decided = FILTERS.bind("teacher", options)(view)
    # All queries at once, so that pairs are batched over them; never a judged negative.
    assert len(asked) == 1 and not any("bad" in documents for documents in asked[0].values())
    assert decided.notes == {q: {d: scores[q][d] for d in DOCUMENTS} for q in QUERIES}
    return decided


def chosen(decided: Decided) -> dict[str, set[str]]:
    found = decided.removed or decided.labels
    return {q: set(found.get(q, ())) for q in QUERIES}


def test_what_is_above_the_margin_by_hand() -> None:
    scores = {q: dict.fromkeys(SET.corpus, -9.0) | {"p1": 2.0, "p2": -1.0, "d0": 3.0, "d1": 1.5} for q in QUERIES}
    assert chosen(decide(scores)) == {"one": {"d0"}, "several": {"d0"}, "none": set()}
    assert chosen(decide(scores, margin=1.0)) == {"one": {"d0", "d1"}, "several": {"d0", "d1"}, "none": set()}
    # As high as the relevant document less the margin is not above it.
    assert chosen(decide(scores, margin=0.5))["one"] == {"d0"}
    assert chosen(decide(scores, margin=-1.0))["one"] == set()
    assert chosen(decide(scores, positive="lowest")) == {"one": {"d0"}, "several": {"d0", "d1"}, "none": set()}
    assert decide(scores).removed["one"] == {"d0": "teacher_above_margin"}
    promoted, soft = decide(scores, above="promote", label=0.5), decide(scores, above="soft")
    assert not promoted.removed and not soft.removed
    assert (promoted.labels["one"], soft.labels["one"]) == ({"d0": 0.5}, {"d0": None})


@given(SCORES, st.floats(-10, 10), st.floats(0, 10), st.sampled_from(["drop", "promote", "soft"]), st.booleans())
def test_a_larger_margin_never_adds_and_only_candidates_are_decided(
    scores: dict[str, dict[str, float]], margin: float, more: float, above: str, lowest: bool
) -> None:
    options = {"above": above, "positive": "lowest" if lowest else "best"}
    narrow, wide = (chosen(decide(scores, margin=m, **options)) for m in (margin, margin + more))
    for query_id in QUERIES:
        assert narrow[query_id] <= wide[query_id] <= set(DOCUMENTS)
    assert not wide["none"]
    # The same whatever is done with them, and the lowest is never kinder than the best.
    assert wide == chosen(decide(scores, margin=margin + more, **options | {"above": "drop"}))
    strict = chosen(decide(scores, margin=margin, positive="lowest"))
    assert all(found <= strict[q] for q, found in chosen(decide(scores, margin=margin)).items())


@given(SCORES, st.floats(-50, 50))
def test_only_differences_of_scores_count(scores: dict[str, dict[str, float]], shift: float) -> None:
    """A margin of a signed score's share would turn round below 0."""
    whole = {q: {d: float(round(s)) for d, s in row.items()} for q, row in scores.items()}
    moved = {q: {d: s + round(shift) for d, s in row.items()} for q, row in whole.items()}
    assert chosen(decide(whole, margin=1.5)) == chosen(decide(moved, margin=1.5))


def test_what_is_missing_or_wrong_is_said() -> None:
    (fault,) = check_filters(Mine(filters={"teacher": {}}))
    assert fault.startswith("mine.filters.teacher: filter 'teacher': needs mine.teacher")
    for options in ({"above": "keep"}, {"label": 0.0}, {"margin": "5%"}, {"absolute": 1.0}):
        with pytest.raises(UserError, match="filter 'teacher'"):
            FILTERS.bind("teacher", options)

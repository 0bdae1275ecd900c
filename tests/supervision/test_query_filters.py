"""Filters of written queries: what each one rejects and why, what it lets pass, and their order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from rankwright.common.errors import UserError
from rankwright.data.passages import Passage
from rankwright.data.words import Words
from rankwright.retrieval.bm25 import bm25
from rankwright.retrieval.candidates import Candidate
from rankwright.supervision.queries import filters
from rankwright.supervision.queries.filters import QUERY_FILTERS, QueryView, chosen_filters, relevant, sift
from rankwright.supervision.queries.sampling import sample
from rankwright.supervision.queries.written import Written

NAMES = ["format", "language", "copies", "mentions", "duplicates", "leak", "round_trip", "teacher"]
TEXTS = {
    "bond": "A bond is a loan of an investor to a firm, which pays interest on it twice a year until it ends.",
    "share": "A share is a part of a firm, whose owner votes on its board and receives a dividend if there is one.",
    "option": "An option is the right, and not the duty, to buy a share at a price that is agreed on beforehand.",
}


def written(text: str, passage: str = "bond", **about: Any) -> Written:
    return Written(text, "lookup", passage, passage, passage, **about)


def view(*queries: Written, **about: Any) -> QueryView:
    search = bm25(TEXTS, depth=1000)

    def found(asked: Mapping[int, Written], top: int) -> dict[int, Sequence[Candidate]]:
        lists = search({str(n): query.text for n, query in asked.items()})
        return {n: lists[str(n)][:top] for n in asked}

    values = {"texts": TEXTS, "held": {}, "held_passages": {}, "search": found, **about}
    return QueryView(dict(enumerate(queries)), **values)


def reasons(name: str, seen: QueryView, **options: Any) -> dict[int, str]:
    return {n: why[0] for n, why in QUERY_FILTERS.bind(name, options)(seen).removed.items()}


def test_every_filter_has_sentences_for_its_reasons_and_their_order_is_fixed() -> None:
    assert list(QUERY_FILTERS) == NAMES
    assert list(chosen_filters({}, has_teacher=False)) == list(QUERY_FILTERS)[:-1]
    assert list(chosen_filters({"round_trip": {"top": 5}, "copies": None}, has_teacher=True)) == [
        name for name in QUERY_FILTERS if name != "copies"
    ], "the order is not that of the recipe"
    for options, why in (
        ({"round_trp": {}}, "unknown filter of queries 'round_trp', did you mean 'round_trip'"),
        ({"copies": {"share": 2}}, "filter 'copies': share"),
        ({"teacher": {}}, "needs mine.teacher"),
    ):
        with pytest.raises(UserError, match=why):
            chosen_filters(options, has_teacher=False)
    codes = [code for one in QUERY_FILTERS.values() for code in one.reasons]
    assert len(codes) == len(set(codes)) and all(
        text for one in QUERY_FILTERS.values() for text in one.reasons.values()
    )


def test_format_rejects_what_is_not_a_query() -> None:
    queries = {
        "what does a bond pay?": None,
        "bond": "too_short",
        "word " * 65: "too_long",
        "Query: what does a bond pay": "not_a_query",
        "Sure, here is a query": "not_a_query",
        'what is {"text": [[1]]}': "not_a_query",
        "債券は何ですか": None,
        "how do I sort a list[int] in python": None,
    }
    seen = view(*map(written, queries), written("x", malformed="prose"))
    expected = {n: why for n, why in enumerate(queries.values()) if why} | {len(queries): "malformed"}
    assert reasons("format", seen) == expected


def test_copies_are_runs_of_the_passage() -> None:
    seen = view(
        written("is a loan of an investor to a firm"),
        written("which firm pays interest twice a year to whom?"),
        written("a loan of"),
        written("A LOAN, of an investor: why?"),
    )
    assert reasons("copies", seen) == {0: "copies_passage", 3: "copies_passage"}
    assert reasons("copies", seen, share=0.9) == {0: "copies_passage"}
    noted = QUERY_FILTERS.bind("copies", {})(seen).notes
    assert noted[0] == 1.0 and noted[3] == pytest.approx(5 / 6, abs=1e-3) and noted[1] < 0.6


@pytest.mark.parametrize(
    ("text", "is_out"),
    [
        ("what does the passage state about bonds", True),
        ("according to this document, who pays?", True),
        ("who pays, as described above", True),
        ("what does this section require", True),
        ("what does section 5 require", False),
        ("how do I open a document in Python", False),
        ("passage of a law", False),
    ],
)
def test_mentions_of_the_document_are_rejected(text: str, is_out: bool) -> None:
    assert reasons("mentions", view(written(text))) == ({0: "mentions_document"} if is_out else {})


def test_one_of_near_duplicates_stays_that_which_fits_its_passage() -> None:
    long = (
        "when does a firm have to pay the interest on a bond that it has issued to an investor of another country "
        "which is not its own and whose law it does not know"
    )
    queries = (
        written("what is an option worth", "bond"),
        written("What is an option worth?", "option"),
        written(long, "bond"),
        written(long.replace("issued", "given"), "bond"),
        written("who votes on the board", "share"),
    )
    found = reasons("duplicates", view(*queries))
    assert set(found) in ({0, 2}, {0, 3}) and set(found.values()) == {"duplicate_query"}
    names = [queries[n].text for n in range(5) if n not in found]
    backwards = reasons("duplicates", view(*queries[::-1]))
    assert sorted(names) == sorted(queries[::-1][n].text for n in range(5) if n not in backwards), "whatever the order"


def test_what_dev_or_test_asks_is_a_leak() -> None:
    seen = view(
        written("what does a bond pay"),
        written("who votes on the board", "share"),
        held={"t/1": "What does a bond pay?"},
        held_passages={"t/d": TEXTS["share"] + " Or not."},
    )
    assert reasons("leak", seen) == {0: "leaks"}
    assert reasons("leak", seen, passages=True) == {0: "leaks", 1: "passage_leaks"}


def test_the_round_trip_finds_the_passage_again() -> None:
    seen = view(written("interest on a loan"), written("the right to buy", "bond"), written("zebra"))
    found = QUERY_FILTERS.bind("round_trip", {"top": 1})(seen)
    assert {n: why[0] for n, why in found.removed.items()} == {1: "not_found", 2: "not_found"} and found.notes == {0: 1}


def test_the_teacher_drops_promotes_and_keeps() -> None:
    given = {0: {"bond": 3.0}, 1: {"bond": 1.0, "share": 2.0}, 2: {"bond": 0.0}}

    def scores(asked: Mapping[int, Written], wanted: Mapping[int, Sequence[str]]) -> dict[int, dict[str, float]]:
        rest = {0: 0.0, 1: 0.5, 2: 1.0}
        return {n: {d: given[n].get(d, rest[n]) for d in wanted[n]} for n in asked}

    text = "a firm, a share, a loan and an option"
    seen = view(*(written(f"{text} {n}") for n in range(3)), scores=scores)
    kept, out = sift(seen, {"teacher": QUERY_FILTERS.bind("teacher", {"top": 2})})
    assert {n: why[:2] for n, why in out.items()} == {2: ("teacher", "teacher_low")}
    assert relevant(kept[0]) == ["bond"] and relevant(kept[1]) == ["bond", "share"]
    assert kept[1].verdicts["teacher"] == {"rank": 2, "score": 1.0, "promoted": "share"}
    assert reasons("teacher", seen, top=2, above="drop") == {1: "teacher_prefers_other", 2: "teacher_low"}
    assert reasons("teacher", seen, top=2, above="drop", margin=1.0) == {2: "teacher_low"}


def test_filters_see_only_what_is_left() -> None:
    seen = view(written("a loan of an investor to a firm"), written("interest on a loan: how often"), written("x"))
    kept, out = sift(seen, chosen_filters({}, has_teacher=False))
    assert {n: why[:2] for n, why in out.items()} == {0: ("copies", "copies_passage"), 2: ("format", "too_short")}
    assert list(kept) == [1] and kept[1].verdicts["round_trip"] == 1 and kept[1] != seen.queries[1]
    assert replace(kept[1], verdicts={}) == seen.queries[1]


def test_passages_are_drawn_round_the_clusters() -> None:
    subjects = {"bond": 60, "water": 12, "music": 8}
    found = [
        Passage(
            f"{name}{n}",
            " ".join([name] * 5 + [f"{name}{k}" for k in range(n % 3, n % 3 + 6)]),
            "",
            "",
            "",
            False,
            "d",
            "g",
        )
        for name, count in subjects.items()
        for n in range(count)
    ]
    words = Words("english")
    chosen = sample(found, 18, 3, 0, words)
    counts = [sum(p.id.startswith(name) for p in chosen) for name in subjects]
    assert counts == [6, 6, 6], "a subject with most of the passages has no more of them"
    assert chosen == sample(found[::-1], 18, 3, 0, words) and chosen != sample(found, 18, 3, 1, words)
    assert sample(found, 80, None, 0, words) == sorted(found, key=lambda p: p.id)
    assert len(sample(found, 7, None, 0, words)) == 7


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [("a b c", "x a b y b c", 2), ("a b c d", "b c d", 3), ("a", "b", 0), ("a b", "a b", 2), ("", "a", 0)],
)
def test_the_longest_run(one: str, other: str, expected: int) -> None:
    assert filters.longest_run(one.split(), other.split()) == expected

"""Filters only remove, for the reason they say, and each decides a query as if it were alone."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankwright.common.errors import UserError
from rankwright.data.collection import Collection
from rankwright.mining.filters import FILTERS, MiningView, bind_filters, split_filters
from rankwright.mining.pools import apply, pool_of, sift
from rankwright.retrieval.candidates import Candidate

TEXT = "the lessee pays the rent on the first day of every month to the lessor"
CORPUS = {
    "good": TEXT,
    "near": TEXT + " promptly",
    "punctuated": TEXT.upper().replace(" ", ", "),
    "far": "the lessor repairs the roof",
    **{f"n{i}": f"other words {i} of no use at all" for i in range(6)},
}
SET = Collection(
    "set",
    CORPUS,
    {"q": "rent?", "r": "roof?", "s": "nobody judged"},
    {"q": {"good": 1.0, "n5": 0.0}, "r": {"far": 2.0, "good": 1.0}},
    document_groups={"good": "lease", "n0": "lease", "n1": "other"},
)
OPTIONS: dict[str, dict[str, Any]] = {
    "rank_window": {"first": 2, "last": 6},
    "margin": {"absolute": 1.0},
    "same_group": {},
    "near_duplicate": {"jaccard": 0.5},
    "max_reuse": {"most": 1},
}
assert set(OPTIONS) <= set(FILTERS)


def listed(*ids: str, scores: list[float] | None = None) -> list[Candidate]:
    return [Candidate(d, scores[i] if scores else 10.0 - i, i + 1) for i, d in enumerate(ids)]


def kept(lists: dict[str, list[Candidate]], seed: int = 0, **filters: dict[str, Any]) -> dict[str, list[str]]:
    found = sift(SET, lists)
    apply(found, bind_filters(filters), MiningView(SET, "bm25", {}, {}, seed))
    assert found.counts().total() == sum(map(len, lists.values()))
    return {q: [n.document_id for n in pool_of(SET, found, q, "bm25") if n.reason == "unjudged"] for q in lists}


RANKED = st.lists(st.sampled_from(list(CORPUS)), unique=True).flatmap(
    lambda ids: st.lists(st.floats(-20, 20).map(lambda x: round(x, 2)), min_size=len(ids), max_size=len(ids)).map(
        lambda scores: listed(*ids, scores=sorted(scores, reverse=True))
    )
)
LISTS = st.fixed_dictionaries({"q": RANKED, "r": RANKED, "s": RANKED})


@given(LISTS, st.permutations(list(OPTIONS)), st.integers(1, 5))
@settings(deadline=None, max_examples=40)
def test_a_filter_only_removes(lists: dict[str, list[Candidate]], order: list[str], most: int) -> None:
    before = kept(lists)
    for count in range(len(order) + 1):
        after = kept(lists, **{name: OPTIONS[name] for name in order[:count]})
        for query_id, ids in after.items():
            assert set(ids) <= set(before[query_id]) and ids == [d for d in before[query_id] if d in ids]
        before = after


@given(LISTS, st.sampled_from(["absolute", "relative_to_spread", "ranks"]), st.integers(0, 9), st.integers(0, 9))
@settings(deadline=None)
def test_a_larger_margin_never_adds(lists: dict[str, list[Candidate]], kind: str, one: int, other: int) -> None:
    small, large = (kept(lists, margin={kind: value}) for value in sorted((one, other)))
    assert all(set(large[q]) <= set(small[q]) for q in lists)


@given(LISTS, st.sampled_from([name for name in OPTIONS if not FILTERS[name].across_queries]))
@settings(deadline=None, max_examples=40)
def test_a_query_is_decided_as_if_alone(lists: dict[str, list[Candidate]], name: str) -> None:
    together = kept(lists, **{name: OPTIONS[name]})
    alone = {q: kept({q: found}, **{name: OPTIONS[name]})[q] for q, found in lists.items()}
    assert together == alone


@given(LISTS, st.integers(0, 3), st.integers(1, 3))
@settings(deadline=None)
def test_reuse_is_bounded_and_does_not_depend_on_the_order_of_queries(
    lists: dict[str, list[Candidate]], seed: int, most: int
) -> None:
    found = kept(lists, seed, max_reuse={"most": most})
    assert found == kept(dict(reversed(lists.items())), seed, max_reuse={"most": most})
    before = kept(lists)
    # Nothing is drawn from the pool of a query without a relevant document: it takes no place of another.
    assert found["s"] == before["s"]
    for document_id in CORPUS:
        uses = [q for q in ("q", "r") if document_id in before[q]]
        ranks = {q: next(c.rank for c in lists[q] if c.document_id == document_id) for q in uses}
        stays = [q for q in uses if document_id in found[q]]
        assert len(stays) == min(most, len(uses))
        assert all(ranks[a] <= ranks[b] for a in stays for b in uses if b not in stays)


def test_window() -> None:
    lists = {"q": listed("n0", "n1", "n2", "n3")}
    assert kept(lists, rank_window={"first": 2})["q"] == ["n1", "n2", "n3"]
    assert kept(lists, rank_window={"first": 2, "last": 3})["q"] == ["n1", "n2"]
    with pytest.raises(UserError, match="nothing lies between"):
        kept(lists, rank_window={"first": 4, "last": 3})


def test_margin_holds_for_negative_scores_and_counts_what_it_cannot_judge() -> None:
    # The usual share of the positive's score, 95 % of -4, would be above it and keep everything.
    lists = {
        "q": listed("n0", "good", "n1", "n2", scores=[-3.0, -4.0, -4.5, -6.0]),
        "r": listed("n0"),
        "s": listed("n1"),
    }
    assert kept(lists, margin={"absolute": 0.0})["q"] == ["n1", "n2"]
    assert kept(lists, margin={"absolute": 1.0}) == {"q": ["n2"], "r": ["n0"], "s": ["n1"]}
    found = sift(SET, lists)
    apply(found, bind_filters({"margin": {"absolute": 1.0}}), MiningView(SET, "bm25", {}, {}))
    assert found.said == {"margin: queries without a retrieved relevant document, no margin": 1}
    assert found.notes["q"] == {"n0": {"margin": -1.0}, "n1": {"margin": 0.5}, "n2": {"margin": 2.0}}
    # Interquartile range of -3, -4, -4.5, -6: from -4.875 to -3.75.
    assert kept(lists, margin={"relative_to_spread": 1.7})["q"] == ["n2"]
    assert kept(lists, margin={"relative_to_spread": 1.8})["q"] == []
    assert kept(lists, margin={"ranks": 0})["q"] == ["n1", "n2"]
    assert kept(lists, margin={"ranks": 2})["q"] == ["n2"]
    for options in ({}, {"absolute": 1, "relative_to_spread": 1}):
        with pytest.raises(UserError, match="exactly one of absolute, relative_to_spread, ranks"):
            kept(lists, margin=options)


def test_margin_goes_by_the_best_relevant_document() -> None:
    lists = {"r": listed("far", "n0", "good", "n1", scores=[9.0, 8.0, 2.0, 1.0])}
    assert kept(lists, margin={"absolute": 0.5})["r"] == ["n0", "n1"]


def test_scale_of_the_scores_does_not_matter_to_the_spread() -> None:
    scores = [9.0, 7.0, 6.0, 5.5, 1.0]
    ids = ("n0", "good", "n1", "n2", "n3")
    one, other = (
        kept({"q": listed(*ids, scores=[a * s + b for s in scores])}, margin={"relative_to_spread": 0.5})
        for a, b in ((1, 0), (8, -128))
    )
    assert one == other == {"q": ["n1", "n2", "n3"]}


def test_same_group() -> None:
    lists = {"q": listed("n0", "n1", "n2"), "r": listed("n0"), "s": listed("n0")}
    assert kept(lists, same_group={}) == {"q": ["n1", "n2"], "r": [], "s": ["n0"]}


def test_near_duplicates() -> None:
    lists = {"q": listed("near", "punctuated", "far", "n0")}
    assert kept(lists)["q"] == ["near", "punctuated", "far", "n0"]
    assert kept(lists, near_duplicate={})["q"] == ["far", "n0"]
    # Of 11 and 12 runs of five words 11 are shared.
    assert kept(lists, near_duplicate={"jaccard": 11.5 / 12})["q"] == ["near", "far", "n0"]
    assert kept(lists, near_duplicate={"jaccard": 11 / 12})["q"] == ["far", "n0"]


def test_near_duplicates_of_code_and_of_texts_without_content() -> None:
    corpus = {"good": "x = f(a, b)  # the sum", "commented": "x = f(a, b)", "cased": "X = f(a, b)", "empty": "- !"}
    qrels = {"q": {"good": 1.0}, "r": {"blank": 1.0}}
    code = Collection("code", {**corpus, "blank": " \t"}, {"q": "sum", "r": "?"}, qrels)
    lists = {q: listed("commented", "cased", "empty") for q in code.queries}
    for is_code, removed in ((True, {"q": {"commented"}}), (False, {})):
        view = MiningView(code, "bm25", lists, lists, 0, is_code)
        found = bind_filters({"near_duplicate": {}})["near_duplicate"](view).removed
        assert {q: set(gone) for q, gone in found.items()} == removed


def test_the_first_that_looks_across_queries_ends_the_shards() -> None:
    assert split_filters(["margin", "max_reuse", "same_group"]) == (["margin"], ["max_reuse", "same_group"])
    assert split_filters(["margin"]) == (["margin"], [])
    with pytest.raises(UserError, match="unknown filter 'margn', did you mean 'margin'"):
        bind_filters({"margn": {}})

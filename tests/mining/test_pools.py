"""Pools only lose candidates, draws are pure and uniform, and the files come back as they were."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pool_files import write_negatives

from rankwright.common.errors import UserError
from rankwright.data.collection import Collection
from rankwright.mining.filters import MiningView, bind_filters
from rankwright.mining.pools import (
    Negative,
    Sifted,
    apply,
    filled,
    pool_id,
    pool_of,
    read_negatives,
    read_rows,
    rows_of,
    sift,
)
from rankwright.mining.samplers import DrawKey
from rankwright.retrieval.candidates import Candidate, read_candidates, write_candidates
from rankwright.training.sampling import build_group

KEY = DrawKey(seed=0, draw=0, query_id="q", pool_id="p")
SET = Collection(
    "set",
    {
        "good": "The Answer",
        "twin": "the  answer",
        "better": "Another answer",
        "bad": "Judged bad",
        "badtwin": "THE ANSWER",
        "n1": "one",
        "n2": "two",
        "n3": "three",
    },
    {"q": "what?", "only": "no candidates"},
    {"q": {"good": 1.0, "better": 3.0, "bad": 0.0, "badtwin": 0.0}, "only": {"bad": 0.0}},
)


def listed(*ids: str) -> list[Candidate]:
    return [Candidate(d, 10.0 - rank, rank) for rank, d in enumerate(ids, start=1)]


def pool_of_size(count: int) -> list[Negative]:
    return [Negative(f"d{i}", "bm25", i + 1, 1.0, "unjudged") for i in range(count)]


def sifted(candidates: dict[str, list[Candidate]], **filters: dict[str, object]) -> Sifted:
    """All queries of SET through the filters."""
    found = sift(SET, {q: candidates.get(q, []) for q in SET.queries})
    apply(found, bind_filters(filters), MiningView(SET, "bm25", {}, {}))
    return found


def pools_of(candidates: dict[str, list[Candidate]], **filters: dict[str, object]) -> dict[str, tuple[Negative, ...]]:
    found = sifted(candidates, **filters)
    return {q: pool_of(SET, found, q, "bm25") for q in SET.queries}


def test_every_reason() -> None:
    candidates = {"q": listed("n1", "good", "twin", "n2", "bad", "n3")}
    found = sifted(candidates, rank_window={"first": 2, "last": 5})
    assert {q: pool_of(SET, found, q, "bm25") for q in SET.queries} == {
        "q": (
            Negative("bad", "judged", 5, 5.0, "judged_not_relevant"),
            Negative("n2", "bm25", 4, 6.0, "unjudged"),
        ),
        "only": (Negative("bad", "judged", None, None, "judged_not_relevant"),),
    }
    assert found.counts() == {"kept": 1, "positive": 1, "judged": 1, "outside_window": 2, "duplicate_of_positive": 1}
    assert found.counts_by_filter() == {"rank_window": 2}


OWN_SET = Collection(
    "set",
    {"q": "a text of its own", "same": "WHAT\u200b is  it?", "n": "another", "judged": "what is it?", "good": "It is."},
    {"q": "what is it?", "r": "why?"},
    {"q": {"good": 1.0, "judged": 0.0}, "r": {"good": 1.0}},
)


@pytest.mark.parametrize(
    ("own", "kept", "removed"),
    [
        (frozenset("q"), {"n"}, {"q": "query_itself", "same": "query_itself", "judged": "judged", "good": "positive"}),
        # By its id alone a document is the query's own only where the recipe wants it.
        (frozenset(), {"n", "q"}, {"same": "query_itself", "judged": "judged", "good": "positive"}),
    ],
)
def test_a_query_is_no_negative_of_itself(own: frozenset[str], kept: set[str], removed: dict[str, str]) -> None:
    found = sift(OWN_SET, {"q": listed(*OWN_SET.corpus), "r": listed("same")}, own)
    assert {c.document_id for c in found.left("q")} == kept
    assert {d: by.reason for d, by in found.removed["q"].items()} == removed
    assert [c.document_id for c in found.left("r")] == ["same"]
    # A person judged that document.
    assert [n.document_id for n in pool_of(OWN_SET, found, "q", "bm25") if n.source == "judged"] == ["judged"]
    view = MiningView(OWN_SET, "bm25", {"q": []}, {})
    drawn = filled((), "q", 5, view=view, filters={}, document_ids=sorted(OWN_SET.corpus))
    assert {n.document_id for n in drawn} == {"n", "q"}


LISTS = st.lists(st.sampled_from(list(SET.corpus)), unique=True).map(lambda ids: listed(*ids))


@given(LISTS, st.integers(1, 6), st.integers(0, 9))
def test_filters_only_remove_and_count_everything(candidates: list[Candidate], first: int, more: int) -> None:
    window = {"first": first, "last": first + more}
    found = sifted({"q": candidates}, rank_window=window)
    pool = pool_of(SET, found, "q", "bm25")
    kept = [n.document_id for n in pool]
    assert len(kept) == len(set(kept))
    assert not set(kept) & {"good", "better", "twin", "badtwin"}
    by_retriever = [n for n in pool if n.source == "bm25"]
    assert {n.document_id for n in by_retriever} <= {c.document_id for c in candidates}
    assert all(n.rank is not None and first <= n.rank <= first + more for n in by_retriever)
    assert found.counts().total() == len(candidates)
    # A smaller window is a subset.
    narrow = pools_of({"q": candidates}, rank_window={**window, "first": first + min(1, more)})
    assert set(narrow["q"]) <= set(pool)


@given(LISTS, st.randoms(use_true_random=False))
def test_order_of_the_candidates_does_not_matter(candidates: list[Candidate], random: object) -> None:
    shuffled = list(candidates)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert pools_of({"q": candidates}) == pools_of({"q": shuffled})


@given(LISTS)
def test_what_was_decided_survives_a_file(candidates: list[Candidate]) -> None:
    found = sifted({"q": candidates}, rank_window={"first": 2}, margin={"absolute": 2})
    again = read_rows([json.loads(json.dumps(row)) for row in rows_of(found)], dict(found.said))
    assert again == found


def test_a_candidate_of_another_corpus_is_refused() -> None:
    with pytest.raises(UserError, match="'stranger' is not in the corpus of 'set'"):
        pools_of({"q": listed("stranger")})


def test_group_holds_labels_texts_and_sources() -> None:
    pool = pools_of({"q": listed("n1", "n2", "n3")})["q"]
    group = build_group(SET, pool, KEY, negatives=9, positives=9)
    assert group.query == "what?"
    assert dict(zip(group.document_ids, group.labels, strict=True)) == {
        "good": 1.0,
        "better": 3.0,
        **dict.fromkeys(("bad", "n1", "n2", "n3"), 0.0),
    }
    assert group.sources[:2] == ("positive", "positive")
    assert Counter(group.sources) == {"positive": 2, "judged": 1, "bm25": 3}
    assert group.documents == tuple(SET.corpus[d] for d in group.document_ids)
    assert group.weight == 1.0


def test_group_carries_the_weight_of_its_query() -> None:
    weighted = replace(SET, weights={"q": 2.5})
    keys = [KEY, KEY._replace(query_id="only")]
    groups = [build_group(weighted, (), key, negatives=1, positives=1) for key in keys]
    assert [group.weight for group in groups] == [2.5, 1.0]


@given(st.integers(1, 3), st.integers(0, 5), st.integers(0, 20))
@settings(max_examples=50)
def test_group_sizes_and_purity(positives: int, negatives: int, epoch: int) -> None:
    pool = pools_of({"q": listed("n1", "n2", "n3")})["q"]
    key = KEY._replace(draw=epoch)
    group = build_group(SET, pool, key, negatives=negatives, positives=positives)
    assert group == build_group(SET, pool[::-1], key, negatives=negatives, positives=positives)
    assert sum(label > 0 for label in group.labels) == min(positives, 2)
    assert len(group.labels) == min(positives, 2) + min(negatives, 4)


def test_positives_change_with_the_epoch() -> None:
    drawn = {build_group(SET, (), KEY._replace(draw=e), negatives=0, positives=1).document_ids for e in range(20)}
    assert drawn == {("good",), ("better",)}


def test_group_without_a_positive() -> None:
    pool = pools_of({})["only"]
    group = build_group(SET, pool, KEY._replace(query_id="only"), negatives=3, positives=3)
    assert (group.document_ids, group.labels, group.sources) == (("bad",), (0.0,), ("judged",))


def test_decisions_and_labels_are_kept(tmp_path: Path) -> None:
    pools = {"q": (Negative("n1", "bm25", 1, 9.0, "unjudged", (("margin", 1.5),), 0.25), *pool_of_size(2))}
    write_negatives(tmp_path / "negatives.jsonl", pools)
    first = json.loads((tmp_path / "negatives.jsonl").read_text())["negatives"][0]
    assert (first["decisions"], first["label"]) == ({"margin": 1.5}, 0.25)
    assert read_negatives(tmp_path / "negatives.jsonl") == pools
    group = build_group(SET, pools["q"][:1], KEY, negatives=1, positives=1)
    # Relevant after all: beside the judged ones, where there is place for more.
    assert group.sources == ("positive",)
    group = build_group(SET, pools["q"][:1], KEY, negatives=1, positives=3)
    assert group.labels[-1] == 0.25 and group.sources == ("positive", "positive", "promoted")


def test_negatives_round_trip_and_hash(tmp_path: Path) -> None:
    pools = pools_of({"q": listed("n1", "n2")})
    path, other = tmp_path / "negatives.jsonl", tmp_path / "other.jsonl"
    write_negatives(path, pools)
    write_negatives(other, dict(reversed(pools.items())))
    assert read_negatives(path) == pools
    assert pool_id(path) == pool_id(other) == hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    first = json.loads(path.read_text().splitlines()[1])
    assert first["query_id"] == "q"
    assert first["negatives"][1] == {
        "document_id": "n1",
        "source": "bm25",
        "rank": 1,
        "score": 9.0,
        "reason": "unjudged",
    }


@given(st.dictionaries(st.text(max_size=5), LISTS, max_size=4))
def test_candidates_round_trip(tmp_path_factory: pytest.TempPathFactory, lists: dict[str, list[Candidate]]) -> None:
    path = tmp_path_factory.mktemp("candidates") / "candidates.jsonl"
    write_candidates(path, lists)
    assert read_candidates(path) == lists


def test_scores_come_back_exactly(tmp_path: Path) -> None:
    path = tmp_path / "candidates.jsonl"
    write_candidates(path, {"é\n": [Candidate("d", 1 / 3, 1)]})
    assert read_candidates(path) == {"é\n": [Candidate("d", 1 / 3, 1)]}


@pytest.mark.parametrize("line", ["{", "[]", '{"query_id": "q"}', '{"query_id": "q", "negatives": [{"x": 1}]}'])
def test_a_damaged_file_names_its_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "negatives.jsonl"
    write_negatives(path, {"a": pool_of_size(1)})
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(UserError, match=r"negatives\.jsonl:2: not a row of negatives"):
        read_negatives(path)
    with pytest.raises(UserError, match="no such file"):
        read_negatives(tmp_path / "absent.jsonl")

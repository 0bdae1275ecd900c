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

from rankwright.errors import UserError
from rankwright.examples import Collection
from rankwright.mining import (
    Negative,
    build_group,
    draw_negatives,
    mine_pools,
    pool_id,
    read_candidates,
    read_negatives,
    write_candidates,
    write_negatives,
)
from rankwright.retrieve import Candidate

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


def pool_of(count: int) -> list[Negative]:
    return [Negative(f"d{i}", "bm25", i + 1, 1.0, "unjudged") for i in range(count)]


def test_every_reason() -> None:
    candidates = {"q": listed("n1", "good", "twin", "n2", "bad", "n3")}
    mined = mine_pools(SET, candidates, source="bm25", first_rank=2, depth=5)
    assert mined.pools == {
        "q": (
            Negative("bad", "judged", 5, 5.0, "judged_not_relevant"),
            Negative("n2", "bm25", 4, 6.0, "unjudged"),
        ),
        "only": (Negative("bad", "judged", None, None, "judged_not_relevant"),),
    }
    assert mined.counts == {
        "kept": 1,
        "positive": 1,
        "judged": 1,
        "outside_window": 2,
        "duplicate_of_positive": 1,
        "kept_judged": 2,
        "judged_duplicate_of_positive": 1,
    }


LISTS = st.lists(st.sampled_from(list(SET.corpus)), unique=True).map(lambda ids: listed(*ids))


@given(LISTS, st.integers(1, 6), st.integers(1, 9))
def test_filters_only_remove_and_count_everything(candidates: list[Candidate], first: int, depth: int) -> None:
    mined = mine_pools(SET, {"q": candidates}, source="bm25", first_rank=first, depth=depth)
    kept = [n.document_id for n in mined.pools["q"]]
    assert len(kept) == len(set(kept))
    assert not set(kept) & {"good", "better", "twin", "badtwin"}
    by_retriever = [n for n in mined.pools["q"] if n.source == "bm25"]
    assert {n.document_id for n in by_retriever} <= {c.document_id for c in candidates}
    assert all(n.rank is not None and first <= n.rank <= depth for n in by_retriever)
    reasons = ("kept", "positive", "judged", "outside_window", "duplicate_of_positive")
    assert sum(mined.counts.get(reason, 0) for reason in reasons) == len(candidates)
    # A smaller window is a subset.
    narrow = mine_pools(SET, {"q": candidates}, source="bm25", first_rank=first + 1, depth=depth)
    assert set(narrow.pools["q"]) <= set(mined.pools["q"])


@given(LISTS, st.randoms(use_true_random=False))
def test_order_of_the_candidates_does_not_matter(candidates: list[Candidate], random: object) -> None:
    shuffled = list(candidates)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    first, second = (
        mine_pools(SET, {"q": found}, source="bm25", first_rank=1, depth=100) for found in (candidates, shuffled)
    )
    assert first == second


def test_a_candidate_of_another_corpus_is_refused() -> None:
    with pytest.raises(UserError, match="'stranger' is not in the corpus of 'set'"):
        mine_pools(SET, {"q": listed("stranger")}, source="bm25", first_rank=1, depth=9)


KEYS = st.tuples(st.integers(0, 3), st.integers(0, 3), st.text(max_size=3), st.text(max_size=3))


@given(st.integers(0, 12), st.integers(0, 15), KEYS, st.randoms(use_true_random=False))
def test_draw_is_pure_and_within_the_pool(
    size: int, count: int, key: tuple[int, int, str, str], random: object
) -> None:
    options = dict(zip(("seed", "draw", "query_id", "pool_id"), key, strict=True))
    pool = pool_of(size)
    shuffled = list(pool)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    drawn = draw_negatives(pool, count, **options)  # type: ignore[arg-type]
    assert drawn == draw_negatives(shuffled, count, **options)  # type: ignore[arg-type]
    assert set(drawn) <= set(pool)
    assert len(drawn) == len(set(drawn)) == min(count, size)


def test_draw_is_uniform() -> None:
    pool = pool_of(10)
    seen = Counter(
        n.document_id
        for epoch in range(2000)
        for n in draw_negatives(pool, 3, seed=0, draw=epoch, query_id="q", pool_id="p")
    )
    assert len(seen) == 10
    # 600 expected of each, with a standard deviation of 20.5.
    assert all(abs(count - 600) < 90 for count in seen.values())


@pytest.mark.parametrize("changed", [{"seed": 1}, {"draw": 1}, {"query_id": "r"}, {"pool_id": "other"}])
def test_draw_depends_on_every_argument(changed: dict[str, object]) -> None:
    options: dict[str, object] = {"seed": 0, "draw": 0, "query_id": "q", "pool_id": "p"}
    first, second = (draw_negatives(pool_of(50), 10, **o) for o in (options, options | changed))  # type: ignore[arg-type]
    assert set(first) != set(second)


def test_group_holds_labels_texts_and_sources() -> None:
    pool = mine_pools(SET, {"q": listed("n1", "n2", "n3")}, source="bm25", first_rank=1, depth=9).pools["q"]
    group = build_group(SET, pool, "q", negatives=9, positives=9, seed=0, draw=0, pool_id="p")
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
    options = {"negatives": 1, "positives": 1, "seed": 0, "draw": 0, "pool_id": "p"}
    groups = [build_group(weighted, (), query_id, **options) for query_id in ("q", "only")]  # type: ignore[arg-type]
    assert [group.weight for group in groups] == [2.5, 1.0]


@given(st.integers(1, 3), st.integers(0, 5), st.integers(0, 20))
@settings(max_examples=50)
def test_group_sizes_and_purity(positives: int, negatives: int, epoch: int) -> None:
    pool = mine_pools(SET, {"q": listed("n1", "n2", "n3")}, source="bm25", first_rank=1, depth=9).pools["q"]
    options = {"negatives": negatives, "positives": positives, "seed": 0, "draw": epoch, "pool_id": "p"}
    group = build_group(SET, pool, "q", **options)  # type: ignore[arg-type]
    assert group == build_group(SET, pool[::-1], "q", **options)  # type: ignore[arg-type]
    assert sum(label > 0 for label in group.labels) == min(positives, 2)
    assert len(group.labels) == min(positives, 2) + min(negatives, 4)


def test_positives_change_with_the_epoch() -> None:
    drawn = {
        build_group(SET, (), "q", negatives=0, positives=1, seed=0, draw=e, pool_id="p").document_ids for e in range(20)
    }
    assert drawn == {("good",), ("better",)}


def test_group_without_a_positive() -> None:
    pool = mine_pools(SET, {}, source="bm25", first_rank=1, depth=9).pools["only"]
    group = build_group(SET, pool, "only", negatives=3, positives=3, seed=0, draw=0, pool_id="p")
    assert (group.document_ids, group.labels, group.sources) == (("bad",), (0.0,), ("judged",))


def test_negatives_round_trip_and_hash(tmp_path: Path) -> None:
    pools = mine_pools(SET, {"q": listed("n1", "n2")}, source="bm25", first_rank=1, depth=9).pools
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
    write_negatives(path, {"a": pool_of(1)})
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(UserError, match=r"negatives\.jsonl:2: not a row of negatives"):
        read_negatives(path)
    with pytest.raises(UserError, match="no such file"):
        read_negatives(tmp_path / "absent.jsonl")

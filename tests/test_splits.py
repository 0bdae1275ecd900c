"""Taking dev out of train, and finding what two splits share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankwright.errors import UserError
from rankwright.examples import Collection
from rankwright.readers import read_collection
from rankwright.splits import normalised, overlap, split_dev

DATA = Path(os.environ.get("RANKWRIGHT_DATA", Path(__file__).parents[2] / "shared/data"))


def collection(query_ids: list[str]) -> Collection:
    return Collection(
        "set",
        {"d": "text", "e": "other"},
        {q: f"query {q}" for q in query_ids},
        {q: {"d": 1.0, "e": 0.0} for q in query_ids},
        {q: {"d": 3.5} for q in query_ids},
        dict.fromkeys(query_ids, 2.0),
    )


IDS = st.lists(st.text(min_size=1, max_size=4), min_size=2, max_size=40, unique=True)


@given(IDS, st.floats(0.01, 0.99), st.integers(0, 5))
def test_a_partition_of_the_promised_size(ids: list[str], fraction: float, seed: int) -> None:
    whole = collection(ids)
    train, dev = split_dev(whole, fraction=fraction, seed=seed)
    assert len(dev.queries) == min(max(round(len(ids) * fraction), 1), len(ids) - 1)
    assert not set(train.queries) & set(dev.queries)
    assert set(train.queries) | set(dev.queries) == set(ids)
    for part in (train, dev):
        assert part.corpus is whole.corpus
        assert list(part.queries) == [q for q in ids if q in part.queries]
        assert set(part.qrels) == set(part.teacher_scores) == set(part.weights) == set(part.queries)


@given(IDS, st.randoms(use_true_random=False))
def test_order_of_the_input_does_not_matter(ids: list[str], random: object) -> None:
    shuffled = list(ids)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    first = split_dev(collection(ids), fraction=0.3, seed=1)[1]
    second = split_dev(collection(shuffled), fraction=0.3, seed=1)[1]
    assert set(first.queries) == set(second.queries)


def test_the_seed_decides() -> None:
    whole = collection([str(i) for i in range(100)])
    parts = [set(split_dev(whole, fraction=0.2, seed=seed)[1].queries) for seed in (0, 0, 1)]
    assert parts[0] == parts[1] != parts[2]


def test_a_larger_fraction_only_adds() -> None:
    whole = collection([str(i) for i in range(50)])
    small, large = (set(split_dev(whole, fraction=f, seed=0)[1].queries) for f in (0.1, 0.5))
    assert small < large


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1])
def test_a_fraction_out_of_range_is_refused(fraction: float) -> None:
    with pytest.raises(UserError, match="fraction"):
        split_dev(collection(["a", "b"]), fraction=fraction, seed=0)


def test_one_query_cannot_be_split() -> None:
    with pytest.raises(UserError, match="1 training query"):
        split_dev(collection(["a"]), fraction=0.5, seed=0)


def test_normalised() -> None:
    assert normalised(" \uff26ull\u00a0WIDTH\n\tStra\u00dfe ") == "full width strasse"


def test_overlap_by_hand() -> None:
    train = Collection(
        "train",
        {"a": "Alpha", "b": "Beta", "c": "Gamma", "n": "Not relevant"},
        {"1": "What is alpha?", "2": "Something else"},
        {"1": {"a": 1.0, "n": 0.0}, "2": {"b": 2.0}},
    )
    test = Collection(
        "test",
        {"x": " ALPHA ", "y": "beta", "z": "Not relevant", "w": "new"},
        {"p": "what is  ALPHA?", "q": "what is alpha?", "r": "Unseen", "s": "nothing shared"},
        {"p": {"x": 1.0}, "q": {"w": 1.0}, "r": {"y": 1.0, "w": 1.0}, "s": {"z": 1.0, "x": 0.0}},
    )
    report = overlap(train, test)
    assert (report.same_queries, report.same_pairs, report.same_positives) == (2, 1, 2)
    assert report.queries_with_seen_positive == 2
    assert report.query_examples == (("p", "1"), ("q", "1"))
    assert report.pair_examples == (("p", "x"),)
    assert report.positive_examples == (("x", "a"), ("y", "b"))
    assert report.seen_query_examples == ("p", "r")


def test_a_split_shares_everything_with_itself_and_dev_shares_no_query() -> None:
    whole = collection([str(i) for i in range(20)])
    report = overlap(whole, whole)
    assert (report.same_queries, report.same_pairs, report.queries_with_seen_positive) == (20, 20, 20)
    assert report.same_positives == 1
    train, dev = split_dev(whole, fraction=0.5, seed=0)
    assert overlap(train, dev).same_queries == 0


# The leakage that the notes of the data sets state.
@pytest.mark.parametrize(
    ("folder", "queries", "positives", "seen"),
    [("code/cosqa", 0, None, 99), ("finance/tatqa", 21, None, None), ("legal/obliqa", None, 897, 1860)],
)
def test_known_leakage(folder: str, queries: int | None, positives: int | None, seen: int | None) -> None:
    if not (DATA / folder).is_dir():
        pytest.skip("the shared sets are not here")
    train, test = (read_collection(DATA / folder, name="set", split=split) for split in ("train", "test"))
    report = overlap(train, test)
    found = (report.same_queries, report.same_positives, report.queries_with_seen_positive)
    for value, wanted in zip(found, (queries, positives, seen), strict=True):
        assert wanted is None or value == wanted

"""Taking dev out of train, and finding what two splits share."""

from __future__ import annotations

import hashlib
import itertools
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankwright.common.errors import UserError
from rankwright.data.collection import Collection
from rankwright.data.formats.read import read_collection
from rankwright.data.normalisation import normalised
from rankwright.data.splits import dev_size, overlap, split_devs

DATA = Path(os.environ.get("RANKWRIGHT_DATA", Path(__file__).parents[3] / "shared/data"))


def collection(query_ids: list[str]) -> Collection:
    return Collection(
        "set",
        {"d": "text", "e": "other"},
        {q: f"query {q}" for q in query_ids},
        {q: {"d": 1.0, "e": 0.0} for q in query_ids},
        {q: {"d": 3.5} for q in query_ids},
        dict.fromkeys(query_ids, 2.0),
    )


def split_dev(train: Collection, *, fraction: float, seed: int) -> tuple[Collection, Collection]:
    """(train, dev) of one set."""
    return split_devs([train], fraction=fraction, seed=seed)[0]


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


BUNDLES = st.lists(st.integers(1, 6), min_size=2, max_size=12)


def grouped(sizes: list[int]) -> Collection:
    """Groups of these sizes, their queries mixed."""
    ids = [(f"g{n}-{k}", f"g{n}") for n, size in enumerate(sizes) for k in range(size)]
    ids.sort(key=lambda pair: hash_of(pair[0]))
    whole = collection([i for i, _ in ids])
    return replace(whole, query_groups=dict(ids))


def hash_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@given(BUNDLES, st.floats(0.05, 0.95), st.integers(0, 5))
def test_groups_stay_together_as_near_the_fraction_as_they_allow(sizes: list[int], fraction: float, seed: int) -> None:
    whole = grouped(sizes)
    train, dev = split_dev(whole, fraction=fraction, seed=seed)
    assert not set(train.query_groups.values()) & set(dev.query_groups.values())
    assert train.queries and dev.queries
    assert set(train.queries) | set(dev.queries) == set(whole.queries)
    # By trying all sums of group sizes.
    sums = {sum(some) for n in range(1, len(sizes)) for some in itertools.combinations(sizes, n)}
    wanted = dev_size(len(whole.queries), fraction)
    assert abs(len(dev.queries) - wanted) == min(abs(total - wanted) for total in sums)
    back = replace(whole, queries=dict(reversed(whole.queries.items())))
    assert set(split_dev(back, fraction=fraction, seed=seed)[1].queries) == set(dev.queries)


def test_groups_of_relevant_documents_and_equal_texts_bind() -> None:
    ids = [str(i) for i in range(30)]
    whole = Collection(
        "set",
        {f"d{i}": f"text {i}" for i in ids} | {"shared": "a passage of all", "no": "not relevant"},
        {i: f"Query {int(i) // 2 if int(i) >= 20 else i + 'x'}" for i in ids},
        {i: {f"d{i}": 1.0, "shared": 2.0, "no": 0.0} for i in ids},
        document_groups={f"d{i}": f"filing {int(i) // 2}" for i in ids if int(i) < 10} | {"no": "filing 0"},
    )
    for seed in range(5):
        train, dev = split_dev(whole, fraction=0.3, seed=seed)
        assert len(dev.queries) in (8, 9, 10)
        for one, other in [
            *((f"{i}", f"{i + 1}") for i in range(0, 10, 2)),
            *((f"{i}", f"{i + 1}") for i in range(20, 30, 2)),
        ]:
            assert (one in dev.queries) == (other in dev.queries)
        # Those that only share a passage are free.
        assert {str(i) for i in range(10, 20)} & set(train.queries)


def test_what_is_bound_over_several_sets_goes_to_one_side() -> None:
    one, other = (replace(collection([str(i) for i in range(40)]), name=name) for name in ("one", "other"))
    for seed in range(5):
        (a, a_dev), (b, b_dev) = split_devs([one, other], fraction=0.25, seed=seed)
        assert set(a_dev.queries) == set(b_dev.queries) and len(a_dev.queries) == 10
        assert set(a.queries) == set(b.queries)
        turned = split_devs([other, one], fraction=0.25, seed=seed)
        assert set(turned[0][1].queries) == set(a_dev.queries)
    free = replace(other, queries={q: f"other {q}" for q in other.queries})
    alike = [[(0, "3"), (1, "5")], [(0, "7"), (0, "9")]]
    for seed in range(10):
        (_, a_dev), (_, b_dev) = split_devs([one, free], fraction=0.25, seed=seed, alike=alike)
        assert ("3" in a_dev.queries) == ("5" in b_dev.queries)
        assert ("7" in a_dev.queries) == ("9" in a_dev.queries)
        assert len(a_dev.queries) == len(b_dev.queries) == 10


def test_a_set_of_one_group_cannot_be_split() -> None:
    with pytest.raises(UserError, match="belong together"):
        split_dev(grouped([9]), fraction=0.3, seed=0)


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

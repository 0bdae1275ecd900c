"""Mixtures: every query is drawn as often as its weight says, whoever asks; limits are nested and fixed by seed."""

from __future__ import annotations

import dataclasses
import math
import random
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankwright.data.collection import Collection
from rankwright.data.sources import as_stated, limited, with_share
from rankwright.recipe.sources import Source
from rankwright.training.mixture import Draw, Mixture

WEIGHTS = st.one_of(
    st.integers(1, 4).map(float),
    st.sampled_from([0.1, 0.25, 0.29, 0.5, 1.3, 2.5, 3.7]),
    st.floats(0.05, 4, allow_nan=False).map(lambda w: round(w, 3)),
)


@st.composite
def sets(draw: st.DrawFn, most: int = 4) -> list[tuple[str, list[str], float]]:
    sizes = draw(st.lists(st.integers(0, 12), min_size=1, max_size=most).filter(any))
    return [(f"s{n}", [f"s{n}/q{i}" for i in range(size)], draw(WEIGHTS)) for n, size in enumerate(sizes)]


def of_set(query_id: str) -> str:
    return query_id.split("/")[0]


@given(sets(), st.integers(0, 9), st.integers(1, 12))
def test_every_query_is_drawn_floor_to_ceil_of_its_weight_times_the_epochs(
    found: list[tuple[str, list[str], float]], seed: int, epochs: int
) -> None:
    mixture = Mixture(found, seed=seed)
    draws = [draw for epoch in range(epochs) for draw in mixture.order(epoch)]
    assert len(draws) == mixture.drawn(epochs)
    times = Counter(query_id for query_id, _ in draws)
    for _, ids, weight in found:
        wanted = epochs * Fraction(str(weight))
        assert all(math.floor(wanted) <= times[q] <= math.ceil(wanted) for q in ids)
        # And all of them together, exactly.
        assert sum(times[q] for q in ids) == math.floor(len(ids) * wanted + Fraction(1, 2))
    # Each draw of a query is numbered, without a gap: what it draws then depends on the number alone.
    numbers: dict[str, list[int]] = {}
    for query_id, number in draws:
        numbers.setdefault(query_id, []).append(number)
    assert all(sorted(n) == list(range(len(n))) for n in numbers.values())


@given(sets(), st.integers(0, 9), st.integers(1, 9), st.integers(1, 30), st.randoms(use_true_random=False))
def test_steps_are_the_epochs_one_after_the_other_for_whoever_asks(
    found: list[tuple[str, list[str], float]], seed: int, groups: int, steps: int, chance: random.Random
) -> None:
    mixture = Mixture(found, seed=seed)
    flat = [draw for step in range(1, steps + 1) for draw in mixture.step(step, groups)]
    epochs, whole = 0, list[Draw]()
    while len(whole) < len(flat):
        whole += mixture.order(epochs)
        epochs += 1
    assert flat == whole[: len(flat)]
    # Another process, that has seen nothing, with its files in another order, and the steps backwards.
    shuffled = [(name, chance.sample(ids, len(ids)), weight) for name, ids, weight in found]
    other = Mixture(shuffled, seed=seed)
    backwards = {step: other.step(step, groups) for step in range(steps, 0, -1)}
    assert [draw for step in range(1, steps + 1) for draw in backwards[step]] == flat
    # The counts are those of the draws, at any place.
    for upto in {0, 1, len(flat) // 2, len(flat)}:
        counted = Counter(of_set(q) for q, _ in flat[:upto])
        assert mixture.counts(upto) == {name: counted[name] for name, _, _ in found}


def test_a_weight_of_one_is_the_order_it_always_was() -> None:
    from rankwright.common.hashing import stable_hash

    ids = [f"q{i}" for i in range(30)]
    mixture = Mixture([("a", ids[:20], 1.0), ("b", ids[20:], 1.0)], seed=3)
    for epoch in range(4):
        order = sorted(ids, key=lambda q: (stable_hash("order", 3, epoch, q), q))
        assert mixture.order(epoch) == [(q, epoch) for q in order]


def test_1_3_draws_every_query_once_and_each_epoch_another_30_percent_twice() -> None:
    ids = [f"q{i}" for i in range(100)]
    mixture = Mixture([("a", ids, 1.3)], seed=0)
    twice = []
    for epoch in range(3):
        times = Counter(q for q, _ in mixture.order(epoch))
        assert set(times.values()) == {1, 2} and len(times) == 100
        twice.append({q for q in ids if times[q] == 2})
    assert [len(t) for t in twice] == [30, 30, 30]
    assert not twice[0] & twice[1] and not twice[1] & twice[2] and not twice[0] & twice[2]


def test_half_the_queries_every_other_epoch() -> None:
    ids = [f"q{i}" for i in range(10)]
    first, second = ({q for q, _ in Mixture([("a", ids, 0.5)], seed=1).order(epoch)} for epoch in (0, 1))
    assert len(first) == len(second) == 5 and not first & second
    assert {q for q, _ in Mixture([("a", ids, 0.5)], seed=2).order(0)} != first


def test_no_draw_has_a_better_place_than_another() -> None:
    """Mean place in an epoch, of sets and of first and second draws: about the middle for all."""
    ids = [f"a{i}" for i in range(6)], [f"b{i}" for i in range(4)]
    mixture = Mixture([("a", ids[0], 1.0), ("b", ids[1], 2.0)], seed=0)
    places: dict[str, list[float]] = {}
    for epoch in range(600):
        seen: Counter[str] = Counter()
        order = mixture.order(epoch)
        for place, (query_id, _) in enumerate(order):
            seen[query_id] += 1
            places.setdefault(f"{query_id[0]}", []).append(place / (len(order) - 1))
            places.setdefault(query_id, []).append(place / (len(order) - 1))
    # The standard deviation of one place is 0.31, of a query's mean over 600 epochs 0.013.
    assert all(abs(sum(found) / len(found) - 0.5) < 0.05 for found in places.values())
    # The draws of a query are not beside each other more often than by chance (2 of 14: 1 in 7).
    beside = sum(order[i][0] == order[i + 1][0] for order in map(mixture.order, range(600)) for i in range(13))
    assert abs(beside / 600 - 4 / 7) < 0.15


def test_an_epoch_may_be_empty_and_is_passed_over() -> None:
    mixture = Mixture([("a", ["q"], 0.1)], seed=0)
    lengths = [len(mixture.order(epoch)) for epoch in range(20)]
    assert sum(lengths) == 2 and mixture.step(1, 2) == [("q", 0), ("q", 1)]
    assert mixture.draws_an_epoch == 0.1


QUERIES = {f"q{i}": f"text {i}" for i in range(40)}
QRELS = {q: {"d": 1.0} for q in QUERIES}


def whole(order: list[str]) -> Collection:
    return Collection("set", {"d": "text"}, {q: QUERIES[q] for q in order}, QRELS)


@given(st.permutations(list(QUERIES)), st.integers(1, 45), st.integers(1, 45), st.integers(0, 5))
def test_limits_are_nested_and_do_not_depend_on_the_order_of_the_file(
    order: list[str], one: int, other: int, seed: int
) -> None:
    small, large = (set(limited(whole(order), n, seed=seed).queries) for n in sorted((one, other)))
    assert small <= large and len(small) == min(40, one, other)
    assert small == set(limited(whole(sorted(order)), min(one, other), seed=seed).queries)
    kept = limited(whole(order), one, seed=seed)
    assert list(kept.queries) == [q for q in order if q in kept.queries]
    assert set(kept.qrels) == set(kept.queries) and kept.corpus == {"d": "text"}


@given(st.permutations(list(QUERIES)), st.floats(0.001, 1), st.floats(0.001, 1), st.integers(0, 5))
def test_shares_are_nested_and_of_each_set(order: list[str], one: float, other: float, seed: int) -> None:
    sets = [whole(order), dataclasses.replace(whole(order[:7]), name="small")]
    small, large = (with_share(sets, share, seed=seed) for share in sorted((one, other)))
    for a, b, of in zip(small, large, sets, strict=True):
        assert set(a.queries) <= set(b.queries) and a.corpus is of.corpus
        assert len(a.queries) == max(1, round(min(one, other) * len(of.queries)))
    assert with_share(sets, 1.0, seed=seed) == sets


def test_another_seed_keeps_other_queries() -> None:
    assert len({tuple(limited(whole(list(QUERIES)), 10, seed=seed).queries) for seed in range(5)}) == 5


def test_a_set_as_its_entry_states_it() -> None:
    said: list[str] = []
    collection = whole(list(QUERIES))
    sources = [Source(path="x", weight=2.0, limit=10, instruction="Find it."), Source(path="y")]
    one, other = as_stated([collection, collection], sources, seed=0, say=said.append)
    assert (one.draws, one.instruction, len(one.queries)) == (2.0, "Find it.", 10)
    assert other == collection
    assert said == ["  set: 10 of 40 queries kept (limit, by seed 0)"]


@pytest.mark.parametrize("weight", [1.0, 2.0, 0.3])
def test_a_query_less_changes_nothing_of_the_other_sets(weight: float) -> None:
    ids = [f"a{i}" for i in range(20)], [f"b{i}" for i in range(20)]
    both = Mixture([("a", ids[0], weight), ("b", ids[1], 0.7)], seed=0)
    less = Mixture([("a", ids[0][1:], weight), ("b", ids[1], 0.7)], seed=0)
    for epoch in range(5):
        of_b = [[d for d in m.order(epoch) if d[0] in ids[1]] for m in (both, less)]
        assert of_b[0] == of_b[1]

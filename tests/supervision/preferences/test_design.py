"""Which pairs a judge is asked about: cycles without repeats, rounds at the top, and the same pairs every time."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankwright.supervision.preferences.design import Pair, cycles, first_cycle, generator, next_round
from rankwright.supervision.preferences.fit import Fit

seeds = st.integers(0, 10**6)
FIRST_PAIRS = [(1, 2), (2, 4), (4, 0), (0, 3), (3, 1)]


def spread_out(count: int, deviation: float = 0.5, gap: float = 1.0) -> Fit:
    """Scores that fall with the number of the document."""
    scores = -gap * np.arange(count, dtype=float)
    return Fit(scores, deviation**2 * np.eye(count), np.zeros(1), 0.0)


def round_trip(pairs: list[Pair]) -> list[int]:
    """The documents in the order in which the pairs lead from one to the next, from that of the first pair."""
    after = dict(pairs)
    order = [pairs[0][0]]
    while (following := after[order[-1]]) != order[0]:
        order.append(following)
    return order


@settings(max_examples=150, deadline=None)
@given(seed=seeds, count=st.integers(3, 120))
def test_a_cycle_is_one_and_shows_every_document_once_first(seed: int, count: int) -> None:
    pairs = first_cycle(count, np.random.default_rng(seed))
    assert len(pairs) == count
    assert Counter(one for one, _ in pairs) == Counter(other for _, other in pairs) == Counter(range(count))
    assert len({frozenset(pair) for pair in pairs}) == count
    assert sorted(round_trip(pairs)) == list(range(count))


@settings(max_examples=200, deadline=None)
@given(seed=seeds, count=st.integers(3, 40), number=st.integers(1, 25))
def test_several_cycles_repeat_no_pair(seed: int, count: int, number: int) -> None:
    found = cycles(count, number, np.random.default_rng(seed))
    assert len(found) == min(number, (count - 1) // 2)
    assert all(sorted(round_trip(cycle)) == list(range(count)) for cycle in found)
    pairs = [frozenset(pair) for cycle in found for pair in cycle]
    assert len(set(pairs)) == len(pairs)


def test_few_documents() -> None:
    rng = np.random.default_rng(0)
    assert first_cycle(0, rng) == first_cycle(1, rng) == []
    assert cycles(10, 0, rng) == []
    assert {tuple(first_cycle(2, rng)) for _ in range(50)} == {((0, 1),), ((1, 0),)}
    assert len({frozenset(first_cycle(3, rng)) for _ in range(50)}) == 2
    assert len(cycles(2, 5, rng)) == 1


def test_every_cycle_is_as_likely() -> None:
    """Five documents have 4! cycles with a direction; 4,800 draws of each design meet every one about 200 times."""
    for number in (1, 2):
        rng = np.random.default_rng(3)
        seen = Counter(frozenset(cycle) for _ in range(4800 // number) for cycle in cycles(5, number, rng))
        assert len(seen) == 24
        assert min(seen.values()) > 140
        assert max(seen.values()) < 260


def test_a_generator_depends_on_seed_query_and_round_alone() -> None:
    def draw(*key: object) -> list[Pair]:
        rng = generator(*key)  # type: ignore[arg-type]
        return first_cycle(30, rng) + next_round(spread_out(30), [], 15, rng)

    assert draw(1, "q", 0) == draw(1, "q", 0)
    assert len({tuple(draw(*key)) for key in [(1, "q", 0), (2, "q", 0), (1, "r", 0), (1, "q", 1)]}) == 4
    # Kept here: a run of another day, on another machine, continues with the same pairs.
    assert first_cycle(5, generator(1, "q", 0)) == FIRST_PAIRS


@settings(max_examples=100, deadline=None)
@given(seed=seeds, count=st.integers(2, 30), calls=st.integers(0, 40), deviation=st.floats(0.01, 10))
def test_a_round_asks_new_pairs_only_and_is_full(seed: int, count: int, calls: int, deviation: float) -> None:
    rng = np.random.default_rng(seed)
    asked = set(first_cycle(count, rng))
    for _ in range(3):
        left = count * (count - 1) - len(asked)
        pairs = next_round(spread_out(count, deviation), asked, calls, rng)
        assert len(pairs) == len(set(pairs)) == min(calls, left)
        assert not asked & set(pairs)
        assert all(one != other and min(one, other) >= 0 and max(one, other) < count for one, other in pairs)
        asked |= set(pairs)


def test_rounds_end_when_every_pair_was_asked_in_both_orders() -> None:
    rng = np.random.default_rng(0)
    asked: set[Pair] = set()
    rounds = 0
    while pairs := next_round(spread_out(9), asked, 4, rng):
        asked |= set(pairs)
        rounds += 1
    assert len(asked) == 9 * 8
    assert rounds == 18
    assert next_round(spread_out(1), [], 5, rng) == next_round(spread_out(0), [], 5, rng) == []


def test_a_round_asks_neighbours_near_the_top_in_random_order() -> None:
    rng = np.random.default_rng(0)
    places: list[int] = []
    turned = 0
    for _ in range(400):
        # So certain that the drawn order is the fitted one.
        pairs = next_round(spread_out(100, 1e-6), [], 10, rng, mean_place=6.0)
        assert all(abs(one - other) == 1 for one, other in pairs)
        places += [min(pair) for pair in pairs]
        turned += sum(one > other for one, other in pairs)
    assert turned / len(places) == pytest.approx(0.5, abs=0.03)
    # No pair twice in a round, so the mean is a little above that of the whole part, 1 / (e^(1/6) - 1) = 5.5.
    assert 5.4 < np.mean(places) < 7.5
    deeper = [min(pair) for _ in range(100) for pair in next_round(spread_out(100, 1e-6), [], 10, rng, 20.0)]
    assert np.mean(deeper) > 2 * np.mean(places)


def test_uncertain_documents_meet_more_often_than_certain_ones() -> None:
    """The scores are drawn with their covariance: a document far below is asked only if it may belong to the top."""
    count = 40
    deviations = np.full(count, 0.05)
    deviations[30] = 30.0
    found = Fit(-np.arange(count, dtype=float), np.diag(deviations**2), np.zeros(1), 0.0)
    seen = Counter(d for _ in range(40) for p in next_round(found, [], 20, np.random.default_rng(_)) for d in p)
    assert seen[30] > 5 * max(seen[29], seen[31], 1)
    # Two documents that move together do not change places.
    together = np.array([[25.0, 25.0], [25.0, 25.0]]) + 1e-6 * np.eye(2)
    big = np.eye(4) * 1e-6
    big[1:3, 1:3] = together
    lead = Fit(np.array([100.0, 1.0, 0.0, -100.0]), big, np.zeros(1), 0.0)
    met = Counter(frozenset(p) for s in range(200) for p in next_round(lead, [], 1, np.random.default_rng(s)))
    assert frozenset((0, 2)) not in met
    assert met[frozenset((0, 1))] > 20

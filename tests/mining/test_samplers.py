"""Draws are pure, within the pool, and as likely as they are said to be."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankwright.common.errors import UserError
from rankwright.mining.pools import Negative
from rankwright.mining.samplers import SAMPLERS, DrawKey, Sampler, bind_sampler

ALL: list[dict[str, dict[str, Any]]] = [
    {"uniform": {}},
    {"top": {}},
    {"stratified": {"bands": [2, 5]}},
    {"stratified": {"by": "teacher", "strata": 3}},
    {"proportional": {}},
    {"proportional": {"by": "score", "temperature": 0.5}},
]
KEY = DrawKey(0, 0, "q", "p")


def pool_of(count: int, unranked: int = 0) -> list[Negative]:
    # A teacher's scores that fall ever faster: most documents lie in the highest part of their range.
    ranked = [Negative(f"d{i}", "bm25", i + 1, -i / 3, "unjudged", teacher=-i * i / 10) for i in range(count)]
    return ranked + [Negative(f"j{i}", "judged", None, None, "judged_not_relevant") for i in range(unranked)]


def names(sampler: Sampler, pool: list[Negative], count: int, key: DrawKey = KEY) -> list[str]:
    return [n.document_id for n in sampler(pool, count, key)]


KEYS = st.builds(DrawKey, st.integers(0, 3), st.integers(0, 3), st.text(max_size=3), st.text(max_size=3))


@given(
    st.sampled_from(ALL),
    st.integers(0, 12),
    st.integers(0, 3),
    st.integers(0, 15),
    KEYS,
    st.randoms(use_true_random=False),
)
def test_a_draw_is_pure_and_within_the_pool(
    choice: dict[str, Any], ranked: int, unranked: int, count: int, key: DrawKey, random: Any
) -> None:
    sampler, pool = bind_sampler(choice), pool_of(ranked, unranked)
    shuffled = list(pool)
    random.shuffle(shuffled)
    drawn = sampler(pool, count, key)
    assert drawn == sampler(shuffled, count, key)
    assert set(drawn) <= set(pool)
    assert len(drawn) == len(set(drawn)) == min(count, len(pool))


@pytest.mark.parametrize("choice", [c for c in ALL if "top" not in c])
@pytest.mark.parametrize("changed", [{"seed": 1}, {"draw": 1}, {"query_id": "r"}, {"pool_id": "other"}])
def test_a_draw_depends_on_every_part_of_its_key(choice: dict[str, Any], changed: dict[str, Any]) -> None:
    sampler, pool = bind_sampler(choice), pool_of(60)
    assert set(names(sampler, pool, 12)) != set(names(sampler, pool, 12, KEY._replace(**changed)))


def test_top_is_the_best_ranked() -> None:
    pool = pool_of(9, unranked=2)[::-1]
    assert names(bind_sampler({"top": {}}), pool, 4) == ["d0", "d1", "d2", "d3"]
    assert set(names(bind_sampler({"top": {}}), pool, 10)[9:]) < {"j0", "j1"}


def test_bands_take_turns() -> None:
    sampler = bind_sampler({"stratified": {"bands": [3, 10]}})

    def by_band(count: int) -> Counter[str]:
        drawn = sampler(pool_of(30, unranked=1), count, KEY)
        return Counter("abc"[sum((n.rank or 99) > last for last in (3, 10))] for n in drawn)

    assert by_band(3) == {"a": 1, "b": 1, "c": 1}
    assert by_band(7) == {"a": 3, "b": 2, "c": 2}
    # The first band is used up: the others share its turns.
    assert by_band(13) == {"a": 3, "b": 5, "c": 5}
    with pytest.raises(UserError, match="must grow"):
        bind_sampler({"stratified": {"bands": [10, 3]}})


def test_strata_of_a_teacher_cover_the_whole_range_of_its_scores() -> None:
    # Scores -i * i / 10 from 0 to -22.5: parts of equal width end at i = 7.5, 10.6 and 13.0.
    sampler, pool = bind_sampler({"stratified": {"by": "teacher", "strata": 4}}), pool_of(16, unranked=2)

    def by_stratum(count: int) -> Counter[str]:
        return Counter("abcde"[place_of(n)] for n in sampler(pool, count, KEY))

    def place_of(n: Negative) -> int:
        return 4 if n.teacher is None else sum(int(n.document_id[1:]) > last for last in (7, 10, 12))

    assert by_stratum(4) == {"a": 1, "b": 1, "c": 1, "d": 1}
    assert by_stratum(7) == {"a": 2, "b": 2, "c": 1, "d": 1, "e": 1}
    # A part is used up, and the others share its turns.
    assert by_stratum(14) == {"a": 4, "b": 3, "c": 2, "d": 3, "e": 2}
    # Neither the unit of the scores nor where they begin matters.
    moved = [dataclasses.replace(n, teacher=None if n.teacher is None else 8 * n.teacher + 64) for n in pool]
    assert names(sampler, moved, 7) == names(sampler, pool, 7)
    # Eight parts by default.
    eight = bind_sampler({"stratified": {"by": "teacher", "strata": 8}})
    assert names(bind_sampler({"stratified": {"by": "teacher"}}), pool, 9) == names(eight, pool, 9)


def test_strata_of_equal_scores_are_one() -> None:
    sampler = bind_sampler({"stratified": {"by": "teacher", "strata": 4}})
    pool = [dataclasses.replace(n, teacher=0.1) for n in pool_of(6)]
    for name, share in inclusion(sampler, pool, 2).items():
        assert abs(share - 1 / 3) < 5 * math.sqrt(2 / 9 / DRAWS), name
    bare = [dataclasses.replace(n, teacher=None) for n in pool]
    assert names(sampler, bare, 2) == names(bind_sampler({"uniform": {}}), bare, 2)


def test_ranks_have_bands_and_a_teacher_has_strata() -> None:
    with pytest.raises(UserError, match=r"stratified\.strata: 8 is not for by: rank, which has bands: remove it"):
        bind_sampler({"stratified": {"strata": 8}})
    with pytest.raises(UserError, match=r"stratified\.bands: \(10,\) is not for by: teacher, which has strata"):
        bind_sampler({"stratified": {"by": "teacher", "bands": [10]}})
    with pytest.raises(UserError, match="strata"):
        bind_sampler({"stratified": {"by": "teacher", "strata": 1}})


DRAWS = 4000


def inclusion(sampler: Sampler, pool: list[Negative], count: int) -> dict[str, float]:
    """Share of the draws that hold each document."""
    seen = Counter(d for draw in range(DRAWS) for d in names(sampler, pool, count, KEY._replace(draw=draw)))
    return {n.document_id: seen[n.document_id] / DRAWS for n in pool}


def without_replacement(weights: dict[str, float], count: int) -> dict[str, float]:
    """The exact shares: all orders of `count` draws, each with its probability."""
    found = dict.fromkeys(weights, 0.0)
    for order in itertools.permutations(weights, count):
        left, probability = sum(weights.values()), 1.0
        for name in order:
            probability *= weights[name] / left
            left -= weights[name]
        for name in order:
            found[name] += probability
    return found


@pytest.mark.parametrize(
    ("choice", "weight"),
    [
        ({"uniform": {}}, lambda n: 1.0),
        ({"proportional": {}}, lambda n: 1 / n.rank),
        ({"proportional": {"temperature": 2.0}}, lambda n: n.rank**-0.5),
        ({"proportional": {"by": "score", "temperature": 0.5}}, lambda n: math.exp(n.score / 0.5)),
    ],
)
@pytest.mark.parametrize("count", [1, 3])
def test_shares_are_as_said(choice: dict[str, Any], weight: Any, count: int) -> None:
    pool = pool_of(6)
    expected = without_replacement({n.document_id: weight(n) for n in pool}, count)
    found = inclusion(bind_sampler(choice), pool, count)
    for name, share in expected.items():
        # Five standard deviations.
        assert abs(found[name] - share) < 5 * math.sqrt(share * (1 - share) / DRAWS) + 1e-9, (name, found, expected)


def test_bands_are_uniform_within() -> None:
    found = inclusion(bind_sampler({"stratified": {"bands": [2]}}), pool_of(8), 2)
    for name, share in {**dict.fromkeys(("d0", "d1"), 1 / 2), **{f"d{i}": 1 / 6 for i in range(2, 8)}}.items():
        assert abs(found[name] - share) < 5 * math.sqrt(share * (1 - share) / DRAWS)


def test_what_has_no_score_weighs_as_the_least() -> None:
    found = inclusion(bind_sampler({"proportional": {}}), pool_of(3, unranked=1), 1)
    total = 1 + 1 / 2 + 1 / 3 + 1 / 3
    assert found["d0"] == pytest.approx(1 / total, abs=0.04)
    assert found["j0"] == pytest.approx(1 / 3 / total, abs=0.04)


def test_mistakes_name_the_key() -> None:
    with pytest.raises(UserError, match="unknown sampler 'unifrom', did you mean 'uniform'"):
        bind_sampler({"unifrom": {}})
    with pytest.raises(UserError, match="temperature"):
        bind_sampler({"proportional": {"temperature": 0}})
    assert set(SAMPLERS) == {"uniform", "top", "stratified", "proportional"}

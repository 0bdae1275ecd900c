"""A reranker's scores combined with a first stage's: the formula, what it does not depend on, odd lists."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from rankwright.common.errors import UserError
from rankwright.common.templates import template_environment
from rankwright.model.prompt import CONTRACT_FILE, PromptContract
from rankwright.rerankers.combination import Combination, combined_scores, levels_of, only_ranks, zscores
from rankwright.rerankers.reranker import Reranker

NUMBERS = st.integers(-50, 50)
PAIRS = st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=30)
WEIGHT = st.sampled_from([0.0, 0.05, 0.3, 0.5, 1.0])
DEPTH = st.sampled_from([None, 1, 3, 10])


@given(PAIRS, WEIGHT, DEPTH, st.floats(0.01, 100), st.integers(-1000, 1000))
def test_an_affine_change_of_either_score_changes_nothing(
    pairs: list[tuple[int, int]], weight: float, depth: int | None, factor: float, shift: int
) -> None:
    ours, first = [float(a) for a, _ in pairs], [float(b) for _, b in pairs]
    combination = Combination(weight, depth=depth)
    expected = combined_scores(ours, first, combination)
    assert combined_scores([factor * a + shift for a in ours], first, combination) == pytest.approx(expected, abs=1e-6)
    assert combined_scores(ours, [factor * b + shift for b in first], combination) == pytest.approx(expected, abs=1e-6)


@given(PAIRS, WEIGHT)
def test_it_is_the_formula_of_the_documents(pairs: list[tuple[int, int]], weight: float) -> None:
    ours, first = np.array(pairs, dtype=float).T

    def z(values: np.ndarray) -> np.ndarray:
        return (values - np.mean(values)) / np.std(values) if len(set(values)) > 1 else np.zeros(len(values))

    expected = weight * z(ours) + (1 - weight) * z(first)
    assert combined_scores(ours.tolist(), first.tolist(), Combination(weight)) == pytest.approx(expected, abs=1e-9)


def test_the_ends_are_the_order_of_one_of_them() -> None:
    ours, first = [0.1, 3.0, -2.0, 0.4], [9.0, 1.0, 4.0, 8.0]

    def order(weight: float) -> list[int]:
        scores = combined_scores(ours, first, Combination(weight))
        return sorted(range(4), key=lambda i: -scores[i])

    assert order(0.0) == [0, 3, 2, 1] and order(1.0) == [1, 3, 0, 2]


def test_documents_below_the_depth_keep_the_order_of_the_first_stage() -> None:
    scores = combined_scores([9.0, 1.0, 2.0, 8.0, 7.0], [1.0, 5.0, 4.0, 2.0, None], Combination(1.0, depth=2))
    # The two best of the first stage by our score, then the others as they came; what it did not find is last.
    assert sorted(range(5), key=lambda i: -scores[i]) == [2, 1, 3, 0, 4]
    assert scores[2] > scores[1] > scores[3] > scores[0] > scores[4]


def test_lists_that_tell_nothing() -> None:
    half = Combination(0.5)
    assert combined_scores([], [], half) == [] and combined_scores([3.0], [2.0], half) == [0.0]
    assert combined_scores([0.1] * 3, [0.3] * 3, half) == [0.0] * 3
    # Where one of them tells nothing, the other decides.
    assert combined_scores([0.1] * 3, [3.0, 1.0, 2.0], half) == pytest.approx(zscores([3, 1, 2]) / 2)
    assert combined_scores([3.0, 1.0, 2.0], [None] * 3, half) == pytest.approx(zscores([3, 1, 2]) / 2)
    # A document that the first stage did not find has the lowest score of the list.
    assert combined_scores([0.0] * 3, [5.0, None, 2.0], half) == combined_scores([0.0] * 3, [5.0, 2.0, 2.0], half)
    assert zscores([1e308, -1e308]).tolist() == [1.0, -1.0] and zscores([1e-320, 0.0]).tolist() == [1.0, -1.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_are_refused(bad: float) -> None:
    for ours, first in (([1.0, bad], [1.0, 2.0]), ([1.0, 2.0], [1.0, bad]), ([1.0, 2.0], [None, bad])):
        for depth in (None, 1):
            with pytest.raises(UserError, match="not a finite number"):
                combined_scores(ours, first, Combination(0.5, depth=depth))
    with pytest.raises(UserError, match="unknown normaliser 'minmax'"):
        combined_scores([1.0], [1.0], Combination(0.5, "minmax"))


@pytest.mark.parametrize(
    ("lists", "ranks"),
    [
        ([[3, 2, 1], [100, 99, 98, 97]], True),
        ([[1, 1 / 2, 1 / 3], [1, 1 / 2]], True),
        ([[1 / 61, 1 / 62, 1 / 63], [1 / 61, 1 / 62, 1 / 63]], True),
        ([[12.5, 3.25, 1.0], [7.5, 7.0]], False),
        ([[3, 2, 1]], False),
        ([[1, 1, 1], [1, 1]], False),
        ([], False),
    ],
)
def test_scores_that_are_nothing_but_ranks_are_known(lists: list[list[float]], ranks: bool) -> None:
    assert only_ranks(lists) is ranks


def test_ranks_become_reciprocal_ranks_first() -> None:
    by_rank = Combination(0.25, "reciprocal_rank")
    expected = 0.25 * zscores([2, 0, 1]) + 0.75 * zscores([1, 1 / 2, 1 / 3])
    for first in ([100.0, 99.0, 98.0], [-1.0, -2.0, -3.0], [9.0, 0.5, 0.4]):
        assert combined_scores([2.0, 0.0, 1.0], first, by_rank) == pytest.approx(expected)


numbers = st.lists(st.one_of(st.integers(-60, 60), st.none()), max_size=9)


@given(numbers, st.integers(2, 1000), st.integers(1, 7), st.integers(-9, 9))
def test_levels_of_a_list(scores: list[int | None], levels: int, factor: int, shift: int) -> None:
    found = levels_of(scores, levels)
    known = [score for score in scores if score is not None]
    if len(set(known)) < 2:
        assert found == [None] * len(scores)
        return
    low, high = min(known), max(known)
    # In whole numbers, where a middle is exact and goes up.
    expected = [0 if s is None else (2 * levels * (s - low) + high - low) // (2 * (high - low)) for s in scores]
    assert found == expected and {type(level) for level in found} == {int}
    assert min(expected) == 0 and max(expected) == levels
    pairs = sorted((s, level) for s, level in zip(scores, found, strict=True) if s is not None)
    assert [level for _, level in pairs] == sorted(level for _, level in pairs)
    assert levels_of([None if s is None else factor * s / 3 + shift for s in scores], levels) == found


def test_ranks_become_levels_that_fall_evenly() -> None:
    assert levels_of([100.0, 99.0, 98.0, 97.0, 96.0], 50) == [50, 38, 25, 13, 0]
    assert levels_of([1e308, 0.0, -1e308], 50) == [50, 25, 0]
    with pytest.raises(UserError, match="not a finite number"):
        levels_of([1.0, math.nan], 50)


# Where people meet it.


@pytest.fixture(scope="module")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> Reranker:
    folder = tiny.make_tiny_qwen3(tmp_path_factory.mktemp("base"))
    found = Reranker.load(folder, mode="portable")
    found.contract = found.contract.replace(combine_weight=0.3, combine_depth=3)
    return found


DOCUMENTS = [document for _, document in tiny.PAIRS[:5]]
FIRST = [3.0, None, 5.0, 4.0, 1.0]


def test_rank_takes_the_scores_of_the_first_stage(reranker: Reranker) -> None:
    alone = reranker.rank("what is a bond?", DOCUMENTS)
    assert [row.score for row in alone] == sorted((row.score for row in alone), reverse=True)
    assert {(row.first_stage, row.combined) for row in alone} == {(None, None)}
    ranked = reranker.rank("what is a bond?", DOCUMENTS, first_stage_scores=FIRST)
    scores = reranker.score("what is a bond?", DOCUMENTS)
    expected = combined_scores(scores, FIRST, Combination(0.3, depth=3))
    assert [row.index for row in ranked] == sorted(range(5), key=lambda i: -expected[i])
    assert [(row.score, row.first_stage, row.combined) for row in ranked] == [
        (scores[row.index], FIRST[row.index], expected[row.index]) for row in ranked
    ]
    assert reranker.rank("what is a bond?", DOCUMENTS, 2, FIRST) == ranked[:2]
    # A generator, a column of NumPy.
    assert reranker.rank("what is a bond?", iter(DOCUMENTS), None, iter(FIRST)) == ranked
    numbers = np.array([3.0, 1.0, 5.0, 4.0, 1.0], dtype=np.float32)
    assert [row.first_stage for row in reranker.rank("q", DOCUMENTS, 1, numbers)] != [None]


@pytest.mark.parametrize(
    ("scores", "fault"),
    [
        ([1.0], "first_stage_scores: 1 score for 5 documents: give one for each"),
        ([1.0, 2.0, math.nan, 3.0, 4.0], r"first_stage_scores\[2\]: must be a finite number, found nan"),
        ([1.0, 2.0, "3", 3.0, 4.0], r"first_stage_scores\[2\]: must be a number, found text"),
        ({"a": 1.0}, "first_stage_scores: must be a list of numbers, found a mapping"),
        (3.0, "first_stage_scores: must be a list of numbers, found float"),
    ],
)
def test_first_stage_scores_that_fit_nothing_are_refused(reranker: Reranker, scores: Any, fault: str) -> None:
    with pytest.raises(UserError, match=fault):
        reranker.rank("what is a bond?", DOCUMENTS, first_stage_scores=scores)


def test_a_contract_of_an_older_version_orders_by_its_own_score(reranker: Reranker, tmp_path: Path) -> None:
    keys = ("combine_weight", "combine_normaliser", "combine_depth")
    older = {k: v for k, v in dataclasses.asdict(reranker.contract).items() if k not in keys}
    (tmp_path / CONTRACT_FILE).write_text(json.dumps(older))
    contract = PromptContract.load(tmp_path)
    assert contract is not None and Combination.of(contract) == Combination(1.0, "zscore", None)
    for key, value in (("combine_weight", 1.5), ("combine_depth", 0), ("combine_normaliser", "minmax")):
        (tmp_path / CONTRACT_FILE).write_text(json.dumps({**older, key: value}))
        with pytest.raises(UserError, match=f"{key}.*must be"):
            PromptContract.load(tmp_path)


@given(PAIRS, WEIGHT, DEPTH, st.sampled_from(["zscore", "reciprocal_rank"]))
def test_the_function_for_other_libraries_gives_our_numbers(
    pairs: list[tuple[int, int]], weight: float, depth: int | None, normaliser: str
) -> None:
    ours, first = [float(a) for a, _ in pairs], sorted((float(b) for _, b in pairs), reverse=True)
    contract = {"combine_weight": weight, "combine_depth": depth, "combine_normaliser": normaliser}
    environment = template_environment("rankwright.export", html=False, filters={})
    names: dict[str, Any] = {}
    exec(environment.get_template("part_combine_code.md.j2").render(contract=contract), names)
    assert names["combine"]([], []) == []
    expected = combined_scores(ours, first, Combination(weight, normaliser, depth))
    assert names["combine"](ours, first) == pytest.approx(expected, abs=1e-6)

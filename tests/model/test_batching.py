"""The plan of a step and padded chunks: pure functions, checked as such."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankwright.model.layout import pad_chunks, plan_step

TOKENS = st.lists(st.integers(1, 60), max_size=20)
PROMPTS = st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=12), max_size=12)


def test_a_plan_by_hand() -> None:
    # Longest first to the rank with the least: 9 | 7, 5 joins 7, 4 joins 9, 2 joins 7 + 5.
    plan = plan_step([4, 9, 2, 7, 5], ranks=2, budget_tokens=12)
    assert plan == [[[1], [0]], [[3, 4], [2]]]
    assert plan_step([5, 5], ranks=3, budget_tokens=99) == [[[0]], [[1]], []]
    assert plan_step([], ranks=2, budget_tokens=9) == [[], []]


@given(TOKENS, st.integers(1, 5), st.integers(1, 100))
def test_every_group_once_and_within_the_budget(tokens: list[int], ranks: int, budget: int) -> None:
    plan = plan_step(tokens, ranks=ranks, budget_tokens=budget)
    assert plan == plan_step(tuple(tokens), ranks=ranks, budget_tokens=budget)
    assert len(plan) == ranks
    micro_batches = list(itertools.chain.from_iterable(plan))
    assert sorted(itertools.chain.from_iterable(micro_batches)) == list(range(len(tokens)))
    for groups in micro_batches:
        assert groups
        assert sum(tokens[g] for g in groups) <= budget or len(groups) == 1


@given(TOKENS, st.integers(1, 5))
def test_ranks_are_balanced(tokens: list[int], ranks: int) -> None:
    plan = plan_step(tokens, ranks=ranks, budget_tokens=100)
    loads = [sum(tokens[g] for groups in rank for g in groups) for rank in plan]
    # What greedy assignment promises: no rank is ahead by more than one group.
    assert max(loads) - min(loads) <= max(tokens, default=0)


@given(PROMPTS, st.integers(1, 40))
def test_chunks_hold_every_prompt_once_and_keep_the_budget(prompts: list[list[int]], budget: int) -> None:
    chunks = pad_chunks(prompts, pad_id=0, chunk_tokens=budget)
    indices = [i for chunk in chunks for i in chunk.indices]
    assert sorted(indices) == list(range(len(prompts)))
    found: dict[int, list[int]] = {}
    for chunk in chunks:
        rows, width = chunk.ids_BT.shape
        assert chunk.ids_BT.dtype == torch.int64
        assert rows == len(chunk.indices) == len(chunk.last_B)
        assert rows * width <= budget or rows == 1
        assert width == max(len(prompts[i]) for i in chunk.indices)
        for row, last, i in zip(chunk.ids_BT.tolist(), chunk.last_B.tolist(), chunk.indices, strict=True):
            found[i] = row[: last + 1]
            assert set(row[last + 1 :]) <= {0}
    assert [found[i] for i in range(len(prompts))] == prompts
    widths = [chunk.ids_BT.shape[1] for chunk in chunks]
    assert widths == sorted(widths, reverse=True)


def test_no_prompts_no_chunks() -> None:
    assert pad_chunks([], pad_id=0) == []


@pytest.mark.parametrize("prompts", [[[]], [[1, 2], []]])
def test_an_empty_prompt_is_our_mistake(prompts: list[list[int]]) -> None:
    with pytest.raises(AssertionError, match="empty prompt"):
        pad_chunks(prompts, pad_id=0)

"""Packed rows: every document stands once, behind its own head, and sees nothing else."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankwright.model.layout import Row, pack, pack_texts, split_group
from rankwright.model.prompt import EncodedGroup

IDS = st.lists(st.integers(0, 99), min_size=1, max_size=9)
GROUPS = st.lists(
    st.builds(lambda head, tails: EncodedGroup(head, tails, False, 0), IDS, st.lists(IDS, min_size=1, max_size=5)),
    min_size=1,
    max_size=5,
)
BUDGETS = st.one_of(st.none(), st.integers(1, 60))


def prompts_of(groups: list[EncodedGroup]) -> list[list[int]]:
    return [g.head_ids + tail for g in groups for tail in g.tail_ids]


def visible(row: Row) -> torch.Tensor:
    places = torch.arange(len(row.ids_T))
    return row.allowed(places[:, None], places[None, :])


@given(GROUPS, BUDGETS, st.integers(1, 16))
def test_what_a_scored_token_sees_is_its_prompt_in_order(
    groups: list[EncodedGroup], budget: int | None, multiple: int
) -> None:
    rows = pack(groups, budget, multiple)
    found = []
    for row in rows:
        assert len(row.ids_T) % multiple == 0
        mask = visible(row)
        assert len(row.scored_N) % 32 == 0 or multiple == 1
        for place in row.scored_N.tolist()[: len(row.documents)]:
            seen = mask[place]
            assert row.positions_T[seen].tolist() == list(range(int(seen.sum())))
            found.append(row.ids_T[seen].tolist())
    assert found == prompts_of(groups)


@given(GROUPS, BUDGETS, st.integers(1, 16))
def test_every_token_sees_the_prefix_of_its_prompt_only(
    groups: list[EncodedGroup], budget: int | None, multiple: int
) -> None:
    for row in pack(groups, budget, multiple):
        mask = visible(row)
        # As many keys as its position says, none later than itself.
        assert mask.sum(dim=1).tolist() == [p + 1 for p in row.positions_T.tolist()]
        assert not mask.triu(1).any()


@given(GROUPS, BUDGETS)
def test_rows_keep_the_budget_and_repeat_a_head_only_in_a_new_row(
    groups: list[EncodedGroup], budget: int | None
) -> None:
    rows = pack(groups, budget)
    for row in rows:
        assert budget is None or len(row.ids_T) <= budget or len(row.documents) == 1
        assert sum(s.tokens for s in row.segments) == len(row.ids_T)
    if budget is None:
        assert len(rows) == 1
        assert len(rows[0].ids_T) == sum(g.tokens for g in groups)


@given(GROUPS, st.integers(1, 60))
def test_parts_of_a_group_hold_its_documents_in_order(groups: list[EncodedGroup], budget: int) -> None:
    for group in groups:
        parts = list(split_group(group, budget))
        assert [tail for part in parts for tail in part.tail_ids] == group.tail_ids
        assert all(part.head_ids == group.head_ids for part in parts)
        assert all(part.tokens <= budget or len(part.tail_ids) == 1 for part in parts)


@given(st.lists(IDS, min_size=1, max_size=9), BUDGETS, st.integers(1, 16))
def test_every_token_of_a_text_sees_what_stands_before_it_there(
    texts: list[list[int]], budget: int | None, multiple: int
) -> None:
    found, row_texts = [], [list(map(len, texts))] if budget is None else []
    for row in pack_texts(texts, budget, multiple):
        assert len(row.ids_T) % multiple == 0 and row.tokens == len(row.ids_T) - row.fill
        own = [head.tokens for head in row.heads if head.start < row.tokens]
        assert budget is None or sum(own) <= budget or len(own) == 1
        row_texts += [own] if budget is not None else []
        mask = visible(row)
        assert all(bool(seen.any()) for seen in mask)
        for place in range(row.tokens):
            assert row.positions_T[mask[place]].tolist() == list(range(int(mask[place].sum())))
            found.append(row.ids_T[mask[place]].tolist())
    assert found == [text[: end + 1] for text in texts for end in range(len(text))]
    assert [length for own in row_texts for length in own] == list(map(len, texts))


def test_an_empty_prompt_is_our_mistake() -> None:
    with pytest.raises(AssertionError):
        pack([EncodedGroup([1], [[]], False, 0)], None)

"""How prompts lie in memory: packed rows (a query's head stands once), padded chunks, the micro-batches of a step."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from rankwright.model.prompt import EncodedGroup

# T tokens of a row, N documents (scored prompts) of a row, S keys.
# Packed rows and padded chunks on a CPU have at most this many tokens: larger ones fall out of its caches.
CPU_ROW_TOKENS = 4096
# On a GPU more tokens make no product faster, and memory grows with them: a list of any length is scored in rows. What
# pads has smaller chunks: some layers of transformers hold a square of every prompt.
GPU_ROW_TOKENS, GPU_CHUNK_TOKENS = 32768, 16384
# In 16 bits on a CPU every new shape costs a compilation, which takes longer than the product itself.
SHAPE_MULTIPLE = 128
HEAD = -1


def row_tokens(on_cpu: bool) -> int:
    """Tokens of a packed row at most, of one prompt alone more."""
    return CPU_ROW_TOKENS if on_cpu else GPU_ROW_TOKENS


def chunk_tokens(on_cpu: bool) -> int:
    """Padded tokens of a chunk at most, of one prompt alone more."""
    return CPU_ROW_TOKENS if on_cpu else GPU_CHUNK_TOKENS


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens start:end of a row that see the head's tokens head_start:head_end and, causally, each other."""

    start: int
    end: int
    head_start: int
    head_end: int

    @property
    def tokens(self) -> int:
        return self.end - self.start

    @property
    def keys(self) -> int:
        """How many tokens its last token sees."""
        return self.tokens + self.head_end - self.head_start


# Compared by identity: rows are the keys under which attention routes cache what all layers share.
@dataclass(frozen=True, eq=False)
class Row:
    """ids_T, positions_T: int64. heads and documents: where they are in the row; a document's last token is scored.

    few_shapes: the number of scored tokens is rounded up too, see scored_N. fill: tokens at the end that no text has.
    """

    ids_T: Tensor
    positions_T: Tensor
    heads: tuple[Segment, ...]
    documents: tuple[Segment, ...]
    few_shapes: bool = False
    fill: int = 0

    @property
    def tokens(self) -> int:
        """Tokens without those that fill the row up."""
        return len(self.ids_T) - self.fill

    @cached_property
    def scored_N(self) -> Tensor:
        """The place of each document's last token; with few_shapes, then place 0 up to a multiple of 32."""
        places = [d.end - 1 for d in self.documents]
        return torch.tensor(places + [0] * (-len(places) % 32 if self.few_shapes else 0))

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """Heads (which see nothing before them) and documents in the row's order."""
        return tuple(sorted((*self.heads, *self.documents), key=lambda s: s.start))

    @cached_property
    def owner_2T(self) -> Tensor:
        """Each token's group and document, as numbers within the row (HEAD for tokens of a head)."""
        owner_2T = torch.empty(2, len(self.ids_T), dtype=torch.long)
        groups = {head.start: number for number, head in enumerate(self.heads)}
        for head in self.heads:
            owner_2T[0, head.start : head.end], owner_2T[1, head.start : head.end] = groups[head.start], HEAD
        for number, document in enumerate(self.documents):
            owner_2T[0, document.start : document.end] = groups[document.head_start]
            owner_2T[1, document.start : document.end] = number
        return owner_2T

    def allowed(self, queries: Tensor, keys: Tensor) -> Tensor:
        """bool: whether the token at place `queries` sees the one at place `keys` (int64, broadcast together)."""
        group_T, document_T = self.owner_2T.to(queries.device)
        seen: Tensor = (document_T[keys] == HEAD) | (document_T[keys] == document_T[queries])
        seen &= group_T[keys] == group_T[queries]
        return seen & (keys <= queries)


def pack(groups: Sequence[EncodedGroup], row_tokens: int | None, multiple: int = 1) -> list[Row]:
    """Rows of at most row_tokens tokens (a longer head + document takes a row of its own); documents in order.

    A group that does not fit into the rest of a row continues in the next one, where its head is repeated.
    row_tokens None: a single row. Rows are filled up to a `multiple` of tokens with tokens that no document sees.
    """
    rows = []
    for placed in place(groups, row_tokens):
        if missing := -sum(len(g.head_ids) + sum(map(len, tails)) for g, tails in placed) % multiple:
            # A head without documents: it sees itself, so that no softmax is empty.
            placed.append((EncodedGroup([0] * missing, [], False, 0), []))
        ids: list[int] = []
        positions: list[Tensor] = []
        heads: list[Segment] = []
        documents: list[Segment] = []
        for group, tails in placed:
            start, length = len(ids), len(group.head_ids)
            heads.append(Segment(start, start + length, start, start))
            positions.append(torch.arange(length))
            ids += group.head_ids
            for tail in tails:
                documents.append(Segment(len(ids), len(ids) + len(tail), start, start + length))
                positions.append(torch.arange(length, length + len(tail)))
                ids += tail
        ids_T = torch.tensor(ids, dtype=torch.long)
        rows.append(Row(ids_T, torch.cat(positions), tuple(heads), tuple(documents), few_shapes=multiple > 1))
    return rows


def pack_texts(texts: Sequence[Sequence[int]], row_tokens: int | None, multiple: int = 1) -> list[Row]:
    """Rows of whole texts in order, none of which sees another: each is a head without documents.

    row_tokens, multiple: as for pack(). Each text has at least one token.
    """
    assert all(map(len, texts)), "an empty text has no token"
    placed: list[list[Sequence[int]]] = []
    used = 0
    for text in texts:
        if not placed or (row_tokens is not None and used + len(text) > row_tokens):
            placed.append([])
            used = 0
        placed[-1].append(text)
        used += len(text)
    rows = []
    for of_row in placed:
        if missing := -sum(map(len, of_row)) % multiple:
            of_row.append([0] * missing)
        ends = list(itertools.accumulate(map(len, of_row), initial=0))
        heads = tuple(Segment(start, end, start, start) for start, end in itertools.pairwise(ends))
        ids_T = torch.tensor([number for text in of_row for number in text], dtype=torch.long)
        rows.append(Row(ids_T, torch.cat([torch.arange(len(text)) for text in of_row]), heads, (), fill=missing))
    return rows


def place(groups: Sequence[EncodedGroup], row_tokens: int | None) -> list[list[tuple[EncodedGroup, list[list[int]]]]]:
    """What pack() puts into each row: groups, each with those of its tails that the row holds."""
    rows: list[list[tuple[EncodedGroup, list[list[int]]]]] = []
    used = 0
    for group in groups:
        assert group.head_ids and all(group.tail_ids), "an empty prompt has no token to score"
        tails: list[list[int]] = []
        for tail in group.tail_ids:
            needed = len(tail) + (0 if tails else len(group.head_ids))
            if not rows or (row_tokens is not None and used and used + needed > row_tokens):
                rows.append([])
                used, tails = 0, []
            if not tails:
                rows[-1].append((group, tails))
                used += len(group.head_ids)
            tails.append(tail)
            used += len(tail)
    return rows


@dataclass(frozen=True, slots=True)
class Chunk:
    """Prompts padded on the right to one length.

    ids_BT int64; last_B: the scored token's position; indices: which prompt of the caller each row is.
    """

    ids_BT: Tensor
    last_B: Tensor
    indices: tuple[int, ...]


def pad_chunks(prompts: Sequence[Sequence[int]], *, pad_id: int, chunk_tokens: int = CPU_ROW_TOKENS) -> list[Chunk]:
    """Prompts, longest first, in chunks of at most chunk_tokens padded tokens (at least one prompt each)."""
    assert all(len(p) for p in prompts), "an empty prompt has no token to score"
    lengths = [len(p) for p in prompts]
    chunks = []
    for rows in chunk_rows(lengths, chunk_tokens=chunk_tokens):
        ids_BT = torch.full((len(rows), lengths[rows[0]]), pad_id, dtype=torch.long)
        for row, i in enumerate(rows):
            ids_BT[row, : lengths[i]] = torch.tensor(prompts[i], dtype=torch.long)
        chunks.append(Chunk(ids_BT, torch.tensor([lengths[i] - 1 for i in rows]), tuple(rows)))
    return chunks


def chunk_rows(lengths: Sequence[int], *, chunk_tokens: int = CPU_ROW_TOKENS) -> Iterator[list[int]]:
    """Which prompts of these lengths make up each chunk of pad_chunks; the first of a chunk is its longest."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    start = 0
    while start < len(order):
        count = max(1, chunk_tokens // lengths[order[start]])
        yield order[start : start + count]
        start += count


def plan_step(group_tokens: Sequence[int], *, ranks: int, budget_tokens: int) -> list[list[list[int]]]:
    """Rank -> micro-batches -> group indices, for the groups of one step.

    Groups go, longest first, to the rank with the fewest tokens so far; a rank's groups fill micro-batches of
    at most budget_tokens tokens (a longer group is a micro-batch of its own). A rank may stay empty.
    """
    loads = [0] * ranks
    assigned: list[list[int]] = [[] for _ in range(ranks)]
    for group in sorted(range(len(group_tokens)), key=lambda g: (-group_tokens[g], g)):
        rank = min(range(ranks), key=lambda r: (loads[r], r))
        loads[rank] += group_tokens[group]
        assigned[rank].append(group)
    return [_fill(groups, group_tokens, budget_tokens) for groups in assigned]


def _fill(groups: Sequence[int], group_tokens: Sequence[int], budget_tokens: int) -> list[list[int]]:
    micro_batches: list[list[int]] = []
    used = 0
    for group in groups:
        if not micro_batches or used + group_tokens[group] > budget_tokens:
            micro_batches.append([])
            used = 0
        micro_batches[-1].append(group)
        used += group_tokens[group]
    return micro_batches


def split_group(group: EncodedGroup, budget_tokens: int) -> Iterator[EncodedGroup]:
    """The group in parts of at most budget_tokens tokens, each with the head; a longer document is a part alone."""
    part: list[list[int]] = []
    used = len(group.head_ids)
    for tail in group.tail_ids:
        if part and used + len(tail) > budget_tokens:
            yield EncodedGroup(group.head_ids, part, group.query_cut, 0)
            part, used = [], len(group.head_ids)
        part.append(tail)
        used += len(tail)
    if part:
        yield EncodedGroup(group.head_ids, part, group.query_cut, 0)


def batch_parts(groups: Sequence[EncodedGroup], budget_tokens: int) -> list[list[EncodedGroup]]:
    """A micro-batch in the parts that go through the model one by one: several for a single group beyond the budget."""
    if len(groups) > 1 or groups[0].tokens <= budget_tokens:
        return [list(groups)]
    return [[part] for part in split_group(groups[0], budget_tokens)]

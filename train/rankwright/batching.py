"""The plan of a step over all ranks, and padded chunks of prompts.

Everything here is a pure function of its arguments: every rank computes the same plan.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Rows of one chunk are cut into pieces of at most this many tokens: larger ones fall out of a CPU's caches.
CHUNK_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class Chunk:
    """Prompts padded on the right to one length.

    ids_BT int64; last_B: the scored token's position; indices: which prompt of the caller each row is.
    """

    ids_BT: Tensor
    last_B: Tensor
    indices: tuple[int, ...]


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


def pad_chunks(prompts: Sequence[Sequence[int]], *, pad_id: int, chunk_tokens: int = CHUNK_TOKENS) -> list[Chunk]:
    """Prompts, longest first, in chunks of at most chunk_tokens padded tokens (at least one prompt each)."""
    assert all(len(p) for p in prompts), "an empty prompt has no token to score"
    lengths = [len(p) for p in prompts]
    return [_pad(rows, prompts, pad_id) for rows in chunk_rows(lengths, chunk_tokens=chunk_tokens)]


def chunk_rows(lengths: Sequence[int], *, chunk_tokens: int = CHUNK_TOKENS) -> Iterator[list[int]]:
    """Which prompts of these lengths make up each chunk of pad_chunks; the first of a chunk is its longest."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    start = 0
    while start < len(order):
        count = max(1, chunk_tokens // lengths[order[start]])
        yield order[start : start + count]
        start += count


def _pad(rows: Sequence[int], prompts: Sequence[Sequence[int]], pad_id: int) -> Chunk:
    width = max(len(prompts[i]) for i in rows)
    ids_BT = torch.full((len(rows), width), pad_id, dtype=torch.long)
    for row, i in enumerate(rows):
        ids_BT[row, : len(prompts[i])] = torch.tensor(prompts[i], dtype=torch.long)
    last_B = torch.tensor([len(prompts[i]) - 1 for i in rows])
    return Chunk(ids_BT, last_B, tuple(rows))

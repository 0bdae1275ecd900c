"""Lengths in tokens under a prompt contract: percentiles, and what budgets cut from queries, documents and pairs."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rankwright.examples import Collection
from rankwright.keyed_texts import get_many
from rankwright.prompts import PromptEncoder
from rankwright.ranking import stable_hash

# Of a larger corpus these many documents are measured, drawn by hash, so that the time has a bound.
MOST_DOCUMENTS = 300_000
BATCH = 512
PERCENTILES = (50, 90, 99)

Advance = Callable[[int], None]


def document_lengths(corpus: Mapping[str, str], encoder: PromptEncoder, advance: Advance) -> dict[str, int]:
    """Document id -> tokens as in a prompt, not cut; of at most MOST_DOCUMENTS, which a hash of the id chooses."""
    if len(corpus) > MOST_DOCUMENTS:
        ids = heapq.nsmallest(MOST_DOCUMENTS, corpus, key=lambda d: stable_hash("token lengths", d))
    else:
        ids = list(corpus)
    lengths: dict[str, int] = {}
    for start in range(0, len(ids), BATCH):
        part = ids[start : start + BATCH]
        lengths |= zip(part, map(len, encoder.encode_documents(get_many(corpus, part))), strict=True)
        advance(len(part))
    return lengths


def token_report(collection: Collection, encoder: PromptEncoder, lengths: Mapping[str, int]) -> dict[str, Any]:
    """Percentiles of queries and documents, and what is cut and lost; lengths: of the corpus's documents.

    A document's room is the budget beside the split's median query; judged pairs are measured each beside its own.
    """
    encoder = encoder.under(collection.instruction)
    contract = encoder.contract
    heads: dict[str, int] = {}
    queries, lost = [], []
    for query_id, query in collection.queries.items():
        clean = encoder.clean(query)
        kept, was_cut = encoder.cut_query(clean)
        queries.append(_tokens(encoder, clean))
        if was_cut:
            lost.append(queries[-1] - _tokens(encoder, kept))
        heads[query_id] = len(encoder.encode_head(query)[0])
    space = contract.max_tokens - len(encoder.suffix_ids)
    room = space - (int(np.percentile(list(heads.values()), 50, method="inverted_cdf")) if heads else 0)
    over = [n - room for n in lengths.values() if n > room]
    judged = [(q, d) for q, row in collection.qrels.items() if q in heads for d in row if d in lengths]
    pairs = [n for q, d in judged if (n := lengths[d] - (space - heads[q])) > 0]
    return {
        "queries": {**percentiles(queries), **_cut(lost), "budget": contract.query_tokens},
        "documents": {**percentiles(list(lengths.values())), **_cut(over), "budget": room, "measured": len(lengths)},
        "judged_pairs": {"pairs": len(judged), **_cut(pairs), "budget": contract.max_tokens},
    }


def _tokens(encoder: PromptEncoder, text: str) -> int:
    return len(encoder.tokenizer(text, add_special_tokens=False)["input_ids"])


def _cut(lost: Sequence[int]) -> dict[str, int]:
    return {"cut": len(lost), "tokens_lost": sum(lost)}


def percentiles(lengths: Sequence[int]) -> dict[str, int | None]:
    """p50, p90, p99 (each a length that occurs: the smallest that so many per cent do not exceed) and max."""
    if not lengths:
        return {**{f"p{p}": None for p in PERCENTILES}, "max": None}
    values = np.percentile(lengths, PERCENTILES, method="inverted_cdf")
    return {**{f"p{p}": int(v) for p, v in zip(PERCENTILES, values, strict=True)}, "max": max(lengths)}

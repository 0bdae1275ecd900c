"""Reciprocal rank fusion: one first stage out of several, by their ranks alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rankwright.common.errors import UserError
from rankwright.retrieval.candidates import RETRIEVERS, Candidate, Searcher, ranked

# Lists are fused from at least this depth, so that a short list of the fusion is the start of a longer one.
FUSED_DEPTH = 200


def reciprocal_rank_fusion(
    lists: Sequence[Mapping[str, Sequence[Candidate]]], *, depth: int, k: int = 60
) -> dict[str, list[Candidate]]:
    """Query id -> at most `depth` candidates by the sum of 1 / (k + rank) over the lists that hold a document.

    A document that a list does not hold gets nothing from it. Neither the order of the lists nor that of the
    queries matters; ties by ranking.tie_order.
    Source: Cormack, Clarke and Buettcher, SIGIR 2009.
    """
    if depth < 1 or k < 0:
        raise UserError(f"fusion: depth {depth}, k {k}: needs depth >= 1, k >= 0")
    fused = {}
    for query_id in dict.fromkeys(q for found in lists for q in found):
        parts: dict[str, list[float]] = {}
        for found in lists:
            for candidate in found.get(query_id, ()):
                parts.setdefault(candidate.document_id, []).append(1 / (k + candidate.rank))
        # fsum: the same sum in whatever order the lists come.
        best = ranked(query_id, {document_id: math.fsum(terms) for document_id, terms in parts.items()})[:depth]
        fused[query_id] = [Candidate(document_id, score, rank) for rank, (document_id, score) in enumerate(best, 1)]
    return fused


@RETRIEVERS.register
def fusion(
    corpus: Mapping[str, str],
    *,
    bm25: dict[str, Any],
    dense: dict[str, Any],
    depth: int = 100,
    k: int = 60,
) -> Searcher:
    """Reciprocal rank fusion of BM25 and a dense retriever; bm25, dense: their parameters.

    Raises UserError as the two do.
    """
    parts = {"bm25": bm25, "dense": dense}
    wanted = {"depth": max(depth, FUSED_DEPTH)}
    searches = [RETRIEVERS.bind(name, {**options, **wanted})(corpus) for name, options in parts.items()]
    return lambda queries: reciprocal_rank_fusion([search(queries) for search in searches], depth=depth, k=k)

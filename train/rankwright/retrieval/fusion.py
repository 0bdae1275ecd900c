"""Reciprocal rank fusion: one first stage out of several, by their ranks alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rankwright.common.errors import UserError
from rankwright.recipe.schema import Recipe
from rankwright.retrieval.bm25 import BM25
from rankwright.retrieval.candidates import Candidate, best_candidates
from rankwright.retrieval.dense import DENSE
from rankwright.retrieval.retriever import RETRIEVERS, Options, Retriever, Searcher

# Lists are fused from at least this depth, so that a short list of the fusion is the start of a longer one.
FUSED_DEPTH = 200


def reciprocal_rank_fusion(
    lists: Sequence[Mapping[str, Sequence[Candidate]]], *, depth: int, k: int = 60
) -> dict[str, list[Candidate]]:
    """Query id -> at most `depth` candidates by the sum of 1 / (k + rank) over the lists that hold a document.

    A list that lacks a document adds nothing to its sum. Neither the order of the lists nor that of the queries
    matters; ties by candidates.tie_order.
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
        fused[query_id] = best_candidates(query_id, {d: math.fsum(terms) for d, terms in parts.items()}, depth)
    return fused


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
    wanted = {"depth": max(depth, FUSED_DEPTH)}
    searches = [one.bind({**options, **wanted})(corpus) for one, options in ((BM25, bm25), (DENSE, dense))]
    return lambda queries: reciprocal_rank_fusion([search(queries) for search in searches], depth=depth, k=k)


def _options(recipe: Recipe, run_file: Path | None) -> Options:
    return {"bm25": BM25.options(recipe, run_file), "dense": DENSE.options(recipe, run_file)}


def _inputs(recipe: Recipe, run_file: Path | None) -> Options:
    return {"bm25": BM25.depends_on(recipe, run_file), "dense": DENSE.depends_on(recipe, run_file)}


RETRIEVERS.add(
    Retriever(
        "fusion",
        "fusion",
        fusion,
        _options,
        needs=DENSE.needs,
        inputs=_inputs,
        models=DENSE.models,
        check=DENSE.check,
        prepare=DENSE.prepare,
        place=3,
    ),
    __name__,
)

"""BM25: search by words, stemmed and without stop words."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import bm25s
import numpy as np

from rankwright.common.errors import UserError
from rankwright.data.words import Words
from rankwright.recipe.schema import Recipe
from rankwright.retrieval.candidates import Candidate, best_candidates
from rankwright.retrieval.retriever import RETRIEVERS, Options, Retriever, Searcher


def bm25(
    corpus: Mapping[str, str],
    *,
    depth: int = 100,
    language: str = "english",
    k1: float = 1.2,
    b: float = 0.75,
    code: bool = False,
) -> Searcher:
    """BM25 in Lucene's form: at most `depth` candidates per query.

    score = sum over the query's words of ln(1 + (N - n + 0.5) / (n + 0.5)) * tf / (tf + k1 (1 - b + b len / mean len));
    a document without any query word is not a candidate, so lists may be short or empty. language: stemmer
    (Snowball) and stop words; code: camelCase and snake_case also count as their parts. Neither the order of
    the corpus nor that of the queries matters; ties by candidates.tie_order.
    Raises UserError for an unknown language or a parameter out of range.
    Source: Robertson and Zaragoza 2009; Kamphuis et al. 2020 (variants); bm25s, arXiv 2407.03618.
    """
    if depth < 1 or k1 < 0 or not 0 <= b <= 1:
        raise UserError(f"bm25: depth {depth}, k1 {k1:g}, b {b:g}: needs depth >= 1, k1 >= 0, 0 <= b <= 1")
    words = Words(language, code=code)
    document_ids: list[str] = []
    vocabulary: dict[str, int] = {}
    # Four bytes per word, where a list has eight. In the corpus's own order, in which its file is read.
    documents: list[array[int]] = []
    for document_id, text in corpus.items():
        document_ids.append(document_id)
        documents.append(array("i", (vocabulary.setdefault(w, len(vocabulary)) for w in words(text))))
    if not vocabulary:
        return lambda queries: {query_id: [] for query_id in queries}
    # float64: in float32 documents with different scores would tie.
    index = bm25s.BM25(k1=k1, b=b, method="lucene", dtype="float64", backend="numpy")
    index.index((documents, vocabulary), create_empty_token=False, show_progress=False)
    del documents
    scores = np.zeros(len(document_ids))

    def search(queries: Mapping[str, str]) -> dict[str, list[Candidate]]:
        found: dict[str, list[Candidate]] = {}
        for query_id, query in queries.items():
            _score(index.scores, [vocabulary[w] for w in words(query) if w in vocabulary], scores)
            found[query_id] = _best(query_id, scores, document_ids, depth)
        return found

    return search


def _score(index: Mapping[str, Any], word_ids: Sequence[int], scores: Any) -> None:
    """Set float64 [documents] to the sums of the words' columns of the index, in the order of the words."""
    scores.fill(0)
    places, values, starts = index["indices"], index["data"], index["indptr"]
    for word in word_ids:
        column = slice(starts[word], starts[word + 1])
        # No document occurs twice in a column: this adds the same as numpy.add.at, and faster.
        scores[places[column]] += values[column]


def _best(query_id: str, scores: Any, document_ids: list[str], depth: int) -> list[Candidate]:
    """The `depth` best documents with a score above 0."""
    places = np.flatnonzero(scores > 0)
    if len(places) > depth:
        # All that tie with the last one stay, so that the tie rule and not the index decides.
        last = np.partition(scores[places], -depth)[-depth]
        places = places[scores[places] >= last]
    return best_candidates(query_id, {document_ids[i]: float(scores[i]) for i in places}, depth)


def _options(recipe: Recipe, run_file: Path | None) -> Options:
    return recipe.bm25.model_dump()


BM25 = RETRIEVERS.add(Retriever("bm25", "BM25", bm25, _options, nested=True, place=1), __name__)

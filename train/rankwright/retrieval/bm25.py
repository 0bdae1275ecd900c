"""BM25: search by words, stemmed and without stop words."""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import bm25s.stopwords
import numpy as np
import Stemmer

from rankwright.common.errors import UserError, no_such
from rankwright.data.normalisation import folded, normalised, words
from rankwright.recipe.schema import Recipe
from rankwright.retrieval.candidates import Candidate, best_candidates
from rankwright.retrieval.retriever import RETRIEVERS, Options, Retriever, Searcher

# camelCase | HTTPServer | snake_case
_SUB_WORD = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|_+")

# Lower case in languages that have rules of their own: in Turkish, I is \u0131 and \u0130 is i.
_FOLDS: dict[str, Callable[[str], str]] = {
    "turkish": lambda word: folded(word.translate({ord("I"): "\u0131", ord("\u0130"): "i"})),
}


def languages() -> list[str]:
    """Names that bm25 knows: those with a stemmer, and "none" for words as they are."""
    return ["none", *sorted(set(Stemmer.algorithms()) - {"porter", "dutch_porter"})]


def stop_words(language: str) -> frozenset[str]:
    """The words that bm25s leaves out for a language; empty where it has no list."""
    name = "STOPWORDS_EN" if language == "english" else f"STOPWORDS_{language.upper()}"
    return frozenset(getattr(bm25s.stopwords, name, ()))


class Words:
    """Text -> stemmed words in normal form, see normalisation.py, without stop words.

    In scripts without spaces, letters and pairs of neighbours; `code` adds the parts of camelCase and snake_case.
    """

    def __init__(self, language: str, *, code: bool = False) -> None:
        if language not in languages():
            raise UserError(no_such("language", language, languages()))
        stem = (lambda word: word) if language == "none" else Stemmer.Stemmer(language).stemWord
        # A corpus repeats its words: each is looked up and stemmed once.
        self._known = _Stems(stem, frozenset(map(normalised, stop_words(language))), _FOLDS.get(language, folded))
        self._code = code

    def __call__(self, text: str) -> list[str]:
        """The words of a text in order, repeated as often as they occur."""
        found = words(text, pairs=True)
        written = self._with_parts(found) if self._code else found
        return [word for word in map(self._known.__getitem__, written) if word is not None]

    @staticmethod
    def _with_parts(found: Iterable[str]) -> Iterator[str]:
        for whole in found:
            yield whole
            parts = [part for part in _SUB_WORD.split(whole) if part]
            if parts != [whole]:
                yield from parts


class _Stems(dict[str, "str | None"]):
    """A word as it is written -> its stem in lower case, None for a stop word; filled as words are asked for."""

    def __init__(self, stem: Callable[[str], str], stop: frozenset[str], fold: Callable[[str], str]) -> None:
        self._stem, self._stop, self._fold = stem, stop, fold

    def __missing__(self, written: str) -> str | None:
        lower = self._fold(written)
        self[written] = found = None if lower in self._stop else self._stem(lower)
        return found


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

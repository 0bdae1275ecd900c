"""BiEncoderScorer: a bi-encoder of sentence-transformers, used like a Reranker: the similarity of two vectors.

Shapes: Q queries and D distinct documents of a window, E size of a vector.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rankwright.common.errors import UserError
from rankwright.common.foreign_code import refuse_foreign_modules
from rankwright.rerankers.scorer import Scorer, text_groups, windows
from rankwright.retrieval.dense import BiEncoder

# Documents are gathered over queries up to this many before they are encoded together, sorted by length.
WINDOW_DOCUMENTS = 1024
# Vectors of documents that are kept in memory: a document comes back for query after query. 384 numbers each: 75 MB.
VECTORS_AT_ONCE = 50_000


class BiEncoderScorer(Scorer):
    """Similarities of a bi-encoder, times `scale`. The model's own similarity counts: cosine, or what its files name.

    A text is encoded once and kept, so equal documents of a query tie exactly. `cut` counts texts that are longer than
    the model reads.
    """

    def __init__(
        self,
        model: str,
        *,
        revision: str | None = None,
        prompts: Mapping[str, str] | None = None,
        scale: float = 1.0,
    ) -> None:
        """Load a folder or hub id. prompts: `query`, `document` -> text in front, in place of the model's own.

        Raises UserError when sentence-transformers is missing or the model cannot be loaded.
        """
        self._encoder = BiEncoder(model, revision, {"query": "", "document": "", **(prompts or {})}, key="model")
        self._scale = scale
        self._vectors: dict[str, Any] = {}
        self._long: set[str] = set()
        self._counts = {"documents_cut": 0, "queries_cut": 0}

    @property
    def cut(self) -> dict[str, int]:
        return dict(self._counts)

    def score_groups(self, groups: Iterable[tuple[str, Sequence[str]]]) -> Iterator[list[float]]:
        """Scores of each (query, documents) in turn, streamed; texts are encoded together over queries."""
        for window in windows(text_groups(groups), lambda group: len(group[1]), WINDOW_DOCUMENTS):
            yield from self._score_window(window)

    def _score_window(self, window: Sequence[tuple[str, Sequence[str]]]) -> Iterator[list[float]]:
        self._encode([document for _, documents in window for document in documents])
        queries = list(dict.fromkeys(query for query, documents in window if documents))
        vectors_QE, cut_Q = self._encoder.encode("query", queries) if queries else (np.zeros((0, 0)), np.zeros(0))
        place = {query: number for number, query in enumerate(queries)}
        for query, documents in window:
            if not documents:
                yield []
                continue
            distinct = list(dict.fromkeys(documents))
            documents_DE = np.stack([self._vectors[document] for document in distinct])
            query_1E = vectors_QE[place[query]][None]
            score_D = self._encoder.similarity(query_1E, documents_DE)[0].cpu().numpy() * self._scale
            found = dict(zip(distinct, map(float, score_D), strict=True))
            self._counts["documents_cut"] += sum(document in self._long for document in documents)
            self._counts["queries_cut"] += bool(cut_Q[place[query]])
            yield [found[document] for document in documents]

    def _encode(self, documents: Sequence[str]) -> None:
        """Make the vectors of these documents that are not there yet."""
        if len(self._vectors) > VECTORS_AT_ONCE:
            self._vectors.clear()
            self._long.clear()
        missing = [document for document in dict.fromkeys(documents) if document not in self._vectors]
        if missing:
            vectors_DE, cut_D = self._encoder.encode("document", missing)
            self._vectors |= zip(missing, vectors_DE, strict=True)
            self._long |= {document for document, cut in zip(missing, cut_D, strict=True) if cut}


def check_bi_encoder(folder: str) -> None:
    """Raises UserError for what the files of a local folder show not to be a bi-encoder."""
    refuse_foreign_modules(folder)
    if not (Path(folder) / "modules.json").is_file():
        raise UserError(f"{folder}: has no modules.json: give a folder that sentence-transformers wrote")
    if not any(Path(folder).rglob("*.safetensors")):
        raise UserError(f"{folder}: has no weights (*.safetensors): copy them there, or name another folder")

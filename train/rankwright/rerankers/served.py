"""ServedReranker: scores from a served model's rerank endpoint, with retries, a rate limit and a cache on disk."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rankwright.common import console
from rankwright.common.plurals import counted
from rankwright.common.values import list_of_texts, one_text
from rankwright.rerankers.client import Client, Limits, Refused, check_at_least, check_extra
from rankwright.rerankers.endpoints import SHAPES, read_answer
from rankwright.rerankers.pair_scores import ScoreCache, score_key
from rankwright.rerankers.scorer import Scorer

_SHORTER = (
    "let the server cut texts (vLLM: options.extra: {truncate_prompt_tokens: N}; TEI: --auto-truncate; llama.cpp: a "
    "larger --ctx-size and --ubatch-size)"
)
_FIXES = {404: "check url, shape and model", 413: "give a smaller batch"}


class ServedReranker(Scorer):
    """A model behind HTTP that scores documents one by one, used like a Reranker.

    Equal documents of a query are asked for once, so they tie exactly. With a cache, what was answered is never asked
    for again, also after a kill. The cache and `batch` presume that a score depends on its query and document alone.

    >>> reranker = ServedReranker("https://api.example.com", shape="cohere", model="rerank-1", key_variable="API_KEY")
    >>> reranker.score("what is a bond?", ["A bond is a loan.", "A cat."])
    [0.98, 0.02]
    """

    def __init__(
        self,
        url: str,
        *,
        shape: str,
        model: str = "",
        key_variable: str | None = None,
        extra: Mapping[str, Any] | None = None,
        cache: Path | None = None,
        batch: int | None = None,
        limits: Limits | None = None,
    ) -> None:
        """Asks nothing yet.

        url: the server's address, or the whole address of its rerank endpoint. shape: a name of SHAPES.
        key_variable: environment variable with the API key; the key goes into the request's header and nowhere else.
        extra: further fields of every request, such as a shape's `logits`; not those that a request has anyway.
        cache: file of scores, made when absent. batch: documents per request; by default what the shape allows.
        """
        self.shape_name, self.shape, self.model = shape, SHAPES[shape](), model
        self.endpoint = self.shape.endpoint(url)
        self.extra = dict(extra or {})
        own = {"model", "query", "documents", "texts", *([self.shape.top] if self.shape.top else [])}
        check_extra(self.extra, own)
        self.batch = self.shape.batch if batch is None else batch
        self.limits = limits or Limits()
        check_at_least("batch", self.batch, 1)
        advice = f"check url and shape {shape!r}"
        self._client = Client(self.endpoint, key_variable, self.limits, advice=advice, fixes=_FIXES)
        self._cache = None if cache is None else ScoreCache(cache)
        self.documents_asked = 0
        self.documents_cached = 0
        self.refused_last = False
        self.documents_refused = 0
        self._refusal = ""

    @property
    def cut(self) -> dict[str, int]:
        return {"documents_refused": self.documents_refused} if self.documents_refused else {}

    @property
    def cached(self) -> int:
        return self.documents_cached

    @property
    def requests_sent(self) -> int:
        """Requests so far, retries included."""
        return self._client.requests_sent

    @property
    def one_process(self) -> bool:
        return True

    def score(self, query: str, documents: Iterable[str]) -> list[float]:
        """Scores of the documents, in their order; their scale is the server's.

        refused_last (an attribute): a document that the server refuses as too long goes below all others of its list,
        and `documents_refused` counts it; without it such a document ends the scoring, since a teacher must not learn
        from a made-up score. Raises UserError when the server refuses anything else, or still fails after all retries;
        what it did answer is cached.
        """
        query, documents = one_text("query", query), list_of_texts("documents", documents)
        asked = self.shape_name + (json.dumps(self.extra, sort_keys=True) if self.extra else "")
        keys = {d: score_key(self.endpoint, asked, self.model, query, d) for d in documents}
        cached = {} if self._cache is None else {d: self._cache.find(key) for d, key in keys.items()}
        scores = {d: score for d, score in cached.items() if score is not None}
        self.documents_cached += len(scores)
        missing = [d for d in keys if d not in scores]
        for start in range(0, len(missing), self.batch):
            part = missing[start : start + self.batch]
            answered = self._ask_apart(query, part)
            if self._cache is not None and answered:
                self._cache.add({keys[d]: score for d, score in answered.items()})
            self.documents_asked += len(part)
            scores |= answered
        return self._with_refused(scores, documents)

    def _ask_apart(self, query: str, documents: Sequence[str]) -> dict[str, float]:
        """Document -> score, without those that the server refuses as too long where these go last."""
        try:
            return dict(zip(documents, self._ask(query, documents), strict=True))
        except Refused as error:
            if not (self.refused_last and error.too_long):
                raise
            if len(documents) == 1:
                self._refusal = str(error)
                return {}
        # One of them is too long: halves find it in few requests.
        half = len(documents) // 2
        return self._ask_apart(query, documents[:half]) | self._ask_apart(query, documents[half:])

    def _with_refused(self, scores: Mapping[str, float], documents: Sequence[str]) -> list[float]:
        """The scores, with refused documents below all others. Raises Refused where every document was refused."""
        refused = [d for d in documents if d not in scores]
        if not refused:
            return [scores[d] for d in documents]
        if not scores:
            raise Refused(f"{self._refusal}; it refuses every document of this query: {_SHORTER}")
        if not self.documents_refused:
            console.say(f"WARNING: {self._refusal}; such documents go last in their lists: {_SHORTER}")
        self.documents_refused += len(refused)
        last = min(scores.values()) - 1.0
        return [scores.get(d, last) for d in documents]

    def score_groups(self, groups: Iterable[tuple[str, Sequence[str]]]) -> Iterator[list[float]]:
        """Scores of each (query, documents) in turn, streamed."""
        for query, documents in groups:
            yield self.score(query, documents)

    def _ask(self, query: str, documents: Sequence[str]) -> list[float]:
        """Scores of at most `batch` documents, after as many retries as needed and allowed."""
        return self._client.ask(
            self.shape.body(self.model, query, documents, self.extra),
            lambda content: read_answer(self.shape, content, len(documents), self._client.key.show),
            what=counted(len(documents), "document"),
            fix="check url, shape, model and batch",
            shorter=_SHORTER if len(documents) == 1 else None,
        )

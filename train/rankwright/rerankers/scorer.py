"""What gives a score to each (query, document) pair: our models, cross-encoders and served models the same way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol, TypeVar

from rankwright.common.values import list_of_texts, one_text
from rankwright.data.collection import Collection
from rankwright.retrieval.candidates import Candidate, Candidates

T = TypeVar("T")
# Query id -> document id -> raw score.
Reranked = dict[str, dict[str, float]]


class Scorer(Protocol):
    """Scores documents for queries. Derive from it: what a scorer does not know keeps the value given here."""

    def score_groups(self, groups: Iterable[tuple[str, Sequence[str]]]) -> Iterator[list[float]]:
        """Raw scores of each (query, documents) in turn, in the order of the documents, which are those of listed()."""
        ...

    def score(self, query: str, documents: Iterable[str]) -> list[float]:
        """Raw scores of the documents, in their order. Raises UserError for what is not a list of texts."""
        return next(iter(self.score_groups([(query, self.listed(list_of_texts("documents", documents)))])))

    def listed(
        self, documents: Sequence[str], document_ids: Sequence[str] = (), found: Sequence[Candidate] = ()
    ) -> Sequence[str]:
        """What score_groups takes in place of raw documents, given the first stage's list of their query.

        Themselves, but for a model that reads the list's scores; see combination.listed. Without a list: as such a
        model reads documents that no first stage found.
        """
        return documents

    @property
    def cut(self) -> Mapping[str, int]:
        """`documents_cut` and `queries_cut` so far; empty where the scorer does not know."""
        return {}

    @property
    def cached(self) -> int | None:
        """Documents so far whose score was known before; None for a scorer that keeps none."""
        return None

    @property
    def one_process(self) -> bool:
        """Whether one process of a group asks it alone: its cache and its limits are those of one client."""
        return False

    @property
    def mode(self) -> str | None:
        """The frame of its prompts, None where it makes no prompt of ours."""
        return None

    def under(self, instruction: str | None) -> Scorer:
        """The same weights under another instruction; itself for None, and where it reads none."""
        return self


def text_groups(groups: Iterable[tuple[str, Iterable[str]]]) -> Iterator[tuple[str, list[str]]]:
    """Each (query, documents) as it is scored, streamed. Raises UserError as list_of_texts does."""
    for query, documents in groups:
        yield one_text("query", query), list_of_texts("documents", documents)


def windows(items: Iterable[T], size: Callable[[T], int], most: int) -> Iterator[list[T]]:
    """The items in lists, each of which ends where its sizes sum up to `most`; streamed."""
    window: list[T] = []
    total = 0
    for item in items:
        window.append(item)
        total += size(item)
        if total >= most:
            yield window
            window, total = [], 0
    if window:
        yield window


def rerank(
    scorer: Scorer,
    collection: Collection,
    candidates: Candidates,
    query_ids: Sequence[str],
    advance: Callable[..., None],
    lists: Candidates | None = None,
) -> Reranked:
    """Scores of every query's candidates: query id -> document id -> raw score.

    lists: those of the first stage, where they are not the candidates.
    """
    run: Reranked = {}

    def documents(query_id: str) -> Sequence[str]:
        ids = [c.document_id for c in candidates.get(query_id, ())]
        found = (candidates if lists is None else lists).get(query_id, ())
        return scorer.listed([collection.corpus[d] for d in ids], ids, found)

    groups = ((collection.queries[q], documents(q)) for q in query_ids)
    for query_id, scores in zip(query_ids, scorer.score_groups(groups), strict=True):
        ids = [c.document_id for c in candidates.get(query_id, ())]
        run[query_id] = dict(zip(ids, scores, strict=True))
        advance(1)
    return run

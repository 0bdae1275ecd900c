"""A set of queries, documents and judgements once it is read: Collection; and Group, the unit of training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

T = TypeVar("T")
Qrels = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Collection:
    """One split of one set: texts by id, and judgements.

    corpus: document id -> text (title and text joined by a newline, when there is a title)
    queries: query id -> text
    qrels: query id -> document id -> label; above 0 is relevant, 0 is judged not relevant
    teacher_scores: query id -> document id -> raw score of a teacher, where the file has them
    weights: query id -> weight of the query in the training loss, where it is not 1
    query_groups, document_groups: id -> value of the set's group key (filing, case, repository), where it has one
    instruction: takes the place of the recipe's
    draws: how often a training query is drawn in an epoch; 0.5 is every other epoch
    answers: query id -> the text in a relevant document that answers it, where the file has it; only for statistics
    """

    name: str
    corpus: Mapping[str, str]
    queries: Mapping[str, str]
    qrels: Qrels
    teacher_scores: Qrels = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    query_groups: Mapping[str, str] = field(default_factory=dict)
    document_groups: Mapping[str, str] = field(default_factory=dict)
    instruction: str | None = None
    draws: float = 1.0
    answers: Mapping[str, str] = field(default_factory=dict)

    def weight(self, query_id: str) -> float:
        """The weight of a query in the training loss."""
        return self.weights.get(query_id, 1.0)

    def subset(self, query_ids: Iterable[str]) -> Collection:
        """The same set with these queries only, in this order; the corpus is the same object."""
        chosen = list(query_ids)

        def of(values: Mapping[str, T]) -> dict[str, T]:
            return {q: values[q] for q in chosen if q in values}

        return replace(
            self,
            queries=of(self.queries),
            qrels=of(self.qrels),
            teacher_scores=of(self.teacher_scores),
            weights=of(self.weights),
            query_groups=of(self.query_groups),
            answers=of(self.answers),
        )

    def positives(self, query_id: str, level: int = 1) -> dict[str, float]:
        """Document id -> label of the relevant documents of a query: those whose label, rounded up, is `level` or more.

        level: 1 in training; evaluate.relevance_level where dev and test are measured.
        """
        return {d: label for d, label in self.qrels.get(query_id, {}).items() if label > level - 1}


@dataclass(frozen=True, slots=True)
class Group:
    """A query with its documents: the input of one term of the loss.

    document_ids, documents, labels run in parallel; sources: where each came from ("positive", "judged", "bm25", ...).
    weight: the group's weight in the loss. An unknown label is NaN. teacher: a teacher's raw scores, NaN where it has
    none; None without a teacher.
    """

    query_id: str
    query: str
    document_ids: tuple[str, ...]
    documents: tuple[str, ...]
    labels: tuple[float, ...]
    sources: tuple[str, ...]
    weight: float = 1.0
    teacher: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        lengths = {len(self.document_ids), len(self.documents), len(self.labels), len(self.sources)}
        lengths |= set() if self.teacher is None else {len(self.teacher)}
        assert len(lengths) == 1, f"group {self.query_id}: columns differ in length"


def join_title(title: str, text: str) -> str:
    """A document's text as the model reads it: the title, where there is one, on a line of its own."""
    title, text = title.strip(), text.strip()
    return f"{title}\n{text}" if title else text

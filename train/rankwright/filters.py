"""Filters of mined candidates, one small function each: a filter can only remove, and says why."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from rankwright.examples import Collection
from rankwright.registry import Registry
from rankwright.retrieve import Candidate

# Query id -> document ids, to query id -> document id -> raw score: the cross-encoder of mine.teacher.
Teacher = Callable[[Mapping[str, Sequence[str]]], Mapping[str, Mapping[str, float]]]


@dataclass(frozen=True, slots=True)
class MiningView:
    """What a filter may look at: the candidates of some queries of one set, and what is known of them.

    collection: texts, judgements and groups; it may have more queries than those in question
    retriever: the name of the one that gave the candidates
    retrieved: query id -> all that it returned, by rank, relevant and judged documents among them
    candidates: query id -> those that are still in, by rank: never a relevant or judged document, nor a text that
        equals a relevant one's, nor what an earlier filter removed. Its keys are the queries in question.
    seed: the recipe's
    code: mine.code
    teacher: scores for the pairs asked for, where the recipe has mine.teacher; relevant documents may be asked for too
    """

    collection: Collection
    retriever: str
    retrieved: Mapping[str, Sequence[Candidate]]
    candidates: Mapping[str, Sequence[Candidate]]
    seed: int = 0
    code: bool = False
    teacher: Teacher | None = None


@dataclass(frozen=True, slots=True)
class Decided:
    """What a filter decided.

    removed: query id -> document id -> reason code (snake_case); only of `candidates`
    notes: query id -> document id -> a number that negatives.jsonl and removed.jsonl keep under the filter's name
    labels: query id -> document id -> the label that the document is trained with, in place of 0
    counts: what else is to be said, in words -> how many
    """

    removed: Mapping[str, Mapping[str, str]]
    notes: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    labels: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)


# A filter is called as name(view, **options): its keyword-only parameters are its keys in mine.filters. It must be a
# pure function of its arguments, and, unless it is in ACROSS_QUERIES, decide each query as if it were alone: mining
# calls it with a shard of the queries in any process.
FILTERS: Registry[Callable[..., Decided]] = Registry("filter")
# These, and all filters after the first of them, are called once with all queries of a set.
ACROSS_QUERIES = frozenset({"max_reuse"})

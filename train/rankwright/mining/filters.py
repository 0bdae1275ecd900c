"""Filters of mined candidates, one small function each: a filter can only remove, and says why."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from rankwright.common.errors import UserError
from rankwright.common.hashing import stable_hash
from rankwright.common.registry import Registry
from rankwright.data.collection import Collection
from rankwright.data.duplicates import CODE, NEAR, TEXT
from rankwright.data.duplicates import jaccard as similarity
from rankwright.data.shingles import Hashes, Vocabulary
from rankwright.retrieval.candidates import Candidate

# Sets of shingles that are kept: documents come back for query after query.
DOCUMENTS_AT_ONCE = 4096
# Query id -> document ids, to query id -> document id -> raw score: the cross-encoder of mine.teacher.
Teacher = Callable[[Mapping[str, Sequence[str]]], Mapping[str, Mapping[str, float]]]
# The set that the ids are of -> its teacher.
TeacherOf = Callable[[Collection], Teacher]


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

    def of(
        self, retrieved: Mapping[str, Sequence[Candidate]], candidates: Mapping[str, Sequence[Candidate]]
    ) -> MiningView:
        """The same view with other lists."""
        return replace(self, retrieved=retrieved, candidates=candidates)


@dataclass(frozen=True, slots=True)
class Decided:
    """What a filter decided.

    removed: query id -> document id -> reason code (snake_case); only of `candidates`
    notes: query id -> document id -> a number that negatives.jsonl and removed.jsonl keep under the filter's name
    labels: query id -> document id -> the label that the document is trained with, in place of 0; None: not known, so
        that only losses of a teacher's scores see the document
    counts: what else is to be said, in words -> how many
    """

    removed: Mapping[str, Mapping[str, str]]
    notes: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    labels: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)


# A filter is called as name(view, **options): its keyword-only parameters are its keys in mine.filters. It must be a
# pure function of its arguments, and, unless it is in ACROSS_QUERIES, decide each query as if it were alone: mining
# calls it with a shard of the queries in any process.
FILTERS: Registry[Callable[..., Decided]] = Registry("filter")
# These, and all filters after the first of them, are called once with all queries of a set.
ACROSS_QUERIES = frozenset({"max_reuse"})


def bind_filters(options: Mapping[str, Mapping[str, object]]) -> dict[str, Callable[[MiningView], Decided]]:
    """The filters of `mine.filters` with their options fixed, in their order. Raises UserError for an unknown one."""
    return {name: FILTERS.bind(name, values) for name, values in options.items()}


def known_scores(scores: Mapping[str, Mapping[str, float]]) -> Teacher:
    """A teacher that has scored all that it will be asked for: query id -> document id -> raw score."""

    def teacher(wanted: Mapping[str, Sequence[str]]) -> dict[str, dict[str, float]]:
        # A query's row once: it may lie in a file.
        return {q: {d: of[d] for d in ids} for q, ids in wanted.items() for of in (scores[q],)}

    return teacher


def split_filters(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """(those that decide each query alone, the first that looks across queries and all after it)."""
    order = list(names)
    first = next((n for n, name in enumerate(order) if name in ACROSS_QUERIES), len(order))
    return order[:first], order[first:]


@FILTERS.register
def rank_window(
    view: MiningView, *, first: Annotated[int, Field(ge=1)] = 1, last: Annotated[int, Field(ge=1)] | None = None
) -> Decided:
    """Removes candidates before rank `first` and after rank `last`, by the retriever's ranks.

    Raises UserError when last < first.
    """
    if last is not None and last < first:
        raise UserError(f"filter 'rank_window': first {first}, last {last}: nothing lies between them")
    return Decided(
        {
            query_id: {
                c.document_id: "outside_window"
                for c in candidates
                if c.rank < first or (last is not None and c.rank > last)
            }
            for query_id, candidates in view.candidates.items()
        }
    )


@FILTERS.register
def margin(
    view: MiningView,
    *,
    absolute: Annotated[float, Field(ge=0)] | None = None,
    relative_to_spread: Annotated[float, Field(ge=0)] | None = None,
    ranks: Annotated[int, Field(ge=0)] | None = None,
) -> Decided:
    """Removes candidates that are not a margin below the query's best relevant document.

    absolute: the margin in the retriever's own scores; relative_to_spread: in interquartile ranges of the query's
    retrieved scores; ranks: in places of the list. Never a share of a score, which turns round where scores are
    negative. The best relevant document counts: beside one found late, all other hits would look too good.
    A query none of whose relevant documents was retrieved keeps its candidates, and is counted.
    Notes: how far below the best relevant document a candidate is. Source: de Souza Moreira et al. 2024
    (NV-Retriever, arXiv 2407.15831), whose margins this replaces by ones that hold for any sign.
    """
    if sum(option is not None for option in (absolute, relative_to_spread, ranks)) != 1:
        raise UserError("filter 'margin': give exactly one of absolute, relative_to_spread, ranks")

    def height(candidate: Candidate) -> float:
        return candidate.score if ranks is None else -candidate.rank

    removed: dict[str, dict[str, str]] = {}
    notes: dict[str, dict[str, float]] = {}
    unknown = 0
    for query_id, candidates in view.candidates.items():
        positives = view.collection.positives(query_id)
        best = max((height(c) for c in view.retrieved[query_id] if c.document_id in positives), default=None)
        if best is None:
            unknown += bool(positives)
            continue
        wide = absolute if absolute is not None else ranks
        if wide is None:
            wide = (relative_to_spread or 0.0) * _spread(view.retrieved[query_id])
        notes[query_id] = {c.document_id: best - height(c) for c in candidates}
        removed[query_id] = {d: "above_margin" for d, below in notes[query_id].items() if below < wide}
    return Decided(removed, notes, counts={"queries without a retrieved relevant document, no margin": unknown})


def _spread(candidates: Sequence[Candidate]) -> float:
    """Interquartile range of the scores."""
    low, high = np.percentile([c.score for c in candidates], (25, 75))
    return float(high - low)


@FILTERS.register
def same_group(view: MiningView) -> Decided:
    """Removes documents of the same group (filing, case, repository: the set's group_key) as a relevant document."""
    groups = view.collection.document_groups
    removed = {}
    for query_id, candidates in view.candidates.items():
        taken = {groups[d] for d in view.collection.positives(query_id) if d in groups}
        removed[query_id] = {c.document_id: "same_group" for c in candidates if groups.get(c.document_id) in taken}
    return Decided(removed)


@FILTERS.register
def near_duplicate(view: MiningView, *, jaccard: Annotated[float, Field(gt=0, le=1)] = NEAR) -> Decided:
    """Removes documents of nearly the text of a relevant one: Jaccard similarity of their shingles (see shingles.py).

    A query has few relevant documents, so every pair is compared exactly and nothing is estimated. Case, white
    space and punctuation do not count; with mine.code tokens are compared, without comments. Notes: the similarity, of
    what is removed. Source: Broder 1997.
    """
    corpus, kind, vocabulary = view.collection.corpus, CODE if view.code else TEXT, Vocabulary()
    removed: dict[str, dict[str, str]] = {}
    notes: dict[str, dict[str, float]] = {}

    @lru_cache(DOCUMENTS_AT_ONCE)
    def of(document_id: str) -> Hashes:
        return kind.shingles(corpus[document_id], vocabulary)

    for query_id, candidates in view.candidates.items():
        # A text without content has no duplicate.
        relevant = [found for d in view.collection.positives(query_id) if len(found := of(d))]
        for candidate in candidates:
            found = of(candidate.document_id)
            near = max((similarity(found, other) for other in relevant), default=0.0)
            if near >= jaccard:
                removed.setdefault(query_id, {})[candidate.document_id] = "near_duplicate_of_positive"
                notes.setdefault(query_id, {})[candidate.document_id] = round(near, 4)
    return Decided(removed, notes)


@FILTERS.register
def max_reuse(view: MiningView, *, most: Annotated[int, Field(ge=1)]) -> Decided:
    """Leaves a document in at most `most` pools of its set: those where it ranks best, ties by a hash with the seed.

    Judged negatives do not count, nor do queries without a relevant document, which are trained with judged documents
    only and so keep their candidates. Documents that answer everything half (a table of contents, a licence) fill pools
    otherwise. A stricter filter before this one can free a place, and so let another query keep the document.
    """
    uses: dict[str, list[tuple[int, int, str]]] = {}
    for query_id, candidates in view.candidates.items():
        for c in candidates if view.collection.positives(query_id) else ():
            key = (c.rank, stable_hash("reuse", view.seed, query_id, c.document_id), query_id)
            uses.setdefault(c.document_id, []).append(key)
    removed: dict[str, dict[str, str]] = {query_id: {} for query_id in view.candidates}
    for document_id, pools in uses.items():
        for _, _, query_id in sorted(pools)[most:]:
            removed[query_id][document_id] = "reused"
    return Decided(removed)


@FILTERS.register
def teacher(
    view: MiningView,
    *,
    margin: float = 0.0,
    above: Literal["drop", "promote", "soft"] = "drop",
    positive: Literal["best", "lowest"] = "best",
    label: Annotated[float, Field(gt=0)] = 1.0,
) -> Decided:
    """What mine.teacher scores above a query's relevant document, less a margin, is dropped, promoted or soft.

    margin: in the teacher's raw scores; below 0, only what is clearly above. positive: which of several relevant
    documents counts, by the teacher; beside the lowest, one that the teacher misjudges empties a pool.
    drop: removed. promote: kept as relevant with `label`. soft: kept without a label, for losses of a teacher's scores
    alone. A query without a relevant document keeps its candidates. Notes: the teacher's score of each candidate.
    Source: Qu et al. 2021 (RocketQA, arXiv 2010.08191: drop), Ren et al. 2021 (RocketQAv2, arXiv 2110.07367: soft).
    Raises UserError without mine.teacher.
    """
    if view.teacher is None:
        raise UserError("filter 'teacher': needs mine.teacher: {name, kind, model}")
    relevant = {q: list(view.collection.positives(q)) for q in view.candidates}
    wanted = {q: [*relevant[q], *(c.document_id for c in found)] for q, found in view.candidates.items()}
    scores = view.teacher(wanted)
    choose = max if positive == "best" else min
    notes = {q: {c.document_id: scores[q][c.document_id] for c in found} for q, found in view.candidates.items()}
    too_good = {
        q: [d for d, score in found.items() if score > choose(scores[q][p] for p in relevant[q]) - margin]
        for q, found in notes.items()
        if relevant[q]
    }
    if above == "drop":
        return Decided({q: dict.fromkeys(found, "teacher_above_margin") for q, found in too_good.items()}, notes)
    given, words = (label, "promoted") if above == "promote" else (None, "kept as soft labels")
    labels = {q: dict.fromkeys(found, given) for q, found in too_good.items()}
    return Decided({}, notes, labels, {words: sum(map(len, labels.values()))})

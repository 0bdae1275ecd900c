"""Filters of mined candidates, one function each: a filter removes candidates, and gives a reason for each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import Field

from rankwright.common.errors import UserError
from rankwright.common.hashing import stable_hash
from rankwright.common.registry import Records, bind, parameters
from rankwright.data.collection import Collection
from rankwright.data.duplicates import CODE, NEAR, TEXT
from rankwright.data.duplicates import jaccard as similarity
from rankwright.data.shingles import Hashes, Vocabulary
from rankwright.recipe.schema import Mine, Recipe
from rankwright.retrieval.candidates import Candidate

# Sets of shingles that are kept in memory: documents come back for query after query.
DOCUMENTS_AT_ONCE = 4096
# Query id -> document ids, to query id -> document id -> raw score: the cross-encoder of mine.teacher.
Teacher = Callable[[Mapping[str, Sequence[str]]], Mapping[str, Mapping[str, float]]]
# A set -> the teacher that scores its pairs.
TeacherOf = Callable[[Collection], Teacher]


@dataclass(frozen=True, slots=True)
class MiningView:
    """What a filter may look at: the candidates of some queries of one set, and what is known about them.

    collection: texts, judgements and groups; it may have more queries than the filter decides
    retriever: the name of the retriever that gave the candidates
    retrieved: query id -> all that it returned, by rank, relevant and judged documents among them
    candidates: query id -> those that are still in, by rank: never a relevant or judged document, nor a text that
        equals a relevant one's, nor what an earlier filter removed. The filter decides the queries that are its keys.
    seed: the recipe's
    code: bm25.code
    teacher: scores the pairs it is given, relevant documents too, where the recipe has mine.teacher
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


def recipe_view(recipe: Recipe, collection: Collection, retriever: str, teacher: Teacher | None) -> MiningView:
    """What filters see under a recipe, without candidates."""
    return MiningView(collection, retriever, {}, {}, recipe.seed, recipe.bm25.code, teacher)


@dataclass(frozen=True, slots=True)
class Decided:
    """What a filter decided.

    removed: query id -> document id -> reason code, one of those that the filter is registered with; only of
        `candidates`
    notes: query id -> document id -> a number that negatives.jsonl and removed.jsonl keep under the filter's name
    labels: query id -> document id -> the label that the document is trained with, in place of 0, for the first of the
        filter's reasons; None: not known, so that only losses of a teacher's scores see the document
    counts: what else the stage reports, in words -> how many
    """

    removed: Mapping[str, Mapping[str, str]]
    notes: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    labels: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)


# A filter with its options fixed.
Filter = Callable[[MiningView], Decided]
F = TypeVar("F", bound=Callable[..., Decided])


@dataclass(frozen=True)
class MiningFilter:
    """A filter as it is registered.

    decide: called as decide(view, **options): its keyword-only parameters are its keys in mine.filters. It is a pure
        function of its arguments and, unless across_queries, decides each query as if it were alone: mining calls it
        with a shard of the queries in any process.
    reasons: reason code (snake_case) -> what it means, as pages show it after a document
    noted: what the number means that it notes
    across_queries: it is called once with all queries of a set, and so are all filters after it
    of_text: it looks at a document's text or group only, and so decides about documents that were not retrieved, too
    needs_teacher: it asks mine.teacher
    check: what is wrong between options, or None; called with those, defaults included, that are its parameters
    """

    name: str
    decide: Callable[..., Decided]
    reasons: Mapping[str, str]
    noted: str = ""
    across_queries: bool = False
    of_text: bool = False
    needs_teacher: bool = False
    check: Callable[..., str | None] | None = None


class _Filters(Records[MiningFilter]):
    def register(self, *, reasons: Mapping[str, str], **about: Any) -> Callable[[F], F]:
        """Decorator: the function's own name is its name in recipes; reasons, about: fields of MiningFilter."""

        def add(decide: F) -> F:
            self.add(MiningFilter(decide.__name__, decide, reasons, **about), decide.__module__)
            return decide

        return add

    def bind(self, name: str, options: Mapping[str, object]) -> Filter:
        """A filter with its options fixed. Raises UserError for an unknown one, and for options that are wrong."""
        known = self[name]
        bound = bind(f"filter {name!r}", known.decide, options)
        if known.check is not None:
            read = parameters(known.check)
            if wrong := known.check(**{key: value for key, value in bound.keywords.items() if key in read}):
                raise UserError(f"filter {name!r}: {wrong}")
        return bound


FILTERS = _Filters("filter")


def bind_filters(options: Mapping[str, Mapping[str, object]]) -> dict[str, Filter]:
    """The filters of `mine.filters` with their options fixed, in their order; raises as FILTERS.bind does."""
    return {name: FILTERS.bind(name, values) for name, values in options.items()}


def check_filters(mine: Mine) -> list[str]:
    """All mistakes of mine.filters, each as `mine.filters.NAME: what`."""
    faults = []
    for name, options in mine.filters.items():
        try:
            FILTERS.bind(name, options)
            if FILTERS[name].needs_teacher and mine.teacher is None:
                raise UserError(f"filter {name!r}: needs mine.teacher: {{name, kind, model}}")
        except UserError as error:
            faults.append(f"mine.filters.{name}: {error}")
    return faults


def split_filters(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """(those that decide each query alone, the first that looks across queries and all after it)."""
    order = list(names)
    first = next((n for n, name in enumerate(order) if FILTERS[name].across_queries), len(order))
    return order[:first], order[first:]


def known_scores(scores: Mapping[str, Mapping[str, float]]) -> Teacher:
    """A teacher whose scores are all there already: query id -> document id -> raw score."""

    def teacher(wanted: Mapping[str, Sequence[str]]) -> dict[str, dict[str, float]]:
        # A query's row once: it may lie in a file.
        return {q: {d: of[d] for d in ids} for q, ids in wanted.items() for of in (scores[q],)}

    return teacher


def _window_is_empty(*, first: int, last: int | None) -> str | None:
    return f"first {first}, last {last}: nothing lies between them" if last is not None and last < first else None


@FILTERS.register(reasons={"outside_window": "its rank is outside the window"}, check=_window_is_empty)
def rank_window(
    view: MiningView, *, first: Annotated[int, Field(ge=1)] = 1, last: Annotated[int, Field(ge=1)] | None = None
) -> Decided:
    """Removes candidates before rank `first` and after rank `last`, by the retriever's ranks."""
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


def _not_one_margin(*, absolute: float | None, relative_to_spread: float | None, ranks: int | None) -> str | None:
    given = sum(option is not None for option in (absolute, relative_to_spread, ranks))
    return None if given == 1 else "give exactly one of absolute, relative_to_spread, ranks"


@FILTERS.register(
    reasons={"above_margin": "its score is too near the best relevant document's, or above it"},
    noted="below the best relevant score by",
    check=_not_one_margin,
)
def margin(
    view: MiningView,
    *,
    absolute: Annotated[float, Field(ge=0)] | None = None,
    relative_to_spread: Annotated[float, Field(ge=0)] | None = None,
    ranks: Annotated[int, Field(ge=0)] | None = None,
) -> Decided:
    """Removes candidates that are not a margin below the query's best relevant document.

    absolute: the margin in the retriever's own scores; relative_to_spread: in interquartile ranges of the query's
    retrieved scores; ranks: in places of the list. Never a share of a score, which reverses where scores are negative.
    The best relevant document counts: a relevant document found late would make all other hits look too good.
    A query without a retrieved relevant document keeps its candidates, and is counted.
    Notes: how far below the best relevant document a candidate is. Source: de Souza Moreira et al. 2024
    (NV-Retriever, arXiv 2407.15831), whose margins this replaces by ones that hold for any sign.
    """

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


@FILTERS.register(reasons={"same_group": "in the same group as a relevant document"}, of_text=True)
def same_group(view: MiningView) -> Decided:
    """Removes documents of the same group (filing, case, repository: the set's group_key) as a relevant document."""
    groups = view.collection.document_groups
    removed = {}
    for query_id, candidates in view.candidates.items():
        taken = {groups[d] for d in view.collection.positives(query_id) if d in groups}
        removed[query_id] = {c.document_id: "same_group" for c in candidates if groups.get(c.document_id) in taken}
    return Decided(removed)


@FILTERS.register(
    reasons={"near_duplicate_of_positive": "nearly the text of a relevant document"}, noted="similarity", of_text=True
)
def near_duplicate(view: MiningView, *, jaccard: Annotated[float, Field(gt=0, le=1)] = NEAR) -> Decided:
    """Removes documents of nearly the text of a relevant one: Jaccard similarity of their shingles (see shingles.py).

    A query has few relevant documents, so every pair is compared exactly and nothing is estimated. Case, white
    space and punctuation do not count; with bm25.code tokens are compared, without comments. Notes: the similarity of
    each removed document. Source: Broder 1997.
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


@FILTERS.register(reasons={"reused": "already in as many pools as max_reuse allows"}, across_queries=True)
def max_reuse(view: MiningView, *, most: Annotated[int, Field(ge=1)]) -> Decided:
    """Leaves a document in at most `most` pools of its set: those where it ranks best, ties by a hash with the seed.

    Judged negatives do not count, nor do queries without a relevant document, which are trained with judged documents
    only and so keep their candidates. Without this filter, documents that half answer everything (a table of contents,
    a licence) fill the pools. A stricter filter before this one can free a place, and so let another query keep the
    document.
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


@FILTERS.register(
    reasons={"teacher_above_margin": "the teacher scores it above the relevant document, less the margin"},
    noted="teacher",
    needs_teacher=True,
)
def teacher(
    view: MiningView,
    *,
    margin: float = 0.0,
    above: Literal["drop", "promote", "soft"] = "drop",
    positive: Literal["best", "lowest"] = "best",
    label: Annotated[float, Field(gt=0)] = 1.0,
) -> Decided:
    """Drops, promotes or softens what mine.teacher scores above a query's relevant document, less a margin.

    margin: in the teacher's raw scores; below 0, only what is clearly above. positive: which of several relevant
    documents counts, by the teacher's scores; with `lowest`, one that the teacher misjudges empties a pool.
    drop: removed. promote: kept as relevant with `label`. soft: kept without a label, for losses of a teacher's scores
    alone. A query without a relevant document keeps its candidates. Notes: the teacher's score of each candidate.
    Source: Qu et al. 2021 (RocketQA, arXiv 2010.08191: drop), Ren et al. 2021 (RocketQAv2, arXiv 2110.07367: soft).
    """
    assert view.teacher is not None, "check_filters refuses this filter without mine.teacher"
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

"""Hard negatives with a source and a reason for each: candidates through the filters, short pools filled, files."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from rankwright.common.errors import UserError
from rankwright.common.files import json_line
from rankwright.common.hashing import file_sha256, stable_hash
from rankwright.data.collection import Collection
from rankwright.data.normalisation import normalised
from rankwright.data.store.rows import read_query_rows
from rankwright.mining.filters import FILTERS, Filter, MiningView
from rankwright.retrieval.candidates import Candidate

# Sources of negatives beside the retriever, and reasons beside those of filters.
JUDGED, PROMOTED, RANDOM = "judged", "promoted", "random"
UNJUDGED, JUDGED_NOT_RELEVANT, FILL = "unjudged", "judged_not_relevant", "fill"
POSITIVE, DUPLICATE, OWN = "positive", "duplicate_of_positive", "query_itself"
# Removed before every filter, whatever the recipe chooses.
ALWAYS = {
    POSITIVE: "relevant to the query",
    JUDGED: "judged not relevant",
    DUPLICATE: "the text of a relevant document",
    OWN: "the query's own text, or its id",
}
IN_POOLS = {
    UNJUDGED: "retrieved and unjudged",
    JUDGED_NOT_RELEVANT: "judged not relevant",
    FILL: "drawn at random from the corpus, because the pool was short",
}
# Normalised texts that are kept in memory: documents come back for query after query.
TEXTS_AT_ONCE = 20_000


def reasons() -> dict[str, str]:
    """Reason code -> what it means, of all negatives and of all removed candidates."""
    return {**IN_POOLS, **ALWAYS, **{code: text for one in FILTERS.values() for code, text in one.reasons.items()}}


@dataclass(frozen=True, slots=True)
class Negative:
    """A document taken as not relevant to a query.

    source: the retriever, "judged", "random" or "promoted"; reason: a code of IN_POOLS, or that of the filter that
    labelled it. rank (from 1) and score are the retriever's; None for a document that it did not return.
    decisions: (filter, the number it noted). label: what it is trained with, 0 unless a filter labelled it: above 0 it
    is relevant after all, None where only losses of a teacher's scores may see it. teacher: the score that mine.teacher
    gives it, known while training draws; it stands in teacher.jsonl, not among the negatives.
    """

    document_id: str
    source: str
    rank: int | None
    score: float | None
    reason: str
    decisions: tuple[tuple[str, float], ...] = ()
    label: float | None = 0.0
    teacher: float | None = None

    @property
    def is_promoted(self) -> bool:
        return self.label is not None and self.label > 0


def count_negatives(pool: Sequence[Negative]) -> int:
    """How many of a pool are drawn as negatives: what was promoted is drawn as relevant."""
    return sum(not n.is_promoted for n in pool)


def negatives_line(query_id: str, pool: Sequence[Negative]) -> str:
    """A row of negatives.jsonl: `query_id, negatives: [{document_id, source, rank, score, reason}]`.

    A negative has `decisions` (filter -> number) and `label` where there are some.
    """
    rows = []
    for n in pool:
        row: dict[str, Any] = {"document_id": n.document_id, "source": n.source, "rank": n.rank}
        row |= {"score": n.score, "reason": n.reason}
        row |= {"decisions": dict(n.decisions)} if n.decisions else {}
        rows.append(row | ({"label": n.label} if n.label != 0 else {}))
    return json_line({"query_id": query_id, "negatives": rows})


def read_negatives(path: Path) -> Mapping[str, Sequence[Negative]]:
    """The pools of negatives.jsonl; a large file is read row by row when asked. Raises UserError for a damaged one."""
    return read_query_rows(path, "negatives", lambda rows: tuple(_negative(**row) for row in rows))


def pool_id(path: Path) -> str:
    """The name of a pool file: the first 16 hexadecimal digits of its SHA-256."""
    return file_sha256(path)[:16]


def _negative(*, decisions: Mapping[str, float] | None = None, **values: Any) -> Negative:
    return Negative(**values, decisions=tuple(sorted((decisions or {}).items())))


@dataclass(frozen=True, slots=True)
class Removed:
    """A candidate that a filter removed; filter: its name, "" for what is always removed."""

    filter: str
    reason: str


class Label(NamedTuple):
    """What a filter trains a candidate with in place of 0, and its reason code."""

    value: float | None
    reason: str


UNLABELLED = Label(0.0, UNJUDGED)


@dataclass(slots=True)
class Sifted:
    """Some queries of one set: all that was retrieved, by rank, and what the filters decided so far.

    removed: query id -> document id -> by which filter, relevant and judged documents among them
    notes: query id -> document id -> filter -> its number; labels: query id -> document id -> label
    said: what filters counted, in words
    """

    retrieved: dict[str, list[Candidate]]
    removed: dict[str, dict[str, Removed]]
    notes: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    labels: dict[str, dict[str, Label]] = field(default_factory=dict)
    said: Counter[str] = field(default_factory=Counter)

    def left(self, query_id: str) -> list[Candidate]:
        """The candidates that are still in, by rank."""
        gone = self.removed[query_id]
        return [c for c in self.retrieved[query_id] if c.document_id not in gone]

    def counts(self) -> Counter[str]:
        """Reason, or `kept` -> candidates: together all that were retrieved."""
        counts = Counter(by.reason for gone in self.removed.values() for by in gone.values())
        counts["kept"] = sum(map(len, self.retrieved.values())) - counts.total()
        return +counts

    def counts_by_filter(self) -> Counter[str]:
        """Filter -> candidates that it removed."""
        return Counter(by.filter for gone in self.removed.values() for by in gone.values() if by.filter)

    def merge(self, other: Sifted) -> None:
        """Take in other queries of the same set."""
        self.retrieved |= other.retrieved
        self.removed |= other.removed
        self.notes |= other.notes
        self.labels |= other.labels
        self.said.update(other.said)


def sift(
    collection: Collection, retrieved: Mapping[str, Sequence[Candidate]], own: Container[str] = frozenset()
) -> Sifted:
    """Remove what no recipe keeps: relevant and judged documents, and texts that equal a relevant one's or the query.

    own: queries whose id stands for their own document. Texts are compared in their normal form. Raises UserError for a
    candidate that is not in the corpus.
    """
    text = lru_cache(TEXTS_AT_ONCE)(lambda document_id: normalised(collection.corpus[document_id]))
    by_rank = {query_id: sorted(found, key=lambda c: c.rank) for query_id, found in retrieved.items()}
    removed: dict[str, dict[str, Removed]] = {}
    for query_id, candidates in by_rank.items():
        judged, positives = collection.qrels.get(query_id, {}), collection.positives(query_id)
        relevant = {text(d) for d in positives}
        query = normalised(collection.queries[query_id])
        gone = removed[query_id] = {}
        for document_id in (c.document_id for c in candidates):
            if document_id not in collection.corpus:
                raise UserError(
                    f"query {query_id!r}: candidate {document_id!r} is not in the corpus of "
                    f"{collection.name!r}: retrieve again from this corpus"
                )
            if document_id in judged:
                gone[document_id] = Removed("", POSITIVE if document_id in positives else JUDGED)
            elif text(document_id) in relevant:
                gone[document_id] = Removed("", DUPLICATE)
            elif (document_id == query_id and query_id in own) or text(document_id) == query:
                gone[document_id] = Removed("", OWN)
    return Sifted(by_rank, removed)


def apply(sifted: Sifted, filters: Mapping[str, Filter], view: MiningView) -> None:
    """Let the filters decide, in their order; each sees what those before it left. view: without candidates."""
    for name, decide in filters.items():
        left = {query_id: sifted.left(query_id) for query_id in sifted.retrieved}
        decided = decide(view.of(sifted.retrieved, left))
        for query_id, gone in decided.removed.items():
            assert set(gone) <= {c.document_id for c in left[query_id]}, f"filter {name}: removes what it was not given"
            sifted.removed[query_id] |= {d: Removed(name, reason) for d, reason in gone.items()}
        for query_id, notes in decided.notes.items():
            for document_id, number in notes.items():
                sifted.notes.setdefault(query_id, {}).setdefault(document_id, {})[name] = number
        for query_id, labels in decided.labels.items():
            reason = next(iter(FILTERS[name].reasons), name)
            sifted.labels.setdefault(query_id, {}).update({d: Label(value, reason) for d, value in labels.items()})
        sifted.said.update({f"{name}: {words}": count for words, count in decided.counts.items() if count})


def pool_of(collection: Collection, sifted: Sifted, query_id: str, source: str) -> tuple[Negative, ...]:
    """The negatives of a query: those judged not relevant first, by id, then what the filters left, by rank.

    A judged document whose text equals a relevant one's is left out.
    """
    found = {c.document_id: c for c in sifted.retrieved[query_id]}
    judged = [Negative(d, JUDGED, *_place(found.get(d)), JUDGED_NOT_RELEVANT) for d in judged_of(collection, query_id)]
    notes, labels = sifted.notes.get(query_id, {}), sifted.labels.get(query_id, {})
    unjudged = []
    for c in sifted.left(query_id):
        decisions = tuple(sorted(notes.get(c.document_id, {}).items()))
        label, reason = labels.get(c.document_id, UNLABELLED)
        by = PROMOTED if label else source
        unjudged.append(Negative(c.document_id, by, c.rank, c.score, reason, decisions, label))
    return (*judged, *unjudged)


def judged_of(collection: Collection, query_id: str) -> list[str]:
    """Ids of the documents judged not relevant, sorted, without texts that equal a relevant one's."""
    positives = collection.positives(query_id)
    others = sorted(d for d in collection.qrels.get(query_id, {}) if d not in positives)
    relevant = {normalised(collection.corpus[d]) for d in positives} if others else set()
    return [d for d in others if normalised(collection.corpus[d]) not in relevant]


def _place(candidate: Candidate | None) -> tuple[int | None, float | None]:
    return (None, None) if candidate is None else (candidate.rank, candidate.score)


def rows_of(sifted: Sifted) -> Iterator[dict[str, Any]]:
    """One row of JSON values per query, for read_rows."""
    for query_id, candidates in sifted.retrieved.items():
        row: dict[str, Any] = {"query_id": query_id}
        row["retrieved"] = [[c.document_id, c.score, c.rank] for c in candidates]
        row["removed"] = [[d, by.filter, by.reason] for d, by in sifted.removed[query_id].items()]
        for key, values in (("notes", sifted.notes), ("labels", sifted.labels)):
            if values.get(query_id):
                row[key] = values[query_id]
        yield row


def read_rows(rows: Sequence[Mapping[str, Any]], said: Mapping[str, int]) -> Sifted:
    """The Sifted that rows_of wrote; said: its counts."""
    return Sifted(
        {row["query_id"]: list(itertools.starmap(Candidate, row["retrieved"])) for row in rows},
        {row["query_id"]: {d: Removed(*by) for d, *by in row["removed"]} for row in rows},
        {row["query_id"]: row["notes"] for row in rows if "notes" in row},
        {
            q: {d: Label(*label) for d, label in row["labels"].items()}
            for row in rows
            if "labels" in row
            for q in [row["query_id"]]
        },
        Counter(said),
    )


def filled(
    pool: Sequence[Negative],
    query_id: str,
    wanted: int,
    *,
    view: MiningView,
    filters: Mapping[str, Filter],
    document_ids: Sequence[str],
) -> tuple[Negative, ...]:
    """The pool, filled up to `wanted` negatives with documents of the corpus, drawn by seed and query id.

    Never a relevant, judged or retrieved document, nor a text that equals a relevant one's or the query, nor what those
    of `filters` that look at texts only would remove. A query without a relevant document stays as it is: it is trained
    with judged documents only. document_ids: of the corpus, sorted. What is filled in has no rank or score.
    """
    collection = view.collection
    positives = collection.positives(query_id)
    missing = wanted - count_negatives(pool)
    if missing <= 0 or not positives:
        return tuple(pool)
    refused = set(collection.qrels[query_id]) | {c.document_id for c in view.retrieved[query_id]}
    relevant = {normalised(collection.corpus[d]) for d in positives} | {normalised(collection.queries[query_id])}
    found: list[Negative] = []
    for document_id in _order(document_ids, view.seed, query_id):
        if len(found) == missing:
            break
        if document_id in refused or normalised(collection.corpus[document_id]) in relevant:
            continue
        alone = {query_id: [Candidate(document_id, 0.0, 1)]}
        of_text = [decide for name, decide in filters.items() if FILTERS[name].of_text]
        seen = MiningView(collection, RANDOM, alone, alone, view.seed, view.code)
        if not any(decide(seen).removed.get(query_id) for decide in of_text):
            found.append(Negative(document_id, RANDOM, None, None, FILL))
    return (*pool, *found)


def _order(document_ids: Sequence[str], seed: int, query_id: str) -> Iterator[str]:
    """Every document once: draws by hash while they hit new ones, then the rest from a drawn place on."""
    count = len(document_ids)
    seen: set[int] = set()
    for draw in range(count // 2):
        place = stable_hash("fill", seed, query_id, draw) % count
        if place not in seen:
            seen.add(place)
            yield document_ids[place]
    first = stable_hash("fill", seed, query_id, "rest") % count if count else 0
    yield from (document_ids[place] for n in range(count) if (place := (first + n) % count) not in seen)

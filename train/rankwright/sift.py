"""Retrieved candidates through the filters: what is left, what was removed, and why."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from rankwright.errors import UserError
from rankwright.examples import Collection
from rankwright.filters import Decided, MiningView
from rankwright.mining import JUDGED, PROMOTED, Negative
from rankwright.retrieve import Candidate
from rankwright.splits import normalised

# Removed before every filter, whatever the recipe says.
POSITIVE, DUPLICATE = "positive", "duplicate_of_positive"
ALWAYS = (POSITIVE, JUDGED, DUPLICATE)
# Normalised texts that are kept at once: documents come back for query after query.
TEXTS_AT_ONCE = 20_000

Filter = Callable[[MiningView], Decided]


@dataclass(frozen=True, slots=True)
class Removed:
    """A candidate that a filter removed; filter: its name, "" for what is always removed."""

    filter: str
    reason: str


@dataclass(slots=True)
class Sifted:
    """Some queries of one set: all that was retrieved, by rank, and what the filters decided so far.

    removed: query id -> document id -> by what, relevant and judged documents among them
    notes: query id -> document id -> filter -> its number; labels: query id -> document id -> label
    said: what filters counted, in words
    """

    retrieved: dict[str, list[Candidate]]
    removed: dict[str, dict[str, Removed]]
    notes: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    labels: dict[str, dict[str, float | None]] = field(default_factory=dict)
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


def sift(collection: Collection, retrieved: Mapping[str, Sequence[Candidate]]) -> Sifted:
    """What is removed whatever the recipe says: relevant and judged documents, and texts that equal a relevant one's
    (as splits.normalised compares).

    Raises UserError for a candidate that is not in the corpus.
    """
    text = lru_cache(TEXTS_AT_ONCE)(lambda document_id: normalised(collection.corpus[document_id]))
    by_rank = {query_id: sorted(found, key=lambda c: c.rank) for query_id, found in retrieved.items()}
    removed: dict[str, dict[str, Removed]] = {}
    for query_id, candidates in by_rank.items():
        judged, positives = collection.qrels.get(query_id, {}), collection.positives(query_id)
        relevant = {text(d) for d in positives}
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
            sifted.labels.setdefault(query_id, {}).update(labels)
        sifted.said.update({f"{name}: {words}": count for words, count in decided.counts.items() if count})


def pool_of(collection: Collection, sifted: Sifted, query_id: str, source: str) -> tuple[Negative, ...]:
    """The negatives of a query: those judged not relevant first, by id, then what the filters left, by rank.

    A judged document whose text equals a relevant one's is left out.
    """
    found = {c.document_id: c for c in sifted.retrieved[query_id]}
    judged = [
        Negative(d, JUDGED, *_place(found.get(d)), "judged_not_relevant") for d in judged_of(collection, query_id)
    ]
    notes, labels = sifted.notes.get(query_id, {}), sifted.labels.get(query_id, {})
    unjudged = []
    for c in sifted.left(query_id):
        decisions, label = tuple(sorted(notes.get(c.document_id, {}).items())), labels.get(c.document_id, 0.0)
        reason = "unjudged" if label == 0 else "teacher_above_margin"
        by = source if label is None or label == 0 else PROMOTED
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
    """A JSON-able row a query, for read_rows."""
    for query_id, candidates in sifted.retrieved.items():
        row: dict[str, Any] = {"query_id": query_id}
        row["retrieved"] = [[c.document_id, c.score, c.rank] for c in candidates]
        row["removed"] = [[d, by.filter, by.reason] for d, by in sifted.removed[query_id].items()]
        for key, values in (("notes", sifted.notes), ("labels", sifted.labels)):
            if values.get(query_id):
                row[key] = values[query_id]
        yield row


def read_rows(rows: Sequence[Mapping[str, Any]], said: Mapping[str, int]) -> Sifted:
    """What rows_of was given."""
    return Sifted(
        {row["query_id"]: list(itertools.starmap(Candidate, row["retrieved"])) for row in rows},
        {row["query_id"]: {d: Removed(*by) for d, *by in row["removed"]} for row in rows},
        {row["query_id"]: row["notes"] for row in rows if "notes" in row},
        {row["query_id"]: row["labels"] for row in rows if "labels" in row},
        Counter(said),
    )

"""JSONL files of groups: a query with its positives and negatives on every line."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rankwright.errors import nearest
from rankwright.examples import Collection, join_title
from rankwright.rows import (
    Faults,
    Row,
    Say,
    encodable,
    identifier,
    json_rows,
    number_of,
    optional_text,
    text_of,
)
from rankwright.text_store import TextBuilder

COLUMNS = ("query", "query_id", "positives", "negatives", "positive_scores", "negative_scores", "weight")
# What other trainers call these columns.
OTHER_NAMES = {"pos": "positives", "neg": "negatives", "pos_scores": "positive_scores", "neg_scores": "negative_scores"}


def content_id(text: str) -> str:
    """The id of a text that brings none: 64 bits of its SHA-256, in hexadecimal."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def read_groups(paths: Sequence[Path], *, name: str, say: Say) -> Collection:
    """Read groups, one JSON object a line: `query`, `positives`, `negatives` (optional), `query_id` (optional).

    An element of positives or negatives is a text or an object `{id, text, title, label, score}` of which only
    text is required. Ids come from a hash of the content where there are none, so the same text is the same
    document on every line, and lines with the same query are one query. positives get label 1 or their own,
    negatives label 0. `score`, or `positive_scores` and `negative_scores` (a number an element), are a
    teacher's raw scores. `weight` (optional, a number above 0) is the query's weight in the training loss.
    Raises UserErrors with file and line of every fault.
    """
    builder = _Builder()
    for path in paths:
        for line, row in json_rows(path, builder.faults):
            _Line(builder, path, line).read(row)
    builder.faults.check()
    if not any(label > 0 for judged in builder.qrels.values() for label in judged.values()):
        builder.faults.add(paths[0], 1, "no query has a relevant document: fill `positives`")
        builder.faults.check()
    if builder.ignored:
        say(f"{name}: columns not used: {', '.join(sorted(builder.ignored))}")
    if builder.repeats:
        say(f"{name}: {builder.repeats:,} repeated (query, document) pairs read once")
    weights = {q: weight for q, weight in builder.weights.items() if weight != 1}
    if weights:
        say(f"{name}: {len(weights):,} of {len(builder.queries):,} queries have a weight of their own")
    return Collection(name, builder.corpus.finish(), builder.queries, builder.qrels, builder.teacher_scores, weights)


@dataclass(slots=True)
class _Builder:
    corpus: TextBuilder = field(default_factory=TextBuilder)
    queries: dict[str, str] = field(default_factory=dict)
    qrels: dict[str, dict[str, float]] = field(default_factory=dict)
    teacher_scores: dict[str, dict[str, float]] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    faults: Faults = field(default_factory=Faults)
    ignored: set[str] = field(default_factory=set)
    repeats: int = 0


@dataclass(frozen=True, slots=True)
class _Line:
    """One line being read into the builder."""

    builder: _Builder
    path: Path
    line: int

    def fault(self, text: str, *, kind: str | None = None) -> None:
        self.builder.faults.add(self.path, self.line, text, kind=kind)

    def read(self, row: Row) -> None:
        """Add the line's query, documents, labels and scores."""
        self._check_names(row)
        query_id = self._query(row)
        self._weight(query_id, row.get("weight"))
        for side, label in (("positives", 1.0), ("negatives", 0.0)):
            elements = self._list(row, side, required=label > 0)
            scores = self._list(row, f"{side[:-1]}_scores", required=False)
            if scores and len(scores) != len(elements):
                self.fault(f"{len(elements)} {side} but {len(scores)} {side[:-1]}_scores: give a score an element")
                continue
            for number, element in enumerate(elements):
                score = scores[number] if scores else None
                self._document(query_id, f"{side}[{number}]", element, label, score)

    def _check_names(self, row: Row) -> None:
        for name in row:
            if name in COLUMNS:
                continue
            meant = OTHER_NAMES.get(name) or next(iter(nearest(name, COLUMNS)), None)
            if meant is not None and meant not in row:
                self.fault(f"column {name!r} is unknown, did you mean {meant!r}? Rename it", kind=f"name {name}")
            else:
                self.builder.ignored.add(name)

    def _query(self, row: Row) -> str | None:
        text = text_of(row, "query", self.path, self.line, self.builder.faults)
        if text is None:
            return None
        text = text.strip()
        if not text:
            self.fault("the query is empty: give it a text or remove the line")
            return None
        given = row.get("query_id") is not None
        key = identifier(row, ("query_id",), self.path, self.line, self.builder.faults) if given else content_id(text)
        if key is None:
            return None
        if self.builder.queries.setdefault(key, text) != text:
            self.fault(f"query id {key!r} had another text before: give every query an id of its own")
            return None
        self.builder.qrels.setdefault(key, {})
        return key

    def _weight(self, query_id: str | None, given: object) -> None:
        if given is None:
            return
        weight = number_of(given)
        if weight is None or weight <= 0:
            self.fault(f"`weight` is {given!r}, needs a number above 0; to leave a query out, remove its lines")
        elif query_id is not None and self.builder.weights.setdefault(query_id, weight) != weight:
            before = self.builder.weights[query_id]
            self.fault(f"weight {weight:g} here and {before:g} before, for the same query: keep one of the two")

    def _list(self, row: Row, name: str, *, required: bool) -> Sequence[Any]:
        if row.get(name) is None:
            if required:
                found = ", ".join(map(str, row))
                self.fault(f"no column `{name}`; columns found: {found}", kind=f"no {name}")
            return ()
        value = row[name]
        if isinstance(value, list):
            return value
        self.fault(f"`{name}` has type {type(value).__name__}, needs a list")
        return ()

    def _document(self, query_id: str | None, place: str, element: object, label: float, score: object) -> None:
        if isinstance(element, str):
            element = {"text": element}
        if not isinstance(element, dict):
            self.fault(f"{place} has type {type(element).__name__}, needs a text or an object with `text`")
            return
        document_id = self._add_text(place, element)
        own = self._label(place, element, label)
        given = element.get("score") if score is None else score
        teacher = None if given is None else number_of(given)
        if given is not None and teacher is None:
            self.fault(f"the score of {place} is {given!r}, needs a number")
        if query_id is None or document_id is None or own is None:
            return
        judged = self.builder.qrels[query_id]
        self.builder.repeats += document_id in judged
        if judged.setdefault(document_id, own) != own:
            self.fault(
                f"{place}: document {document_id!r} has label {own:g} here and {judged[document_id]:g} before, "
                "for the same query: keep one of the two"
            )
        if teacher is not None:
            self.builder.teacher_scores.setdefault(query_id, {})[document_id] = teacher

    def _add_text(self, place: str, element: Mapping[str, Any]) -> str | None:
        faults = self.builder.faults
        text = element.get("text")
        if not isinstance(text, str):
            found = ", ".join(map(str, element)) or "none"
            self.fault(f"{place} has no `text` that is a text; keys found: {found}", kind="no text")
            return None
        if not encodable(text, f"{place}.text", self.path, self.line, faults):
            return None
        text = join_title(optional_text(element, "title", self.path, self.line, faults), text)
        given = element.get("id") is not None
        key = identifier(element, ("id",), self.path, self.line, faults) if given else content_id(text)
        if key is not None and self.builder.corpus.add(key, text) == "other":
            self.fault(f"{place}: document id {key!r} had another text before: give every document an id of its own")
            return None
        return key

    def _label(self, place: str, element: Mapping[str, Any], side: float) -> float | None:
        if element.get("label") is None:
            return side
        label = number_of(element["label"])
        if label is None:
            self.fault(f"the label of {place} is {element['label']!r}, needs a number")
        elif (label > 0) != (side > 0):
            other = "negatives" if side > 0 else "positives"
            self.fault(f"{place} has label {label:g}: move it to {other}, or mend the label")
            return None
        return label

"""Rows of queries with documents, assembled into a Collection: a row is taken whole, or it is a fault."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from rankwright.common.hashing import content_id
from rankwright.common.plurals import counted
from rankwright.data.collection import Collection
from rankwright.data.formats.reading import Reading, give_up, listed
from rankwright.data.store.texts import TextBuilder

MOST_SHOWN = 60


@dataclass(frozen=True, slots=True)
class Document:
    """A document of a row. place: its name in messages; key: its id, or one made from its text; score: a teacher's."""

    place: str
    text: str
    label: float
    key: str
    score: float | None = None
    group: str | None = None


def _shown(document: Document) -> str:
    """The document's id, or the start of its text where the id was made from the text."""
    text, most = document.text, MOST_SHOWN
    return repr(document.key if document.key != content_id(text) else text[:most] + "..." * (len(text) > most))


@dataclass(slots=True)
class GroupRow:
    """The query of one row, with its documents."""

    query: str
    documents: list[Document]
    query_id: str | None = None
    weight: float | None = None
    group: str | None = None
    instruction: str | None = None
    titles: int = 0
    # Labels say what was clicked in one session: another one may differ.
    clicks: bool = False
    answer: str | None = None


@dataclass(slots=True)
class Groups:
    """The rows taken so far."""

    reading: Reading
    corpus: TextBuilder = field(default_factory=TextBuilder)
    queries: dict[str, str] = field(default_factory=dict)
    qrels: dict[str, dict[str, float]] = field(default_factory=dict)
    teacher_scores: dict[str, dict[str, float]] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    query_groups: dict[str, str] = field(default_factory=dict)
    document_groups: dict[str, str] = field(default_factory=dict)
    instructions: dict[str, int] = field(default_factory=dict)
    answers: dict[str, str] = field(default_factory=dict)
    ignored: set[str] = field(default_factory=set)
    more: Counter[str] = field(default_factory=Counter)
    repeats: int = 0
    sessions: int = 0
    other_scores: int = 0

    def add(self, row: GroupRow, where: object, line: int) -> None:
        """Take a row, or leave it out as a whole and note how it contradicts earlier rows or itself."""
        key = row.query_id if row.query_id is not None else content_id(row.query)
        conflicts = [*self._query_conflicts(key, row), *self._document_conflicts(key, row)]
        for text in conflicts:
            self.reading.faults.add(where, line, text)
        if conflicts:
            return
        self.reading.taken += 1
        self.reading.titles += row.titles
        self.sessions += row.clicks
        self.queries[key] = row.query
        if row.weight is not None:
            self.weights[key] = row.weight
        if row.group is not None:
            self.query_groups[key] = row.group
        if row.answer is not None:
            self.answers.setdefault(key, row.answer)
        if row.instruction is not None:
            self.instructions[row.instruction] = self.instructions.get(row.instruction, 0) + 1
        judged = self.qrels.setdefault(key, {})
        for document in row.documents:
            self.repeats += document.key in judged
            before = judged.get(document.key, document.label)
            judged[document.key] = max(before, document.label) if row.clicks else document.label
            self.corpus.add(document.key, document.text)
            if document.group is not None:
                self.document_groups[document.key] = document.group
            if document.score is not None:
                scores = self.teacher_scores.setdefault(key, {})
                self.other_scores += scores.setdefault(document.key, document.score) != document.score

    def _query_conflicts(self, key: str, row: GroupRow) -> list[str]:
        found = []
        if self.queries.get(key, row.query) != row.query:
            found.append(f"query id {key!r} had another text before: give every query an id of its own")
        before = self.weights.get(key)
        if None not in (before, row.weight) and before != row.weight:
            found.append(f"weight {row.weight:g} here and {before:g} before, for the same query: keep one of the two")
        group = self.query_groups.get(key)
        if None not in (group, row.group) and group != row.group:
            found.append(f"group {row.group!r} here and {group!r} before, for the same query: keep one of the two")
        return found

    def _document_conflicts(self, query: str, row: GroupRow) -> list[str]:
        found = []
        texts: dict[str, str] = {}
        labels: dict[str, float] = {}
        groups: dict[str, str] = {}
        judged = self.qrels.get(query, {})
        for document in row.documents:
            key, place = document.key, document.place
            if texts.setdefault(key, self.corpus.get(key, document.text)) != document.text:
                found.append(
                    f"{place}: document id {key!r} had another text before: give every document an id of its own"
                )
            before = labels.setdefault(key, judged.get(key, document.label))
            if before != document.label and not row.clicks:
                found.append(
                    f"{place}: document {_shown(document)} has label {document.label:g} here and {before:g} before, "
                    "for the same query: keep one of the two"
                )
            if document.group is None:
                continue
            group = groups.setdefault(key, self.document_groups.get(key, document.group))
            if group != document.group:
                found.append(
                    f"{place}: document {_shown(document)} has group {document.group!r} here and {group!r} before"
                )
        return found

    def finish(self, where: object) -> Collection:
        """The Collection; reports all that it does not hold. Raises UserErrors when there was a fault."""
        faults = self.reading.faults
        faults.check()
        if not any(label > 0 for judged in self.qrels.values() for label in judged.values()):
            give_up(faults, where, 1, "no query has a relevant document: give documents with a label above 0")
        key = self.reading.group_key
        if key is not None and not self.query_groups and not self.document_groups:
            give_up(faults, where, 1, f"no row has the group key {key!r}: name a column, or leave group_key out")
        self._say()
        weights = {q: weight for q, weight in self.weights.items() if weight != 1}
        return Collection(
            self.reading.name,
            self.corpus.finish(),
            self.queries,
            self.qrels,
            self.teacher_scores,
            weights,
            self.query_groups,
            self.document_groups,
            next(iter(self.instructions)) if self._one_instruction() else None,
            answers=self.answers,
        )

    def _one_instruction(self) -> bool:
        return len(self.instructions) == 1 and sum(self.instructions.values()) == self.reading.taken

    def _say(self) -> None:
        name, say = self.reading.name, self.reading.say
        if self.ignored:
            say(f"{name}: columns not used: {listed(sorted(self.ignored))}")
        for path, count in sorted(self.more.items()):
            say(
                f"{name}: {counted(count, 'row')} with more elements than the one that `{path}` names, which are not "
                "read: where several people judged, write one label per row"
            )
        if self.sessions:
            shown = sum(map(len, self.qrels.values()))
            clicked = sum(label > 0 for judged in self.qrels.values() for label in judged.values())
            say(
                f"{name}: {counted(self.sessions, 'row')} of clicks: {clicked:,} of {shown:,} documents "
                "shown for a query were "
                "clicked at least once and count as relevant, the others as not relevant. People click what stands "
                "first (position bias), and leave right answers below it: judge some by hand for the test set"
            )
        elif self.repeats:
            say(f"{name}: {self.repeats:,} repeated (query, document) pairs read once")
        if self.other_scores:
            say(f"{name}: {self.other_scores:,} repeated pairs had another teacher score: the first is kept")
        weighted = sum(weight != 1 for weight in self.weights.values())
        if weighted:
            own = "has a weight" if weighted == 1 else "have a weight"
            say(f"{name}: {weighted:,} of {counted(len(self.queries), 'query')} {own} of their own")
        if self.instructions and not self._one_instruction():
            some = sum(self.instructions.values())
            say(
                f"{name}: {some:,} of {counted(self.reading.taken, 'row')} {'has' if some == 1 else 'have'} "
                f"an instruction, {len(self.instructions):,} "
                "different ones: none is used, since a set has one; split the file, or give `instruction`"
            )

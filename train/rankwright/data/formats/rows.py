"""Formats whose rows hold a query with its documents: groups, FlagEmbedding, Tevatron, ms-swift, pairs, tuples."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rankwright.common.plurals import counted
from rankwright.common.registry import Registry
from rankwright.data.formats.builder import Document, GroupRow
from rankwright.data.formats.fields import Fields, Roles, number_of
from rankwright.data.formats.reading import name_words
from rankwright.data.normalisation import is_blank

RowReader = Callable[[Fields], GroupRow | None]
# Digits of a column's number that count: Python makes no number of thousands of them.
MOST_DIGITS = 9
# One reader per format; it returns None, after at least one fault, for a row that cannot be read.
ROW_FORMATS: Registry[RowReader] = Registry("format", hyphens=True)


def _sides(
    fields: Fields,
    positives: Sequence[str],
    negatives: Sequence[str],
    scores: tuple[str, str] = ("positive_scores", "negative_scores"),
    ids: tuple[str, str] = ("positive_ids", "negative_ids"),
) -> list[Document | None]:
    """The documents of both sides; scores and ids: the format's own columns, in addition to ours."""
    found: list[Document | None] = []
    for side, names, label, score, id in (
        ("positives", positives, 1.0, scores[0], ids[0]),
        ("negatives", negatives, 0.0, scores[1], ids[1]),
    ):
        # A row with judged negatives alone is taken: whole sets without a relevant document are refused at their end.
        elements = fields.listed(*names, required=label > 0 and fields.name_of(*negatives) is None)
        place = fields.name_of(*names) or side
        given = fields.parallel(place, len(elements), f"{side[:-1]}_scores", score)
        keys = fields.parallel(place, len(elements), f"{side[:-1]}_ids", id)
        if given is None or keys is None:
            continue
        for number, (element, one, key) in enumerate(zip(elements, given, keys, strict=True)):
            found.append(fields.document(f"{place}[{number}]", element, label, side=True, id=key, score=one))
    return found


@ROW_FORMATS.register
def groups(fields: Fields) -> GroupRow | None:
    """Ours: query, positives, negatives; elements are texts or objects (id, text, title, label, score, group)."""
    return fields.group_row(fields.query(), _sides(fields, ("positives",), ("negatives",)))


@ROW_FORMATS.register
def flagembedding(fields: Fields) -> GroupRow | None:
    """FlagEmbedding: query, pos, neg, pos_scores, neg_scores, prompt, and pos_id, neg_id where there are any."""
    query = fields.query()
    documents = _sides(
        fields, ("positives", "pos"), ("negatives", "neg"), ("pos_scores", "neg_scores"), ("pos_id", "neg_id")
    )
    row = fields.group_row(query, documents)
    prompt, id = fields.text("prompt"), fields.id("id")
    if row is not None:
        row.instruction = row.instruction or prompt
        row.query_id = row.query_id or id
    return row


@ROW_FORMATS.register
def tevatron(fields: Fields) -> GroupRow | None:
    """Tevatron: query_id, query, positive_passages and negative_passages of docid, title, text."""
    names = ("positives", "positive_passages"), ("negatives", "negative_passages")
    return fields.group_row(fields.query(), _sides(fields, *names))


@ROW_FORMATS.register
def ms_swift(fields: Fields) -> GroupRow | None:
    """ms-swift: messages, positive_messages, negative_messages; a system turn is the instruction."""
    turns = fields.listed("query", "messages", required=True)
    # A missing column is already a fault.
    missing = fields.name_of("query", "messages") is None
    instruction, query = (None, None) if missing else _conversation(fields, "messages", turns)
    documents = []
    for side, label in (("positive", 1.0), ("negative", 0.0)):
        name = f"{side}_messages"
        needed = label > 0 and fields.name_of("negatives", "negative_messages") is None
        for number, turns in enumerate(fields.listed(f"{side}s", name, required=needed)):
            place = f"{name}[{number}]"
            own, text = _conversation(fields, place, turns)
            if own is not None and own != instruction:
                fields.fault(f"{place} has a system turn of its own: a set has one instruction, give it in messages")
            documents.append(None if text is None else fields.document(place, text, label))
    if query is not None and is_blank(query):
        fields.fault("the query is empty: give it a text or remove the line")
        query = None
    row = fields.group_row(query and query.strip(), documents)
    if row is not None:
        row.instruction = row.instruction or instruction
    return row


def _conversation(fields: Fields, place: str, turns: Any) -> tuple[str | None, str | None]:
    """(system text, the text of the only other turn); a fault where there are several, or none."""
    if isinstance(turns, dict):
        turns = [turns]
    if not isinstance(turns, list) or not all(
        isinstance(turn, dict) and isinstance(turn.get("content"), str) for turn in turns
    ):
        fields.fault(f"{place} needs a list of turns, each an object with `role` and a text as `content`")
        return None, None
    system = [turn["content"] for turn in turns if turn.get("role") == "system"]
    others = [turn["content"] for turn in turns if turn.get("role") != "system"]
    if len(others) != 1 or len(system) > 1:
        fields.fault(f"{place} has {len(others)} turns beside {len(system)} system turns, needs one text")
        return None, None
    return (system[0].strip() or None) if system else None, others[0]


QUERIES = ("query", "anchor", "question", "sentence1", "sentence_1")
DOCUMENTS = ("document", "positive", "answer", "passage", "sentence2", "sentence_2", "response")
LISTS = ("documents", "docs", "passages")
LABELS, SCORES = ("label", "labels"), ("score", "scores")
# Columns of a log of clicks.
CLICKED = ("clicked", "click", "clicks", "is_clicked")
# Words that make a column one of judged negatives, and those that may stand beside them.
_NEGATIVE = set("neg negs negative negatives hardneg hardnegative hardnegatives rejected".split())
_OF_NEGATIVE = _NEGATIVE | set(
    """hard bm25 mined random text texts document documents doc docs passage passages response responses answer answers
    sentence sentences context contexts ctx ctxs chunk chunks candidate candidates""".split()
)
_WRONG = set("wrong incorrect irrelevant bad".split())
# Words that name a judgement: always as the whole name, as a part of it only where the column holds numbers.
_JUDGEMENTS = set(
    """label labels relevance relevant relevancy grade rating judgement judgment relevanz bewertung pertinence pertinent
    relevancia relevante calificacion etiqueta""".split()
)
# Never a query or a document, in whatever place.
_OTHERS = {
    *LABELS,
    *SCORES,
    *CLICKED,
    "query_id",
    "document_id",
    "document_ids",
    "title",
    "weight",
    "group",
    "instruction",
}


def negatives_of(kinds: Mapping[str, str]) -> tuple[str, ...]:
    """The columns of negatives, by number: `negative_2`, `hard_negatives`, `rejected_response`."""
    found = [name for name, kind in kinds.items() if kind != "number" and _is_negative(name)]
    return tuple(sorted(found, key=lambda name: int(re.sub(r"\D", "", name)[:MOST_DIGITS] or 0)))


def _is_negative(name: str) -> bool:
    words = words_of(name)
    # `wrong` alone may be a mark, `wrong answer` holds a text.
    return (bool(words & _NEGATIVE) and words <= _OF_NEGATIVE) or (
        bool(words & _WRONG) and bool(words & _OF_NEGATIVE) and words <= _OF_NEGATIVE | _WRONG
    )


def words_of(name: str) -> set[str]:
    """The words of a column's name: `questionText` and `Question text` both have two."""
    return set(name_words(name))


def is_judgement(name: str, kind: str) -> bool:
    """Whether a column may hold labels: if it were left out, every row would be relevant."""
    words = words_of(name)
    whole = words - {"is"} <= _JUDGEMENTS
    return kind != "null" and bool(words & _JUDGEMENTS) and (whole or kind == "number")


def roles_by_name(kinds: Mapping[str, str], documents: Sequence[str] = DOCUMENTS) -> Roles | None:
    """The roles of columns by their names; None where no column, or several, could be meant."""
    queries = [name for name in QUERIES if name in kinds]
    found = [name for name in documents if name in kinds]
    if len(queries) != 1 or len(found) != 1:
        return None
    # The miner of sentence-transformers uses both names for a list of scores.
    scores = "score" if kinds.get("score") == "list" and "scores" not in kinds else "scores"
    return Roles(queries[0], found[0], negatives_of(kinds), scores)


def roles_by_order(kinds: Mapping[str, str], *, lists: bool) -> Roles | None:
    """The roles by the order of columns, as sentence-transformers has it; lists: the second is a list of documents."""
    names = [name for name in kinds if name not in _OTHERS]
    if len(names) < 2 or (lists and kinds[names[1]] not in ("list", "text")):
        return None
    return Roles(names[0], names[1], tuple(names[2:]))


def _tuple(fields: Fields, most: int | None) -> GroupRow | None:
    """A row with a query, a positive and negatives; `scores`: a teacher's scores in the order of the documents."""
    roles = fields.roles
    assert roles is not None
    texts = {name: "text" for name, value in fields.row.items() if value is not None and number_of(value) is None}
    spare = [name for name in negatives_of(texts) if name not in roles.negatives]
    if spare:
        fields.fault(f"column {spare[0]!r} holds a negative, and the first rows had none: give `format: n-tuple`")
    query = fields.query(roles.query)
    if fields.row.get(roles.document) is None:
        fields.listed(roles.document, required=True)
        return None
    positives = fields.elements(roles.document)
    negatives = [one for name in roles.negatives if fields.row.get(name) is not None for one in fields.elements(name)]
    if most is not None and len(negatives) >= most:
        fields.fault(f"{counted(1 + len(negatives), 'document')}, this format has {most}: give `format: n-tuple`")
    count = len(positives) + len(negatives)
    if not count:
        fields.fault(f"`{roles.document}` is an empty list: give a document, or remove the line")
    scores: Sequence[object] | None = [None] * count
    if fields.name_of(roles.scores) is not None:
        scores = fields.parallel("documents", count, roles.scores)
    documents: list[Document | None] = []
    for number, ((name, element), score) in enumerate(zip([*positives, *negatives], scores or (), strict=False)):
        key, relevant = None, number < len(positives)
        if number == 0 and len(positives) == 1:
            element, key = _titled(fields, element), fields.row.get("document_id")
        documents.append(fields.document(name, element, float(relevant), id=key, score=score))
    return fields.group_row(query, documents)


def _titled(fields: Fields, text: object) -> object:
    title = fields.row.get("title")
    return {"title": title, "text": text} if isinstance(text, str) and title is not None else text


@ROW_FORMATS.register
def pairs(fields: Fields) -> GroupRow | None:
    """sentence-transformers: a query and a positive."""
    return _tuple(fields, 1)


@ROW_FORMATS.register
def triplets(fields: Fields) -> GroupRow | None:
    """sentence-transformers: a query, a positive and a negative."""
    return _tuple(fields, 2)


@ROW_FORMATS.register
def n_tuple(fields: Fields) -> GroupRow | None:
    """sentence-transformers: a query, a positive and negatives, which may be null, or stand in one list."""
    return _tuple(fields, None)


def _judged(fields: Fields, place: str, label: object, score: object) -> tuple[float, float | None] | None:
    """(label, teacher's score). A score alone is a label if it is a whole number, else a fault."""
    teacher = fields.number(f"the score of {place}", score)
    if label is not None:
        own = fields.label(place, label)
        return None if own is None else (own, teacher)
    if teacher is None:
        if score is None:
            fields.fault(
                f"{place} has no label: a number, above 0 is relevant; data.on_fault=drop leaves such rows out",
                kind="no label",
            )
        return None
    if teacher != int(teacher):
        fields.fault(
            "a score that is not a whole number: is it a label or a teacher's? `columns: {label: score}` (for lists "
            "`{labels: scores}`) reads it as a label, above 0 is relevant; for a teacher's, add a column of labels",
            kind="score without label",
        )
        return None
    return teacher, None


@ROW_FORMATS.register
def scored_pairs(fields: Fields) -> GroupRow | None:
    """A query, a document and its label; a `score` in addition to a label is a teacher's."""
    roles = fields.roles
    assert roles is not None
    query = fields.query(roles.query)
    judged = _judged(fields, roles.document, fields.row.get("label"), fields.row.get("score"))
    if fields.row.get(roles.document) is None:
        fields.listed(roles.document, required=True)
        return None
    elements = fields.elements(roles.document)
    if judged is None:
        return None
    if len(elements) != 1:
        fields.fault(f"{len(elements)} documents with one label: give each a row of its own")
    key = fields.row.get("document_id")
    documents = [
        fields.document(name, _titled(fields, element), judged[0], id=key, score=judged[1])
        for name, element in elements[:1]
    ]
    return fields.group_row(query, documents)


@ROW_FORMATS.register
def labelled_lists(fields: Fields) -> GroupRow | None:
    """A query, its documents and their labels; `scores` in addition to labels are a teacher's."""
    roles = fields.roles
    assert roles is not None
    query = fields.query(roles.query)
    elements = fields.listed(roles.document, required=True)
    count = len(elements)
    lists = [fields.parallel("documents", count, name) for name in ("labels", "scores", "document_ids")]
    documents: list[Document | None] = []
    for number, element in enumerate(elements):
        if None in lists:
            break
        label, score, key = (values[number] for values in lists if values is not None)
        place = f"{roles.document}[{number}]"
        judged = _judged(fields, place, label, score)
        if judged is not None:
            documents.append(fields.document(place, element, judged[0], id=key, score=judged[1]))
    return fields.group_row(query, documents)


@ROW_FORMATS.register
def clicks(fields: Fields) -> GroupRow | None:
    """A log of clicks: a query, one document that was shown or the list of them, and what was clicked.

    A document counts as relevant if any row has it clicked for the query; the others that were shown do not.
    """
    roles, name = fields.roles, fields.name_of(*CLICKED)
    assert roles is not None
    query = fields.query(roles.query)
    if fields.row.get(roles.document) is None:
        fields.listed(roles.document, required=True)
        return None
    shown = fields.elements(roles.document)
    value = None if name is None else fields.row[name]
    listed = len(shown) != 1 or shown[0][0] != roles.document
    chosen = _chosen(fields, value, [element for _, element in shown]) if listed else [_was_clicked(fields, value)]
    key = None if listed else fields.row.get("document_id")
    documents = [
        fields.document(place, element if listed else _titled(fields, element), float(clicked), id=key)
        for (place, element), clicked in zip(shown, chosen, strict=True)
    ]
    row = fields.group_row(query, documents)
    if row is not None:
        row.clicks = True
    return row


def _was_clicked(fields: Fields, value: object) -> bool:
    """Whether one document was clicked: true, false, or a number of clicks. A missing value is not a click."""
    number = 0.0 if value is None else fields.label("the click", value)
    return bool(number and number > 0)


def _chosen(fields: Fields, value: Any, shown: Sequence[Any]) -> list[bool]:
    """Which documents of a list were clicked: one mark for each, or the ids, texts or places (from 0) of some."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = fields.listed(next(name for name in CLICKED if fields.row.get(name) is not None))
    values = [] if value is None else list(value) if isinstance(value, list | tuple) else [value]
    if len(values) == len(shown) and all(isinstance(one, bool) or one in (0, 1) for one in values):
        return [bool(one) for one in values]
    names = [
        {str(one.get(key)) for key in ("id", "docid", "doc_id", "document_id", "text")}
        if isinstance(one, dict)
        else {one}
        for one in shown
    ]
    found = [any(str(one) in known for one in values) for known in names]
    if sum(found) < len(set(map(str, values))):
        places = {one for one in values if isinstance(one, int) and not isinstance(one, bool)}
        if len(places) < len(values) or not places <= set(range(len(shown))):
            fields.fault(
                f"clicked is {value!r}, needs marks (one for each document), or the ids, texts or places from 0 of "
                "documents of the list",
                kind="clicked",
            )
        found = [number in places for number in range(len(shown))]
    return found

"""Formats of rows that hold a query with lists of its documents: our groups, FlagEmbedding, Tevatron, ms-swift."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rankwright.group_builder import Document, GroupRow
from rankwright.registry import Registry
from rankwright.row_fields import Fields

RowReader = Callable[[Fields], GroupRow | None]
# A reader a format; it returns None, after at least one fault, for a row that cannot be read.
ROW_FORMATS: Registry[RowReader] = Registry("format", hyphens=True)


def _sides(
    fields: Fields, positives: Sequence[str], negatives: Sequence[str], scores: tuple[str, str], ids: tuple[str, str]
) -> list[Document | None]:
    """The documents of both sides; scores and ids: the format's columns beside ours."""
    found: list[Document | None] = []
    for side, names, label, score, id in (
        ("positives", positives, 1.0, scores[0], ids[0]),
        ("negatives", negatives, 0.0, scores[1], ids[1]),
    ):
        elements = fields.listed(*names, required=label > 0)
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
    query = fields.query()
    own = ("positive_scores", "negative_scores"), ("positive_ids", "negative_ids")
    return fields.group_row(query, _sides(fields, ("positives",), ("negatives",), *own))


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
    query = fields.query()
    names = ("positives", "positive_passages"), ("negatives", "negative_passages")
    own = ("positive_scores", "negative_scores"), ("positive_ids", "negative_ids")
    return fields.group_row(query, _sides(fields, *names, *own))


@ROW_FORMATS.register
def ms_swift(fields: Fields) -> GroupRow | None:
    """ms-swift: messages, positive_messages, negative_messages; a system turn is the instruction."""
    turns = fields.listed("query", "messages", required=True)
    # Without the column there is a fault already.
    missing = fields.name_of("query", "messages") is None
    instruction, query = (None, None) if missing else _conversation(fields, "messages", turns)
    documents = []
    for side, label in (("positive", 1.0), ("negative", 0.0)):
        name = f"{side}_messages"
        for number, turns in enumerate(fields.listed(f"{side}s", name, required=label > 0)):
            place = f"{name}[{number}]"
            own, text = _conversation(fields, place, turns)
            if own is not None and own != instruction:
                fields.fault(f"{place} has a system turn of its own: a set has one instruction, give it in messages")
            documents.append(None if text is None else fields.document(place, text, label))
    if query is not None and not query.strip():
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

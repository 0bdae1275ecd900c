"""Sets on the hub whose rows hold a question with its relevant passages inside, such as ObliQA."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwright.beir import Texts, assemble
from rankwright.errors import UserError, did_you_mean
from rankwright.examples import Collection, join_title
from rankwright.group_builder import content_id
from rankwright.reading import Reading, group_of
from rankwright.rows import Faults, Row, Say, column, identifier, log_say, optional_text, text_of
from rankwright.text_store import TextBuilder


@dataclass(frozen=True, slots=True)
class NestedColumns:
    """Names of columns: of a row (query, query_id, passages), and of one of its passages (title, text)."""

    query: str
    query_id: str
    passages: str
    title: str
    text: str


def read_nested(
    id: str,
    *,
    columns: NestedColumns,
    split: str,
    revision: str | None,
    name: str,
    say: Say = log_say,
    faults: Faults | None = None,
    group_key: str | None = None,
) -> Collection:
    """Read one split; `id` is OWNER/NAME or a local folder of data files named after their splits.

    The corpus is the passages of ALL splits, so that a split's negatives are more than its own positives; a
    passage's id is made from its text. Raises UserError(s) for what cannot be fetched, and for faults by row.
    """
    tables = _load(id, revision)
    if split not in tables:
        names = [str(n) for n in tables]
        raise UserError(f"{id}: no split {split!r}{did_you_mean(split, names)} Splits: {', '.join(names)}")
    faults = Faults() if faults is None else faults
    reading = Reading(name, split, faults, say, group_key=group_key)
    corpus = TextBuilder()
    queries: dict[str, str] = {}
    groups: dict[str, str] = {}
    qrels: dict[str, dict[str, float]] = {}
    for part, table in tables.items():
        where = f"{id}/{part}"
        for line, row in enumerate(table, start=1):
            before = faults.noted
            passages = _passages(row, columns, where, line, faults)
            if part != split:
                _add(corpus, passages)
                continue
            query_id = identifier(row, (columns.query_id,), where, line, faults)
            query = text_of(row, columns.query, where, line, faults)
            group = group_of(row, group_key, where, line, faults) if group_key is not None else None
            if query_id is None or query is None or faults.noted > before:
                continue
            if queries.setdefault(query_id, query) != query:
                faults.add(where, line, f"query id {query_id!r} had another text before: give every query its own")
                continue
            _add(corpus, passages)
            qrels.setdefault(query_id, {}).update(dict.fromkeys(passages, 1.0))
            if group is not None:
                groups[query_id] = group
    where = f"{id}/{split}"
    return assemble(reading, Texts(corpus.finish()), Texts(queries, groups), qrels, where=where, shared=False)


def _add(corpus: TextBuilder, passages: dict[str, str]) -> None:
    for document_id, text in passages.items():
        corpus.add(document_id, text)


def _passages(row: Row, columns: NestedColumns, where: str, line: int, faults: Faults) -> dict[str, str]:
    """Id -> text of a row's passages."""
    found: dict[str, str] = {}
    for passage in column(row, (columns.passages,), where, line, faults) or []:
        text = text_of(passage, columns.text, where, line, faults)
        if text is not None:
            text = join_title(optional_text(passage, columns.title, where, line, faults), text)
            found[content_id(text)] = text
    return found


def _load(id: str, revision: str | None) -> Any:
    """Split -> rows."""
    import datasets

    try:
        if Path(id).is_dir():
            return datasets.load_dataset(id)
        return datasets.load_dataset(id, revision=revision)
    except Exception as error:  # one family of errors a transport
        raise UserError(
            f"{id}: cannot load ({type(error).__name__}: {error}): check the name and the network, or give `path` to "
            "a local copy"
        ) from error

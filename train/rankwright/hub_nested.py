"""Sets on the hub whose rows hold a question with its relevant passages inside, such as ObliQA."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwright.beir import assemble
from rankwright.errors import UserError, did_you_mean
from rankwright.examples import Collection, join_title
from rankwright.jsonl_groups import content_id
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
    id: str, *, columns: NestedColumns, split: str, revision: str | None, name: str, say: Say = log_say
) -> Collection:
    """Read one split; `id` is OWNER/NAME or a local folder of data files named after their splits.

    The corpus is the passages of ALL splits, so that a split's negatives are more than its own positives; a
    passage's id is made from its text. Raises UserError(s) for what cannot be fetched, and for faults by row.
    """
    tables = _load(id, revision)
    if split not in tables:
        names = [str(n) for n in tables]
        raise UserError(f"{id}: no split {split!r}{did_you_mean(split, names)} Splits: {', '.join(names)}")
    faults = Faults()
    corpus = TextBuilder()
    queries: dict[str, str] = {}
    qrels: dict[str, dict[str, float]] = {}
    for part, table in tables.items():
        where = f"{id}/{part}"
        for line, row in enumerate(table, start=1):
            passages = _passages(row, columns, where, line, faults)
            for document_id, text in passages.items():
                corpus.add(document_id, text)
            if part == split:
                query_id = identifier(row, (columns.query_id,), where, line, faults)
                query = text_of(row, columns.query, where, line, faults)
                if query_id is not None and query is not None:
                    queries[query_id] = query
                    qrels.setdefault(query_id, {}).update(dict.fromkeys(passages, 1.0))
    where = f"{id}/{split}"
    return assemble(name, corpus.finish(), queries, qrels, where=where, shared=False, faults=faults, say=say)


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

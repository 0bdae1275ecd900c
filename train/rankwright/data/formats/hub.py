"""Sets on the Hugging Face hub: rows, the BEIR and mteb form, and rows that hold their relevant passages inside."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwright.common.errors import UserError, did_you_mean
from rankwright.common.hashing import content_id
from rankwright.data.collection import Collection, join_title
from rankwright.data.formats.beir import QRELS_COLUMNS, Texts, assemble, read_judgements, read_texts
from rankwright.data.formats.detect import check_format, read_tables
from rankwright.data.formats.fields import column, group_of, identifier, optional_text, text_of
from rankwright.data.formats.reading import Faults, Reading, Row, RowNumber, Rows, Say, log_say
from rankwright.data.store.texts import TextBuilder

TEXT_COLUMNS = ("_id", "id", "title", "text")


def read_hub(
    id: str,
    *,
    corpus: str,
    queries: str,
    qrels: str,
    split: str,
    revision: str | None,
    name: str,
    qrels_repo: str | None = None,
    say: Say = log_say,
    faults: Faults | None = None,
    group_key: str | None = None,
) -> Collection:
    """Read one split of a set on the hub.

    id: OWNER/NAME, or a local folder of the same form (a README.md with `configs`, or a folder a configuration).
    corpus, queries, qrels: configurations with columns `_id` or `id`, `title` (optional), `text`; the same
    without title; `query-id, corpus-id, score`. qrels_repo is the set that holds the qrels, when it is another
    one (`revision` is that of `id`, so the qrels then come from the newest revision).
    The split chooses the judgements; texts come from the split of that name, of the configuration's name, or
    the only one. Queries that the split's qrels do not name are left out, counted and said.
    Raises UserError(s) for a set that cannot be fetched, and for faults with their row, `ID/CONFIG/SPLIT:row`.
    """
    reading = Reading(name, split, Faults() if faults is None else faults, say, group_key=group_key)
    kept = (*TEXT_COLUMNS, *(("metadata", group_key, group_key.split(".")[0]) if group_key else ()))
    where, rows = _table(id, corpus, revision, [split, corpus, "corpus"], kept)
    documents = read_texts(rows, where, reading, titled=True)
    where, rows = _table(id, queries, revision, [split, queries, "queries"], kept)
    texts = read_texts(rows, where, reading, titled=False)
    home, at = (id, revision) if qrels_repo is None else (qrels_repo, None)
    where, rows = _table(home, qrels, at, [split], QRELS_COLUMNS)
    judgements = read_judgements(rows, where, reading, documents, texts)
    return assemble(reading, documents, texts, judgements, where=where, shared=True)


def read_hub_rows(
    id: str, *, config: str | None, revision: str | None, format: str | None, reading: Reading
) -> Collection:
    """Read one split of a set on the hub whose rows each hold a query with documents, in any format of rows.

    config: a configuration, where the set has several. Raises UserError(s) as read_hub does.
    """
    check_format(format)
    names = [] if config is not None else configurations(id, revision)
    if len(names) > 1 and "default" not in names:
        raise UserError(f"{id}: has configurations: say which, config: NAME. Configurations: {', '.join(names)}")
    chosen = config or ("default" if "default" in names else names[0] if names else "default")
    tables = _load(id, chosen, revision)
    splits = [str(name) for name in tables]
    split = reading.split or (splits[0] if len(splits) == 1 else "")
    if split not in splits:
        raise UserError(
            f"{id}/{chosen}: no split {split!r}{did_you_mean(split, splits)}. Splits: {', '.join(splits)}. "
            "Give split: NAME"
        )
    return read_tables([(f"{id}/{chosen}/{split}", _numbered(tables[split]))], format, reading)


def has_beir_form(id: str, revision: str | None) -> bool:
    """Whether a set has configurations of a corpus and of queries."""
    return {"corpus", "queries"} <= {*configurations(id, revision), *_subfolders(id)}


def _subfolders(id: str) -> set[str]:
    folder = Path(id)
    return {path.name for path in folder.iterdir() if path.is_dir()} if folder.is_dir() else set()


def configurations(id: str, revision: str | None) -> list[str]:
    """The configurations of a set. Raises UserError when it cannot be reached."""
    import datasets

    try:
        return [str(name) for name in datasets.get_dataset_config_names(id, revision=revision)]
    except datasets.data_files.EmptyDatasetError:
        return []
    except Exception as error:  # one family of errors a transport: httpx, requests, OSError, pyarrow
        raise UserError(_cannot_load(id, "default", error)) from error


def _table(
    id: str, config: str, revision: str | None, splits: Sequence[str], columns: Sequence[str]
) -> tuple[str, Rows]:
    """(name for messages, rows) of the first of `splits` that a configuration has; texts may take its only one."""
    tables = _load(id, config, revision)
    names = [str(name) for name in tables]
    found = [name for name in splits if name in names]
    # One split wanted means that it must be that one: judgements of another split would be a silent mistake.
    if not found and len(splits) > 1 and len(names) == 1:
        found = names
    if not found:
        raise UserError(
            f"{id}/{config}: no split {splits[0]!r}{did_you_mean(splits[0], names)}. Splits: {', '.join(names)}. "
            "Give split: NAME"
        )
    table = tables[found[0]]
    kept = [name for name in table.column_names if name in columns]
    # Without a known column the rows stay whole, so that the message can list what there is.
    return f"{id}/{config}/{found[0]}", _numbered(table.select_columns(kept) if len(kept) > 1 else table)


def _numbered(table: Any) -> Rows:
    rows: Iterator[Row] = iter(table)
    return ((RowNumber(number), row) for number, row in enumerate(rows, start=1))


def _load(id: str, config: str, revision: str | None) -> Any:
    """The DatasetDict of a configuration."""
    # Seconds to import, and only needed here.
    import datasets

    names: list[str] = []
    try:
        names = datasets.get_dataset_config_names(id, revision=revision)
        # "default" alone may mean that nothing names configurations and that all files are thrown together.
        by_folder = names == ["default"] and (Path(id) / config).is_dir()
        if config in names and not by_folder:
            return datasets.load_dataset(id, config, revision=revision)
        return datasets.load_dataset(id, data_dir=config, revision=revision)
    except datasets.data_files.EmptyDatasetError:
        listed = ", ".join(names) or "none, there are no data files"
        raise UserError(
            f"{id}: no configuration {config!r}{did_you_mean(config, names)}. Configurations: {listed}"
        ) from None
    except Exception as error:  # one family of errors a transport: httpx, requests, OSError, pyarrow
        raise UserError(_cannot_load(id, config, error)) from error


def _cannot_load(id: str, config: str, error: Exception) -> str:
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    how = (
        "HF_HUB_OFFLINE forbids the network here: unset it, or give `path` to a local copy"
        if offline
        else "check the name, the network and, for a gated set, `hf auth login`; without a network give `path` to a "
        "local copy, or set HF_HUB_OFFLINE=1 to use what was fetched before"
    )
    return f"{id}: cannot load configuration {config!r} ({type(error).__name__}: {error}): {how}"


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
    tables = _load_splits(id, revision)
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


def _load_splits(id: str, revision: str | None) -> Any:
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

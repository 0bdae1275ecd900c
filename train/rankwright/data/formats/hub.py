"""Sets on the Hugging Face hub: rows, the BEIR and mteb form, and rows that hold their relevant passages inside."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rankwright.common.errors import UserError, no_such
from rankwright.common.hashing import content_id
from rankwright.data.cards import Hub, Nested
from rankwright.data.collection import Collection, join_title
from rankwright.data.formats.beir import QRELS_COLUMNS, Texts, assemble, read_judgements, read_texts
from rankwright.data.formats.detect import check_format, read_tables
from rankwright.data.formats.fields import Fields
from rankwright.data.formats.reading import Reading, Row, RowNumber, Rows, choose_split
from rankwright.data.store.texts import TextBuilder

TEXT_COLUMNS = ("_id", "id", "title", "text")


def read_hub(hub: Hub, reading: Reading) -> Collection:
    """Read one split of a set in the BEIR form.

    hub.id: OWNER/NAME, or a local folder of the same form (a README.md with `configs`, or one folder per
    configuration). hub.revision is that of `id`: qrels of another set (qrels_repo) are those of its newest revision.
    The split chooses the judgements; texts come from the split of that name, of the configuration's name, or
    the only one. Queries that the split's qrels do not name are left out and counted.
    Raises UserError(s) for a set that cannot be fetched, and for faults with their row, `ID/CONFIG/SPLIT: row N`.
    """
    key, split = reading.group_key, reading.split or ""
    kept = (*TEXT_COLUMNS, *(("metadata", key, key.split(".")[0]) if key else ()))
    where, rows = _table(hub, hub.corpus, [split, hub.corpus, "corpus"], kept)
    documents = read_texts(rows, where, reading, titled=True)
    where, rows = _table(hub, hub.queries, [split, hub.queries, "queries"], kept)
    texts = read_texts(rows, where, reading, titled=False)
    home = hub if hub.qrels_repo is None else Hub.at(hub.qrels_repo, None)
    where, rows = _table(home, hub.qrels, [split], QRELS_COLUMNS)
    judgements = read_judgements(rows, where, reading, documents, texts)
    return assemble(reading, documents, texts, judgements, where=where, shared=True)


def read_hub_rows(hub: Hub, format: str | None, reading: Reading) -> Collection:
    """Read one split of a set whose rows each hold a query with documents, in any row format.

    hub.config: a configuration, where the set has several. Raises UserError(s) as read_hub does.
    """
    check_format(format)
    names = [] if hub.config is not None else configurations(hub.id, hub.revision)
    if len(names) > 1 and "default" not in names:
        raise UserError(f"{hub.id}: has several configurations: give config: NAME (known: {', '.join(names)})")
    chosen = hub.config or ("default" if "default" in names else names[0] if names else "default")
    tables = _load(hub, chosen)
    split = choose_split(f"{hub.id}/{chosen}", reading.split or None, list(map(str, tables)))
    return read_tables([(f"{hub.id}/{chosen}/{split}", _numbered(tables[split]))], format, reading)


def read_nested(hub: Hub, reading: Reading) -> Collection:
    """Read one split of a set whose rows hold a question with its relevant passages, under the columns of hub.nested.

    The corpus is the passages of ALL splits, so that a split's negatives are more than its own positives; a
    passage's id is made from its text. Raises UserError(s) as read_hub does.
    """
    assert hub.nested is not None
    faults, columns = reading.faults, hub.nested
    tables = _load(hub, None)
    split = choose_split(hub.id, reading.split or None, list(map(str, tables)))
    corpus = TextBuilder()
    queries: dict[str, str] = {}
    groups: dict[str, str] = {}
    qrels: dict[str, dict[str, float]] = {}
    for part, table in tables.items():
        where = f"{hub.id}/{part}"
        for line, row in _numbered(table):
            fields = Fields(row, where, line, reading)
            passages = _passages(fields, columns)
            if part != split:
                for passage in passages.items():
                    corpus.add(*passage)
                continue
            query_id, query = fields.required_id(columns.query_id), fields.required_text(columns.query)
            group = fields.group()
            if query_id is None or query is None or fields.faulty:
                continue
            if queries.setdefault(query_id, query) != query:
                faults.add(where, line, f"query id {query_id!r} had another text before: give every query its own")
                continue
            for passage in passages.items():
                corpus.add(*passage)
            qrels.setdefault(query_id, {}).update(dict.fromkeys(passages, 1.0))
            if group is not None:
                groups[query_id] = group
    where = f"{hub.id}/{split}"
    return assemble(reading, Texts(corpus.finish()), Texts(queries, groups), qrels, where=where, shared=False)


def _passages(fields: Fields, columns: Nested) -> dict[str, str]:
    """Id -> text of a row's passages."""
    found: dict[str, str] = {}
    for row in fields.required(columns.passages) or []:
        passage = fields.inside(row)
        text = passage.required_text(columns.text)
        if text is not None:
            text = join_title(passage.text(columns.title) or "", text)
            found[content_id(text)] = text
    return found


def has_beir_form(id: str, revision: str | None) -> bool:
    """Whether a set has configurations of a corpus and of queries."""
    names = set(configurations(id, revision))
    return all(name in names or (Path(id) / name).is_dir() for name in ("corpus", "queries"))


def configurations(id: str, revision: str | None) -> list[str]:
    """The configurations of a set. Raises UserError when it cannot be reached."""
    import datasets

    try:
        return [str(name) for name in datasets.get_dataset_config_names(id, revision=revision)]
    except datasets.data_files.EmptyDatasetError:
        return []
    except Exception as error:  # one family of errors per transport: httpx, requests, OSError, pyarrow
        raise UserError(_cannot_load(id, "default", error)) from error


def _table(hub: Hub, config: str, splits: Sequence[str], columns: Sequence[str]) -> tuple[str, Rows]:
    """(name for messages, rows) of the first of `splits` that a configuration has; texts may take its only one."""
    tables = _load(hub, config)
    names = [str(name) for name in tables]
    # A single wanted split must be there: judgements of another split would be a silent mistake.
    only = names[0] if len(splits) > 1 and len(names) == 1 else splits[0]
    wanted = next((name for name in splits if name in names), only)
    split = choose_split(f"{hub.id}/{config}", wanted, names)
    table = tables[split]
    kept = [name for name in table.column_names if name in columns]
    # Without a known column the rows stay whole, so that the message can list what there is.
    return f"{hub.id}/{config}/{split}", _numbered(table.select_columns(kept) if len(kept) > 1 else table)


def _numbered(table: Any) -> Rows:
    rows: Iterator[Row] = iter(table)
    return ((RowNumber(number), row) for number, row in enumerate(rows, start=1))


def _load(hub: Hub, config: str | None) -> Any:
    """The DatasetDict of a configuration, or without one of all files; a local folder has no revisions."""
    # Seconds to import, and only needed here.
    import datasets

    id, revision = hub.id, None if Path(hub.id).is_dir() else hub.revision
    names: list[str] = []
    try:
        if config is None:
            return datasets.load_dataset(id, revision=revision)
        names = datasets.get_dataset_config_names(id, revision=revision)
        # A lone "default" may mean that the set names no configurations, so that all files would be read as one.
        by_folder = names == ["default"] and (Path(id) / config).is_dir()
        if config in names and not by_folder:
            return datasets.load_dataset(id, config, revision=revision)
        return datasets.load_dataset(id, data_dir=config, revision=revision)
    except Exception as error:  # one family of errors per transport: httpx, requests, OSError, pyarrow
        if isinstance(error, datasets.data_files.EmptyDatasetError) and config is not None:
            raise UserError(f"{id}: {no_such('configuration', config, names)}") from None
        raise UserError(_cannot_load(id, config, error)) from error


def _cannot_load(id: str, config: str | None, error: Exception) -> str:
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    how = (
        "HF_HUB_OFFLINE forbids the network here: unset it, or give `path` to a local copy"
        if offline
        else "check the name, the network and, for a gated set, `hf auth login`; without a network give `path` to a "
        "local copy, or set HF_HUB_OFFLINE=1 to use what was fetched before"
    )
    what = "" if config is None else f" configuration {config!r}"
    return f"{id}: cannot load{what} ({type(error).__name__}: {error}): {how}"

"""Sets on the Hugging Face hub, of rows or in the BEIR or mteb form, and local folders that stand for one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rankwright.beir import QRELS_COLUMNS, assemble, read_judgements, read_texts
from rankwright.errors import UserError, did_you_mean
from rankwright.examples import Collection
from rankwright.formats import check_format, read_tables
from rankwright.reading import Reading
from rankwright.rows import Faults, Row, RowNumber, Rows, Say, log_say

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

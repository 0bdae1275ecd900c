"""Sets on the Hugging Face hub in the BEIR or mteb form, and local folders that stand for one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rankwright.beir import QRELS_COLUMNS, assemble, read_judgements, read_texts
from rankwright.errors import UserError, did_you_mean
from rankwright.examples import Collection
from rankwright.rows import Faults, Row, Rows, Say, log_say

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
    faults = Faults() if faults is None else faults
    where, rows = _table(id, corpus, revision, [split, corpus, "corpus"], TEXT_COLUMNS)
    documents = read_texts(rows, where, faults, titled=True)
    where, rows = _table(id, queries, revision, [split, queries, "queries"], TEXT_COLUMNS)
    texts = read_texts(rows, where, faults, titled=False)
    home, at = (id, revision) if qrels_repo is None else (qrels_repo, None)
    where, rows = _table(home, qrels, at, [split], QRELS_COLUMNS)
    judgements = read_judgements(rows, where, faults, documents, texts, say)
    return assemble(name, documents, texts, judgements, where=where, shared=True, faults=faults, say=say)


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
    return enumerate(rows, start=1)


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

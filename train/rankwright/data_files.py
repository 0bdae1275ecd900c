"""The documented files under runs/NAME/data: queries with judgements by split, and each corpus once."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from rankwright.atomic import write_lines_atomic
from rankwright.errors import UserError
from rankwright.examples import Collection
from rankwright.run_folder import content_hash

T = TypeVar("T")


def write_split(folder: Path, split: str, collections: Sequence[Collection]) -> list[str]:
    """data/SPLIT.jsonl (`set, corpus, query_id, query, judgements`) and data/corpora/HASH.jsonl (`_id, text`, `group`).

    Returns the names of the corpora's files, relative to `folder`.
    Rows have `teacher_scores` where there are any, `weight` where it is not 1, `group` where the set has a group
    key, and the set's `instruction` and `draws` where they are not the recipe's and 1.
    A query nobody judged has `judgements: {}`; a set without queries is one row `set, corpus`. Judgements of
    queries that the set does not have are left out.
    """
    assert len({c.name for c in collections}) == len(collections), f"{split}: two sets of one name"
    (folder / "corpora").mkdir(parents=True, exist_ok=True)
    names = {}
    for collection in collections:
        groups = collection.document_groups
        names[collection.name] = content_hash(sorted(collection.corpus.items()), *([groups] if groups else []))
        path = folder / "corpora" / f"{names[collection.name]}.jsonl"
        if not path.exists():
            rows = (
                {"_id": d, "text": text} | ({"group": groups[d]} if d in groups else {})
                for d, text in collection.corpus.items()
            )
            write_lines_atomic(path, map(_line, rows))
    write_lines_atomic(folder / f"{split}.jsonl", _query_lines(collections, names))
    return [f"corpora/{name}.jsonl" for name in names.values()]


def _query_lines(collections: Sequence[Collection], corpora: Mapping[str, str]) -> Iterator[str]:
    for collection in collections:
        place: dict[str, Any] = {"set": collection.name, "corpus": corpora[collection.name]}
        if collection.instruction is not None:
            place["instruction"] = collection.instruction
        if collection.draws != 1:
            place["draws"] = collection.draws
        if not collection.queries:
            yield _line(place)
        for query_id, query in collection.queries.items():
            row = {**place, "query_id": query_id, "query": query}
            row["judgements"] = dict(collection.qrels.get(query_id, {}))
            if query_id in collection.teacher_scores:
                row["teacher_scores"] = dict(collection.teacher_scores[query_id])
            if collection.weight(query_id) != 1:
                row["weight"] = collection.weight(query_id)
            if query_id in collection.query_groups:
                row["group"] = collection.query_groups[query_id]
            yield _line(row)


def _line(row: Mapping[str, Any]) -> str:
    text = json.dumps(row, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        # Half of a surrogate pair, which JSON can spell and UTF-8 cannot.
        return json.dumps(row)
    return text


def read_split(folder: Path, split: str) -> list[Collection]:
    """The sets of a split, in the order in which they were written; every query has a row in qrels, maybe empty.

    Sets that share a corpus share it in memory. Raises UserError for a file that is missing or damaged.
    """
    rows_of: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in _rows(folder / f"{split}.jsonl", ("set", "corpus")):
        rows_of.setdefault((row["set"], row["corpus"]), []).append(row)
    corpora = {corpus: _read_corpus(folder / "corpora" / f"{corpus}.jsonl") for _, corpus in rows_of}
    return [_collection(name, *corpora[corpus], rows) for (name, corpus), rows in rows_of.items()]


def _collection(
    name: str, corpus: dict[str, str], groups: dict[str, str], rows: Sequence[Mapping[str, Any]]
) -> Collection:
    queries = [row for row in rows if "query_id" in row]

    def of(key: str) -> dict[str, Any]:
        return {row["query_id"]: row[key] for row in queries if key in row}

    return Collection(
        name,
        corpus,
        of("query"),
        of("judgements"),
        of("teacher_scores"),
        of("weight"),
        of("group"),
        groups,
        rows[0].get("instruction"),
        rows[0].get("draws", 1.0),
    )


def _read_corpus(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Id -> text, and id -> group of the documents that have one."""
    texts, groups = {}, {}
    for row in _rows(path, ("_id", "text")):
        texts[row["_id"]] = row["text"]
        if "group" in row:
            groups[row["_id"]] = row["group"]
    return texts, groups


def _rows(path: Path, keys: Sequence[str]) -> Iterator[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                try:
                    row = json.loads(line)
                    for key in keys:
                        row[key]
                except (ValueError, KeyError, TypeError) as error:
                    raise UserError(
                        f"{path}:{number}: not a row of this file ({type(error).__name__}: {error}): "
                        "delete it and run the data stage again"
                    ) from None
                yield row
    except FileNotFoundError:
        raise UserError(f"{path}: no such file: run the data stage first") from None


def qualified(collection: Collection) -> Collection:
    """The same set with SET/ID for every id, so that several sets can be trained on together."""
    prefix = f"{collection.name}/"

    def nested(values: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
        return {prefix + q: {prefix + d: v for d, v in row.items()} for q, row in values.items()}

    def flat(values: Mapping[str, T]) -> dict[str, T]:
        return {prefix + key: value for key, value in values.items()}

    return replace(
        collection,
        corpus=flat(collection.corpus),
        queries=flat(collection.queries),
        qrels=nested(collection.qrels),
        teacher_scores=nested(collection.teacher_scores),
        weights=flat(collection.weights),
        query_groups=flat(collection.query_groups),
        document_groups=flat(collection.document_groups),
    )

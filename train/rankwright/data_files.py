"""The documented files under runs/NAME/data: queries with judgements by split, and each corpus once."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rankwright.atomic import write_lines_atomic
from rankwright.errors import UserError
from rankwright.examples import Collection
from rankwright.run_folder import content_hash


def write_split(folder: Path, split: str, collections: Sequence[Collection]) -> list[str]:
    """data/SPLIT.jsonl (`set, corpus, query_id, query, judgements`) and data/corpora/HASH.jsonl (`_id, text`).

    Returns the names of the corpora's files, relative to `folder`.
    Rows have `teacher_scores` where there are any, and `weight` where it is not 1.
    A query nobody judged has `judgements: {}`; a set without queries is one row `set, corpus`. Judgements of
    queries that the set does not have are left out.
    """
    assert len({c.name for c in collections}) == len(collections), f"{split}: two sets of one name"
    (folder / "corpora").mkdir(parents=True, exist_ok=True)
    names = {}
    for collection in collections:
        names[collection.name] = content_hash(sorted(collection.corpus.items()))
        path = folder / "corpora" / f"{names[collection.name]}.jsonl"
        if not path.exists():
            rows = ({"_id": d, "text": text} for d, text in collection.corpus.items())
            write_lines_atomic(path, map(_line, rows))
    write_lines_atomic(folder / f"{split}.jsonl", _query_lines(collections, names))
    return [f"corpora/{name}.jsonl" for name in names.values()]


def _query_lines(collections: Sequence[Collection], corpora: Mapping[str, str]) -> Iterator[str]:
    for collection in collections:
        place: dict[str, Any] = {"set": collection.name, "corpus": corpora[collection.name]}
        if not collection.queries:
            yield _line(place)
        for query_id, query in collection.queries.items():
            row = {**place, "query_id": query_id, "query": query}
            row["judgements"] = dict(collection.qrels.get(query_id, {}))
            if query_id in collection.teacher_scores:
                row["teacher_scores"] = dict(collection.teacher_scores[query_id])
            if collection.weight(query_id) != 1:
                row["weight"] = collection.weight(query_id)
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
        rows = rows_of.setdefault((row["set"], row["corpus"]), [])
        rows += [row] if "query_id" in row else []
    corpora = {corpus: _read_corpus(folder / "corpora" / f"{corpus}.jsonl") for _, corpus in rows_of}
    return [
        Collection(
            name,
            corpora[corpus],
            {row["query_id"]: row["query"] for row in rows},
            {row["query_id"]: row["judgements"] for row in rows},
            {row["query_id"]: row["teacher_scores"] for row in rows if "teacher_scores" in row},
            {row["query_id"]: row["weight"] for row in rows if "weight" in row},
        )
        for (name, corpus), rows in rows_of.items()
    ]


def _read_corpus(path: Path) -> dict[str, str]:
    return {row["_id"]: row["text"] for row in _rows(path, ("_id", "text"))}


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

    return Collection(
        collection.name,
        {prefix + d: text for d, text in collection.corpus.items()},
        {prefix + q: text for q, text in collection.queries.items()},
        nested(collection.qrels),
        nested(collection.teacher_scores),
        {prefix + q: weight for q, weight in collection.weights.items()},
    )

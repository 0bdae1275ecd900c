"""The documented files under runs/NAME/data: queries with judgements by split, and each corpus once."""

from __future__ import annotations

import json
from collections.abc import ItemsView, Iterator, Mapping, Sequence, ValuesView
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from rankwright.atomic import write_lines_atomic
from rankwright.errors import UserError
from rankwright.examples import Collection
from rankwright.keyed_texts import get_many
from rankwright.run_folder import content_hash
from rankwright.text_files import index_path
from rankwright.text_store import content, read_texts, write_texts

V = TypeVar("V")


def write_split(folder: Path, split: str, collections: Sequence[Collection]) -> list[str]:
    """data/SPLIT.jsonl (`set, corpus, query_id, query, judgements`) and data/corpora/HASH.arrow (`_id, text`, `group`).

    The corpora's form, and that of the index beside each, is text_files'. HASH depends on texts and groups, not on
    their order: sets with the same corpus share a file. Returns the names of the corpora's files, relative to `folder`.
    Rows have `teacher_scores` where there are any, `weight` where it is not 1, `group` where the set has a group
    key, and the set's `instruction` and `draws` where they are not the recipe's and 1.
    A query nobody judged has `judgements: {}`; a set without queries is one row `set, corpus`. Judgements of
    queries that the set does not have are left out.
    """
    assert len({c.name for c in collections}) == len(collections), f"{split}: two sets of one name"
    names = {}
    files = []
    # Sets that share a corpus in memory are looked through once.
    known: dict[tuple[int, int], str] = {}
    for collection in collections:
        corpus, groups = collection.corpus, collection.document_groups
        name = known.get((id(corpus), id(groups))) or _corpus_name(collection)
        names[collection.name] = known[id(corpus), id(groups)] = name
        path = folder / "corpora" / f"{name}.arrow"
        if not (path.exists() and index_path(path).exists()):
            write_texts(path, corpus, groups)
        files += [f"corpora/{path.name}", f"corpora/{index_path(path).name}"]
    write_lines_atomic(folder / f"{split}.jsonl", _query_lines(collections, names))
    return files


def _corpus_name(collection: Collection) -> str:
    try:
        found = content(collection.corpus, collection.document_groups)
    except UserError as error:
        raise UserError(f"set {collection.name!r}: {error}") from None
    return content_hash(found.rows, found.total)


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

    A corpus larger than text_store.IN_MEMORY_BYTES stays in its file; sets that share one share it here too. Raises
    UserError for a file that is missing or damaged.
    """
    found: dict[tuple[str, str], _Queries] = {}
    for row in _rows(folder / f"{split}.jsonl", ("set", "corpus")):
        place = row["set"], row["corpus"]
        if place not in found:
            found[place] = _Queries(row.get("instruction"), row.get("draws", 1.0))
        if "query_id" in row:
            found[place].add(row)
    corpora = {corpus: read_texts(folder / "corpora" / f"{corpus}.arrow") for _, corpus in found}
    return [queries.collection(name, *corpora[corpus]) for (name, corpus), queries in found.items()]


@dataclass(slots=True)
class _Queries:
    """The queries of one set as their rows are read."""

    instruction: str | None
    draws: float
    queries: dict[str, str] = field(default_factory=dict)
    qrels: dict[str, dict[str, float]] = field(default_factory=dict)
    teacher_scores: dict[str, dict[str, float]] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    groups: dict[str, str] = field(default_factory=dict)

    def add(self, row: Mapping[str, Any]) -> None:
        query_id = row["query_id"]
        self.queries[query_id] = row["query"]
        self.qrels[query_id] = row["judgements"]
        for key, values in (("teacher_scores", self.teacher_scores), ("weight", self.weights), ("group", self.groups)):
            if key in row:
                values[query_id] = row[key]

    def collection(self, name: str, corpus: Mapping[str, str], document_groups: Mapping[str, str]) -> Collection:
        return Collection(
            name,
            corpus,
            self.queries,
            self.qrels,
            self.teacher_scores,
            self.weights,
            self.groups,
            document_groups,
            self.instruction,
            self.draws,
        )


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


class Prefixed(Mapping[str, V]):
    """The same values under PREFIX + key: nothing is copied, so a corpus on the disk stays there."""

    def __init__(self, values: Mapping[str, V], prefix: str) -> None:
        self.of, self.prefix = values, prefix

    def __getitem__(self, key: str) -> V:
        if not key.startswith(self.prefix):
            raise KeyError(key)
        return self.of[key[len(self.prefix) :]]

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and key.startswith(self.prefix) and key[len(self.prefix) :] in self.of

    def __len__(self) -> int:
        return len(self.of)

    def __iter__(self) -> Iterator[str]:
        return (self.prefix + key for key in self.of)

    def items(self) -> ItemsView[str, V]:
        """(PREFIX + key, value), streaming."""
        return _PrefixedItems(self)

    def values(self) -> ValuesView[V]:
        """The values, streaming."""
        return self.of.values()


class PrefixedTexts(Prefixed[str]):
    """Texts of a corpus under PREFIX + id."""

    def get_many(self, keys: Sequence[str]) -> list[str]:
        """The texts of these, which must all be there."""
        return get_many(self.of, [key.removeprefix(self.prefix) for key in keys])


class _PrefixedItems(ItemsView[str, V]):
    _mapping: Prefixed[V]

    def __iter__(self) -> Iterator[tuple[str, V]]:
        prefix = self._mapping.prefix
        return ((prefix + key, value) for key, value in self._mapping.of.items())


def qualified(collection: Collection) -> Collection:
    """The same set with SET/ID for every id, so that several sets can be trained on together; the corpus is a view."""
    prefix = f"{collection.name}/"

    def nested(values: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
        return {prefix + q: {prefix + d: v for d, v in row.items()} for q, row in values.items()}

    def flat(values: Mapping[str, V]) -> dict[str, V]:
        return {prefix + key: value for key, value in values.items()}

    return replace(
        collection,
        corpus=PrefixedTexts(collection.corpus, prefix),
        queries=flat(collection.queries),
        qrels=nested(collection.qrels),
        teacher_scores=nested(collection.teacher_scores),
        weights=flat(collection.weights),
        query_groups=flat(collection.query_groups),
        document_groups=Prefixed(collection.document_groups, prefix),
    )

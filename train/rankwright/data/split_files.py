"""The files under runs/NAME/data: queries with judgements by split, and each corpus once."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from rankwright.common.errors import UserError
from rankwright.common.files import write_lines_atomic
from rankwright.common.hashing import content_hash
from rankwright.data.collection import Collection
from rankwright.data.store.arrow_files import index_path
from rankwright.data.store.rows import RowFile, RowValues, is_large, rows_with_places
from rankwright.data.store.texts import content, read_texts, write_texts
from rankwright.data.store.views import Prefixed, PrefixedQrels, PrefixedTexts

V = TypeVar("V")


def write_split(folder: Path, split: str, collections: Sequence[Collection]) -> list[str]:
    """data/SPLIT.jsonl (`set, corpus, query_id, query, judgements`) and data/corpora/HASH.arrow (`_id, text`, `group`).

    store/arrow_files describes the form of the corpora and of their indexes. HASH depends on texts and groups, not on
    their order: sets with the same corpus share a file. Returns the names of the corpora's files, relative to `folder`.
    Rows have `teacher_scores` where there are any, `weight` where it is not 1, `group` where the set has a group
    key, and the set's `instruction` and `draws` where they are not the recipe's and 1.
    An unjudged query has `judgements: {}`; a set without queries is one row `set, corpus`. Judgements of
    queries that the set does not have are left out.
    """
    assert len({c.name for c in collections}) == len(collections), f"{split}: two sets of one name"
    names = {}
    files = []
    # A corpus that sets share in memory is hashed once.
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
        # Half of a surrogate pair, which JSON can express and UTF-8 cannot.
        return json.dumps(row)
    return text


def read_split(folder: Path, split: str) -> list[Collection]:
    """The sets of a split, in the order in which they were written; every query has a row in qrels, maybe empty.

    A corpus larger than texts.IN_MEMORY_BYTES stays in its file; sets that share a corpus share it here too. Raises
    UserError for a file that is missing or damaged.
    """
    path = folder / f"{split}.jsonl"
    large = is_large(path)
    found: dict[tuple[str, str], _Queries] = {}
    for start, row in rows_with_places(path, _in_a_set, f"a row of {split}", "data"):
        place = row["set"], row["corpus"]
        if place not in found:
            file = RowFile(path, "query_id") if large else None
            found[place] = _Queries(row.get("instruction"), row.get("draws", 1.0), file)
        if "query_id" in row:
            found[place].add(start, row)
    corpora = {corpus: read_texts(folder / "corpora" / f"{corpus}.arrow") for _, corpus in found}
    return [queries.collection(name, *corpora[corpus]) for (name, corpus), queries in found.items()]


# Column of SPLIT.jsonl -> field of Collection.
COLUMNS = {
    "query": "queries",
    "judgements": "qrels",
    "teacher_scores": "teacher_scores",
    "weight": "weights",
    "group": "query_groups",
}


@dataclass(slots=True)
class _Queries:
    """The queries of one set while their rows are read; with a `file` they stay on the disk."""

    instruction: str | None
    draws: float
    file: RowFile | None
    values: dict[str, dict[str, Any]] = field(default_factory=lambda: {column: {} for column in COLUMNS})
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, start: int, row: Mapping[str, Any]) -> None:
        query_id = row["query_id"]
        if self.file is not None:
            self.file.add(start, query_id)
            self.counts.update(row.keys())
            return
        for column, values in self.values.items():
            if column in row:
                values[query_id] = row[column]

    def collection(self, name: str, corpus: Mapping[str, str], document_groups: Mapping[str, str]) -> Collection:
        values: dict[str, Any] = dict(self.values)
        if self.file is not None:
            values = {column: RowValues(self.file, column, self.counts[column], _same) for column in COLUMNS}
        return Collection(
            name,
            corpus,
            document_groups=document_groups,
            instruction=self.instruction,
            draws=self.draws,
            **{COLUMNS[column]: of for column, of in values.items()},
        )


# A function of a module, which can be pickled, as a lambda cannot.
def _same(value: Any) -> Any:
    return value


def _in_a_set(row: dict[str, Any]) -> dict[str, Any]:
    row["set"], row["corpus"]
    return row


def qualified(collection: Collection) -> Collection:
    """The same set with SET/ID for every id, so that several sets can be trained on together; the corpus is a view."""
    prefix = f"{collection.name}/"

    # What is in memory is quicker to look up as a dict.
    def under(
        values: Mapping[str, V], view: Callable[[Mapping[str, V], str], Mapping[str, V]] = Prefixed
    ) -> Mapping[str, V]:
        made = view(values, prefix)
        return dict(made.items()) if isinstance(values, dict) else made

    return replace(
        collection,
        corpus=PrefixedTexts(collection.corpus, prefix),
        queries=under(collection.queries),
        qrels=under(collection.qrels, PrefixedQrels),
        teacher_scores=under(collection.teacher_scores, PrefixedQrels),
        weights=under(collection.weights),
        query_groups=under(collection.query_groups),
        document_groups=Prefixed(collection.document_groups, prefix),
    )

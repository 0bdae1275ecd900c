"""JSONL files with one row per query: in memory where they are small, otherwise looked up on the disk."""

from __future__ import annotations

import json
import mmap
from array import array
from collections.abc import Callable, ItemsView, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from rankwright.common.errors import UserError
from rankwright.common.files import read_jsonl_places
from rankwright.data.store.id_index import IdIndex
from rankwright.data.store.views import StreamedItems

# The rows of a file up to this size are held as Python objects, which take several times as much.
IN_MEMORY_BYTES = 16 * 2**20

T = TypeVar("T")
V_co = TypeVar("V_co", covariant=True)


class RowFile:
    """Some rows of a JSONL file by the text under `key`; 24 bytes per row are held.

    May be pickled and used on both sides of a fork.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path, key
        self._starts = array("q")
        self._index = IdIndex()
        # Callers ask for all columns of a row, one after another.
        self._last: tuple[str, dict[str, Any]] | None = None
        self._map()

    def _map(self) -> None:
        with self.path.open("rb") as file:
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_data", "_last")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._last = None
        self._map()

    def add(self, start: int, identifier: str) -> None:
        """Note that the row of a new id starts at this byte."""
        self._index.add(identifier, len(self._starts))
        self._starts.append(start)

    def __len__(self) -> int:
        return len(self._starts)

    def _parse(self, row: int) -> dict[str, Any]:
        start = self._starts[row]
        end = self._data.find(b"\n", start)
        try:
            found: dict[str, Any] = json.loads(self._data[start : end if end >= 0 else len(self._data)])
            found[self.key]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{self.path}: changed while it was in use ({type(error).__name__}: {error}): start again"
            ) from None
        return found

    def find(self, identifier: object) -> dict[str, Any] | None:
        """The row of an id, or None."""
        if not isinstance(identifier, str):
            return None
        last = self._last
        if last is not None and last[0] == identifier:
            return last[1]
        for number in self._index.find(identifier):
            row = self._parse(number)
            if row[self.key] == identifier:
                self._last = identifier, row
                return row
        return None

    def rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """(id, row) in the order of the file, streaming."""
        for number in range(len(self)):
            row = self._parse(number)
            self._last = row[self.key], row
            yield row[self.key], row


class RowValues(Mapping[str, V_co]):
    """id -> convert(value of one column), for the `count` rows that have it."""

    def __init__(self, file: RowFile, column: str, count: int, convert: Callable[[Any], V_co]) -> None:
        self.file, self.column, self.count, self.convert = file, column, count, convert

    def __getitem__(self, identifier: str) -> V_co:
        row = self.file.find(identifier) if self.count else None
        if row is None or self.column not in row:
            raise KeyError(identifier)
        return self.convert(row[self.column])

    def __contains__(self, identifier: object) -> bool:
        row = self.file.find(identifier) if self.count else None
        return row is not None and self.column in row

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[str]:
        if self.count:
            yield from (identifier for identifier, row in self.file.rows() if self.column in row)

    def items(self) -> ItemsView[str, V_co]:
        """(id, value), streaming."""
        return StreamedItems(self, self._stream)

    def _stream(self) -> Iterator[tuple[str, V_co]]:
        if self.count:
            yield from ((i, self.convert(row[self.column])) for i, row in self.file.rows() if self.column in row)


def is_large(path: Path) -> bool:
    """Whether the rows of a file stay on the disk and are looked up there."""
    return path.exists() and path.stat().st_size > IN_MEMORY_BYTES


def rows_with_places(
    path: Path, convert: Callable[[dict[str, Any]], T], what: str, stage: str
) -> Iterator[tuple[int, T]]:
    """(byte at which it starts, convert(row)) of each row of a file; stage: the stage that wrote it.

    what: a row, for messages. Raises UserError for a file that is missing, and with file and line for a row that
    convert does not take.
    """
    try:
        yield from read_jsonl_places(path, convert, f"{what}: delete the file and run the {stage} stage again")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file: run the {stage} stage first") from None


def read_query_rows(path: Path, key: str, convert: Callable[[Any], T]) -> Mapping[str, T]:
    """Query id -> convert(row[key]) of a file of the mining stage, one row per query; raises as rows_with_places."""
    file = RowFile(path, "query_id") if is_large(path) else None
    found: dict[str, T] = {}

    def pair(row: dict[str, Any]) -> tuple[str, T]:
        return row["query_id"], convert(row[key])

    for start, (query_id, value) in rows_with_places(path, pair, f"a row of {key}", "mining"):
        if file is None:
            found[query_id] = value
        else:
            file.add(start, query_id)
    return found if file is None else RowValues(file, key, len(file), convert)

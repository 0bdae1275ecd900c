"""Files of texts by id: Arrow in record batches, each with an index from the hash of an id to its row.

`NAME.arrow` is an Arrow stream (`_id, text` and, where a set has a group key, `group`), the form that
`datasets.Dataset.from_file` opens too. `NAME.index.npy` is uint64 [2, rows]: hashes of the ids in ascending order, and
the rows that have them. Both are memory-mapped.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rankwright.common.errors import UserError
from rankwright.data.store.id_index import IdIndex

# A record batch ends with the row that reaches either limit; a writer holds that much in memory.
BATCH_BYTES, BATCH_ROWS = 16 * 2**20, 65_536
# No UTF-8 text holds this byte, so that no two rows give the same bytes.
BETWEEN = b"\xff"


def index_path(path: Path) -> Path:
    """Where the index of NAME.arrow lies: NAME.index.npy."""
    return path.with_suffix(".index.npy")


@dataclass(slots=True)
class Content:
    """A summary of a set of rows in any order: their number, and the sum of their hashes modulo 2^128.

    Two sets of n distinct rows that differ have the same sum by chance with probability 2^-128, as for any good hash
    of 128 bits. Two sets of equal sum can be constructed on purpose (Wagner 2002): the sum names files, it proves
    nothing. Source of the form: Bellare and Micciancio, EUROCRYPT 1997 (AdHash).
    """

    rows: int = 0
    total: int = 0

    def add(self, identifier: bytes, text: bytes, group: str | None) -> None:
        """Count one more row."""
        parts = (identifier, text) if group is None else (identifier, text, group.encode())
        row = hashlib.sha256(BETWEEN.join(parts)).digest()[:16]
        self.rows += 1
        self.total = (self.total + int.from_bytes(row, "little")) % 2**128


def encoded(identifier: str, text: str) -> tuple[bytes, bytes]:
    """Both as UTF-8. Raises UserError for half of a character, which UTF-8 cannot represent."""
    try:
        return identifier.encode(), text.encode()
    except UnicodeEncodeError as error:
        code = f"\\u{ord(error.object[error.start]):04x}"
        raise UserError(
            f"document {identifier!r} holds half of a character ({code}): remove it, or write both halves"
        ) from None


def content_of(rows: Iterable[tuple[str, str, str | None]]) -> Content:
    """The Content of rows (id, text, group), streaming."""
    content = Content()
    for identifier, text, group in rows:
        content.add(*encoded(identifier, text), group)
    return content


class TextWriter:
    """Writes NAME.arrow and its index row by row; what was written can be looked up at any time.

    The files are complete after close(). Raises UserError when there is no room.
    """

    def __init__(self, path: Path, *, grouped: bool = False) -> None:
        self.path = path
        self.content = Content()
        self.index = IdIndex()
        fields = ["_id", "text", *(["group"] if grouped else [])]
        self._schema = pa.schema([pa.field(name, pa.large_string(), name == "group") for name in fields])
        self._pending: tuple[list[str], list[str], list[str | None]] = ([], [], [])
        self._pending_bytes = 0
        # For each batch on the disk: its first row, where its bytes are, and its columns once they were read.
        self._starts: list[int] = []
        self._spans: list[tuple[int, int]] = []
        self._columns: dict[int, tuple[Any, Any]] = {}
        with self._room():
            self._file = pa.OSFile(str(path), "wb")
            self._stream = pa.ipc.new_stream(self._file, self._schema)

    @contextlib.contextmanager
    def _room(self) -> Iterator[None]:
        """Turns a failed write into a UserError."""
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self.path.parent}: cannot write texts there ({error.strerror or error}): make room, or give another "
                "place, run_dir=PATH (outside of a run: TMPDIR=PATH)"
            ) from None

    def add(self, identifier: str, text: str, group: str | None = None) -> None:
        """Write one row; the caller makes sure that its id is new."""
        key, data = encoded(identifier, text)
        self.index.add(identifier, self.content.rows)
        self.content.add(key, data, group)
        self._pending[0].append(identifier)
        self._pending[1].append(text)
        self._pending[2].append(group)
        self._pending_bytes += len(key) + len(data)
        if self._pending_bytes >= BATCH_BYTES or len(self._pending[0]) >= BATCH_ROWS:
            self._flush()

    def _flush(self) -> None:
        arrays = [pa.array(values, pa.large_string()) for values in self._pending[: len(self._schema)]]
        with self._room():
            start = self._file.tell()
            self._stream.write_batch(pa.record_batch(arrays, schema=self._schema))
            self._spans.append((start, self._file.tell() - start))
        self._starts.append(self.content.rows - len(self._pending[0]))
        self._pending, self._pending_bytes = ([], [], []), 0

    def get(self, identifier: str) -> str | None:
        """The text that was written for an id, or None."""
        for row in self.index.find(identifier):
            first = self.content.rows - len(self._pending[0])
            if row >= first:
                ids, texts = self._pending[0], self._pending[1]
                found, text = ids[row - first], texts[row - first]
            else:
                ids_of, texts_of, place = self._written(row)
                found, text = ids_of[place].as_py(), texts_of[place].as_py()
            if found == identifier:
                return text
        return None

    def _written(self, row: int) -> tuple[Any, Any, int]:
        batch = int(np.searchsorted(self._starts, row, side="right")) - 1
        if batch not in self._columns:
            start, length = self._spans[batch]
            skipped = start % mmap.ALLOCATIONGRANULARITY
            with self.path.open("rb") as file:
                # Only this batch: the file grows, and mapping all of it each time would exhaust the address space.
                data = mmap.mmap(file.fileno(), length + skipped, access=mmap.ACCESS_READ, offset=start - skipped)
            reader = pa.BufferReader(pa.py_buffer(data).slice(skipped))
            message = pa.ipc.read_message(reader)
            if message.type == "schema":  # goes before the first batch
                message = pa.ipc.read_message(reader)
            columns = pa.ipc.read_record_batch(message, self._schema)
            self._columns[batch] = (columns.column(0), columns.column(1))
        return *self._columns[batch], row - self._starts[batch]

    def close(self) -> None:
        """Finish both files and see that they are on the disk."""
        self._flush()
        with self._room():
            self._stream.close()
            self._file.close()
            with self.path.open("rb") as file:
                os.fsync(file.fileno())
            self.index.save(index_path(self.path))
        self._columns = {}


def open_files(path: Path) -> tuple[Any, IdIndex]:
    """(the Arrow table, the index of its ids), both memory-mapped. Raises UserError when either is damaged."""
    try:
        table = pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
        index = np.load(index_path(path), mmap_mode="r", allow_pickle=False)
        if not {"_id", "text"} <= set(table.column_names):
            raise ValueError(f"columns {table.column_names}")
        if index.dtype != np.dtype("<u8") or index.shape != (2, table.num_rows):
            raise ValueError(f"an index of {index.shape[-1]} rows for {table.num_rows} rows")
    except FileNotFoundError as error:
        raise UserError(f"{error.filename or path}: no such file: run the data stage first") from None
    except (OSError, EOFError, ValueError, IndexError) as error:  # pyarrow's errors are ValueErrors and OSErrors
        raise UserError(
            f"{path}: damaged ({type(error).__name__}: {error}): delete it and run the data stage again"
        ) from None
    return table, IdIndex(np.asarray(index[0]), np.asarray(index[1]))

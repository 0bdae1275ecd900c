"""The rows of any table file: JSONL, a JSON array, CSV, TSV, Parquet, Arrow or an Excel workbook."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from rankwright.common.errors import UserError, one_line
from rankwright.data.formats.compression import DAMAGED, damaged, is_packed, open_bytes, plain_name
from rankwright.data.formats.encodings import open_text
from rankwright.data.formats.reading import Faults, Reading, RowNumber, Rows, choose_split, give_up, quiet, refuse_twice
from rankwright.data.formats.text_rows import LINES, array_rows, csv_rows, delimiter_of, json_rows, object_rows
from rankwright.data.formats.workbooks import workbook_rows

if TYPE_CHECKING:
    import pyarrow


WORKBOOK = ".xlsx"
SUFFIXES = (*LINES, ".json", ".parquet", ".arrow", WORKBOOK)
PARQUET, ARROW_FILE, ARROW_STREAM = b"PAR1", b"ARROW1\0\0", b"\xff\xff\xff\xff"
_END = b"\xff\xff\xff\xff\0\0\0\0"
# First bytes of files that hold no rows that can be read -> what they are, and what to do.
_FOREIGN = {
    b"PK\x03\x04": "a zip archive: unpack it, or end the name of an Excel workbook in .xlsx",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook (.xls), or one with a password: save it as .xlsx without, or CSV",
    b"%PDF": "a PDF document: extract its texts into a file of rows",
    b"SQLite format 3\0": "a SQLite database: export its tables as CSV",
    b"7z\xbc\xaf": "a 7z archive: unpack it",
    **dict.fromkeys((b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*"), "an image: it holds no texts"),
}
_OFFICE = {".docx": "a Word document", ".pptx": "a presentation", ".odt": "a text document", ".ods": "a spreadsheet"}
_OLD_OFFICE = b"\xd0\xcf\x11\xe0"
_HEAD_BYTES = 1 << 16
# Rows that are Python objects at the same time.
BATCH_ROWS = 256


def foreign(head: bytes, path: Path) -> str | None:
    """What a file is whose first bytes are those of another kind of file, and what to do; None for all others."""
    if path.suffix in _OFFICE and head.startswith(b"PK"):
        return f"{_OFFICE[path.suffix]}: save its texts as .xlsx, CSV or JSONL"
    return next((what for start, what in _FOREIGN.items() if head.startswith(start)), None)


def why_unreadable(path: Path, encoding: str | None = None) -> str | None:
    """Why no row of a file can be read, in words; None where one can."""
    reading = quiet(encoding)
    try:
        if next(table_rows(path, reading), None) is not None:
            return None
        reading.faults.check()
    except UserError as error:
        return str(error).splitlines()[0].removeprefix(f"{path}:").removeprefix("1:").strip()
    faulty = reading.faults.dropped
    return f"no row can be read, first: {faulty[0].examples[0].removeprefix(f'{path}:')}" if faulty else "holds no rows"


def is_table(path: Path) -> bool:
    """Whether a file holds rows, judging by its name."""
    return plain_name(path).endswith(SUFFIXES)


def table_rows(path: Path, reading: Reading) -> Rows:
    """(line or RowNumber, row) of a file, plain, .gz or .zst. Content decides how it is read; for text, the name too.

    Faults are noted with their place. Raises UserErrors for a file whose rest cannot be read.
    """
    faults, name = reading.faults, plain_name(path)
    try:
        with open_bytes(path) as file:
            head = file.read(_HEAD_BYTES)
    except DAMAGED as error:
        give_up(faults, path, 1, damaged(path, error))
    is_arrow = head.startswith((PARQUET, ARROW_FILE, ARROW_STREAM))
    is_book = name.endswith(WORKBOOK) and not is_packed(path)
    if reading.encoding is not None and (is_arrow or is_book):
        give_up(faults, path, 1, f"encoding: {reading.encoding}: this is not a text file: leave `encoding` out")
    if is_arrow:
        return arrow_rows(path, faults, start=head[:8])
    if is_book and not head.startswith(_OLD_OFFICE):
        return workbook_rows(path, faults)
    if name.endswith((".parquet", ".arrow")):
        give_up(faults, path, 1, "its bytes are not those of a Parquet or Arrow file: fetch or write it again")
    if (what := foreign(head, path)) is not None:
        give_up(faults, path, 1, what)
    return _text_rows(path, name, reading)


def _text_rows(path: Path, name: str, reading: Reading) -> Rows:
    if name.endswith((".tsv", ".csv")):
        return csv_rows(path, reading, delimiter="\t" if name.endswith(".tsv") else None)
    with open_text(path, replace(reading, say=lambda line: None)) as file:
        text = file.read(_HEAD_BYTES).lstrip()
    if text.startswith(b"["):
        return array_rows(path, reading)
    if text.startswith(b"{") and name.endswith(".json") and not _is_line(text):
        return object_rows(path, reading)
    if text.startswith(b"{") or name.endswith((".jsonl", ".ndjson", ".json")) or not text:
        return json_rows(path, reading)
    first = text.split(b"\n", 1)[0].decode("utf-8", "replace")
    if delimiter_of(first) not in first:
        known = f"give one of {', '.join(SUFFIXES)}, plain or .gz or .zst"
        give_up(reading.faults, path, 1, f"no rows that can be read: {known}")
    return csv_rows(path, reading)


def _is_line(head: bytes) -> bool:
    """Whether the first line of a file is a JSON text, with more below: it has one row in each line."""
    first, _, rest = head.partition(b"\n")
    try:
        return bool(rest.strip()) and isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def arrow_rows(path: Path, faults: Faults, *, start: bytes) -> Rows:
    """(row number, row) of a Parquet file or an Arrow file or stream; `start`: its first bytes, unpacked."""
    import pyarrow

    number = 0
    try:
        with _seekable(path) as file:
            for batch in _batches(file, start):
                refuse_twice(batch.schema.names, path, RowNumber(1), faults)
                for offset, row in _values(batch):
                    number += 1
                    if row is None:
                        text = f"not UTF-8 (in row {offset + 1} of its batch): save the texts as UTF-8"
                        faults.add(path, RowNumber(number), text)
                    else:
                        yield RowNumber(number), row
    except DAMAGED as error:
        text = damaged(path, error)
        give_up(faults, path, RowNumber(number + 1), text)
    except (pyarrow.ArrowException, OSError) as error:
        what = "Parquet" if start.startswith(PARQUET) else "Arrow"
        words = " ".join(str(error).split())
        give_up(faults, path, RowNumber(number + 1), f"damaged {what} file ({words}): fetch or write it again")


def _seekable(path: Path) -> IO[bytes]:
    """The file, or a temporary unpacked copy of a packed one: a Parquet file is read from its end."""
    if not is_packed(path):
        return path.open("rb")
    plain = tempfile.TemporaryFile()  # noqa: SIM115 (the caller closes it)
    with open_bytes(path) as packed:
        shutil.copyfileobj(packed, plain)
    plain.seek(0)
    return plain


def _batches(file: IO[bytes], start: bytes) -> Iterator[pyarrow.RecordBatch]:
    import pyarrow
    import pyarrow.parquet

    if start.startswith(PARQUET):
        yield from pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=BATCH_ROWS)
    elif start.startswith(ARROW_FILE):
        reader = pyarrow.ipc.open_file(file)
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)
    else:
        yield from pyarrow.ipc.open_stream(file)
        # A reader takes the end of the file for the end of the stream: batches that were cut off would be lost.
        file.seek(-len(_END), os.SEEK_END)
        if file.read() != _END:
            raise pyarrow.ArrowInvalid("no end-of-stream marker: it is cut off, or its writer was not closed")


def _values(batch: pyarrow.RecordBatch) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """(place in the batch, row), None for a row whose texts are not UTF-8."""
    for first in range(0, batch.num_rows, BATCH_ROWS):
        part = batch.slice(first, BATCH_ROWS)
        try:
            rows: list[dict[str, Any] | None] = part.to_pylist()
        except UnicodeDecodeError:
            rows = [_one(part.slice(place, 1)) for place in range(part.num_rows)]
        yield from enumerate(rows, start=first)


def _one(row: pyarrow.RecordBatch) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = row.to_pylist()[0]
    except UnicodeDecodeError:
        return None
    return found


def is_saved(folder: Path) -> bool:
    """Whether `datasets` wrote the folder with save_to_disk."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def saved_splits(folder: Path) -> list[str]:
    """The splits of a folder of save_to_disk; none for a single table. Raises UserError."""
    return _names(folder / "dataset_dict.json", "splits")


def saved_files(folder: Path, split: str | None) -> list[Path]:
    """The Arrow files of a folder of save_to_disk, of one split where it has several. Raises UserError."""
    if splits := saved_splits(folder):
        folder = folder / choose_split(folder, split, splits)
    files = [folder / name for name in _names(folder / "state.json", "_data_files", "filename")]
    missing = [path for path in files if not path.is_file()]
    if missing or not files:
        named = missing[0] if missing else folder / "state.json"
        raise UserError(f"{named}: no such data file: save the set again with save_to_disk")
    return files


def _names(path: Path, key: str, inner: str | None = None) -> list[str]:
    """The names of files or folders in a list of a JSON file, none without the file; inner: their key in its objects.

    Raises UserError for a damaged file, and for names that lead out of the folder.
    """
    if not path.is_file():
        return []
    try:
        found = json.loads(path.read_text(encoding="utf-8")).get(key, [])
        names = [entry if inner is None else entry[inner] for entry in found]
        if not isinstance(found, list) or not all(isinstance(n, str) and n == Path(n).name != ".." for n in names):
            raise ValueError(f"{key!r} is not a list of names in this folder")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        why = f"no {error}" if isinstance(error, KeyError) else one_line(str(error))
        raise UserError(f"{path}: not the JSON that save_to_disk writes ({why}): save the set again") from None
    return names

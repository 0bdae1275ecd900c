"""The rows of any file of a table, whatever holds them: JSONL, a JSON array, CSV, TSV, Parquet or Arrow."""

from __future__ import annotations

from pathlib import Path

from rankwright.arrow_rows import ARROW_FILE, ARROW_STREAM, PARQUET, arrow_rows
from rankwright.compressed import DAMAGED, PACKED, open_bytes, packing, plain_name
from rankwright.csv_rows import csv_rows
from rankwright.json_array import array_rows
from rankwright.rows import Faults, Rows, give_up, json_rows

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow")
_HEAD_BYTES = 1 << 16
_FOREIGN = {
    b"\xff\xfe": "UTF-16 text: save it as UTF-8",
    b"\xfe\xff": "UTF-16 text: save it as UTF-8",
    b"PK\x03\x04": "a zip archive or an Excel workbook: save the table as CSV",
}


def is_table(name: str) -> bool:
    """Whether a file's name says that it holds rows."""
    for packed in PACKED:
        name = name.removesuffix(packed)
    return name.endswith(SUFFIXES)


def table_rows(path: Path, faults: Faults) -> Rows:
    """(line or RowNumber, row) of a file, plain or .gz or .zst. The content says what it is, the name helps with text.

    Faults are noted where they stand. Raises UserErrors for a file whose rest cannot be read.
    """
    try:
        with open_bytes(path) as file:
            head = file.read(_HEAD_BYTES)
    except DAMAGED as error:
        give_up(faults, path, 1, f"damaged {packing(path)} file ({error}): fetch or compress it again")
    name = plain_name(path)
    if head.startswith((PARQUET, ARROW_FILE, ARROW_STREAM)):
        return arrow_rows(path, faults, start=head[:8])
    if name.endswith((".parquet", ".arrow")):
        give_up(faults, path, 1, "its bytes are not those of a Parquet or Arrow file: fetch or write it again")
    for start, what in _FOREIGN.items():
        if head.startswith(start):
            give_up(faults, path, 1, what)
    if len(head) > 1 and (head[0] == 0) != (head[1] == 0):
        # ASCII in two bytes each, without the mark that most programs write in front.
        give_up(faults, path, 1, _FOREIGN[b"\xff\xfe"])
    return _text_rows(path, name, head, faults)


def _text_rows(path: Path, name: str, head: bytes, faults: Faults) -> Rows:
    if name.endswith(".tsv"):
        return csv_rows(path, faults, delimiter="\t")
    if name.endswith(".csv"):
        return csv_rows(path, faults)
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text.startswith(b"["):
        return array_rows(path, faults)
    if text.startswith(b"{") or name.endswith((".jsonl", ".ndjson", ".json")) or not text:
        return json_rows(path, faults)
    first = text.split(b"\n", 1)[0]
    if b"\t" not in first and b"," not in first:
        give_up(faults, path, 1, f"no rows that can be read: give one of {', '.join(SUFFIXES)}, plain or .gz or .zst")
    return csv_rows(path, faults)

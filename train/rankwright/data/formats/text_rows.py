"""Rows of text files, plain or compressed: JSONL, JSON arrays, CSV and TSV, each with its line number."""

from __future__ import annotations

import codecs
import csv
import itertools
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NoReturn

from rankwright.data.formats.compression import CHUNK_BYTES, DAMAGED, LONGEST_ROW, byte_lines, open_bytes, packing
from rankwright.data.formats.reading import Faults, LineOfRow, Rows, column_names, give_up

# Files of lines; a JSON array has no line per row.
LINES = (".jsonl", ".ndjson", ".csv", ".tsv")
# An error this near to the end of the text so far may be a value that is cut off: `tru`, `\ud83`.
_UNFINISHED = 16
_SPACE = " \t\n\r"
# What "surrogateescape" makes of bytes that are not UTF-8.
_NOT_UTF8 = re.compile("[\udc80-\udcff]")


def text_lines(path: Path, faults: Faults) -> Iterator[tuple[int, str]]:
    """(number from 1, text) of each line that is not blank. Bytes that are not UTF-8 are faults, an empty file too."""
    number = seen = 0
    try:
        with open_bytes(path) as file:
            for number, raw in enumerate(byte_lines(file, path), start=1):
                try:
                    text = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip("\r\n")
                except UnicodeDecodeError as error:
                    faults.add(path, number, f"not UTF-8 at byte {error.start} of the line: save the file as UTF-8")
                    seen += 1
                    continue
                if text.strip():
                    seen += 1
                    yield number, text
    except DAMAGED as error:
        give_up(faults, path, number + 1, f"damaged {packing(path)} file ({error}): fetch or compress it again")
    if not seen:
        faults.add(path, 1, "the file is empty: give a file with rows", whole=True)


def json_rows(path: Path, faults: Faults) -> Rows:
    """The objects of a JSONL file; a line that is not a JSON object is a fault."""
    json = Json()
    for number, text in text_lines(path, faults):
        try:
            row = json.decode(text)
        except ValueError as error:
            faults.add(path, number, f"not JSON ({error}): each line must be one JSON object")
            continue
        if isinstance(row, dict):
            yield number, row
        else:
            faults.add(path, number, f"a JSON {type(row).__name__}, needs an object with columns")


class CsvRow(dict[str, Any]):
    """A row whose cells are all text or None (empty): lists and objects stand in them as JSON."""


def delimiter_of(header: str) -> str:
    """The most frequent of tab, comma and semicolon in a header; a comma where there is none."""
    return max(",", ";", "\t", key=header.count)


def csv_rows(path: Path, faults: Faults, *, delimiter: str | None = None) -> Rows:
    """(line where the record starts, row) of each record after the header, read strictly; blank lines are skipped.

    A cell that is empty is None. Raises UserErrors when the header names a column twice, and for a quote that is
    never closed.
    """
    csv.field_size_limit(LONGEST_ROW)
    try:
        lines = _lines(path)
        header = next(lines, "")
        if not header.strip():
            give_up(
                faults, path, 1, "no header in the first line, or the file is empty: give a file with a header and rows"
            )
        found = csv.reader(itertools.chain([header], lines), delimiter=delimiter or delimiter_of(header), strict=True)
        records = _records(found, path, faults)
        names = _names(next(records)[1], path, faults)
        for line, cells in records:
            if not cells:
                continue
            if any(_NOT_UTF8.search(cell) for cell in cells):
                faults.add(path, line, "not UTF-8: save the file as UTF-8")
            elif len(cells) != len(names):
                faults.add(path, line, f"{len(cells)} cells, the header has {len(names)} columns")
            else:
                yield line, CsvRow({name: cell or None for name, cell in zip(names, cells, strict=True)})
    except DAMAGED as error:
        give_up(faults, path, 1, f"damaged {packing(path)} file ({error}): fetch or compress it again")


def _lines(path: Path) -> Iterator[str]:
    with open_bytes(path) as file:
        for number, line in enumerate(byte_lines(file, path)):
            # Bytes that are not UTF-8 become a fault once their record is known.
            yield line.decode("utf-8-sig" if number == 0 else "utf-8", "surrogateescape")


def _records(reader: Any, path: Path, faults: Faults) -> Iterator[tuple[int, list[str] | None]]:
    """(line where it starts, cells) of each record that csv.reader finds, cells None after a fault."""
    cells: list[str] | None
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                give_up(faults, path, line, "a quote that opens here is never closed: close or double it")
            faults.add(path, line, f"not CSV ({error}): quote the cell, and double the quotes inside it")
            cells = None
        yield line, cells


def _names(cells: list[str] | None, path: Path, faults: Faults) -> list[str]:
    if cells is None or any(_NOT_UTF8.search(cell) for cell in cells):
        give_up(faults, path, 1, "the header cannot be read: save the file as UTF-8, with a header")
    return column_names(cells, path, 1, faults, ", or add a header")


def array_rows(path: Path, faults: Faults) -> Rows:
    """(line where it starts, row) of each element; an element that is not an object is a fault.

    Raises UserErrors for text that is not JSON: the start of the next element is then unknown.
    """
    try:
        with open_bytes(path) as file:
            yield from _Array(path, file, faults).elements()
    except DAMAGED as error:
        give_up(faults, path, 1, f"damaged {packing(path)} file ({error}): fetch or compress it again")


class _Array:
    """The unused rest of the text that was read; place: where in it the next element starts, line: its line."""

    def __init__(self, path: Path, file: IO[bytes], faults: Faults) -> None:
        self.path, self.file, self.faults = path, file, faults
        self.decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self.json = Json()
        self.text, self.place, self.line, self.row, self.ended = "", 0, 1, 0, False

    def elements(self) -> Rows:
        if self._next() != "[":
            self._stop("no JSON array")
        self._move(self.place + 1)
        closed = self._next() == "]"
        while not closed:
            self._next()
            self.row += 1
            line, value = LineOfRow(self.line, self.row), self._element()
            if isinstance(value, dict):
                yield line, value
            else:
                self.faults.add(self.path, line, f"a JSON {type(value).__name__}, needs an object with columns")
            mark = self._next()
            closed = mark == "]"
            if mark == ",":
                self._move(self.place + 1)
            elif not closed:
                self._stop(f"{mark!r} where a comma or ] must stand" if mark else "the array is not closed")
        self._move(self.place + 1)
        if self._next():
            self._stop("there is more after the end of the array")

    def _move(self, place: int) -> None:
        self.line += self.text.count("\n", self.place, place)
        self.place = place

    def _next(self) -> str:
        """The next character that is not a space, which stays unread; empty at the end of the file."""
        while True:
            place = self.place
            while place < len(self.text) and self.text[place] in _SPACE:
                place += 1
            self._move(place)
            if place < len(self.text):
                return self.text[place]
            if self.ended:
                return ""
            self._more()

    def _more(self) -> None:
        """Drop what is used, and read as much again as is left, so that a long element takes linear time."""
        self.text, self.place = self.text[self.place :], 0
        if len(self.text) > LONGEST_ROW:
            self._stop(f"an element of more than {LONGEST_ROW >> 20} million characters")
        data = self.file.read(max(CHUNK_BYTES, len(self.text)))
        self.ended = not data
        try:
            self.text += self.decoder.decode(data, final=self.ended)
        except UnicodeDecodeError as error:
            at = data.count(b"\n", 0, error.start)
            self.line += self.text.count("\n") + at
            self._stop("not UTF-8 (save the file as UTF-8)")

    def _element(self) -> object:
        while True:
            try:
                value, end = self.json.decode_at(self.text, self.place)
            except json.JSONDecodeError as error:
                near = error.pos >= len(self.text) - _UNFINISHED or error.msg.startswith("Unterminated string")
                if near and not self.ended:
                    self._more()
                    continue
                self._move(min(error.pos, len(self.text)))
                self._stop(f"not JSON ({error.msg})")
            except ValueError as error:
                self._stop(f"not JSON ({error})")
            # A number may be cut off here.
            if end == len(self.text) and not self.ended and not isinstance(value, dict | list):
                self._more()
                continue
            try:
                self.json.refuse_doubled()
            except ValueError as error:
                self._stop(str(error))
            self._move(end)
            return value

    def _stop(self, what: str) -> NoReturn:
        give_up(self.faults, self.path, self.line, f"{what}: the rest of the file cannot be read; mend it")


class Json:
    """A parser that refuses duplicate keys in an object (Python keeps the last) and endless nesting."""

    def __init__(self) -> None:
        self._doubled: list[str] = []
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        row = dict(pairs)
        if len(row) < len(pairs):
            names = [name for name, _ in pairs]
            self._doubled += [name for name, count in Counter(names).items() if count > 1]
        return row

    def decode(self, text: str) -> Any:
        """The value of a JSON text. Raises ValueError."""
        value, end = self.decode_at(text, len(text) - len(text.lstrip()))
        if text[end:].strip():
            raise json.JSONDecodeError("Extra data", text, end)
        self.refuse_doubled()
        return value

    def decode_at(self, text: str, start: int) -> tuple[Any, int]:
        """(value, end) of the value that starts there; ask refuse_doubled afterwards. Raises ValueError."""
        self._doubled.clear()
        try:
            return self._decoder.raw_decode(text, start)
        except RecursionError:
            raise ValueError("nested too deeply") from None
        except json.JSONDecodeError:
            raise
        except ValueError:
            # Python's own message advises to lift its limit.
            raise ValueError(f"a number of more than {sys.get_int_max_str_digits():,} digits") from None

    def refuse_doubled(self) -> None:
        """Raise ValueError when the value that was decoded last has a key twice."""
        if self._doubled:
            raise ValueError(f"the key {self._doubled[0]!r} stands twice in one object")

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
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from rankwright.data.formats.compression import CHUNK_BYTES, DAMAGED, LONGEST_ROW, byte_lines, damaged
from rankwright.data.formats.encodings import ADVICE, ESCAPED, UTF8, TextFile, open_text
from rankwright.data.formats.reading import Faults, LineOfRow, Reading, Rows, column_names, give_up, wrong_width

# Files of lines; a JSON array has no line per row.
LINES = (".jsonl", ".ndjson", ".csv", ".tsv")
# An error this near to the end of the text so far may be a value that is cut off: `tru`, `\ud83`.
_UNFINISHED = 16
_SPACE = " \t\n\r"


def text_lines(path: Path, reading: Reading) -> Iterator[tuple[int, str]]:
    """(number from 1, text) of each line that is not blank; see open_text for the encoding.

    Bytes that the encoding does not have are faults, an empty file too.
    """
    number = seen = 0
    faults = reading.faults
    try:
        with open_text(path, reading) as file:
            for number, raw in enumerate(byte_lines(file, path), start=1):
                try:
                    text = raw.decode().strip("\r\n")
                except UnicodeDecodeError as error:
                    faults.add(path, number, _not_text(file, f" at byte {error.start} of the line"))
                    seen += 1
                    continue
                if text.strip():
                    seen += 1
                    yield number, text
    except DAMAGED as error:
        give_up(faults, path, number + 1, damaged(path, error))
    if not seen:
        faults.add(path, 1, "the file is empty: give a file with rows", whole=True)


def _not_text(file: TextFile, place: str = "") -> str:
    # The place is that in the line as UTF-8.
    return f"not {file.encoding}{place if file.encoding == UTF8 else ''}: {ADVICE}"


def json_rows(path: Path, reading: Reading) -> Rows:
    """The objects of a JSONL file; a line that is not a JSON object is a fault."""
    json, faults = Json(), reading.faults
    for number, text in text_lines(path, reading):
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
    """The most frequent of comma, semicolon, tab and | outside quotes in a header; a comma where there is none."""
    return max(",", ";", "\t", "|", key=re.sub('"[^"]*"', "", header).count)


def csv_rows(path: Path, reading: Reading, *, delimiter: str | None = None) -> Rows:
    """(line where the record starts, row) of each record after the header, read strictly; blank lines are skipped.

    A cell that is empty is None. Raises UserErrors when the header names a column twice, and for a quote that is
    never closed.
    """
    csv.field_size_limit(LONGEST_ROW)
    faults = reading.faults
    try:
        with open_text(path, reading) as file:
            # Bytes that are not UTF-8 become a fault once their record is known.
            lines = (line.decode("utf-8", "surrogateescape") for line in byte_lines(file, path))
            header, before = next(lines, ""), 0
            if stated := re.fullmatch('"?sep=(.)"?\\s*', header):
                # A line for Excel alone.
                delimiter, header, before = stated[1], next(lines, ""), 1
            if not header.strip():
                give_up(faults, path, 1, "no header in the first line, or the file is empty: give a header and rows")
            sign = delimiter or delimiter_of(header)
            found = csv.reader(itertools.chain([header], lines), delimiter=sign, strict=True)
            records = _records(found, path, faults, before)
            names = _names(next(records)[1], path, file, faults)
            for line, cells in records:
                if not cells:
                    continue
                if any(ESCAPED.search(cell) for cell in cells):
                    faults.add(path, line, _not_text(file))
                elif len(cells) != len(names):
                    faults.add(path, line, wrong_width(cells, len(names)))
                else:
                    yield line, CsvRow({name: cell or None for name, cell in zip(names, cells, strict=True)})
    except DAMAGED as error:
        give_up(faults, path, 1, damaged(path, error))


def _records(reader: Any, path: Path, faults: Faults, before: int) -> Iterator[tuple[int, list[str] | None]]:
    """(line where it starts, cells) of each record that csv.reader finds, cells None after a fault.

    before: lines that the reader was not given.
    """
    cells: list[str] | None
    while True:
        line = before + reader.line_num + 1
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


def _names(cells: list[str] | None, path: Path, file: TextFile, faults: Faults) -> list[str]:
    if cells is None or any(ESCAPED.search(cell) for cell in cells):
        give_up(faults, path, 1, f"the header cannot be read: {_not_text(file)}")
    return column_names(cells, path, 1, faults, ", or add a header")


def array_rows(path: Path, reading: Reading) -> Rows:
    """(line where it starts, row) of each element; an element that is not an object is a fault.

    Raises UserErrors for text that is not JSON: the start of the next element is then unknown.
    """
    try:
        with open_text(path, reading) as file:
            yield from _Array(path, file, reading.faults).elements()
    except DAMAGED as error:
        give_up(reading.faults, path, 1, damaged(path, error))


# Keys under which files of one JSON object hold their rows.
_ROWS = set("data rows items records examples entries tasks samples instances questions".split())


def object_rows(path: Path, reading: Reading) -> Rows:
    """The rows of a file that is one JSON object: the objects of its list (`data`, `rows`, ...), else itself.

    Raises UserErrors for tables by columns, as pandas writes them, and for an object of several lists of rows.
    """
    with open_text(path, reading) as file:
        data = file.read(LONGEST_ROW)
    try:
        whole = Json().decode(data.decode())
    except ValueError:
        # Rows on several lines, or not JSON: that reader reports the line.
        yield from json_rows(path, replace(reading, say=lambda line: None))
        return
    lists = [key for key, value in whole.items() if isinstance(value, list) and value and isinstance(value[0], dict)]
    by_column = len(whole) > 1 and all(isinstance(value, dict) for value in whole.values())
    if by_column or {"columns", "data"} <= whole.keys() > set(lists):
        advice = "write the rows, in pandas `.to_json(PATH, orient='records', lines=True)`"
        give_up(reading.faults, path, 1, f"a table by its columns and not by its rows: {advice}")
    if len(lists) == len(whole) > 1:
        give_up(reading.faults, path, 1, f"one object with several lists ({', '.join(lists)}): save each as a file")
    if len(lists) != 1 or lists[0] not in _ROWS or not whole.keys().isdisjoint(("query", "question")):
        yield 1, whole
        return
    reading.say(f"{path}: its rows are the {len(whole[lists[0]]):,} elements of {lists[0]!r}")
    for number, row in enumerate(whole[lists[0]], start=1):
        line = LineOfRow(1, number)
        if isinstance(row, dict):
            yield line, row
        else:
            reading.faults.add(path, line, f"a JSON {type(row).__name__}, needs an object with columns")


class _Array:
    """The unused rest of the text that was read; place: where in it the next element starts, line: its line."""

    def __init__(self, path: Path, file: TextFile, faults: Faults) -> None:
        self.path, self.file, self.faults = path, file, faults
        self.decoder = codecs.getincrementaldecoder("utf-8")()
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
            self._stop(_not_text(self.file).replace(": ", " (", 1) + ")")

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

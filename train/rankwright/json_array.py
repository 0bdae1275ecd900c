"""The objects of a JSON array, one after the other: the file is never held whole."""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import IO, NoReturn

from rankwright.compressed import DAMAGED, open_bytes, packing
from rankwright.json_text import Json
from rankwright.rows import Faults, LineOfRow, Rows, give_up

CHUNK_BYTES = 1 << 16
# An error this near to the end of what was read may be a value that goes on: `tru`, `\ud83`.
_UNFINISHED = 16
_SPACE = " \t\n\r"


def array_rows(path: Path, faults: Faults) -> Rows:
    """(line where it starts, row) of each element; one that is no object is a fault.

    Raises UserErrors for what is no JSON: where the next element starts cannot be told then.
    """
    try:
        with open_bytes(path) as file:
            yield from _Array(path, file, faults).elements()
    except DAMAGED as error:
        give_up(faults, path, 1, f"damaged {packing(path)} file ({error}): fetch or compress it again")


class _Array:
    """The text that was read and is not used up yet; place: where in it the next element starts, line: its line."""

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
        """The next character that is no space, which stays unread; empty at the end of the file."""
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
        """Forget what is used up, and read as much again as is left: a long element costs no square of its length."""
        self.text, self.place = self.text[self.place :], 0
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
            # A number may go on in what is not read yet.
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

"""Rows of CSV and TSV files by the names in their header, with the line where each record starts."""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rankwright.compressed import DAMAGED, open_bytes, packing
from rankwright.rows import Faults, Rows, give_up

_LONGEST_CELL = 2**31 - 1
# What "surrogateescape" makes of bytes that are not UTF-8.
_NOT_UTF8 = re.compile("[\udc80-\udcff]")


class CsvRow(dict[str, Any]):
    """A row whose cells are all text or None (empty): lists and objects stand in them as JSON."""


def delimiter_of(header: str) -> str:
    """The one of tab, comma, semicolon that stands most often in a header; a comma where none does."""
    return max(",", ";", "\t", key=header.count)


def csv_rows(path: Path, faults: Faults, *, delimiter: str | None = None) -> Rows:
    """(line where the record starts, row) of each record after the header, read strictly; blank lines are no records.

    A cell that is empty is None. Raises UserErrors when the header names a column twice, and for a quote that is
    never closed.
    """
    csv.field_size_limit(_LONGEST_CELL)
    try:
        lines = _lines(path)
        header = next(lines, "")
        if not header.strip():
            give_up(
                faults, path, 1, "no header in the first line, or the file is empty: give a file with a header and rows"
            )
        yield from _Records(path, header, lines, delimiter or delimiter_of(header), faults).rows()
    except DAMAGED as error:
        give_up(faults, path, 1, f"damaged {packing(path)} file ({error}): fetch or compress it again")


def _lines(path: Path) -> Iterator[str]:
    with open_bytes(path) as file:
        for number, line in enumerate(file):
            # Bytes that are not UTF-8 are noted where the record is known.
            yield line.decode("utf-8-sig" if number == 0 else "utf-8", "surrogateescape")


class _Records:
    def __init__(self, path: Path, header: str, lines: Iterator[str], delimiter: str, faults: Faults) -> None:
        self.path, self.faults = path, faults
        self.reader = csv.reader(itertools.chain([header], lines), delimiter=delimiter, strict=True)

    def _record(self) -> tuple[int, list[str] | None]:
        """(line where it starts, cells), cells None after a fault. Raises StopIteration at the end."""
        line = self.reader.line_num + 1
        try:
            return line, next(self.reader)
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                give_up(self.faults, self.path, line, "a quote that opens here is never closed: close or double it")
            self.faults.add(self.path, line, f"not CSV ({error}): quote the cell, and double the quotes inside it")
            return line, None

    def rows(self) -> Rows:
        _, cells = self._record()
        names = self._names(cells)
        while True:
            try:
                line, cells = self._record()
            except StopIteration:
                return
            if not cells:
                continue
            if any(_NOT_UTF8.search(cell) for cell in cells):
                self.faults.add(self.path, line, "not UTF-8: save the file as UTF-8")
            elif len(cells) != len(names):
                self.faults.add(self.path, line, f"{len(cells)} cells, the header has {len(names)} columns")
            else:
                yield line, CsvRow({name: cell or None for name, cell in zip(names, cells, strict=True)})

    def _names(self, cells: list[str] | None) -> list[str]:
        if cells is None or any(_NOT_UTF8.search(cell) for cell in cells):
            give_up(self.faults, self.path, 1, "the header cannot be read: save the file as UTF-8, with a header")
        names = [cell.strip() or f"column {number}" for number, cell in enumerate(cells, start=1)]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            give_up(self.faults, self.path, 1, f"two columns are named {twice[0]!r}: rename one of them")
        return names

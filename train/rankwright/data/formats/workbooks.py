"""The rows of an Excel workbook (.xlsx), by openpyxl; the extra `excel` installs it."""

from __future__ import annotations

import datetime
import itertools
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rankwright.common.errors import UserError, one_line
from rankwright.data.formats.reading import Faults, RowNumber, Rows, column_names, give_up, wrong_width

# A workbook whose parts are larger than this, and this many times as large as the file, is not read.
MOST_BYTES, MOST_RATIO = 1 << 30, 100


def workbook_rows(path: Path, faults: Faults) -> Rows:
    """(row number, row) below the header of the only sheet with rows; an empty cell is None, a date is ISO 8601 text.

    Raises UserErrors for several sheets with rows, for a header that names a column twice, and for a damaged file.
    """
    try:
        import openpyxl
    except ImportError:
        raise UserError(f'{path}: an Excel workbook needs openpyxl: pip install "rankwright[excel]"') from None
    _refuse_bomb(path, faults)
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        sheets = {sheet.title: sheet for sheet in book.worksheets if _has_rows(sheet)}
        if len(sheets) != 1:
            names = ", ".join(map(repr, sheets)) or "none"
            give_up(faults, path, 1, f"{len(sheets)} sheets have rows ({one_line(names)}): keep one, or save it as CSV")
        title = next(iter(sheets))
        formulas = openpyxl.load_workbook(path, read_only=True)[title].iter_rows(values_only=True)
        yield from _rows(path, sheets[title], formulas, faults)
    except UserError:
        raise
    except Exception as error:
        # Its parts are XML in a zip archive: their libraries raise errors of many kinds.
        words = one_line(" ".join(str(error).split())[:200])
        give_up(faults, path, 1, f"damaged Excel workbook ({words}): open and save it again, or save it as CSV")


def _refuse_bomb(path: Path, faults: Faults) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(part.file_size for part in archive.infolist())
    except (zipfile.BadZipFile, OSError) as error:
        give_up(faults, path, 1, f"damaged Excel workbook ({error}): open and save it again, or save it as CSV")
    if size > max(MOST_BYTES, MOST_RATIO * path.stat().st_size):
        give_up(faults, path, 1, f"its parts unpack to {size:,} bytes: save the sheet as CSV")


def _has_rows(sheet: Any) -> bool:
    return any(any(cell is not None for cell in cells) for cells in sheet.iter_rows(max_row=3, values_only=True))


def _rows(
    path: Path, sheet: Any, formulas: Iterator[tuple[Any, ...]], faults: Faults
) -> Iterator[tuple[int, dict[str, Any]]]:
    """formulas: the rows again, with formulas in place of their values; read as far as cells without a value go."""
    names: list[str] | None = None
    seen = 0
    for number, cells in enumerate(sheet.iter_rows(values_only=True), start=1):
        values = [_value(cell) for cell in cells]
        if all(value is None for value in values):
            continue
        if names is None:
            # Sheets are as wide as their widest row.
            width = max(place for place, value in enumerate(values, start=1) if value is not None)
            names = column_names(values[:width], path, RowNumber(number), faults)
            continue
        if any(value is not None for value in values[len(names) :]):
            width = max(place for place, value in enumerate(values, start=1) if value is not None)
            faults.add(path, RowNumber(number), wrong_width(values[:width], len(names), quotes=False))
            continue
        if None in values[: len(names)]:
            made = next(itertools.islice(formulas, number - seen - 1, None), ())
            seen = number
            if lost := [
                n for n, value, cell in zip(names, values, made, strict=False) if value is None and _is_formula(cell)
            ]:
                what = f"column {lost[0]!r} holds a formula without its value: open and save the workbook in Excel"
                faults.add(path, RowNumber(number), what, kind=f"formula {lost[0]}")
                continue
        yield RowNumber(number), dict(zip(names, values, strict=False))


def _is_formula(cell: object) -> bool:
    return isinstance(cell, str) and cell.startswith("=")


def _value(cell: object) -> object:
    if isinstance(cell, datetime.date | datetime.time):
        return cell.isoformat()
    # A cell with spaces only is empty to whoever looks at it.
    return None if isinstance(cell, str) and not cell.strip() else cell

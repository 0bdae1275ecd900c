"""Rows of text files as the readers see them: streamed, with line numbers, and with all their faults collected."""

from __future__ import annotations

import gzip
import json
import logging
import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, cast

from rankwright.errors import UserErrors, did_you_mean

MOST_FAULTS = 20

Say = Callable[[str], None]
Row = Mapping[str, Any]
# (line number from 1, row)
Rows = Iterator[tuple[int, Row]]

# Readers say what they leave out through `say`; without one it goes to the log.
log_say: Say = logging.getLogger("rankwright").info


class Faults:
    """Mistakes of the user's files, `file:line: what, how to fix it`; the first 20 are kept, all are counted."""

    def __init__(self) -> None:
        self._messages: list[str] = []
        self._repeats: dict[tuple[str, str], list[int]] = {}
        self.count = 0

    def add(self, where: object, line: int, text: str, *, kind: str | None = None) -> None:
        """Note a fault. Those of one `kind` in one file take one message, which says how many lines have it."""
        self.count += 1
        if kind is not None:
            repeats = self._repeats.setdefault((str(where), kind), [len(self._messages), 0])
            repeats[1] += 1
            if repeats[1] > 1:
                return
        if len(self._messages) < MOST_FAULTS:
            self._messages.append(f"{where}:{line}: {text}")

    def check(self) -> None:
        """Raise UserErrors when there is any fault."""
        if not self.count:
            return
        messages = list(self._messages)
        shown = len(messages)
        for place, times in self._repeats.values():
            if times > 1 and place < len(messages):
                messages[place] += f" ({times} lines like this)"
                shown += times - 1
        if self.count > shown:
            messages.append(f"and {self.count - shown} more faults")
        raise UserErrors(messages)


def _open(path: Path) -> IO[bytes]:
    return cast("IO[bytes]", gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")


def text_lines(path: Path, faults: Faults) -> Iterator[tuple[int, str]]:
    """(number from 1, text) of each line that is not blank. Bytes that are not UTF-8 are faults, an empty file too."""
    number = seen = 0
    try:
        with _open(path) as file:
            # Bytes end a line at \n only; text mode would also cut at \r inside a damaged file.
            for number, raw in enumerate(file, start=1):
                try:
                    text = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip("\r\n")
                except UnicodeDecodeError as error:
                    faults.add(path, number, f"not UTF-8 at byte {error.start} of the line: save the file as UTF-8")
                    seen += 1
                    continue
                if text.strip():
                    seen += 1
                    yield number, text
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        faults.add(path, number + 1, f"damaged gzip file ({error}): fetch or compress it again")
        return
    if not seen:
        faults.add(path, 1, "the file is empty: give a file with rows")


def json_rows(path: Path, faults: Faults) -> Rows:
    """The objects of a JSONL file; a line that is no JSON object is a fault."""
    for number, text in text_lines(path, faults):
        try:
            row = json.loads(text)
        except ValueError as error:
            faults.add(path, number, f"not JSON ({error}): each line must be one JSON object")
            continue
        if isinstance(row, dict):
            yield number, row
        else:
            faults.add(path, number, f"a JSON {type(row).__name__}, needs an object with columns")


def column(row: Row, names: tuple[str, ...], where: object, line: int, faults: Faults) -> Any:
    """The value under the first of `names` that the row has; None, with a fault, when it has none of them."""
    for name in names:
        if row.get(name) is not None:
            return row[name]
    wanted = " or ".join(f"`{name}`" for name in names)
    empty = next((name for name in names if name in row), None)
    if empty is not None:
        faults.add(where, line, f"`{empty}` is null, needs a value")
        return None
    found = ", ".join(map(str, row)) or "none"
    hint = next((h for h in (did_you_mean(name, map(str, row)) for name in names) if h), "")
    faults.add(where, line, f"no column {wanted}{hint}; columns found: {found}", kind=wanted)
    return None


def identifier(row: Row, names: tuple[str, ...], where: object, line: int, faults: Faults) -> str | None:
    """An id as text (whole numbers are taken too); None, with a fault, for anything else."""
    value = column(row, names, where, line, faults)
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, str) and value.strip():
        return value if encodable(value, names[0], where, line, faults) else None
    faults.add(where, line, f"`{names[0]}` is {value!r}, needs a text or a whole number")
    return None


def text_of(row: Row, name: str, where: object, line: int, faults: Faults) -> str | None:
    """A text, which may be empty; None, with a fault, for anything else."""
    value = column(row, (name,), where, line, faults)
    if value is None:
        return None
    if isinstance(value, str):
        return value if encodable(value, name, where, line, faults) else None
    faults.add(where, line, f"`{name}` has type {type(value).__name__}, needs a text")
    return None


def encodable(value: str, name: str, where: object, line: int, faults: Faults) -> bool:
    """Whether the text can be written at all: JSON allows half of a character (a lone surrogate), UTF-8 does not."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        code = f"\\u{ord(value[error.start]):04x}"
        faults.add(where, line, f"`{name}` holds half of a character ({code}): remove it, or write both halves")
        return False
    return True


def optional_text(row: Row, name: str, where: object, line: int, faults: Faults) -> str:
    """A text that may be absent or null: then empty."""
    if row.get(name) is None:
        return ""
    return text_of(row, name, where, line, faults) or ""


def number_of(value: object) -> float | None:
    """A finite number, or a text that spells one; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None

"""Rows of text files as the readers see them: streamed, with line numbers, and with all their faults collected."""

from __future__ import annotations

import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, NoReturn

from rankwright.compressed import DAMAGED, open_bytes, packing
from rankwright.errors import UserError, UserErrors, did_you_mean, one_line
from rankwright.json_text import Json

MOST_FAULTS = 20
# Of dropped rows: examples kept of a kind, kinds told apart in a file, and how much of a message tells the kind.
MOST_EXAMPLES = 5
MOST_KINDS = 50
MOST_KIND_CHARACTERS = 300

OnFault = Literal["stop", "drop"]
Say = Callable[[str], None]
Row = Mapping[str, Any]
# (line number from 1, or a RowNumber, row)
Rows = Iterator[tuple[int, Row]]

# Readers say what they leave out through `say`; without one it goes to the log.
log_say: Say = logging.getLogger("rankwright").info


class RowNumber(int):
    """Where a row stands in a file that has no lines: messages show `FILE: row N` in place of `FILE:N`."""

    def __format__(self, spec: str) -> str:
        return f" row {int(self)}"


class LineOfRow(int):
    """The line of a row of a JSON array, where several rows may stand on one line: equal only for the same row."""

    row: int

    def __new__(cls, line: int, row: int) -> LineOfRow:
        made = super().__new__(cls, line)
        made.row = row
        return made

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LineOfRow) and (int(self), self.row) == (int(other), other.row)

    def __hash__(self) -> int:
        return hash((int(self), self.row))


@dataclass(frozen=True, slots=True)
class Dropped:
    """Rows of one file that are left out for one kind of fault; examples: the first, `file:line: what`."""

    file: str
    kind: str
    count: int
    examples: tuple[str, ...]


class Faults:
    """Mistakes of the user's files, `file:line: what, how to fix it`; the first 20 are kept, all are counted.

    on_fault="drop": a fault of a row raises nothing; the row is left out by the reader and counted here. Faults of
    whole files (no such file, nothing relevant in it) stop all the same.
    count: faults for which check() raises; noted: all that were added, so that a reader sees whether a row had one.
    """

    def __init__(self, on_fault: OnFault = "stop", *, examples: int = MOST_EXAMPLES) -> None:
        """examples: how many dropped rows of a kind are kept as text."""
        self.on_fault = on_fault
        self.most_examples = examples
        self.count = self.noted = 0
        self._messages: list[str] = []
        self._repeats: dict[tuple[str, str], list[int]] = {}
        # A row with several faults is one row: the first one says its kind.
        self._dropped_lines: dict[str, set[int]] = {}
        self._dropped: dict[tuple[str, str], list[str]] = {}
        self._dropped_counts: Counter[tuple[str, str]] = Counter()

    def add(self, where: object, line: int, text: str, *, kind: str | None = None, whole: bool = False) -> None:
        """Note a fault. Those of one `kind` in one file take one message, which says how many lines have it.

        whole: a fault of the file and not of a row, which stops whatever on_fault says.
        """
        self.noted += 1
        text = one_line(text)
        if self.on_fault == "drop" and not whole:
            self._drop(str(where), line, text)
            return
        self.count += 1
        if kind is not None:
            repeats = self._repeats.setdefault((str(where), kind), [len(self._messages), 0])
            repeats[1] += 1
            if repeats[1] > 1:
                return
        if len(self._messages) < MOST_FAULTS:
            self._messages.append(f"{where}:{line}: {text}")

    def _drop(self, file: str, line: int, text: str) -> None:
        lines = self._dropped_lines.setdefault(file, set())
        if line in lines:
            return
        lines.add(line)
        key = (file, kind_of(text))
        if key not in self._dropped and sum(name == file for name, _ in self._dropped) >= MOST_KINDS:
            key = (file, "other faults")
        examples = self._dropped.setdefault(key, [])
        self._dropped_counts[key] += 1
        if len(examples) < self.most_examples:
            examples.append(f"{file}:{line}: {text}")

    @property
    def dropped(self) -> list[Dropped]:
        """What is left out, by file and kind."""
        counts = self._dropped_counts
        return [Dropped(*key, counts[key], tuple(examples)) for key, examples in self._dropped.items()]

    @property
    def rows_dropped(self) -> int:
        """How many rows are left out."""
        return sum(self._dropped_counts.values())

    def check(self) -> None:
        """Raise UserErrors when there is any fault that stops."""
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
        # What was dropped is most often why nothing is left.
        messages += [f"{d.examples[0]} ({d.count:,} rows like this were dropped)" for d in self.dropped[:MOST_FAULTS]]
        raise UserErrors(messages)


_VALUES = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|(?<![\w`])-?\d[\d.,]*""")


def kind_of(text: str) -> str:
    """A message without what differs from row to row: values in quotes, numbers, and how to fix it.

    `id 'd1' appears a second time: give ...` -> `id ... appears a second time`.
    """
    plain = _VALUES.sub("...", text[:MOST_KIND_CHARACTERS])
    return re.split(r"[:;(]|, (?:did you mean|needs|and) ", plain, maxsplit=1)[0].strip() or "fault"


def give_up(faults: Faults, where: object, line: int, text: str) -> NoReturn:
    """Raise for a fault after which the rest of the file cannot be read, with the faults before it."""
    faults.add(where, line, text, whole=True)
    faults.check()
    raise UserError(f"{where}:{line}: {one_line(text)}")


def text_lines(path: Path, faults: Faults) -> Iterator[tuple[int, str]]:
    """(number from 1, text) of each line that is not blank. Bytes that are not UTF-8 are faults, an empty file too."""
    number = seen = 0
    try:
        with open_bytes(path) as file:
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
    except DAMAGED as error:
        give_up(faults, path, number + 1, f"damaged {packing(path)} file ({error}): fetch or compress it again")
    if not seen:
        faults.add(path, 1, "the file is empty: give a file with rows", whole=True)


def json_rows(path: Path, faults: Faults) -> Rows:
    """The objects of a JSONL file; a line that is no JSON object is a fault."""
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
    if "\0" in value:
        faults.add(where, line, f"`{name}` holds a NUL character (\\0): remove it, or save the file as UTF-8")
        return False
    return True


def optional_text(row: Row, name: str, where: object, line: int, faults: Faults) -> str:
    """A text that may be absent or null: then empty."""
    if row.get(name) is None:
        return ""
    return text_of(row, name, where, line, faults) or ""


def number_of(value: object) -> float | None:
    """A finite number, or a text that spells one; None for anything else. Parquet has decimals."""
    if isinstance(value, bool) or not isinstance(value, int | float | str | Decimal):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None

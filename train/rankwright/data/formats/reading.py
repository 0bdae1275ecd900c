"""What all readers of sets share: one set being read, its rows, and how faults are collected and counted."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn, TypedDict

from rankwright.common.console import visible
from rankwright.common.errors import UserError, UserErrors, no_such, one_line
from rankwright.common.plurals import counted

Say = Callable[[str], None]
OnFault = Literal["stop", "drop"]
Row = Mapping[str, Any]
# (line number from 1, or a RowNumber, row)
Rows = Iterator[tuple[int, Row]]
# Our names of columns -> what they hold. `columns` of a recipe maps them to those of a file.
COLUMNS = {
    "query": "the query",
    "query_id": "its id",
    "positives": "relevant documents",
    "negatives": "documents judged not relevant",
    "positive_ids": "their ids",
    "negative_ids": "their ids",
    "positive_scores": "a teacher's raw scores",
    "negative_scores": "a teacher's raw scores",
    "documents": "documents with labels",
    "document_ids": "their ids",
    "labels": "their labels",
    "scores": "a teacher's raw scores",
    "document": "one document with its label",
    "document_id": "its id",
    "label": "its label",
    "score": "a teacher's raw score",
    "title": "its title",
    "weight": "weight of the query in the loss",
    "group": "what must stay in one split",
    "instruction": "the instruction of the set",
    "known_answer": "the words of a relevant document that answer the query, for `data check`",
    "clicked": "whether a document that was shown was clicked, or which ones of a list",
}


def log_say(line: str) -> None:
    """Where readers report what they leave out, unless they are given another `say`."""
    logging.getLogger("rankwright").info("%s", visible(line))


MOST_FAULTS = 20
# Faults of one kind that have a message each.
MOST_ALONE = 3
# Names of columns in a message, and characters of each.
MOST_LISTED, LONGEST_LISTED = 30, 200
# Words in the names of files that name a split -> which of ours it is.
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("dev", "devel", "development", "valid", "validation", "val"), "dev"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation", "heldout"), "test"),
}
# Limits for dropped rows: examples per kind, kinds per file, and characters of a message that decide its kind.
MOST_EXAMPLES = 5
MOST_KINDS = 50
MOST_KIND_CHARACTERS = 300
_VALUES = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|(?<![\w`])-?\d[\d.,]*""")


class RowNumber(int):
    """Where a row stands in a file that has no lines: messages show `FILE: row N` in place of `FILE:N`."""

    def __format__(self, spec: str) -> str:
        return f" row {int(self)}"


class LineOfRow(int):
    """The line of a row of a JSON array, where several rows may stand on one line: equal only for the same row."""

    row: int

    def __format__(self, spec: str) -> str:
        return f"{int(self)}: element {self.row} (counted from 1)"

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

    @property
    def told(self) -> str:
        """What was dropped as a line."""
        return f"{self.file}: {counted(self.count, 'row')} dropped, {self.kind}; first: {self.examples[0]}"


class Faults:
    """Mistakes in the user's files, `file:line: what, how to fix it`; all are counted, and 20 messages are shown.

    More than three faults of a file that differ in their values alone take one message, with the first places.

    on_fault="drop": a fault of a row raises nothing; the reader leaves the row out and it is counted here. Faults of
    whole files (no such file, nothing relevant in it) still stop.
    count: faults for which check() raises; noted: all that were added, so that a reader sees whether a row had one;
    whole: those of whole files, which dropping rows does not help.
    """

    def __init__(self, on_fault: OnFault = "stop", *, examples: int = MOST_EXAMPLES) -> None:
        """examples: how many dropped rows of a kind are kept as text."""
        self.on_fault = on_fault
        self.most_examples = examples
        self.count = self.noted = self.whole = 0
        self._same: dict[tuple[str, str], list[tuple[int, str, str]]] = {}
        self._counts: Counter[tuple[str, str]] = Counter()
        self._stated: set[tuple[str, str]] = set()
        # A row with several faults counts once, under its first fault.
        self._dropped_lines: dict[str, set[int]] = {}
        self._dropped: dict[tuple[str, str], list[str]] = {}
        self._dropped_counts: Counter[tuple[str, str]] = Counter()

    def add(self, where: object, line: int, text: str, *, kind: str | None = None, whole: bool = False) -> None:
        """Note a fault. All faults of one `kind` in a file take one message, with the number of lines.

        whole: a fault of the file and not of a row; it stops whatever on_fault is.
        """
        self.noted += 1
        self.whole += whole
        text = one_line(text)
        if self.on_fault == "drop" and not whole:
            self._drop(str(where), line, text)
            return
        self.count += 1
        key = (str(where), kind or kind_of(text))
        if kind is not None:
            self._stated.add(key)
        if key not in self._same and len(self._same) >= MOST_KINDS:
            return
        self._counts[key] += 1
        if len(found := self._same.setdefault(key, [])) < MOST_EXAMPLES:
            place = f"element {line.row}" if isinstance(line, LineOfRow) else f"{line}".strip()
            found.append((self.count, place, f"{where}:{line}: {text}"))

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
        found = sorted(one for key in self._same for one in self._messages(key))[:MOST_FAULTS]
        messages = [text for _, _, text in found]
        if more := self.count - sum(count for _, count, _ in found):
            messages.append(f"and {counted(more, 'more fault')}")
        # Dropped rows are the most likely reason why nothing is left.
        messages += [
            f"{d.examples[0]} ({counted(d.count, 'row like this was', 'rows like this were')} dropped)"
            for d in self.dropped[:MOST_FAULTS]
        ]
        raise UserErrors(messages)

    def _messages(self, key: tuple[str, str]) -> Iterator[tuple[int, int, str]]:
        """(order, how many faults it stands for, message) of the faults of one kind in one file."""
        found, count = self._same[key], self._counts[key]
        if count <= (1 if key in self._stated else MOST_ALONE):
            yield from ((order, 1, text) for order, _, text in found)
            return
        more = ", ..." if count > len(found) else ""
        order, _, text = found[0]
        yield order, count, f"{text} ({count:,} lines like this: {', '.join(place for _, place, _ in found)}{more})"


def kind_of(text: str) -> str:
    """A message without the parts that differ between rows: values in quotes, numbers, and how to fix it.

    `id 'd1' appears a second time: give ...` -> `id ... appears a second time`.
    """
    plain = _VALUES.sub("...", text[:MOST_KIND_CHARACTERS])
    return re.split(r"[:;(]|, (?:did you mean|needs|and) ", plain, maxsplit=1)[0].strip() or "fault"


def give_up(faults: Faults, where: object, line: int, text: str) -> NoReturn:
    """Raise the faults so far, with one after which the rest of the file cannot be read."""
    faults.add(where, line, text, whole=True)
    faults.check()
    raise UserError(f"{where}:{line}: {one_line(text)}")


class Options(TypedDict, total=False):
    """How a set is read, in addition to what its files show; each may be None.

    format: one of detect.FORMS or FOLDERS. columns: our name of a column -> the file's. labels: value of the label
    column -> label. group_key: the column of the groups. encoding: that of the text files.
    """

    format: str | None
    columns: Mapping[str, str] | None
    labels: Mapping[str, float] | None
    group_key: str | None
    encoding: str | None


@dataclass(slots=True)
class Reading:
    """One set being read. columns: our name -> the file's; group_key: the column of the groups.

    labels: value of the label column, as text -> label. encoding: of the text files; None: what their bytes show.
    rows: how many rows a row format has seen; taken: how many went into the set; the others have faults.
    titles: documents whose title was joined with their text.
    """

    name: str
    split: str | None = None
    faults: Faults = field(default_factory=Faults)
    say: Say = log_say
    columns: Mapping[str, str] = field(default_factory=dict)
    group_key: str | None = None
    labels: Mapping[str, float] = field(default_factory=dict)
    encoding: str | None = None
    rows: int = 0
    taken: int = 0
    titles: int = 0


def quiet(encoding: str | None = None) -> Reading:
    """For a look at rows that are read again afterwards: that reading reports their faults."""
    return Reading("", faults=Faults("drop"), say=lambda line: None, encoding=encoding)


def listed(names: Iterable[object]) -> str:
    """Names of columns for a message, the first MOST_LISTED of them, and how many more there are."""
    first = list(map(str, names))
    more = f" and {len(first) - MOST_LISTED:,} more" if len(first) > MOST_LISTED else ""
    return one_line(", ".join(name[:LONGEST_LISTED] for name in first[:MOST_LISTED])) + more


def column_names(cells: Iterable[object], where: object, line: int, faults: Faults, advice: str = "") -> list[str]:
    """The names in a header; a column without one is `column N`. Raises UserErrors for one that stands twice."""
    names = [("" if cell is None else str(cell)).strip() or f"column {n}" for n, cell in enumerate(cells, start=1)]
    refuse_twice(names, where, line, faults, advice)
    return names


def wrong_width(cells: Sequence[object], columns: int, *, quotes: bool = True) -> str:
    """The fault of a row that has another number of cells than the header; quotes: whether cells can have quotes."""
    advice = ": put a text that holds the separator in quotes" if quotes and len(cells) > columns else ""
    if columns == 1 < len(cells):
        advice = ": is the first line a title? Remove what stands above the header"
    elif len(cells) > columns and not any(cells[columns:]):
        advice = ": remove the separator at its end, or add one to the header"
    return f"{counted(len(cells), 'cell')}, the header has {counted(columns, 'column')}{advice}"


def refuse_twice(names: Sequence[str], where: object, line: int, faults: Faults, advice: str = "") -> None:
    """Raise UserErrors where two columns have one name: the first would be lost."""
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        give_up(faults, where, line, f"two columns are named {twice[0]!r}: rename one of them{advice}")


def name_words(name: str) -> list[str]:
    """The words of a file's or column's name in lower case: `shopTrain_2.jsonl` has shop, train, jsonl."""
    # Without accents: `Réponse` is reponse.
    plain = "".join(c for c in unicodedata.normalize("NFKD", name) if not unicodedata.combining(c))
    return re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", plain).lower())


def split_words(name: str) -> list[str]:
    """The words of a file's or folder's name that name a split, in order."""
    return [word for word in name_words(name) if word in SPLITS]


def choose_split(where: object, split: str | None, known: Sequence[str], advice: str = "give split: NAME") -> str:
    """The given split, or the only one. Raises UserError with the splits that are there."""
    if split is None and len(known) == 1:
        return known[0]
    if split is None:
        raise UserError(f"{where}: say which split to read: {advice} (known: {', '.join(known) or 'none'})")
    if split not in known:
        raise UserError(f"{where}: {no_such('split', split, known, advice)}")
    return split


def check_columns(columns: Mapping[str, str]) -> None:
    """Raise UserErrors for keys of `columns` that we do not know."""
    faults = [f"columns: {no_such('column name', name, COLUMNS)}" for name in columns if name not in COLUMNS]
    if faults:
        raise UserErrors(faults)

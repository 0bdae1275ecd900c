"""One row as the reader of a format sees it: values by name, and a fault with its line for each wrong one."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from rankwright.common.errors import UserErrors, did_you_mean, one_line
from rankwright.common.hashing import content_id
from rankwright.data.collection import join_title
from rankwright.data.formats.builder import Document, GroupRow
from rankwright.data.formats.reading import COLUMNS, Reading, Row, listed, name_words
from rankwright.data.formats.text_rows import CsvRow, Json
from rankwright.data.normalisation import is_blank

# What at_path() returns where a row has no such column; null is a value.
ABSENT = object()
MOST_DEEP = 6


def missing_columns(columns: Mapping[str, str], sample: Sequence[Row], where: object) -> None:
    """Raise UserErrors for columns of the map, or paths in them, that none of some rows of a file has."""
    faults = []
    for ours, theirs in columns.items():
        if any(at_path(row, theirs) is not ABSENT for row in sample):
            continue
        paths = list(dict.fromkeys(path for row in sample for path in paths_of(row)))
        near = did_you_mean(theirs, paths) or _same_end(theirs, paths)
        shown = listed(paths) or "none"
        faults.append(one_line(f"{where}: no column {theirs!r} for {ours}{near}; columns found: {shown}"))
    if faults:
        raise UserErrors(faults)


def _same_end(wanted: str, paths: Sequence[str]) -> str:
    """A hint at a path inside an object whose last part is that of the wanted one."""
    found = [path for path in paths if path.rpartition(".")[2] == wanted.rpartition(".")[2]]
    return f", did you mean {found[0]!r}?" if found else ""


def paths_of(row: Row, elements: int = 1) -> Iterator[str]:
    """The columns of a row, and the paths to values inside of its objects and lists, up to MOST_DEEP parts.

    elements: how many of each list are looked at.
    """

    def walk(value: Any, path: str, depth: int) -> Iterator[str]:
        inner: Iterable[tuple[object, Any]] = ()
        if depth < MOST_DEEP and isinstance(value, Mapping):
            inner = value.items()
        elif depth < MOST_DEEP and isinstance(value, list) and value and isinstance(value[0], Mapping | list):
            inner = enumerate(value[:elements])
        yield path
        for key, one in inner:
            yield from walk(one, f"{path}.{key}", depth + 1)

    for name, value in row.items():
        yield from walk(value, str(name), 1)


def at_path(row: Row, name: str) -> Any:
    """The value of a column, or of `a.b` inside an object or `a.0` inside a list; ABSENT where there is none."""
    if name in row:
        return row[name]
    value: Any = row
    for part in name.split("."):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return ABSENT
    return value


def has_more(row: Row, name: str) -> bool:
    """Whether a path leads to one element of a list that has others after it."""
    value: Any = None if name in row else row
    for part in name.split("."):
        if isinstance(value, list) and part.isdecimal() and len(value) > int(part) + 1:
            return True
        if isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            value = value.get(part) if isinstance(value, Mapping) else None
    return False


def value_at(row: Row, name: str) -> Any:
    """As at_path; None where there is none."""
    value = at_path(row, name)
    return None if value is ABSENT else value


def renamed(row: Row, columns: Mapping[str, str]) -> Row:
    """The row under our names; another column of the file that already has one of these names is left out."""
    if not columns:
        return row
    found = {ours: value_at(row, theirs) for ours, theirs in columns.items()}
    used = set(columns.values())
    found |= {name: value for name, value in row.items() if name not in used and name not in columns}
    return CsvRow(found) if isinstance(row, CsvRow) else found


def number_of(value: object) -> float | None:
    """A finite number, also from a text; None for anything else. Parquet has decimals."""
    if isinstance(value, bool) or not isinstance(value, int | float | str | Decimal):
        return None
    # Python reads 1_0 as 10.
    if isinstance(value, str) and "_" in value:
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


_IDS = ("id", "docid", "doc_id", "document_id")
# Words in the names of marks beside a text, which would be lost.
_JUDGED = set("good correct relevant relevance clicked selected accepted".split())
# How booleans stand in JSON, Python, R and spreadsheets.
_TRUTH = {"true": 1.0, "false": 0.0}


@dataclass(frozen=True, slots=True)
class Roles:
    """Which columns are the query, the document (or the positive), the negatives and a teacher's list of scores."""

    query: str
    document: str
    negatives: tuple[str, ...] = ()
    scores: str = "scores"


class Fields:
    """A row under our names, and where it stands in its file.

    A method that returns None where it must return a value has noted a fault.
    """

    def __init__(self, row: Row, where: object, line: int, reading: Reading, roles: Roles | None = None) -> None:
        self.row, self.where, self.line, self.reading, self.roles = row, where, line, reading, roles
        self.faults = reading.faults
        self.titles = 0
        self._before = self.faults.noted

    @property
    def faulty(self) -> bool:
        """Whether a fault was noted since this row was begun."""
        return self.faults.noted > self._before

    def inside(self, row: Row) -> Fields:
        """An object that stands in this row."""
        return Fields(row, self.where, self.line, self.reading)

    def fault(self, text: str, *, kind: str | None = None) -> None:
        """Note a fault of this row, see Faults.add."""
        self.faults.add(self.where, self.line, text, kind=kind)

    def name_of(self, *names: str) -> str | None:
        """The first of the names that the row has a value for."""
        for name in names:
            if self.row.get(name) is not None:
                return name
        return None

    def required(self, *names: str) -> Any:
        """The value under the first of `names` that the row has; None, with a fault, when it has none of them."""
        name = self.name_of(*names)
        if name is not None:
            return self.row[name]
        wanted = " or ".join(f"`{name}`" for name in names)
        empty = next((name for name in names if name in self.row), None)
        if empty is not None:
            self.fault(f"`{empty}` is null, needs a value")
            return None
        found = listed(self.row) or "none"
        hint = next((h for h in (did_you_mean(name, map(str, self.row)) for name in names) if h), "")
        self.fault(f"no column {wanted}{hint}; columns found: {found}", kind=wanted)
        return None

    def required_id(self, *names: str) -> str | None:
        """An id as text (whole numbers are taken too); None, with a fault, for anything else."""
        value = self.required(*names)
        if value is None:
            return None
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if isinstance(value, str) and not is_blank(value):
            return value if self.encodable(value, names[0]) else None
        self.fault(f"`{names[0]}` is {value!r}, needs a text or a whole number")
        return None

    def required_text(self, name: str) -> str | None:
        """A text, which may be empty; None, with a fault, for anything else."""
        value = self.required(name)
        if value is None:
            return None
        if isinstance(value, str):
            return value if self.encodable(value, name) else None
        self.fault(f"`{name}` has type {type(value).__name__}, needs a text")
        return None

    def text(self, *names: str) -> str | None:
        """A text that may be absent, empty or null: then None."""
        name = self.name_of(*names)
        text = None if name is None else self.required_text(name)
        return (text or "").strip() or None

    def id(self, *names: str) -> str | None:
        """An id that may be absent."""
        name = self.name_of(*names)
        return None if name is None else self.required_id(name)

    def number(self, what: str, value: object) -> float | None:
        """A number that may be absent; None, with a fault, for another value."""
        number = number_of(value)
        if number is None and value is not None:
            self.fault(f"{what} is {value!r}, needs a number")
        return number

    def known_label(self, value: object) -> float | None:
        """A number, true or false, or what `labels` gives for a text; None for any other value."""
        if isinstance(value, list) and len(value) == 1:
            # Tools for annotation write the one choice of a person as a list.
            value = value[0]
        text = str(value).strip()
        for known in (text, text.lower()):
            if known in self.reading.labels:
                return self.reading.labels[known]
        if isinstance(value, bool) or text.lower() in _TRUTH:
            return _TRUTH[text.lower()]
        return number_of(value)

    def label(self, place: str, value: object) -> float | None:
        """As known_label; None, with a fault, for any other value."""
        number = self.known_label(value)
        if number is None:
            value = value[0] if isinstance(value, list) and len(value) == 1 else value
            text = str(value).strip()
            # A text of several words is as likely another column as a label.
            more = "" if "[" in place else "; `format: pairs` would read every row as relevant"
            self.fault(
                f"the label of {place} is {value!r}, needs a number, above 0 is relevant: give `labels: {{{text[:40]}: "
                f"1, ...}}` with a number for each value{more}",
                kind=f"label {text[:40]}",
            )
        return number

    def group(self, default: str | None = None) -> str | None:
        """The value of the group key: a column, one of its `metadata`, or `a.b`; None where the row has none.

        default: the key to use where the set has none.
        """
        key = self.reading.group_key or default
        if key is None:
            return None
        value = value_at(self.row, key)
        if value is None:
            value = value_at(self.row, f"metadata.{key}")
        if value is None or (isinstance(value, str) and not value.strip()):
            return None
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if isinstance(value, str):
            return value if self.encodable(value, key) else None
        self.fault(f"the group key {key!r} is {value!r}, needs a text or a whole number")
        return None

    def encodable(self, value: str, name: str) -> bool:
        """Whether a text can be written: JSON allows half of a character (a lone surrogate), UTF-8 does not."""
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            code = f"\\u{ord(value[error.start]):04x}"
            self.fault(f"`{name}` holds half of a character ({code}): remove it, or write both halves")
            return False
        if "\0" in value:
            self.fault(f"`{name}` holds a NUL character (\\0): remove it, or save the file as UTF-8")
            return False
        return True

    def group_row(self, query: str | None, documents: Sequence[Document | None]) -> GroupRow | None:
        """The row with the columns of all formats: query_id, weight, group, instruction ... None without a query."""
        given, query_id = self.row.get("weight"), self.id("query_id")
        weight = number_of(given)
        if given is not None and (weight is None or weight <= 0):
            self.fault(f"`weight` is {given!r}, needs a number above 0; to leave a query out, remove its lines")
        found = [document for document in documents if document is not None]
        group, instruction = self.group("group"), self.text("instruction")
        if query is None:
            return None
        answer = self.text("known_answer")
        return GroupRow(query, found, query_id, weight, group, instruction, self.titles, answer=answer)

    def query(self, name: str = "query") -> str | None:
        """The query, which may not be empty."""
        text = self.required_text(name)
        if text is not None and is_blank(text):
            self.fault("the query is empty: give it a text or remove the line")
            return None
        return None if text is None else text.strip()

    def listed(self, *names: str, required: bool = False) -> Sequence[Any]:
        """The list under the first of the names that has one; CSV and mapped columns may hold a single text."""
        name = self.name_of(*names)
        if name is None:
            if required:
                self.required(next((known for known in names if known in self.row), names[-1]))
            return ()
        value = self.row[name]
        if isinstance(self.row, CsvRow) and isinstance(value, str) and value.lstrip().startswith("["):
            try:
                value = Json().decode(value)
            except ValueError as error:
                self.fault(f"`{name}` starts like a JSON list but is not one ({error}): mend it")
                return ()
        if isinstance(value, list):
            return value
        if isinstance(value, dict) and value and all(isinstance(part, list) for part in value.values()):
            # A list of objects, stored by `datasets` as one list per key.
            if len({len(part) for part in value.values()}) > 1:
                self.fault(f"the lists of `{name}` differ in length: give each object all keys")
                return ()
            return [dict(zip(value, values, strict=True)) for values in zip(*value.values(), strict=True)]
        if isinstance(value, str) and (name in self.reading.columns or isinstance(self.row, CsvRow)):
            return [value]
        ours = next((known for known in names if known in COLUMNS), None)
        single = isinstance(value, str) and ours is not None
        advice = f": `columns: {{{ours}: {name}}}` reads a text as a list of one" if single else ""
        self.fault(f"`{name}` has type {type(value).__name__}, needs a list{advice}", kind=f"type of {name}")
        return ()

    def elements(self, name: str) -> list[tuple[str, Any]]:
        """(place, element) of a column that holds a text, an object or a list of them; CSV has lists as JSON."""
        value = self.row[name]
        if isinstance(self.row, CsvRow) and isinstance(value, str) and value.lstrip().startswith("["):
            value = self._csv_list(name, value)
        if not isinstance(value, list):
            return [(name, value)]
        return [(f"{name}[{number}]", element) for number, element in enumerate(value)]

    def _csv_list(self, name: str, cell: str) -> Any:
        """A JSON list as a list, any other text as it is; a fault for a list in the way Python or pandas writes it."""
        try:
            value = Json().decode(cell)
        except ValueError:
            if re.match(r"""\s*\[\s*[urb]?['"]""", cell) and cell.rstrip().endswith("]"):
                self.fault(
                    f"`{name}` holds a list as Python writes it: write lists as JSON, in pandas `.map(json.dumps)` (a "
                    "document that does look like this goes into a JSON list of one)",
                    kind=f"list in {name}",
                )
            return cell
        return value if isinstance(value, list) and all(isinstance(one, str | dict) for one in value) else cell

    def parallel(self, documents: str, count: int, *names: str) -> Sequence[Any] | None:
        """One value per document, all None where the row has none; None, with a fault, for a wrong length."""
        values = self.listed(*names)
        if not values:
            return [None] * count
        if len(values) != count:
            what = self.name_of(*names)
            self.fault(f"{count} {documents} but {len(values)} {what}: give one per element")
            return None
        return values

    def document(
        self,
        place: str,
        element: object,
        label: float,
        *,
        side: bool = False,
        id: object = None,
        score: object = None,
    ) -> Document | None:
        """A document from a text, or from an object with `text` and optional id, title, label, score, group.

        side: its own label must be on the same side of 0 as `label`.
        """
        name = place if isinstance(element, str) else f"{place}.text"
        if isinstance(element, str):
            element = {"text": element}
        if not isinstance(element, dict):
            self.fault(f"{place} has type {type(element).__name__}, needs a text or an object with `text`")
            return None
        text = element.get("text")
        if not isinstance(text, str):
            found = listed(element) or "none"
            self.fault(f"{place} has no `text` that is a text; keys found: {found}", kind="no text")
            return None
        inner = self.inside(element)
        inner.encodable(text, name)
        if judged := [key for key in element if _JUDGED & {*name_words(str(key))} and element[key] in (0, 1)]:
            self.fault(
                f"{place} has the key {judged[0]!r} ({element[judged[0]]}), which may be its label: divide them "
                "by it into positives and negatives, or remove the key",
                kind=f"key {judged[0]}",
            )
        title = inner.text("title") or ""
        self.titles += bool(title)
        key = (inner if id is None else self.inside({"id": id})).id(*_IDS)
        own = self._label(place, element.get("label"), label, side)
        teacher = self.number(f"the score of {place}", element.get("score") if score is None else score)
        group = inner.group("group")
        if inner.faulty:
            return None
        text = join_title(title, text)
        return Document(place, text, own, content_id(text) if key is None else key, teacher, group)

    def _label(self, place: str, given: object, label: float, side: bool) -> float:
        own = None if given is None else self.label(place, given)
        if own is not None and side and (own > 0) != (label > 0):
            other = "negatives" if label > 0 else "positives"
            self.fault(f"{place} has label {own:g}: move it to {other}, or mend the label")
        return label if own is None else own

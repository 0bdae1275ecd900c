"""What every reader of a set is told, and what it counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rankwright.errors import UserErrors, did_you_mean, one_line
from rankwright.rows import Faults, Row, Say, encodable, log_say

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
}


@dataclass(slots=True)
class Reading:
    """One set being read. columns: our name -> the file's; group_key: the column of the groups.

    rows: rows of formats of rows that were seen, and taken: those that were put into the set; the others have faults.
    titles: documents whose title was joined with their text.
    """

    name: str
    split: str | None = None
    faults: Faults = field(default_factory=Faults)
    say: Say = log_say
    columns: Mapping[str, str] = field(default_factory=dict)
    group_key: str | None = None
    rows: int = 0
    taken: int = 0
    titles: int = 0


def check_columns(columns: Mapping[str, str]) -> None:
    """Raise UserErrors for keys of `columns` that are no name of ours."""
    known = ", ".join(COLUMNS)
    faults = [
        f"columns: {name!r} is no column of ours{did_you_mean(name, COLUMNS)} (known: {known})"
        for name in columns
        if name not in COLUMNS
    ]
    if faults:
        raise UserErrors(faults)


def missing_columns(columns: Mapping[str, str], found: Mapping[str, Any], where: object) -> None:
    """Raise UserErrors for columns of the map that a file does not have."""
    listed = ", ".join(map(str, found)) or "none"
    faults = [
        one_line(
            f"{where}: no column {theirs!r} for {ours}{did_you_mean(theirs, map(str, found))}; columns found: {listed}"
        )
        for ours, theirs in columns.items()
        if at_path(found, theirs) is None and theirs.split(".")[0] not in found
    ]
    if faults:
        raise UserErrors(faults)


def at_path(row: Row, name: str) -> Any:
    """The value of a column, or of `a.b` inside an object; None where there is none."""
    if name in row:
        return row[name]
    value: Any = row
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def renamed(row: Row, columns: Mapping[str, str]) -> dict[str, Any]:
    """The row under our names; a column of the file's own that has one of those names is left out."""
    found = {ours: at_path(row, theirs) for ours, theirs in columns.items()}
    used = set(columns.values())
    return found | {name: value for name, value in row.items() if name not in used and name not in columns}


def group_of(row: Row, key: str, where: object, line: int, faults: Faults) -> str | None:
    """The row's value of the group key: a column, one of its `metadata`, or `a.b`; None where it has none."""
    value = at_path(row, key)
    if value is None:
        value = at_path(row, f"metadata.{key}")
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, str):
        return value if encodable(value, key, where, line, faults) else None
    faults.add(where, line, f"the group key {key!r} is {value!r}, needs a text or a whole number")
    return None

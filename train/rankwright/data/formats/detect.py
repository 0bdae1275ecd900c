"""The format of a table of rows, by its columns or the recipe's `format`, and the table read in that format."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from rankwright.common.errors import UserError, nearest, no_such, one_line
from rankwright.data.collection import Collection
from rankwright.data.formats.builder import Groups
from rankwright.data.formats.fields import Fields, Roles, has_more, missing_columns, number_of, renamed
from rankwright.data.formats.reading import COLUMNS, Reading, Row, Rows, check_columns, give_up, listed
from rankwright.data.formats.rows import (
    CLICKED,
    DOCUMENTS,
    LISTS,
    QUERIES,
    ROW_FORMATS,
    RowReader,
    is_judgement,
    negatives_of,
    roles_by_name,
    roles_by_order,
)
from rankwright.data.formats.text_rows import CsvRow, Json
from rankwright.data.normalisation import words

# Column -> text, number, list, object or null, in the order of the file.
Kinds = Mapping[str, str]
FOLDERS = ("beir", "trec", "joined")
SAMPLE_ROWS = 50
# Characters of a column's name that are compared with the known names.
LONGEST_NAME = 64
_SHARED = {"query_id", "weight", "group", "instruction", "known_answer"}
_GROUPS = {"query", "positives", "negatives", "positive_scores", "negative_scores", "positive_ids", "negative_ids"}

# Columns of FlagEmbedding in a file of another format would be left out silently: the names are not similar enough.
_MEANT = {"pos": "positives", "neg": "negatives", "pos_scores": "positive_scores", "neg_scores": "negative_scores"}


@dataclass(frozen=True, slots=True)
class Form:
    """How a format is recognised. names: the columns it reads; lists: None where no roles are needed."""

    fits: Callable[[Kinds], bool]
    names: frozenset[str]
    lists: bool | None = None


def _has(*wanted: str) -> Callable[[Kinds], bool]:
    return lambda kinds: all(name in kinds for name in wanted)


def _tuple(least: int, most: int) -> Callable[[Kinds], bool]:
    def fits(kinds: Kinds) -> bool:
        roles = roles_by_name(kinds)
        if roles is None or kinds[roles.document] == "list":
            return False
        # A list of negatives holds any number of them.
        count = max(len(roles.negatives), 2 * any(kinds[name] == "list" for name in roles.negatives))
        free = least > 0 or not (_labelled(kinds) or _judgements(kinds) or _clicked(kinds))
        return least <= count <= most and free

    return fits


def _labelled(kinds: Kinds) -> bool:
    # Whatever the column holds: a value that is not a number is a fault of its row, and never left out.
    return any(kinds.get(name, "null") != "null" for name in ("label", "score"))


def _judgements(kinds: Kinds) -> list[str]:
    """Columns that may hold labels, under names that we do not take for labels."""
    return [name for name, kind in kinds.items() if name != "label" and is_judgement(name, kind)]


def _clicked(kinds: Kinds) -> bool:
    names = [name for name in CLICKED if kinds.get(name, "null") != "null"]
    return len(names) == 1 and roles_by_name(kinds, _list_names(kinds)) is not None and not _labelled(kinds)


def _scored(kinds: Kinds) -> bool:
    roles = roles_by_name(kinds)
    one = roles is not None and kinds[roles.document] != "list" and not roles.negatives
    return one and _labelled(kinds)


def _lists(kinds: Kinds) -> bool:
    roles = roles_by_name(kinds, _list_names(kinds))
    labelled = any(kinds.get(name) == "list" for name in ("labels", "scores"))
    return roles is not None and kinds[roles.document] == "list" and labelled


def _list_names(kinds: Kinds) -> tuple[str, ...]:
    return LISTS if any(name in kinds for name in LISTS) else DOCUMENTS


_ONE = frozenset(_SHARED | {"title", "document_id", "scores"})
FORMS: dict[str, Form] = {
    "groups": Form(_has("positives"), frozenset(_SHARED | _GROUPS)),
    "flagembedding": Form(
        _has("pos"),
        frozenset(_SHARED | _GROUPS | {"pos", "neg", "pos_scores", "neg_scores", "pos_id", "neg_id", "prompt", "id"}),
    ),
    "tevatron": Form(
        _has("positive_passages"), frozenset(_SHARED | _GROUPS | {"positive_passages", "negative_passages"})
    ),
    "ms-swift": Form(
        _has("positive_messages"),
        frozenset(_SHARED | {"query", "positives", "negatives", "messages", "positive_messages", "negative_messages"}),
    ),
    "pairs": Form(_tuple(0, 0), _ONE, lists=False),
    "triplets": Form(_tuple(1, 1), _ONE, lists=False),
    "n-tuple": Form(_tuple(2, 10**6), _ONE, lists=False),
    "scored-pairs": Form(_scored, frozenset(_SHARED | {"title", "document_id", "label", "score"}), lists=False),
    "clicks": Form(_clicked, frozenset(_SHARED | {"title", "document_id", *CLICKED}), lists=False),
    "labelled-lists": Form(_lists, frozenset(_SHARED | {"document_ids", "labels", "scores"}), lists=True),
}
assert set(FORMS) == set(ROW_FORMATS)


def check_format(name: str | None) -> None:
    """Raise UserError for an unknown format."""
    known = (*FOLDERS, *FORMS)
    if name is not None and name not in known:
        raise UserError(no_such("format", name, known))


def kinds_of(rows: Iterable[Row]) -> dict[str, str]:
    """The columns of some rows, and the kind of the first value in each."""
    kinds: dict[str, str] = {}
    for row in rows:
        for name, value in row.items():
            if kinds.get(name, "null") == "null":
                kinds[str(name)] = _kind(value, isinstance(row, CsvRow))
    return kinds


def _kind(value: Any, in_csv: bool) -> str:
    if value is None:
        return "null"
    if isinstance(value, str):
        if in_csv and _is_json_list(value):
            return "list"
        return "number" if in_csv and number_of(value) is not None else "text"
    if isinstance(value, int | float | Decimal):
        return "number"
    return "list" if isinstance(value, list | tuple) else "object"


def _is_json_list(text: str) -> bool:
    if not text.lstrip().startswith("["):
        return False
    try:
        return isinstance(Json().decode(text), list)
    except ValueError:
        return False


def choose(kinds: Kinds, given: str | None, where: object) -> tuple[str, Roles | None]:
    """(format, roles of the columns where the format needs them). Raises UserError when none or several fit."""
    fitting = [name for name, form in FORMS.items() if form.fits(kinds)] if given is None else [given]
    if len(fitting) != 1:
        judgements = dict.fromkeys(_judgements(kinds))
        rest = {name: kind for name, kind in kinds.items() if name not in judgements}
        if FORMS["pairs"].fits(rest) and not fitting:
            name = one_line(next(iter(judgements)))
            raise UserError(
                f"{where}: the columns {_shown(kinds)} are those of pairs, or is {name!r} the label? Give `columns: "
                f"{{label: {name}}}`, above 0 is relevant, or `format: pairs`, which reads every row as relevant"
            )
        if fitting:
            raise UserError(
                f"{where}: the columns {_shown(kinds)} fit {' and '.join(fitting)}: give `format: NAME`, or name the "
                "columns, `columns: {query: ..., positives: ...}`"
            )
        raise UserError(
            f"{where}: the columns {_shown(kinds)} are those of no format. Which one is the query and which one the "
            "document? Name them, `columns: {query: ..., positives: ...}` (or `document` with `label`), or give "
            f"`format: NAME` ({', '.join(FORMS)})"
        )
    lists = FORMS[fitting[0]].lists
    if lists is None:
        return fitting[0], None
    named = roles_by_name(kinds, _list_names(kinds) if lists or fitting[0] == "clicks" else DOCUMENTS)
    roles = named or roles_by_order(kinds, lists=lists)
    if roles is None:
        raise UserError(
            f"{where}: the columns {_shown(kinds)} hold no query with documents for format {fitting[0]}: name "
            "the columns, `columns: {query: ..., document: ...}`"
        )
    return fitting[0], roles


def _shown(kinds: Kinds) -> str:
    return listed(f"{name} ({kind})" for name, kind in kinds.items()) or "(none)"


def read_tables(tables: Sequence[tuple[object, Rows]], format: str | None, reading: Reading) -> Collection:
    """One set from tables of rows, each with its name in messages. Raises UserErrors with the place of every fault."""
    check_columns(reading.columns)
    groups = Groups(reading)
    for where, rows in tables:
        rows = _with_header(where, rows, reading)
        sample = list(itertools.islice(rows, SAMPLE_ROWS))
        if not sample:
            continue
        missing_columns(reading.columns, [row for _, row in sample], where)
        kinds = _decided(kinds_of(renamed(row, reading.columns) for _, row in sample), reading.columns)
        name, roles = choose(kinds, format, where)
        if roles is not None and format is not None and roles_by_name(kinds) is None:
            rest = f", {', '.join(map(repr, roles.negatives))} as negatives" if roles.negatives else ""
            reading.say(f"{where}: {name}: {roles.query!r} is read as the query, {roles.document!r} as document{rest}")
        _Table(groups, where, name, roles, guessed=format is None).read(itertools.chain(sample, rows))
    if not reading.rows and not reading.faults.noted:
        give_up(reading.faults, tables[0][0], 1, "holds no rows: give a file that has some")
    return groups.finish(tables[0][0])


def _with_header(where: object, rows: Rows, reading: Reading) -> Rows:
    """The rows of a table; where the header of a CSV or TSV file reads like texts, it is the first of them."""
    first = next(rows, None)
    if first is None:
        return
    header = list(first[1]) if isinstance(first[1], CsvRow) else []
    known = {*COLUMNS, *reading.columns.values(), *itertools.chain(*(form.names for form in FORMS.values()))}
    known |= {*QUERIES, *DOCUMENTS, *LISTS}
    if not _reads_like_texts(header) or not known.isdisjoint(header):
        for line, row in itertools.chain([first], rows):
            if _is_header(row):
                reading.faults.add(where, line, "the header stands here again: remove the line", kind="header again")
            else:
                yield line, row
        return
    names = [f"column {number}" for number in range(1, len(header) + 1)]
    reading.say(
        f"{where}: line 1 is read as a row, since it holds sentences and no names of columns; its columns are called "
        f"{', '.join(map(repr, names))}"
    )
    yield 1, CsvRow(zip(names, (None if cell in names else cell for cell in header), strict=True))
    for line, row in itertools.chain([first], rows):
        yield line, CsvRow(zip(names, row.values(), strict=True))


def _is_header(row: Row) -> bool:
    """Whether a row holds the names of its columns, as where files were joined; a mark of bytes may stand before."""
    cells = {name: value for name, value in row.items() if value is not None}
    return len(cells) > 1 and all(isinstance(v, str) and v.strip("\ufeff ") == n for n, v in cells.items())


def _reads_like_texts(header: Sequence[str]) -> bool:
    """Whether cells are not names of columns: one has eight words, or a sentence of four; or all have four words."""
    if not header:
        return False
    counts = [len(words(name)) for name in header]
    ends = [name.endswith((".", "?", "!", "\u3002")) for name in header]
    return any(n > 7 or (n > 3 and end) for n, end in zip(counts, ends, strict=True)) or min(counts) > 3


def _decided(kinds: Kinds, columns: Mapping[str, str]) -> Kinds:
    """Without other columns that could be meant, where the map names the column of the query or document."""
    others = {head for theirs in columns.values() if kinds.get(head := theirs.split(".")[0]) == "object"}
    for names in (QUERIES, (*DOCUMENTS, *LISTS)):
        if not columns.keys().isdisjoint(names):
            others.update(names)
    # A label that is mapped and null in the first rows: rows without one are faults, and not relevant.
    mapped = {"label": "text"} if "label" in columns and kinds.get("label") == "null" else {}
    return {name: kind for name, kind in kinds.items() if name in columns or name not in others} | mapped


class _Table:
    """A table of one format being read into the groups."""

    def __init__(self, groups: Groups, where: object, name: str, roles: Roles | None, *, guessed: bool) -> None:
        self.groups, self.where, self.roles = groups, where, roles
        self.reader: RowReader = ROW_FORMATS[name]
        self.reading = groups.reading
        self.names = FORMS[name].names
        self.near: dict[str, list[str]] = {}
        # Where any name may be that of a document, none can be called mistyped.
        self.strict = roles is None
        if roles is not None:
            self.names |= {roles.query, roles.document, *roles.negatives}
            self.names |= {roles.scores} if "scores" in self.names else set()
        self.tuples = FORMS[name].lists is False and name != "scored-pairs"
        # Pairs that were only guessed: no one has stated that all rows are relevant.
        self.pairs = guessed and name == "pairs"
        key = self.reading.group_key
        self.also = {key, key.split(".")[0], "metadata"} if key else set()
        # A column is used where only a part of it is.
        self.also |= {theirs.split(".")[0] for theirs in self.reading.columns.values()}
        self.inner = [theirs for theirs in self.reading.columns.values() if re.search(r"\.\d+(\.|$)", theirs)]

    def read(self, rows: Iterable[tuple[int, Row]]) -> None:
        for line, original in rows:
            self.reading.rows += 1
            row = renamed(original, self.reading.columns)
            fields = Fields(row, self.where, line, self.reading, self.roles)
            self._check_names(fields, original)
            found = self.reader(fields)
            if fields.faulty:
                continue
            assert found is not None, "a reader gave no row and no fault"
            self.groups.add(found, self.where, line)
            self.groups.more.update(theirs for theirs in self.inner if has_more(original, theirs))

    def _near(self, name: str) -> list[str]:
        # Rows repeat their columns, and may have thousands.
        if name not in self.near:
            self.near[name] = [_MEANT[name]] if name in _MEANT else nearest(name[:LONGEST_NAME], self.names)
        return self.near[name]

    def _check_names(self, fields: Fields, original: Row) -> None:
        for name, value in fields.row.items():
            if name in self.names or name in self.also:
                continue
            kind = _kind(value, isinstance(fields.row, CsvRow))
            if self.pairs and (is_judgement(str(name), kind) or (name == "score" and kind != "null")):
                fields.fault(
                    f"column {name!r} holds a judgement, and the first rows had none: give every row one and "
                    f"`columns: {{label: {name}}}`, or `format: pairs`, which reads every row as relevant",
                    kind=f"late {name}",
                )
                continue
            near = self._near(str(name)) if self.strict else []
            if near and near[0] not in fields.row:
                fields.fault(f"column {name!r} is unknown, did you mean {near[0]!r}? Rename it", kind=f"name {name}")
            elif kind != "null" and negatives_of({str(name): kind}):
                # The readers of pairs and tuples report it.
                if not self.tuples:
                    fields.fault(
                        f"column {name!r} holds judged negatives, which would be lost: give `columns: {{negatives: "
                        f"{name}}}` with `positives`, or remove the column",
                        kind=f"negatives {name}",
                    )
            else:
                self.groups.ignored.add(str(name))
        if self.reading.columns:
            used = set(self.reading.columns.values())
            self.groups.ignored |= {str(n) for n in original if n in self.reading.columns and n not in used}

"""How a found set is read: its format, with columns and labels guessed by their names and values."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from rankwright.common.errors import UserError
from rankwright.data.discovery import FoundSet, is_data, our_split
from rankwright.data.formats.detect import SAMPLE_ROWS, choose, kinds_of
from rankwright.data.formats.fields import ABSENT, Fields, at_path, paths_of, renamed, value_at
from rankwright.data.formats.joined import roles_of
from rankwright.data.formats.read import folder_kind
from rankwright.data.formats.reading import Reading, Row, listed, name_words, quiet
from rankwright.data.formats.rows import (
    CLICKED,
    DOCUMENTS,
    QUERIES,
    is_judgement,
    negatives_of,
    roles_by_name,
    words_of,
)
from rankwright.data.formats.tables import is_saved, table_rows
from rankwright.recipe.sources import Source

# Words in the names of columns, in English, German, French and Spanish.
_GUESSES = {
    "query": set(
        """query question search ask claim anchor prompt problem request frage anfrage suchanfrage requete recherche
        consulta pregunta busqueda""".split()
    ),
    "document": set(
        """document doc passage paragraph answer context content chunk code snippet text body response product
        item description article dokument antwort produkt artikel beschreibung absatz abschnitt
        inhalt reponse texte contenu documento pasaje respuesta texto contenido fragmento""".split()
    ),
}
# What people write for a label.
_YES = "relevant yes y ja j oui si pertinent relevante match good correct positive".split()
_NO = "irrelevant no n nein non not_relevant nonrelevant non_relevant no_match bad wrong incorrect negative".split()
# Columns of lists that were shown.
_LISTS = set("documents docs results passages hits candidates shown impressions items answers".split())
# Words in the names of columns that may be judgements, or hold wrong documents, beside those of is_judgement().
_MAYBE = set(
    """stars star thumbs feedback helpful quality vote votes upvotes correct accepted useful verdict annotation good bad
    wrong incorrect irrelevant""".split()
)
# Longer texts than this are not labels.
_LONG = 40
# More different texts than these in a column are not labels.
_MOST_LABELS = 12
_COMMA = re.compile(r"-?\d+(,\d{1,2})?")
# Exports of annotation tools -> where the texts of a row lie, and below which key the answers of people.
_ANNOTATIONS = {"Label Studio": ("data", "annotations"), "Argilla": ("fields", "responses")}


@dataclass(frozen=True, slots=True)
class Format:
    """How a set is read. columns: our name -> the file's, guessed where we do not know the file's names.

    labels: value of the label column -> label. guessed: whether any of them is a guess. question: what the user must
    name before the set can be read; unclear: the values whose label it asks for. encoding: as the user gave it.
    """

    name: str
    columns: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, float] = field(default_factory=dict)
    guessed: bool = False
    question: str = ""
    unclear: Sequence[str] = ()
    encoding: str | None = None

    def source(self, path: str, split: str | None) -> Source:
        """The entry of a recipe that reads the set so."""
        return Source(
            path=path, split=split, columns=dict(self.columns), labels=dict(self.labels), encoding=self.encoding
        )


@dataclass(frozen=True, slots=True)
class Named:
    """What the user names: columns (ours -> the file's), labels (value -> label) and the encoding of text files."""

    columns: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, float] = field(default_factory=dict)
    encoding: str | None = None


def format_of(one: FoundSet, given: Named) -> Format:
    """The format of a found set by its content, and with what the user names.

    What is not named is guessed by the names of columns. Where that leads to no format, Format.question asks for what
    is missing.
    """
    path, columns, labels = one.path, dict(given.columns), dict(given.labels)
    if path.is_dir():
        if (kind := folder_kind(path)) is not None:
            if kind != "joined":
                return Format(kind)
            return _joined(path, given)
        if is_saved(path):
            return Format("rows saved by datasets", columns, labels)
        path = next(p for p in sorted(path.iterdir()) if is_data(p) and our_split(p.name) == one.split)
    sample = first_rows(path, given)
    kinds = kinds_of(sample)
    if not kinds or any(all(at_path(row, theirs) is ABSENT for row in sample) for theirs in columns.values()):
        # The reader reports it.
        return Format("rows", columns, labels)
    for guessed in ({}, *_guesses(sample, kinds)):
        named = {**guessed, **columns}
        ours = kinds_of(renamed(row, named) for row in sample)
        try:
            chosen = choose(ours, None, path)[0]
        except UserError:
            continue
        if guessed and named.keys().isdisjoint(("document", "documents", "label")):
            continue
        label = named.get("label", "label")
        meant = {**_guess_labels(sample, label, labels), **labels}
        question, unclear = _unclear(path, sample, label, meant) if _reads_labels(chosen, named) else ("", ())
        if not question and _all_relevant(chosen) and not {"query", "document"} <= columns.keys():
            question = _lost(path, sample, kinds, named)
        was_guessed = bool(guessed.keys() - columns.keys()) or meant != labels
        return Format(chosen, named, meant, was_guessed, question, unclear)
    return Format("rows", columns, labels, question=_question(path, kinds, columns))


def _reads_labels(format: str, columns: Mapping[str, str]) -> bool:
    return format == "scored-pairs" or "label" in columns


def _all_relevant(format: str) -> bool:
    """Whether a format takes each document for relevant that stands where documents do."""
    return format in ("pairs", "triplets", "n-tuple")


def _unclear(path: Path, sample: Sequence[Row], column: str, labels: Mapping[str, float]) -> tuple[str, Sequence[str]]:
    """A question about the values of a label column that are not numbers, and those values."""
    known = Fields({}, path, 1, Reading("", labels=labels))
    values = sorted(text for text in _values(sample, column) if known.known_label(text) is None)
    if not values:
        return "", ()
    shown = listed(f"{value[:40]!r}" for value in values[:_MOST_LABELS])
    if len(values) > _MOST_LABELS:
        return (
            f"{path}: column {column!r} holds many different texts ({shown}, ...), which are not labels. Which column "
            "is the label? Give --columns label=NAME, or both query=NAME document=NAME to read all rows as relevant"
        ), ()
    pairs = [f"{value}={labels[value]:g}" if value in labels else f"{value}=NUMBER" for value in [*labels, *values]]
    return (
        f"{path}: column {column!r} holds {shown}. Which label does each have? Above 0 is relevant. For example: "
        f"--labels {shlex.quote(','.join(pairs))}"
    ), values


def _lost(path: Path, sample: Sequence[Row], kinds: Mapping[str, str], named: Mapping[str, str]) -> str:
    """A question about a column that may be the label, where every row would be read as relevant without it."""
    used = {*named, *named.values(), *QUERIES, *DOCUMENTS, *negatives_of(kinds)}
    for name, kind in kinds.items():
        if name in used:
            continue
        values = _values(sample, name)
        yes_or_no = bool(values) and all(t in ("True", "False") or _yes_or_no(t) is not None for t in values)
        if not (is_judgement(name, "number") or words_of(name) & _MAYBE or yes_or_no):
            continue
        roles = roles_by_name(kinds)
        query = "query=" + named.get("query", roles.query if roles else "NAME")
        document = named.get("document", roles.document if roles else "NAME")
        what, give = f"is it the label ({', '.join(sorted(values)[:3])})", [f"label={name}"]
        if kind == "null":
            what = "it is empty: is it the label"
        elif any(len(text) > _LONG for text in values):
            what = "does it hold documents that are not relevant"
            give = [query, f"positives={document}", f"negatives={name}"]
        both = shlex.join([query, f"document={document}"])
        return (
            f"{path}: column {name!r}: {what}? Give --columns {shlex.join(give)}; or --columns {both}, which reads "
            "every row as relevant"
        )
    return ""


def _joined(folder: Path, given: Named) -> Format:
    """The format of tables joined by ids, with what the words in the table of labels mean."""
    table = roles_of(folder)["labels"][0]
    sample = first_rows(table, given)
    names = [n for n, kind in kinds_of(sample).items() if is_judgement(n, kind)]
    column = given.columns.get("label") or (names[0] if names else None)
    if column is None:
        return Format("joined", given.columns, given.labels)
    meant = {**_guess_labels(sample, column, given.labels), **given.labels}
    question, unclear = _unclear(table, sample, column, meant)
    return Format("joined", given.columns, meant, meant != given.labels, question, unclear)


def first_rows(path: Path, given: Named) -> list[Row]:
    """Some rows of a table; the reader reports its faults."""
    return [row for _, row in itertools.islice(table_rows(path, quiet(given.encoding)), SAMPLE_ROWS)]


def _question(path: Path, kinds: Mapping[str, str], columns: Mapping[str, str]) -> str:
    named = {**guess_columns(kinds), **columns}
    judged = [n for n, kind in kinds.items() if is_judgement(n, kind) or words_of(n) & _MAYBE or n in CLICKED]
    free = [n for n, kind in kinds.items() if kind != "number" and n not in (*named.values(), *judged)]
    free += [n for n in kinds if n not in free]
    query = named.get("query", free[0])
    document = named.get("document", next((n for n in free if n != query), "NAME"))
    label = named.get("label", judged[0] if judged else "NAME")
    example = {"query": query, "document": document, "label": label}
    remark = "without a label every row is relevant"
    if kinds.get(document) == "list":
        example = {"query": query, "positives": document}
        remark = "all documents of this list are relevant; negatives=NAME for those that are not"
    shown = listed(f"{name} ({kind})" for name, kind in kinds.items())
    return (
        f"{path}: the columns are {shown}. Which one is the query and which one the document? For example: "
        f"--columns {shlex.join(f'{ours}={theirs}' for ours, theirs in example.items())} ({remark})"
    )


def _guesses(sample: Sequence[Row], kinds: Mapping[str, str]) -> Iterator[dict[str, str]]:
    yield guess_columns(kinds)
    for texts, answers in _ANNOTATIONS.values():
        inner = [row[texts] for row in sample if isinstance(row.get(texts), Mapping) and answers in row]
        found = guess_columns(kinds_of(inner))
        given = [{answers: row[answers]} for row in sample if answers in row]
        paths = dict.fromkeys(path for row in given for path in paths_of(row, elements=3))
        ends = [path for path in paths if path.rpartition(".")[2] in ("choices", "rating", "value")]
        # A choice lies inside of its `value`, and other kinds of answers do too.
        label = next((path for path in ends if not any(other.startswith(f"{path}.") for other in paths)), None)
        if len(found) >= 2 and label is not None:
            yield {ours: f"{texts}.{theirs}" for ours, theirs in found.items() if ours != "label"} | {"label": label}


def guess_columns(kinds: Mapping[str, str]) -> dict[str, str]:
    """Our name -> the only text column with a matching word in its name; a number named as a judgement is the label."""
    found: dict[str, str] = {}
    judged = [n for n, kind in kinds.items() if is_judgement(n, kind) and n != "label"]
    if roles_by_name(kinds) is not None and len(judged) == 1:
        # The names of the other columns are known.
        return {"label": judged[0]}
    for ours, words in _GUESSES.items():
        columns = [n for n, kind in kinds.items() if kind == "text" and n not in judged]
        names = [n for n in columns if words & words_of(n) and "id" not in words_of(n)]
        # `answer_text` rather than `text`, where both are there.
        best = [n for n in names if words & words_of(n) - {"text", "texte", "texto", "body"}]
        if len(best or names) == 1:
            found[ours] = (best or names)[0]
    lists = [n for n, kind in kinds.items() if kind == "list" and words_of(n) & _LISTS and n != "documents"]
    if "query" not in found and "query" in kinds:
        found["query"] = "query"
    if "query" in found and "document" not in found and len(lists) == 1 and any(n in kinds for n in CLICKED):
        return {"query": found["query"], "documents": lists[0]}
    if len(found) == 2 and len(judged) == 1:
        found["label"] = judged[0]
    return found


def _values(sample: Sequence[Row], column: str) -> set[str]:
    """The values of a column as texts; that of a list of one."""
    values = [value_at(row, column) for row in sample]
    return {str(v[0] if isinstance(v, list) and len(v) == 1 else v).strip() for v in values if v is not None}


def _guess_labels(
    sample: Sequence[Row], column: str, given: Mapping[str, float] = MappingProxyType({})
) -> dict[str, float]:
    """Value -> label of those that are words for yes and no, or all numbers with a decimal comma.

    given: values whose label the user names. Empty where all are numbers, true or false.
    """
    texts = _values(sample, column)
    if any("," in text for text in texts) and all(_COMMA.fullmatch(text) for text in texts):
        return {text: float(text.replace(",", ".")) for text in sorted(texts)}
    found = {text: _yes_or_no(text) for text in sorted(texts - given.keys())}
    return {text: label for text, label in found.items() if label is not None}


def _yes_or_no(text: str) -> float | None:
    # `2 - good` is a grade.
    word = "" if re.search(r"\d", text) else "_".join(name_words(text))
    return 1.0 if word in _YES else 0.0 if word in _NO else None


def columns_text(format: Format) -> str:
    """`query = question, label = rating (good = 1, bad = 0)`: what was guessed or named."""
    values = ", ".join(f"{value} = {label:g}" for value, label in format.labels.items())
    named = ", ".join(f"{ours} = {theirs}" for ours, theirs in format.columns.items())
    return f"{named} ({values})" if named and values else named or f"labels {values}"


def read_as(one: FoundSet, given: Named) -> Format:
    """As format_of(); for a file that cannot be read, what the user named: the reader then reports its faults."""
    try:
        found = format_of(one, given)
    except UserError:
        found = Format("rows", given.columns, given.labels)
    return replace(found, encoding=given.encoding)

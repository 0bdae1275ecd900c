"""How a found set is read: its format, with columns and labels guessed by their names and values."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rankwright.common.errors import UserError
from rankwright.data.discovery import FoundSet, is_data, our_split
from rankwright.data.formats.beir import is_beir
from rankwright.data.formats.detect import SAMPLE_ROWS, choose, kinds_of
from rankwright.data.formats.fields import paths_of, renamed, value_at
from rankwright.data.formats.reading import Faults, Row, listed, name_words
from rankwright.data.formats.rows import is_judgement, roles_by_name, words_of
from rankwright.data.formats.tables import is_saved, table_rows
from rankwright.data.formats.trec import is_trec
from rankwright.recipe.schema import Source

# Words in the names of columns, in English, German, French and Spanish.
_GUESSES = {
    "query": set(
        """query question search ask claim anchor prompt problem request frage anfrage suchanfrage requete recherche
        consulta pregunta busqueda""".split()
    ),
    "document": set(
        """document doc passage paragraph answer context content chunk code snippet text body response dokument antwort
        absatz abschnitt inhalt reponse texte contenu documento pasaje respuesta texto contenido fragmento""".split()
    ),
}
# What people write for a label.
_YES = "relevant yes y ja j oui si pertinent relevante match good correct positive".split()
_NO = "irrelevant no n nein non not_relevant nonrelevant non_relevant no_match bad wrong incorrect negative".split()
# Exports of annotation tools -> where the texts of a row lie, and below which key the answers of people.
_ANNOTATIONS = {"Label Studio": ("data", "annotations"), "Argilla": ("fields", "responses")}


@dataclass(frozen=True, slots=True)
class Format:
    """How a set is read. columns: our name -> the file's, guessed where we do not know the file's names.

    labels: value of the label column -> label. guessed: whether any of them is a guess. question: what the user must
    name before the set can be read.
    """

    name: str
    columns: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, float] = field(default_factory=dict)
    guessed: bool = False
    question: str = ""

    def source(self, path: str, split: str | None) -> Source:
        """The entry of a recipe that reads the set so."""
        return Source(path=path, split=split, columns=dict(self.columns), labels=dict(self.labels))


def format_of(
    one: FoundSet, columns: Mapping[str, str] | None = None, labels: Mapping[str, float] | None = None
) -> Format:
    """The format of a found set by its content, and with the columns and labels that the user names.

    What is not named is guessed by the names of columns. Where that leads to no format, Format.question asks for what
    is missing.
    """
    path, columns, labels = one.path, dict(columns or {}), dict(labels or {})
    if path.is_dir():
        if is_beir(path) or is_trec(path):
            return Format("beir" if is_beir(path) else "trec")
        if is_saved(path):
            return Format("rows saved by datasets", columns, labels)
        path = next(p for p in sorted(path.iterdir()) if is_data(p) and our_split(p.name) == one.split)
    # The reader reports its faults.
    sample = [row for _, row in itertools.islice(table_rows(path, Faults("drop")), SAMPLE_ROWS)]
    kinds = kinds_of(sample)
    if not kinds:
        return Format("rows", columns, labels)
    for guessed in ({}, *_guesses(sample, kinds)):
        named = {**guessed, **columns}
        ours = kinds_of(renamed(row, named) for row in sample)
        try:
            chosen = choose(ours, None, path)[0]
        except UserError:
            continue
        if guessed and "document" not in named and "label" not in named:
            continue
        meant = labels or _guess_labels(sample, named.get("label", "label"))
        return Format(chosen, named, meant, bool(guessed.keys() - columns.keys()) or meant != labels)
    shown = listed(f"{name} ({kind})" for name, kind in kinds.items())
    return Format("rows", columns, labels, question=_question(path, list(kinds), shown))


def _question(path: Path, names: Sequence[str], shown: str) -> str:
    query, document = names[0], names[-1]
    return (
        f"{path}: the columns are {shown}. Which one is the query and which one the document? For example: "
        f"--columns query={query} document={document} label=NAME (without a label every row is relevant)"
    )


def _guesses(sample: Sequence[Row], kinds: Mapping[str, str]) -> Iterator[dict[str, str]]:
    yield guess_columns(kinds)
    for texts, answers in _ANNOTATIONS.values():
        inner = [row[texts] for row in sample if isinstance(row.get(texts), Mapping) and answers in row]
        found = guess_columns(kinds_of(inner))
        paths = dict.fromkeys(path for row in sample if answers in row for path in paths_of({answers: row[answers]}))
        ends = [path for path in paths if path.rpartition(".")[2] in ("choices", "rating", "value")]
        # A choice lies inside of its `value`.
        label = next((path for path in ends if not any(other.startswith(f"{path}.") for other in ends)), None)
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
    if len(found) == 2 and len(judged) == 1:
        found["label"] = judged[0]
    return found


def _guess_labels(sample: Sequence[Row], column: str) -> dict[str, float]:
    """Value -> label, where the values of a label column are words for yes and no; empty where they are not."""
    values = [value_at(row, column) for row in sample]
    texts = {str(v[0] if isinstance(v, list) and len(v) == 1 else v).strip() for v in values if v is not None}
    found = {text: _yes_or_no(text) for text in sorted(texts)}
    if not texts or any(label is None for label in found.values()):
        return {}
    return {text: label for text, label in found.items() if label is not None}


def _yes_or_no(text: str) -> float | None:
    word = "_".join(name_words(text))
    return 1.0 if word in _YES else 0.0 if word in _NO else None


def columns_text(format: Format) -> str:
    """`query = question, label = rating (good = 1, bad = 0)`: what was guessed or named."""
    values = ", ".join(f"{value} = {label:g}" for value, label in format.labels.items())
    named = ", ".join(f"{ours} = {theirs}" for ours, theirs in format.columns.items())
    return named + (f" ({values})" if values else "")


def read_as(one: FoundSet, columns: Mapping[str, str] | None, labels: Mapping[str, float] | None) -> Format:
    """As format_of(); for a file that cannot be read, what the user named: the reader then reports its faults."""
    try:
        return format_of(one, columns, labels)
    except UserError:
        return Format("rows", columns or {}, labels or {})

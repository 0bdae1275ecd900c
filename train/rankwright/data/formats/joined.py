"""Folders of tables joined by ids, as databases export them: queries, documents, and labels with the ids of both."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rankwright.common.errors import UserError
from rankwright.data.collection import Collection
from rankwright.data.formats.beir import Judged, Texts, assemble, read_judgements, read_texts
from rankwright.data.formats.detect import SAMPLE_ROWS, kinds_of
from rankwright.data.formats.fields import missing_columns, value_at
from rankwright.data.formats.reading import Reading, Row, Rows, give_up, listed, name_words, split_words
from rankwright.data.formats.rows import LABELS, is_judgement, words_of
from rankwright.data.formats.tables import is_table, table_rows
from rankwright.data.formats.text_rows import CsvRow
from rankwright.data.formats.trec import one_of

# Words in the names of files and columns, in English, German, French and Spanish.
QUERY = set(
    """query queries question questions search searches topic topics anfrage anfragen suchanfrage suchanfragen frage
    fragen requete requetes recherche recherches consulta consultas pregunta preguntas busqueda busquedas""".split()
)
DOCUMENT = set(
    """document documents doc docs corpus collection passage passages article articles product products item items
    answer answers text texts dok dokument dokumente artikel texte produkt produkte antwort antworten reponse reponses
    produit produits documento documentos articulo articulos pasaje pasajes respuesta respuestas producto productos
    texto textos""".split()
)
LABEL = set(
    """label labels judgement judgements judgment judgments qrels relevance rating ratings grade grades bewertung
    bewertungen urteil urteile relevanz jugement jugements pertinence etiqueta etiquetas relevancia juicio juicios
    calificacion calificaciones""".split()
)
_ID = set("id ids key nr no number nummer numero ref cle clave".split())
# Names of ids in one word.
_SHORT = {
    **dict.fromkeys(("qid", "queryid", "questionid"), QUERY),
    **dict.fromkeys(("did", "pid", "docid", "docno", "documentid", "passageid"), DOCUMENT),
}
_TITLE = set("title titel titre titulo headline".split())
_TEXT = set("text texte texto body content inhalt contenu contenido".split())


@dataclass(slots=True)
class _Table:
    """A table and its first rows; kinds: column -> kind of its values."""

    path: Path
    rows: Rows
    sample: list[Row]
    kinds: Mapping[str, str]
    reading: Reading

    def named(self, ours: str) -> str | None:
        """The column that `columns` names, where this table has it."""
        theirs = self.reading.columns.get(ours)
        found = theirs is not None and any(value_at(row, theirs) is not None for row in self.sample)
        return theirs if found else None

    def choose(self, ours: str, found: Sequence[str], what: str) -> str:
        """The column of `columns`, or the only one that was found. Raises UserErrors for none and for several."""
        name = self.named(ours) or (found[0] if len(found) == 1 else None)
        if name is None:
            which = f"several columns could be {what} ({listed(found)})" if found else f"no column is {what}"
            shown, advice = listed(self.kinds) or "none", f"give `columns: {{{ours}: NAME}}` (or --columns {ours}=NAME)"
            give_up(self.reading.faults, self.path, 1, f"{which}; columns found: {shown}: {advice}")
        return name


def roles_of(folder: Path) -> dict[str, list[Path]]:
    """queries, documents, labels -> the tables of a folder whose names have a word for it."""
    found: dict[str, list[Path]] = {}
    for path in sorted(p for p in folder.iterdir() if p.is_file() and is_table(p) and not p.name.startswith(".")):
        words = set(name_words(path.name.split(".")[0]))
        roles = [role for role, known in (("queries", QUERY), ("documents", DOCUMENT)) if words & known]
        role = "labels" if words & LABEL else roles[0] if len(roles) == 1 else None
        if role is not None:
            found.setdefault(role, []).append(path)
    return found


def is_joined(folder: Path) -> bool:
    """Whether a folder has tables of queries, documents and labels, by their names."""
    return len(roles_of(folder)) == 3


def joined_splits(folder: Path) -> list[str]:
    """The splits in the names of the tables of labels."""
    return sorted({word for path in roles_of(folder).get("labels", ()) for word in split_words(path.name)})


def read_joined(folder: Path, reading: Reading) -> Collection:
    """Read one split of a folder with tables of queries (id, text), documents (id, text, title) and labels (both ids).

    Any table file will do. Columns are those of `columns` (query_id, query, document_id, document, title, label), each
    in the tables that have it, or are found by their names and reported. Without a column of labels every pair counts
    as relevant. Files of several splits have the split in their names: `labels_test.csv`.
    Raises UserErrors with file and line of every fault, as read_beir does.
    """
    paths = roles_of(folder)
    if missing := [role for role in ("queries", "documents", "labels") if role not in paths]:
        raise UserError(f"{folder}: format joined: no table of {missing[0]}, by its name: add {missing[0]}.csv")
    chosen = [
        one_of(paths["queries"], folder, "queries", reading.split),
        one_of(paths["documents"], folder, "documents", None),
        one_of(paths["labels"], folder, "labels", reading.split),
    ]
    queries, documents, labels = (_opened(path, reading) for path in chosen)
    sample = [row for table in (queries, documents, labels) for row in table.sample]
    missing_columns(reading.columns, sample, folder)
    corpus = _texts(documents, "document", DOCUMENT, titled=True)
    asked = _texts(queries, "query", QUERY, titled=False)
    columns = _label_columns(labels)
    _report(labels, {"query": columns.query, "document": columns.document, "label": columns.label})
    rows = _rows(labels, (columns.query, columns.document), columns.label)
    qrels = read_judgements(rows, labels.path, reading, corpus, asked, columns)
    return assemble(reading, corpus, asked, qrels, where=labels.path, shared=not split_words(queries.path.name))


def _opened(path: Path, reading: Reading) -> _Table:
    rows = table_rows(path, reading)
    first = list(itertools.islice(rows, SAMPLE_ROWS))
    if not first:
        reading.faults.check()
        give_up(reading.faults, path, 1, "holds no rows: give a table with a header and rows")
    sample = [row for _, row in first]
    return _Table(path, itertools.chain(first, rows), sample, kinds_of(sample), reading)


def _ids(table: _Table, known: set[str], *, alone: bool) -> list[str]:
    """Columns of ids of one side. alone: the table is that of the side, so that a plain `id` is meant."""
    of_side = [n for n in table.kinds if (words_of(n) & known and words_of(n) & _ID) or _SHORT.get(_plain(n)) is known]
    plain = [name for name in table.kinds if alone and words_of(name) and words_of(name) <= _ID]
    return of_side or plain


def _plain(name: str) -> str:
    return "".join(name_words(name))


def _is_id(name: str) -> bool:
    return bool(words_of(name) & _ID) or _plain(name) in _SHORT


def _texts(table: _Table, ours: str, known: set[str], *, titled: bool) -> Texts:
    id = table.choose(f"{ours}_id", _ids(table, known, alone=True), f"the id of a {ours}")
    titles = [n for n in table.kinds if words_of(n) & _TITLE] if titled else []
    title = table.named("title") or (titles[0] if len(titles) == 1 else None)
    group = table.reading.group_key
    free = [n for n, kind in table.kinds.items() if kind == "text" and not _is_id(n) and n not in (id, title, group)]
    meant = [n for n in free if words_of(n) & (known | _TEXT)]
    text = table.choose(ours, meant or free or ([title] if title else []), f"the text of a {ours}")
    title = None if title == text else title
    _report(table, {"id": id, "text": text, "title": title})
    rows = _rows(table, (id,), text, title)
    return read_texts(rows, table.path, table.reading, titled=titled, id=(id,), text=text, title=title)


def _label_columns(table: _Table) -> Judged:
    both = []
    for ours, known in (("query", QUERY), ("document", DOCUMENT)):
        # `query` may hold the id too: the texts are in another table.
        names = _ids(table, known, alone=False) or [n for n in table.kinds if words_of(n) & known]
        both.append(table.choose(f"{ours}_id", names, f"the id of a {ours}"))
    rest = {name: kind for name, kind in table.kinds.items() if name not in both and not _is_id(name)}
    found = [n for n, kind in rest.items() if n in (*LABELS, "score") or is_judgement(n, kind)]
    label = table.choose("label", found, "the label") if found or "label" in table.reading.columns else None
    if label is None and rest:
        # One of them may be the label: nothing is relevant by mistake.
        label = table.choose("label", [], "the label")
    return Judged(both[0], both[1], label)


def _rows(table: _Table, ids: Sequence[str], *names: str | None) -> Iterator[tuple[int, Row]]:
    """The rows with what lies at paths, and ids without the spaces around them."""
    paths = [name for name in (*ids, *names) if name is not None and "." in name]
    for line, row in table.rows:
        made = dict(row) | {path: value_at(row, path) for path in paths}
        made |= {id: value.strip() for id in ids if isinstance(value := made.get(id), str)}
        yield line, CsvRow(made) if isinstance(row, CsvRow) else made


def _report(table: _Table, found: Mapping[str, str | None]) -> None:
    used = {ours: theirs for ours, theirs in found.items() if theirs is not None}
    rest = [name for name in table.kinds if name not in used.values() and name != table.reading.group_key]
    without = ", no label: every pair counts as relevant" if "label" in found and found["label"] is None else ""
    left = f"; columns not used: {listed(rest)}" if rest else ""
    named = ", ".join(f"{ours} = {theirs}" for ours, theirs in used.items())
    table.reading.say(f"{table.path.name}: {named}{without}{left}")

"""Sets in the BEIR layout: corpus.jsonl, queries and qrels for each split, each plain, .gz or .zst."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path

from rankwright.common.errors import UserError, did_you_mean, nearest
from rankwright.common.plurals import counted
from rankwright.data.collection import Collection, join_title
from rankwright.data.formats.compression import PACKED
from rankwright.data.formats.fields import Fields, number_of
from rankwright.data.formats.reading import MOST_EXAMPLES, Faults, Reading, Rows, choose_split, give_up, quiet
from rankwright.data.formats.text_rows import json_rows, text_lines
from rankwright.data.normalisation import is_blank
from rankwright.data.store.texts import TextBuilder

QRELS_COLUMNS = ("query-id", "corpus-id", "score")
# Names of files of TREC topics, which the BEIR layout does not have.
TOPICS = re.compile(r".*topics.*|queries.*\.(?:tsv|txt|trec)(?:\.gz|\.zst)?", re.IGNORECASE)
_PACKED = r"(?:\.gz|\.zst)?"
_QRELS_NAME = re.compile(rf"(?:qrels_)?(?P<split>.+)\.tsv{_PACKED}")


@dataclass(frozen=True, slots=True)
class Texts:
    """Texts by id, which may be kept in a file, and the groups of those that have one."""

    texts: Mapping[str, str]
    groups: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Judged:
    """The columns of judgements. label: None where every pair is relevant."""

    query: str = QRELS_COLUMNS[0]
    document: str = QRELS_COLUMNS[1]
    label: str | None = QRELS_COLUMNS[2]


def is_beir(folder: Path) -> bool:
    """Whether a folder has a file that only the BEIR layout has; beside TREC topics, only files of queries count."""
    own = ("queries.jsonl*", "queries_*.jsonl*", "qrels/*.tsv*")
    shared = ("corpus.jsonl*", "qrels_*.tsv*")
    topics = any(TOPICS.match(path.name) for path in folder.iterdir())
    return any(True for pattern in (*own, *(() if topics else shared)) for _ in folder.glob(pattern))


def available_splits(folder: Path) -> list[str]:
    """Splits for which a folder has qrels."""
    files = [*folder.glob("qrels_*.tsv*"), *(folder / "qrels").glob("*.tsv*")]
    return sorted({match["split"] for file in files if (match := _QRELS_NAME.fullmatch(file.name))})


def read_beir(folder: Path, reading: Reading) -> Collection:
    """Read one split of a folder in BEIR layout.

    Files, each plain or .gz or .zst: `corpus.jsonl` (`_id`, `text`, `title` optional), `queries_SPLIT.jsonl` or
    `queries.jsonl` (`_id`, `text`), `qrels_SPLIT.tsv` or `qrels/SPLIT.tsv` (`query-id, corpus-id, score`; the
    header may be absent; also TREC's four columns). A `queries.jsonl` holds the queries of all splits: those that
    the split's qrels name are kept, the rest is counted and reported. The group key is a column of the corpus or of
    the queries, or of their `metadata`.
    Raises UserErrors with file and line of every fault, or leaves faulty rows out, as `faults` is set.
    Source of the layout: Thakur et al., BEIR, NeurIPS 2021.
    """
    if reading.columns:
        raise UserError(f"{folder}: a BEIR folder has fixed columns: leave `columns` out")
    faults = reading.faults
    wanted = reading.split or "SPLIT"
    advice = f"give split: NAME, or add qrels/{wanted}.tsv or qrels_{wanted}.tsv"
    split = choose_split(folder, reading.split, available_splits(folder), advice)
    found = [
        _find(folder, ("corpus.jsonl",), faults),
        _find(folder, (f"queries_{split}.jsonl", "queries.jsonl"), faults),
        _find(folder, (f"qrels_{split}.tsv", f"qrels/{split}.tsv"), faults),
    ]
    paths = [path for path in found if path is not None]
    if len(paths) < len(found):
        faults.check()
        raise UserError(
            f"{folder}: files of the BEIR layout are missing: corpus.jsonl, queries.jsonl, qrels/{split}.tsv"
        )
    corpus_path, queries_path, qrels_path = paths
    corpus = read_texts(json_rows(corpus_path, reading), corpus_path, reading, titled=True)
    queries = read_texts(json_rows(queries_path, reading), queries_path, reading, titled=False)
    qrels = read_judgements(qrels_rows(qrels_path, reading), qrels_path, reading, corpus, queries)
    shared = queries_path.name.startswith("queries.jsonl")
    others = _judged_elsewhere(folder, split, reading) if shared else None
    return assemble(reading, corpus, queries, qrels, where=qrels_path, shared=shared, others=others)


def _judged_elsewhere(folder: Path, split: str, reading: Reading) -> set[str]:
    """The first cells of the other splits' qrels: ids of queries. Faults there are reported with their own split."""
    files = [*folder.glob("qrels_*.tsv*"), *(folder / "qrels").glob("*.tsv*")]
    others = [p for p in files if (match := _QRELS_NAME.fullmatch(p.name)) and match["split"] != split]
    lines = (text for path in others for _, text in text_lines(path, quiet(reading.encoding)))
    return {(text.split("\t") if "\t" in text else text.split() or [""])[0].strip() for text in lines}


def _find(folder: Path, names: tuple[str, ...], faults: Faults) -> Path | None:
    for wanted in names:
        found = [path for end in ("", *PACKED) if (path := folder / f"{wanted}{end}").is_file()]
        for other in found[1:]:
            faults.add(other, 1, f"there is a {found[0].name} too: remove one of the two", whole=True)
        if found:
            return found[0] if len(found) == 1 else None
    near = nearest(names[0], (p.name for p in folder.iterdir()), count=3)
    hint = f"; near names in the folder: {', '.join(near)}" if near else ""
    wanted = " or ".join(f"{n}(.gz)" for n in names)
    faults.add(folder, 1, f"no file {wanted}{hint}", whole=True)
    return None


def read_texts(
    rows: Rows,
    where: object,
    reading: Reading,
    *,
    titled: bool,
    id: Sequence[str] = ("_id", "id"),
    text: str = "text",
    title: str | None = "title",
) -> Texts:
    """The rows of a corpus (`titled`: title and text joined) or of queries; a row with a fault is left out.

    id, text, title: their columns.
    """
    faults = reading.faults
    texts = TextBuilder()
    groups: dict[str, str] = {}
    line = 0
    for line, row in rows:
        fields = Fields(row, where, line, reading)
        key, found, group = fields.required_id(*id), fields.required_text(text), fields.group()
        above = (fields.text(title) or "") if titled and title is not None else ""
        if key is None or found is None or fields.faulty:
            continue
        if not titled and is_blank(found):
            faults.add(where, line, f"query {key!r} is empty: give it a text or remove it")
        elif texts.add(key, join_title(above, found)) != "new":
            faults.add(where, line, f"id {key!r} appears a second time: give every row an id of its own")
        else:
            reading.titles += bool(above)
            if group is not None:
                groups[key] = group
    if not len(texts) and not faults.count:
        faults.add(where, line or 1, f"holds no {'documents' if titled else 'queries'}", whole=True)
    return Texts(texts.finish(), groups)


def qrels_rows(path: Path, reading: Reading) -> Rows:
    """The rows of a TSV file of judgements, by column names, with or without a header."""
    faults, names = reading.faults, None
    for number, text in text_lines(path, reading):
        cells = [cell.strip() for cell in (text.split("\t") if "\t" in text else text.split())]
        if names is None:
            names = ["query-id", "iteration", "corpus-id", "score"] if len(cells) == 4 else list(QRELS_COLUMNS)
            if number_of(cells[-1]) is None:
                names = cells
                missing = [name for name in QRELS_COLUMNS if name not in cells]
                if missing:
                    listed = ", ".join(f"`{name}`{did_you_mean(name, cells)}" for name in missing)
                    faults.add(path, number, f"no column {listed}; columns found: {', '.join(cells)}", whole=True)
                    return
                continue
        if len(cells) != len(names):
            faults.add(
                path,
                number,
                f"{counted(len(cells), 'column')}, needs {len(names)}: {', '.join(names)}, with a tab between them",
            )
            continue
        yield number, dict(zip(names, cells, strict=True))


def read_judgements(
    rows: Rows, where: object, reading: Reading, corpus: Texts, queries: Texts, columns: Judged = Judged()
) -> dict[str, dict[str, float]]:
    """Query id -> document id -> label. A judgement of an unknown document or query is a fault.

    Where rows are dropped, a query that loses all its judgements stays, with none.
    """
    faults = reading.faults
    qrels: dict[str, dict[str, float]] = {}
    # After a fault in the texts, an unknown id would most often be the same fault again.
    whole = not faults.count
    unknown: dict[str, list[tuple[int, str]]] = {"document": [], "query": []}
    repeats = 0
    for line, row in rows:
        judgement = _judgement(Fields(row, where, line, reading), columns)
        if judgement is None:
            if (named := str(row.get(columns.query))) in queries.texts:
                # The row is dropped, but its query still belongs to this split.
                qrels.setdefault(named, {})
            continue
        query_id, document_id, label = judgement
        absent = []
        if query_id not in queries.texts:
            unknown["query"].append((line, query_id))
            absent.append(f"query that is not in the queries: {query_id!r}")
        if document_id not in corpus.texts:
            unknown["document"].append((line, document_id))
            absent.append(f"document that is not in the corpus: {document_id!r}")
        if absent:
            if faults.on_fault == "drop":
                faults.add(where, line, f"the judgement names a {absent[0]}")
            if query_id in queries.texts:
                qrels.setdefault(query_id, {})
            continue
        judged = qrels.setdefault(query_id, {})
        if document_id in judged:
            repeats += judged[document_id] == label
            if judged[document_id] != label:
                faults.add(
                    where,
                    line,
                    f"query {query_id!r} and document {document_id!r} are judged {label:g} here and "
                    f"{judged[document_id]:g} before: keep one of the two",
                )
            continue
        judged[document_id] = label
    if whole and faults.on_fault == "stop":
        for kind, found in unknown.items():
            _note_unknown(kind, found, where, faults)
    if repeats:
        reading.say(f"{where}: {counted(repeats, 'repeated judgement')} read once")
    return qrels


def _judgement(fields: Fields, columns: Judged) -> tuple[str, str, float] | None:
    query_id, document_id = fields.required_id(columns.query), fields.required_id(columns.document)
    label: float | None = 1.0
    if columns.label is not None:
        value = fields.required(columns.label)
        label = fields.known_label(value)
        if label is None and value is not None:
            fields.fault(
                f"{columns.label} {value!r} is not a number: labels are numbers, above 0 is relevant; for words give "
                f"`labels: {{{str(value)[:40]}: 1, ...}}`"
            )
    if query_id is None or document_id is None or label is None:
        return None
    return query_id, document_id, label


def _note_unknown(kind: str, found: list[tuple[int, str]], where: object, faults: Faults) -> None:
    if not found:
        return
    place = "corpus" if kind == "document" else "queries"
    distinct = dict.fromkeys(key for _, key in found)
    shown = ", ".join(map(repr, list(distinct)[:MOST_EXAMPLES]))
    more = f" and {len(distinct) - MOST_EXAMPLES:,} more" if len(distinct) > MOST_EXAMPLES else ""
    faults.add(
        where,
        found[0][0],
        f"{counted(len(found), 'judgement names', 'judgements name')} a {kind} that is not in the {place}: "
        f"{shown}{more}. "
        f"Add the missing rows to the {place}, or remove the judgements",
    )


def assemble(
    reading: Reading,
    corpus: Texts,
    queries: Texts,
    qrels: Mapping[str, Mapping[str, float]],
    *,
    where: object,
    shared: bool,
    others: AbstractSet[str] | None = None,
) -> Collection:
    """The Collection, after the last checks; `shared` queries are kept when the qrels name them.

    others: the queries of other splits, where they are known: to leave these out is not a loss, and not reported.
    """
    faults, say, key = reading.faults, reading.say, reading.group_key
    faults.check()
    texts = queries.texts
    unlabelled = not shared and not any(qrels.values()) and not faults.rows_dropped
    if unlabelled:
        say(f"{where}: no judgements: only a teacher or judges can train with its {counted(len(texts), 'query')}")
    elif not any(label > 0 for judged in qrels.values() for label in judged.values()):
        give_up(faults, where, 1, "no query has a relevant document: give judgements with a score above 0")
    if key is not None and not queries.groups and not corpus.groups:
        give_up(faults, where, 1, f"no query and no document has the group key {key!r}: name one of their columns")
    kept = {q: text for q, text in texts.items() if q in qrels} if shared else texts
    left = len(texts) - len(kept)
    if left and others is None:
        say(f"{where}: {len(kept):,} of {counted(len(texts), 'query')} {_is(len(kept))} of this split")
    elif left and others is not None and (lost := sum(q not in qrels and q not in others for q in texts)):
        say(f"{where}: {lost:,} of {counted(len(texts), 'query')} {_is(lost)} judged in no split: left out")
    unjudged = sum(q not in qrels for q in kept)
    if unjudged:
        say(f"{where}: {unjudged:,} of {counted(len(kept), 'query')} without a judgement")
    groups = {q: queries.groups[q] for q in kept if q in queries.groups}
    return Collection(reading.name, corpus.texts, kept, qrels, query_groups=groups, document_groups=corpus.groups)


def _is(count: int) -> str:
    return "is" if count == 1 else "are"

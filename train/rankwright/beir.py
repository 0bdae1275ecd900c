"""Sets in the BEIR layout: corpus.jsonl, queries and qrels a split, each plain or .gz."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from rankwright.errors import UserError, did_you_mean, nearest
from rankwright.examples import Collection, join_title
from rankwright.rows import (
    Faults,
    Row,
    Rows,
    Say,
    column,
    identifier,
    json_rows,
    number_of,
    optional_text,
    text_lines,
    text_of,
)
from rankwright.text_store import TextBuilder

QRELS_COLUMNS = ("query-id", "corpus-id", "score")
MOST_EXAMPLES = 5
_QRELS_NAME = re.compile(r"(?:qrels_)?(?P<split>.+)\.tsv(?:\.gz)?")


def is_beir(folder: Path) -> bool:
    """Whether a folder has any file that only the BEIR layout has."""
    patterns = ("corpus.jsonl*", "queries.jsonl*", "queries_*.jsonl*", "qrels_*.tsv*", "qrels/*.tsv*")
    return any(True for pattern in patterns for _ in folder.glob(pattern))


def available_splits(folder: Path) -> list[str]:
    """Splits for which a folder has qrels."""
    files = [*folder.glob("qrels_*.tsv*"), *(folder / "qrels").glob("*.tsv*")]
    return sorted({match["split"] for file in files if (match := _QRELS_NAME.fullmatch(file.name))})


def read_beir(folder: Path, *, name: str, split: str | None, say: Say) -> Collection:
    """Read one split of a folder in BEIR layout.

    Files: `corpus.jsonl` (`_id`, `text`, `title` optional), `queries_SPLIT.jsonl` or `queries.jsonl` (`_id`,
    `text`), `qrels_SPLIT.tsv` or `qrels/SPLIT.tsv` (`query-id, corpus-id, score`; the header may be absent;
    also TREC's four columns). A `queries.jsonl` holds the queries of all splits: those that the split's qrels
    name are kept, the rest is counted and said.
    Raises UserErrors with file and line of every fault.
    Source of the layout: Thakur et al., BEIR, NeurIPS 2021.
    """
    split = choose_split(folder, split)
    faults = Faults()
    corpus_path = _find(folder, ("corpus.jsonl",), faults)
    queries_path = _find(folder, (f"queries_{split}.jsonl", "queries.jsonl"), faults)
    qrels_path = _find(folder, (f"qrels_{split}.tsv", f"qrels/{split}.tsv"), faults)
    faults.check()
    assert corpus_path is not None and queries_path is not None and qrels_path is not None
    corpus = read_texts(json_rows(corpus_path, faults), corpus_path, faults, titled=True)
    queries = read_texts(json_rows(queries_path, faults), queries_path, faults, titled=False)
    qrels = read_judgements(qrels_rows(qrels_path, faults), qrels_path, faults, corpus, queries, say)
    shared = queries_path.name.startswith("queries.jsonl")
    return assemble(name, corpus, queries, qrels, where=qrels_path, shared=shared, faults=faults, say=say)


def choose_split(folder: Path, split: str | None) -> str:
    """The split asked for, or the only one. Raises UserError with the splits that are there."""
    known = available_splits(folder)
    listed = ", ".join(known) or "none"
    if split is None and len(known) != 1:
        raise UserError(f"{folder}: say which split to read, split: NAME. Splits with qrels: {listed}")
    if split is not None and split not in known:
        raise UserError(
            f"{folder}: no qrels for split {split!r}{did_you_mean(split, known)}. Splits with qrels: {listed}. "
            f"Give split: NAME, or add qrels/{split}.tsv or qrels_{split}.tsv"
        )
    return split if split is not None else known[0]


def _find(folder: Path, names: tuple[str, ...], faults: Faults) -> Path | None:
    for wanted in names:
        plain, packed = folder / wanted, folder / f"{wanted}.gz"
        if plain.is_file() and packed.is_file():
            faults.add(packed, 1, f"there is a {plain.name} too: remove one of the two")
        if plain.is_file() or packed.is_file():
            return plain if plain.is_file() else packed
    near = nearest(names[0], (p.name for p in folder.iterdir()), count=3)
    hint = f"; near names in the folder: {', '.join(near)}" if near else ""
    wanted = " or ".join(f"{n}(.gz)" for n in names)
    faults.add(folder, 1, f"no file {wanted}{hint}")
    return None


def read_texts(rows: Rows, where: object, faults: Faults, *, titled: bool) -> Mapping[str, str]:
    """Id -> text of the rows of a corpus (`titled`: title and text joined) or of queries."""
    texts = TextBuilder()
    line = 0
    for line, row in rows:
        key = identifier(row, ("_id", "id"), where, line, faults)
        text = text_of(row, "text", where, line, faults)
        title = optional_text(row, "title", where, line, faults) if titled else ""
        if key is None or text is None:
            continue
        if not titled and not text.strip():
            faults.add(where, line, f"query {key!r} is empty: give it a text or remove it")
        elif texts.add(key, join_title(title, text) if titled else text.strip()) != "new":
            faults.add(where, line, f"id {key!r} appears a second time: give every row an id of its own")
    if not len(texts) and not faults.count:
        faults.add(where, line or 1, f"holds no {'documents' if titled else 'queries'}")
    return texts.finish()


def qrels_rows(path: Path, faults: Faults) -> Rows:
    """The rows of a TSV of judgements by the columns' names, with or without a header."""
    names: list[str] | None = None
    for number, text in text_lines(path, faults):
        cells = [cell.strip() for cell in (text.split("\t") if "\t" in text else text.split())]
        if names is None:
            names = _trec_or_beir(cells)
            if number_of(cells[-1]) is None:
                names = cells
                missing = [name for name in QRELS_COLUMNS if name not in cells]
                if missing:
                    listed = ", ".join(f"`{name}`{did_you_mean(name, cells)}" for name in missing)
                    faults.add(path, number, f"no column {listed}; columns found: {', '.join(cells)}")
                    return
                continue
        if len(cells) != len(names):
            faults.add(
                path, number, f"{len(cells)} columns, needs {len(names)}: {', '.join(names)}, with a tab between them"
            )
            continue
        yield number, dict(zip(names, cells, strict=True))


def _trec_or_beir(cells: list[str]) -> list[str]:
    if len(cells) == 4:
        return ["query-id", "iteration", "corpus-id", "score"]
    return list(QRELS_COLUMNS)


def read_judgements(
    rows: Rows,
    where: object,
    faults: Faults,
    corpus: Mapping[str, str],
    queries: Mapping[str, str],
    say: Say,
) -> dict[str, dict[str, float]]:
    """Query id -> document id -> label. A judgement of a document or query that is not there is a fault."""
    qrels: dict[str, dict[str, float]] = {}
    # After a fault in the texts an unknown id would most often be that same fault again.
    whole = not faults.count
    unknown: dict[str, list[tuple[int, str]]] = {"document": [], "query": []}
    repeats = 0
    for line, row in rows:
        judgement = _judgement(row, where, line, faults)
        if judgement is None:
            continue
        query_id, document_id, label = judgement
        if query_id not in queries:
            unknown["query"].append((line, query_id))
        if document_id not in corpus:
            unknown["document"].append((line, document_id))
        judged = qrels.setdefault(query_id, {})
        if document_id in judged:
            repeats += 1
            if judged[document_id] != label:
                faults.add(
                    where,
                    line,
                    f"query {query_id!r} and document {document_id!r} are judged {label:g} here and "
                    f"{judged[document_id]:g} before: keep one of the two",
                )
            continue
        judged[document_id] = label
    if whole:
        for kind, found in unknown.items():
            _note_unknown(kind, found, where, faults)
    if repeats:
        say(f"{where}: {repeats:,} repeated judgements read once")
    return qrels


def _judgement(row: Row, where: object, line: int, faults: Faults) -> tuple[str, str, float] | None:
    query_id = identifier(row, ("query-id",), where, line, faults)
    document_id = identifier(row, ("corpus-id",), where, line, faults)
    value = column(row, ("score",), where, line, faults)
    label = number_of(value)
    if label is None and value is not None:
        faults.add(where, line, f"score {value!r} is not a number: labels are numbers, above 0 is relevant")
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
        f"{len(found):,} judgement(s) name a {kind} that is not in the {place}: {shown}{more}. "
        f"Add the missing rows to the {place}, or remove the judgements",
    )


def assemble(
    name: str,
    corpus: Mapping[str, str],
    queries: Mapping[str, str],
    qrels: Mapping[str, Mapping[str, float]],
    *,
    where: object,
    shared: bool,
    faults: Faults,
    say: Say,
) -> Collection:
    """The Collection, after the last checks; `shared` queries are kept when the qrels name them."""
    relevant = any(label > 0 for judged in qrels.values() for label in judged.values())
    if not relevant and not faults.count:
        faults.add(where, 1, "no query has a relevant document: give judgements with a score above 0")
    faults.check()
    kept = {q: text for q, text in queries.items() if q in qrels} if shared else queries
    if len(kept) < len(queries):
        say(f"{where}: {len(queries) - len(kept):,} of {len(queries):,} queries are of other splits: left out")
    unjudged = sum(q not in qrels for q in kept)
    if unjudged:
        say(f"{where}: {unjudged:,} of {len(kept):,} queries have no judgement")
    return Collection(name, corpus, kept, qrels)

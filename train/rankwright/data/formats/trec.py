"""Folders of TREC files: topics, qrels of four columns, and a corpus as JSONL, TSV or <DOC> records."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from rankwright.common.errors import UserError, did_you_mean
from rankwright.common.plurals import counted
from rankwright.data.collection import Collection
from rankwright.data.formats.beir import TOPICS, assemble, qrels_rows, read_judgements, read_texts
from rankwright.data.formats.reading import Reading, Rows, give_up, quiet, split_words
from rankwright.data.formats.text_rows import json_rows, text_lines

_CORPUS = re.compile(r"(?:corpus|collection|docs?|documents)\b.*", re.IGNORECASE)
_QRELS = re.compile(r".*qrels.*", re.IGNORECASE)
_RUN = re.compile(r"(?:.*[._-])?run\b.*", re.IGNORECASE)
_ID_NAMES = {"id", "_id", "qid", "docid", "docno", "pid", "query_id", "query-id", "doc_id"}
# Attributes are short: a file without any > must not be searched to its end from every <.
_TAG = re.compile(r"<(/?)([A-Za-z][A-Za-z0-9]*)\b[^<>]{0,1000}>")
_LABEL = re.compile(r"^\s*(?:Number|Topic|Description|Narrative)\s*:", re.IGNORECASE)
_PARAGRAPH = re.compile(r"</?P>", re.IGNORECASE)
_TOPIC_FIELDS = ("num", "title", "desc", "narr")
_TITLES = ("TITLE", "HEADLINE", "HEAD", "HL", "TTL", "TI")


def is_trec(folder: Path) -> bool:
    """Whether a folder has topics and qrels."""
    names = [path.name for path in folder.iterdir() if path.is_file()]
    return any(map(TOPICS.fullmatch, names)) and any(map(_QRELS.fullmatch, names))


def is_trec_name(name: str) -> bool:
    """Whether a file may be one of a folder of TREC files, by its name."""
    return any(pattern.fullmatch(name) for pattern in (TOPICS, _QRELS, _CORPUS, _RUN))


def trec_splits(folder: Path) -> list[str]:
    """The splits in the names of the files of judgements."""
    return sorted(
        {word for path in folder.iterdir() if "qrels" in path.name.lower() for word in split_words(path.name)}
    )


def run_file(folder: Path, split: str | None) -> Path | None:
    """The run file of a split, where the folder has one."""
    runs = [path for path in _files(folder, _RUN) if not TOPICS.fullmatch(path.name)]
    found = _of_split(runs, split)
    return found[0] if len(found) == 1 else None


def read_trec(folder: Path, reading: Reading) -> Collection:
    """Read one split of a folder of TREC files, each plain or .gz or .zst.

    `*topics*` or `queries*.tsv`: `id<TAB>text` lines, or `<top>` records, whose `title` is the query unless
    `columns: {query: desc}` names another field. `*qrels*`: query, iteration, document, label.
    `corpus*`, `collection*` or `docs*`: JSONL with `_id` (or `id`), `title`, `text`; lines `id<TAB>text` or
    `id<TAB>title<TAB>text`; or `<DOC>` records with DOCNO and TEXT. Files of several splits have the split in
    their names: `topics.test.tsv`, `qrels-test.txt`.
    Raises UserErrors with file and line of every fault.
    """
    other = [name for name in reading.columns if name != "query"]
    if other:
        raise UserError(f"{folder}: columns: a TREC folder takes `query` only (the field of <top>), not {other[0]!r}")
    topics_path = one_of(_files(folder, TOPICS), folder, "topics", reading.split)
    qrels_path = one_of(_files(folder, _QRELS), folder, "qrels", reading.split)
    corpus_path = one_of(_files(folder, _CORPUS), folder, "corpus", None)
    corpus = read_texts(_documents(corpus_path, reading), corpus_path, reading, titled=True)
    field = reading.columns.get("query", "title")
    queries = read_texts(_topics(topics_path, field, reading), topics_path, reading, titled=False)
    qrels = read_judgements(qrels_rows(qrels_path, reading), qrels_path, reading, corpus, queries)
    shared = not split_words(topics_path.name)
    return assemble(reading, corpus, queries, qrels, where=qrels_path, shared=shared)


def _files(folder: Path, pattern: re.Pattern[str]) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and pattern.fullmatch(path.name))


def _of_split(files: Sequence[Path], split: str | None) -> list[Path]:
    """The files with the split in their names, else those that name no split."""

    def names(path: Path) -> list[str]:
        return [*re.split(r"[._-]", path.name), *split_words(path.name)]

    named = [path for path in files if split is not None and split in names(path)]
    return named or [path for path in files if split is None or not split_words(path.name)]


def one_of(files: Sequence[Path], folder: Path, what: str, split: str | None) -> Path:
    """The file of a split among those of one part of a set. Raises UserError where there is none, or several."""
    found = _of_split(files, split)
    if len(found) == 1:
        return found[0]
    if not files:
        raise UserError(f"{folder}: no file of {what}, by its name: add one, such as {what}.tsv")
    names = ", ".join(path.name for path in files)
    near = did_you_mean(split, [s for path in files for s in split_words(path.name)]) if split is not None else ""
    wanted = f"one file of {what}" + (f" for split {split!r}{near}" if split is not None else "")
    raise UserError(f"{folder}: needs {wanted}, found {len(found)}. Files of {what}: {names}. Give split: NAME")


def _first(path: Path, encoding: str | None) -> str:
    """The first line that is not blank; faults are noted when the file is read."""
    return next((text.lstrip() for _, text in text_lines(path, quiet(encoding))), "")


def _topics(path: Path, field: str, reading: Reading) -> Rows:
    """Rows `_id, text` of topics."""
    faults = reading.faults
    if _first(path, reading.encoding).startswith("<"):
        for line, fields in _records(path, "top", reading):
            number, text = fields.get("num", ""), fields.get(field, "")
            if not number or not text:
                known = ", ".join(sorted(fields))
                faults.add(path, line, f"a topic without <{field if number else 'num'}>; fields found: {known}")
                continue
            yield line, {"_id": number, "text": text}
        return
    yield from _tab_rows(path, reading, most=2)


def _documents(path: Path, reading: Reading) -> Rows:
    """Rows `_id, title, text` of a corpus."""
    faults, start = reading.faults, _first(path, reading.encoding)
    if start.startswith("{"):
        yield from json_rows(path, reading)
    elif start.startswith("<"):
        for line, fields in _records(path, "doc", reading):
            title = next((fields[name.lower()] for name in _TITLES if fields.get(name.lower())), "")
            if not fields.get("docno") or "text" not in fields:
                missing = "TEXT" if fields.get("docno") else "DOCNO"
                faults.add(path, line, f"a document without <{missing}>; fields found: {', '.join(sorted(fields))}")
                continue
            yield line, {"_id": fields["docno"], "title": title, "text": fields["text"]}
    else:
        yield from _tab_rows(path, reading, most=3)


def _tab_rows(path: Path, reading: Reading, *, most: int) -> Rows:
    """Rows of `id<TAB>text`, or of `id<TAB>title<TAB>text` where `most` is 3; a header with such names is skipped."""
    faults, width = reading.faults, 0
    for number, line in text_lines(path, reading):
        cells = line.split("\t")
        if not width and cells[0].strip().lower() in _ID_NAMES:
            width = len(cells)
            continue
        width = width or len(cells)
        if len(cells) != width or not 2 <= len(cells) <= most:
            wanted = "id and text" if most == 2 else "id and text, or id, title and text"
            faults.add(path, number, f"{counted(len(cells), 'column')}, needs {wanted} with a tab between them")
            continue
        title = {"title": cells[1]} if len(cells) == 3 else {}
        yield number, {"_id": cells[0].strip(), **title, "text": cells[-1]}


def _records(path: Path, tag: str, reading: Reading) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, field -> text) of each <tag>...</tag>; a field ends at its closing tag, or where the next begins."""
    record: _Record | None = None
    faults, before = reading.faults, 0
    for number, line in text_lines(path, reading):
        if record is not None:
            # text_lines leaves out blank lines.
            record.parts += [""] * (number - before - 1)
        before, place = number, 0
        for found in _TAG.finditer(line):
            closing, word = bool(found[1]), found[2].lower()
            if word == tag:
                if record is not None and not closing:
                    faults.add(path, record.line, f"<{tag}> is not closed before the next one in line {number}")
                if record is not None and closing:
                    record.parts.append(line[place : found.start()])
                    record.end()
                    yield record.line, record.fields
                record, place = (None if closing else _Record(number, topic=tag == "top")), found.end()
            elif record is not None and record.ends_or_begins(word, closing):
                record.parts.append(line[place : found.start()])
                record.end()
                record.name, place = (None if closing else word), found.end()
        if record is not None:
            record.parts.append(line[place:])
        elif not _TAG.search(line):
            faults.add(path, number, f"text outside of <{tag}> records", kind=f"outside {tag}")
    if record is not None:
        give_up(faults, path, record.line, f"<{tag}> is never closed: the file is cut off")


class _Record:
    """A record being read; name: the open field, parts: its lines so far."""

    def __init__(self, line: int, *, topic: bool) -> None:
        self.line, self.topic = line, topic
        self.fields: dict[str, str] = {}
        self.name: str | None = None
        self.parts: list[str] = []

    def ends_or_begins(self, word: str, closing: bool) -> bool:
        """Whether a tag begins or ends a field. Inside a document's field only its own end counts."""
        if self.topic:
            return word in _TOPIC_FIELDS
        return not closing if self.name is None else closing and word == self.name

    def end(self) -> None:
        """Close the open field; fields of the same name are joined."""
        if self.name is not None:
            text = "\n".join(self.parts)
            text = _LABEL.sub("", text) if self.topic else _PARAGRAPH.sub("", text)
            before = self.fields.get(self.name)
            self.fields[self.name] = text.strip() if before is None else f"{before}\n{text.strip()}"
        self.name, self.parts = None, []

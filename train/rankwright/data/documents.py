"""Documents without queries: texts, Markdown, HTML, PDF and Python files, tables of rows, and the corpora of sets."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from rankwright.common.bounded import OutOfBounds, Refusal, run_bounded
from rankwright.common.errors import UserError
from rankwright.common.hashing import text_key
from rankwright.common.plurals import counted
from rankwright.common.resources import is_there, nearby
from rankwright.data.formats.compression import check_place
from rankwright.data.formats.encodings import ADVICE, open_text
from rankwright.data.formats.fields import ABSENT, at_path
from rankwright.data.formats.read import folder_kind, read_path
from rankwright.data.formats.reading import Reading, give_up
from rankwright.data.formats.tables import is_table, table_rows
from rankwright.data.formats.text_rows import json_rows
from rankwright.data.normalisation import is_blank

TEXTS, MARKDOWN, PAGES, PDF, CODE = (".txt", ".text"), (".md", ".markdown"), (".html", ".htm"), (".pdf",), (".py",)
SUFFIXES = (*TEXTS, *MARKDOWN, *PAGES, *PDF, *CODE)
# Columns of a row, the first that is there: ours for `columns` are title, document, document_id and group.
COLUMNS = {
    "document_id": ("_id", "id", "document_id", "doc_id", "docid"),
    "title": ("title", "heading", "name"),
    "document": ("text", "document", "passage", "body", "content", "contents", "abstract", "code"),
}
# Characters of a file: what is longer is not a document that people wrote.
LONGEST = 1 << 26
# A title is a line of at most so many words.
TITLE_WORDS = 16
PDF_SECONDS = 300.0
# Lines at the top and the foot of a page that may be a header or a footer.
EDGE_LINES = 2


@dataclass(frozen=True, slots=True)
class Document:
    """One document. id: unique in its source; title: "" where none is known; text: Markdown-like, headings on lines of
    their own; group: value of the group key, else the id: what must stay on one side of a split.
    """

    id: str
    title: str
    text: str
    group: str


def is_document(path: Path) -> bool:
    """Whether a file is one document, by its name."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def document_files(folder: Path) -> list[Path]:
    """The files of a folder and below it that are documents, sorted; hidden ones are left out."""
    found = [p for p in folder.rglob("*") if p.is_file() and is_document(p)]
    return sorted(p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts))


def holds_only_documents(path: Path) -> bool:
    """Whether a path holds documents that nobody has asked about: no table of rows, and no queries of a set."""
    if path.is_file():
        return is_document(path)
    if not path.is_dir():
        return False
    names = [p.name for p in path.iterdir()]
    if any(name.startswith("corpus.jsonl") for name in names):
        return not any(name.startswith(("queries", "qrels")) for name in names)
    files = [p for p in path.rglob("*") if p.is_file()]
    return bool(document_files(path)) and not any(map(is_table, files)) and folder_kind(path) is None


def read_documents(path: Path, reading: Reading) -> list[Document]:
    """The documents of a path, by id: a file, a folder of files, a table of rows, or the corpus of a set.

    Queries and judgements of a set are not read. Columns of rows are found by name (COLUMNS), or by `columns`. Equal
    texts are read once; empty ones are left out; both are reported.
    Raises UserErrors with file and line of every fault, and UserError where there is nothing to read.
    """
    found: dict[str, Document] = {}
    for document in stream_documents(path, reading):
        if document.id in found:
            reading.faults.add(path, 1, f"the id {document.id!r} appears a second time: give each document its own")
        found[document.id] = document
    return [found[key] for key in sorted(found)]


def stream_documents(path: Path, reading: Reading) -> Iterator[Document]:
    """read_documents() one by one, in the order of files and rows, whose ids are not compared; it raises at the end."""
    if not is_there(path):
        raise UserError(f"{path}: no such file or folder{nearby(path)}")
    check_place(path, folder=True)
    seen: set[bytes] = set()
    blank = equal = 0
    for document in _read(path, reading):
        if is_blank(document.text):
            blank += 1
        elif (text := text_key(document.text)) in seen:
            equal += 1
        else:
            seen.add(text)
            yield document
    reading.faults.check()
    for count, why in ((blank, "without text"), (equal, "with the text of another one")):
        if count:
            reading.say(f"{path}: {counted(count, 'document')} {why} left out")
    if not seen:
        raise UserError(f"{path}: no document found: give files ({', '.join(SUFFIXES)}), tables of rows, or a set")


def _read(path: Path, reading: Reading) -> Iterator[Document]:
    if path.is_file():
        yield from _file(path, path.name, reading)
        return
    kind = folder_kind(path)
    corpus = [p for p in sorted(path.glob("corpus.jsonl*")) if p.is_file()]
    if kind in (None, "beir") and corpus:
        yield from _rows(corpus[0], json_rows(corpus[0], reading), "", reading)
    elif kind is not None:
        collection = read_path(path, kind, reading)
        groups = collection.document_groups
        for key, text in collection.corpus.items():
            yield Document(key, *_first_line_is_title(text), groups.get(key, key))
    else:
        for file in sorted({*document_files(path), *(p for p in path.rglob("*") if p.is_file() and is_table(p))}):
            yield from _file(file, file.relative_to(path).as_posix(), reading)


def _file(path: Path, name: str, reading: Reading) -> Iterator[Document]:
    """The documents of a file; name: how ids call it."""
    suffix = path.suffix.lower()
    if not is_document(path):
        if not is_table(path):
            raise UserError(f"{path}: not a kind of file that is read: give {', '.join(SUFFIXES)}, or a table of rows")
        yield from _rows(path, table_rows(path, reading), f"{name}#", reading)
        return
    if reading.group_key is not None:
        reading.say(f"{path}: a file is a group of its own: it has no column {reading.group_key!r}")
    if suffix in PDF:
        title, text = pdf_text(path, reading)
    else:
        whole = _text(path, reading)
        if suffix in PAGES:
            title, text = html_text(whole)
        elif suffix in MARKDOWN:
            title, text = _markdown(whole)
        else:
            title, text = ("", whole) if suffix in CODE else _first_line_is_title(whole)
    yield Document(name, title, text, name)


def _text(path: Path, reading: Reading) -> str:
    with open_text(path, replace(reading, say=lambda line: None)) as file:
        data = file.read(LONGEST + 1)
        if len(data) > LONGEST:
            give_up(reading.faults, path, 1, f"more than {LONGEST >> 20} million bytes: split it into its documents")
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            reading.faults.add(path, line, f"not {file.encoding}: {ADVICE}")
            return ""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _rows(path: Path, rows: Iterator[tuple[int, Any]], prefix: str, reading: Reading) -> Iterator[Document]:
    """prefix: before the number of a row without an id."""
    for number, (line, row) in enumerate(rows, start=1):
        values = {ours: _value(row, ours, names, reading) for ours, names in COLUMNS.items()}
        if values["document"] is None:
            columns = ", ".join(map(str, list(row)[:10]))
            reading.faults.add(
                path, line, f"no text of a document: give `columns: {{document: NAME}}`; columns found: {columns}"
            )
            continue
        key = values["document_id"] or f"{prefix or path.name + '#'}{number}"
        group = key
        if reading.group_key is not None:
            found = at_path(row, reading.group_key)
            found = at_path(row, f"metadata.{reading.group_key}") if found is ABSENT else found
            if found is ABSENT or found is None:
                reading.faults.add(path, line, f"no group key {reading.group_key!r}: name a column that each row has")
                continue
            group = str(found)
        yield Document(key, (values["title"] or "").strip(), values["document"], group)


def _value(row: Any, ours: str, names: Sequence[str], reading: Reading) -> str | None:
    given = reading.columns.get(ours)
    for name in names if given is None else (given,):
        value = at_path(row, name)
        if value is not ABSENT and value is not None:
            return value if isinstance(value, str) else str(value)
    return None


def _first_line_is_title(text: str) -> tuple[str, str]:
    """(title, the rest) of a text whose first line looks like a title: short, and not a sentence."""
    first, _, rest = text.strip().partition("\n")
    words = first.split()
    if rest.strip() and 0 < len(words) <= TITLE_WORDS and first.strip()[-1] not in ".!?;,:":
        return first.strip(), rest.strip()
    return "", text.strip()


def _markdown(text: str) -> tuple[str, str]:
    """(title, text) of Markdown: the title is the first heading, where nothing stands before it, or the front matter's.

    Front matter and comments are left out.
    """
    title = ""
    if (front := re.match(r"---\n(.*?)\n---[ \t]*\n", text, re.DOTALL)) is not None:
        stated = re.search(r"^title:[ \t]*['\"]?(.+?)['\"]?[ \t]*$", front[1], re.MULTILINE)
        title, text = "" if stated is None else stated[1], text[front.end() :]
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL).strip()
    # The other form of headings: a line of = or - below.
    text = re.sub(r"^(?=\S)(.{1,120})\n(=|-){3,}[ \t]*$", _underlined, text, flags=re.MULTILINE)
    if (first := re.match(r"#[ \t]+(.+?)[ \t#]*(?:\n|$)", text)) is not None and not title:
        return first[1], text[first.end() :].strip()
    return title, text


def _underlined(match: re.Match[str]) -> str:
    return f"{'#' if match[2] == '=' else '##'} {match[1]}"


class _Page(HTMLParser):
    """The text of a page: headings as in Markdown, paragraphs apart; without scripts, menus and forms."""

    LEFT_OUT = frozenset("script style template noscript nav header footer aside form button select svg iframe".split())
    PARAGRAPHS = frozenset(
        "address article blockquote body dd div dl dt fieldset figure figcaption h1 h2 h3 h4 h5 h6 hr main ol p pre "
        "section table ul".split()
    )
    LINES = frozenset("br li tr caption option".split())

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.title, self.parts = "", list[str]()
        self._out = self._pre = 0
        self._in_title = False

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self._out += tag in self.LEFT_OUT
        self._pre += tag == "pre"
        self._in_title = self._in_title or tag == "title"
        if tag in self.PARAGRAPHS:
            self.parts.append("\n\n")
        elif tag in self.LINES:
            self.parts.append("\n- " if tag == "li" else "\n")
        elif tag in ("td", "th"):
            self.parts.append("\t")
        if re.fullmatch("h[1-6]", tag) and not self._out:
            self.parts.append("#" * int(tag[1]) + " ")

    def handle_endtag(self, tag: str) -> None:
        self._out = max(0, self._out - (tag in self.LEFT_OUT))
        self._pre = max(0, self._pre - (tag == "pre"))
        self._in_title = self._in_title and tag != "title"
        if tag in self.PARAGRAPHS:
            self.parts.append("\n\n")

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self.title += data
        elif not self._out:
            self.parts.append(data if self._pre else re.sub(r"\s+", " ", data))


def html_text(page: str) -> tuple[str, str]:
    """(title, text) of an HTML page: its `title`, else its first heading; see _Page."""
    parser = _Page()
    parser.feed(page)
    parser.close()
    text = re.sub(r"[ \t]*\n[ \t]*", "\n", "".join(parser.parts))
    text = re.sub(r"\n{3,}", "\n\n", text).strip()
    found, rest = _markdown(text)
    return (" ".join(parser.title.split()), text) if not found else (found, rest)


# Runs in a process of its own: a PDF decides how long it is read. Pages come back as texts.
_PAGES = """
import io, logging
from pypdf import PdfReader
logging.disable(logging.CRITICAL)

def ask(path):
    reader = PdfReader(path)
    if reader.is_encrypted and not reader.decrypt(""):
        return None
    return [page.extract_text() or "" for page in reader.pages]
"""


def pdf_text(path: Path, reading: Reading) -> tuple[str, str]:
    """(title, text) of a PDF: its pages in order, without headers and footers that come again.

    Words that a line's end cuts in two are joined. A PDF of images, a locked one and a broken one are faults.
    """
    try:
        import pypdf  # noqa: F401 - the child needs it
    except ImportError:
        raise UserError(f"{path}: PDF files need pypdf: pip install 'rankwright[documents]'") from None
    try:
        pages = run_bounded(_PAGES, str(path.resolve()), seconds=PDF_SECONDS)
    except Refusal:
        give_up(reading.faults, path, 1, "cannot be read as a PDF: write it again, or extract its text into .txt")
    except OutOfBounds:
        give_up(reading.faults, path, 1, "takes too long or too much memory to read: extract its text into .txt")
    if pages is None:
        give_up(reading.faults, path, 1, "is locked by a password: save it without")
    text = unicodedata.normalize("NFC", "\n\n".join(_without_edges(pages)))
    text = re.sub(r"(?<=[a-z])-\n(?=[a-z])", "", text)
    if is_blank(text):
        give_up(reading.faults, path, 1, "holds no text, only images: have the text recognised (OCR) first")
    return _first_line_is_title(text)


def _without_edges(pages: Sequence[str]) -> list[str]:
    """Pages without the first and last lines that most of them have, whatever numbers stand there."""
    lines = [[line for line in page.splitlines() if line.strip()] for page in pages]

    def key(line: str) -> str:
        return re.sub(r"\d+", "0", " ".join(line.split()))

    edges = Counter(key(line) for page in lines for line in {*page[:EDGE_LINES], *page[-EDGE_LINES:]})
    often = {line for line, count in edges.items() if count >= 3 and count > len(pages) / 2}
    kept = []
    for page in lines:
        last = len(page) - EDGE_LINES
        kept.append("\n".join(x for n, x in enumerate(page) if EDGE_LINES <= n < last or key(x) not in often))
    return kept

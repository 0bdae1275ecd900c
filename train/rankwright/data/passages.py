"""Documents in passages: split at headings and by length, with the headings that stand above each of them."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rankwright.common.hashing import stable_hash
from rankwright.data.blocks import HEADING, blocks
from rankwright.data.documents import CODE, Document
from rankwright.data.duplicates import find_duplicates
from rankwright.data.normalisation import words

# What is counted: words and signs; letters of scripts without spaces one by one.
UNIT = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\ua4cf\uf900-\ufaff\U00020000-\U0003ffff]|\w+|[^\w\s]"
)
# A heading is a line of at most so many words which is not a sentence.
HEADING_WORDS = 16
# What stands before the words of a heading: marks of Markdown, numbers such as `3.2.1` or `1.1.1.(2)`, `Article 4`.
_MARKS = re.compile(r"[ \t]*(?:#{1,6}[ \t]+|<h[1-6][^>]*>)?")
_NUMBER = re.compile(
    r"(?:(?P<word>article|section|chapter|part|title|schedule|annex|appendix|item|rule|§)[ \t]*)?"
    r"(?P<number>\d+(?:\.\d+)*[A-Za-z]?\.?(?:\(\w{1,4}\))*|(?<=\s)[ivxlc]+\b|(?<=\s)[A-Z]\b)[.:)\]]?(?=\s|$)[ \t]*"
    r"[-\u2013\u2014:]?[ \t]*",
    re.IGNORECASE,
)
# Runs of words that stand in more than this share of the documents, and in so many at least, are boilerplate.
RUN, SHARE, LEAST = 8, 0.01, 3


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a document. id: DOCUMENT, or DOCUMENT#n of several pieces, from 1; text: without its heading.

    title: the document's. heading: the words of the nearest heading, "" without one; number: that of its section, such
    as `3.2.1`; starts: whether the passage is the first one below that heading. group: what stays on one side.
    """

    id: str
    text: str
    title: str
    heading: str
    number: str
    starts: bool
    document: str
    group: str


def unit_starts(text: str) -> list[int]:
    """Where the words and signs of a text begin: what the length of passages is counted in."""
    return [match.start() for match in UNIT.finditer(text)]


def heading_of(line: str) -> tuple[str, str]:
    """(words, number) of a heading's line: `## 3.2 Capital requirements` has the words `Capital requirements`."""
    bare = re.sub(r"</h[1-6]>.*", "", line[_MARKS.match(line).end() :]).strip(" \t#*_")  # type: ignore[union-attr]
    number = ""
    if (match := _NUMBER.match(bare)) is not None:
        number, bare = (
            match["number"].rstrip(".)") if "(" not in match["number"] else match["number"],
            bare[match.end() :],
        )
    return bare.strip(), number


def _is_heading(line: str) -> bool:
    """Whether a line is a heading alone, and not the beginning of a numbered paragraph or a sentence."""
    found, _ = heading_of(line)
    if len(found.split()) > HEADING_WORDS:
        return False
    return not found or line.lstrip().startswith(("#", "<h")) or (found[0].isupper() and found[-1] not in ".;,:\u2014")


def passages_of(document: Document, most: int) -> list[Passage]:
    """The document in passages of at most `most` words and signs, which begin at headings; see data/blocks.py.

    A heading is taken off the text below it. A Python file is split into functions and classes.
    """
    if document.id.endswith(CODE):
        pieces = [(text, "", "", True) for text in _definitions(document.text)]
    else:
        pieces = list(_pieces(document, most))
    one = len(pieces) == 1
    return [
        Passage(
            document.id if one else f"{document.id}#{n}",
            text,
            document.title,
            heading,
            number,
            starts,
            document.id,
            document.group,
        )
        for n, (text, heading, number, starts) in enumerate(pieces, start=1)
    ]


def _pieces(document: Document, most: int) -> Iterator[tuple[str, str, str, bool]]:
    """(text, heading, its number, whether it is the first piece below the heading)."""
    # A record's title may be a number, such as a rule's.
    _, number = heading_of(document.title)
    heading, starts = "", False
    for begin, end in blocks(document.text, unit_starts(document.text), most):
        text = document.text[begin:end].strip()
        if HEADING.match(text) is not None:
            first, _, rest = text.partition("\n")
            if _is_heading(first):
                (heading, number), text = heading_of(first), rest.strip()
            else:
                # A numbered paragraph: its text begins on the line of its number.
                heading, number = "", heading_of(first)[1]
            starts = True
        if text:
            yield text, heading, number, starts
            starts = False


def _definitions(text: str) -> Iterator[str]:
    """The functions and classes of a Python file, methods on their own; the whole text where it is not Python."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        yield text
        return
    lines = text.splitlines()
    inner = [node for outer in tree.body for node in (outer.body if isinstance(outer, ast.ClassDef) else [outer])]
    found = [node for node in inner if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    for node in found:
        first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
        yield "\n".join(line[node.col_offset :] for line in lines[first - 1 : node.end_lineno])
    if not found:
        yield text


def held_out_groups(passages: Iterable[Passage], fraction: float, seed: int) -> set[str]:
    """The groups that are held out: by a hash with the seed, until they have the fraction of the passages.

    At least one group stays on each side.
    """
    sizes = Counter(passage.group for passage in passages)
    wanted, taken = fraction * sizes.total(), 0
    chosen: set[str] = set()
    for group in sorted(sizes, key=lambda g: (stable_hash("held out", seed, g), g)):
        if taken >= wanted or len(chosen) == len(sizes) - 1:
            break
        chosen.add(group)
        taken += sizes[group]
    return chosen


def askable(passages: Sequence[Passage], least: int, *, code: bool) -> tuple[list[Passage], Counter[str]]:
    """(passages that a query can be written for, why the others cannot: reason -> how many).

    Left out: fewer than `least` words; boilerplate, most of whose runs of words stand in many documents; and near
    duplicates of an earlier passage.
    """
    why: Counter[str] = Counter()
    runs: dict[str, set[int]] = {}
    in_documents: Counter[int] = Counter()
    by_document: dict[str, set[int]] = {}
    kept = []
    for passage in passages:
        found = words(passage.text)
        if len(found) < least:
            why["short"] += 1
            continue
        # Python's own hash: it lives in this process only.
        runs[passage.id] = {hash(tuple(found[n : n + RUN])) for n in range(max(1, len(found) - RUN + 1))}
        by_document.setdefault(passage.document, set()).update(runs[passage.id])
        kept.append(passage)
    for one in by_document.values():
        in_documents.update(one)
    often = max(LEAST, SHARE * len(by_document))
    many = {run for run, count in in_documents.items() if count > often}
    plain = [p for p in kept if len(runs[p.id] & many) <= len(runs[p.id]) / 2]
    why["boilerplate"] += len(kept) - len(plain)
    near = find_duplicates({p.id: p.text for p in plain}, code=code)
    again = {key for ids in (*near.exact, *near.near) for key in ids[1:]}
    why["near_duplicate"] += sum(p.id in again for p in plain)
    return [p for p in plain if p.id not in again], +why

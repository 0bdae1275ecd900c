"""A text as blocks of bounded size that begin at headings: for what is read of long documents, and for passages."""

from __future__ import annotations

import itertools
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence

# What is shorter than this share of a block, such as a heading, stays with what follows it.
SHORT = 0.25
# Where a piece may begin, the best places first: before a heading (Markdown, HTML, numbered or named as in laws), after
# an empty line, a line, a sentence (scripts without spaces have none after its mark), a word.
HEADING = re.compile(
    r"^(?=[ \t]*(?:#{1,6}[ \t]|<h[1-6]\b|(?:article|section|chapter|part|title|schedule|annex|appendix|item)[ \t]+"
    r"(?:\d|[ivxlc]+\b)|§|\d+(?:\.\d+)+\.?[ \t]+\S))",
    re.IGNORECASE | re.MULTILINE,
)
_AFTER = tuple(
    map(re.compile, (r"\n[ \t\r]*\n\s*", r"\n\s*", r"[.!?\u2026][\"'\u201d\u2019)\]]*\s+|[\u3002\uff01\uff1f]", r"\s+"))
)

Span = tuple[int, int]


def blocks(text: str, starts: Sequence[int], limit: int) -> list[Span]:
    """The text as blocks of at most `limit` of its tokens that follow each other without a gap.

    A heading begins a block. What is longer than a block is split at paragraphs, then lines, sentences, words and at
    last tokens; neighbours that fit into one block together are one.
    """
    heads = [match.start() for match in HEADING.finditer(text)]
    sections = itertools.pairwise([*dict.fromkeys((0, *heads)), len(text)])
    return [span for section in sections if section[0] < section[1] for span in _split(text, starts, section, 0, limit)]


def _split(text: str, starts: Sequence[int], span: Span, level: int, limit: int) -> Iterator[Span]:
    def size(begin: int, end: int) -> int:
        return bisect_left(starts, end) - bisect_left(starts, begin)

    begin, end = span
    if size(begin, end) <= limit:
        yield span
        return
    if level == len(_AFTER):
        while size(begin, end) > limit:
            # The tokens of one character begin at the same place.
            place = starts[bisect_left(starts, begin) + limit]
            middle = place if place > begin else starts[bisect_right(starts, begin)]
            yield begin, middle
            begin = middle
        yield begin, end
        return
    places = [match.end() for match in _AFTER[level].finditer(text, begin, end)]
    open_from = begin
    for one, two in itertools.pairwise([*dict.fromkeys((begin, *places, end))]):
        if size(open_from, two) <= limit:
            continue
        whole = size(one, two) <= limit
        if not whole and size(open_from, one) <= limit * SHORT:
            one = open_from
        if open_from < one:
            yield open_from, one
        open_from = one
        if not whole:
            yield from _split(text, starts, (one, two), level + 1, limit)
            open_from = two
    if open_from < end:
        yield open_from, end

"""What is read of a document beyond the budget: its beginning (`cut`), windows of all of it (`max`), its best `blocks`.

A pairwise student reads two documents as one (`pairwise`), and of each its beginning, to its share of the budget.

`max` scores every window, and the largest score is the document's: Dai and Callan 2019, arXiv 1905.09217. `blocks`
keeps the blocks that have most in common with the query, in the document's order: Li et al. 2021, arXiv 2111.09852.
Everything happens on texts: a window is scored as a document of its own, so a caller of any runtime can do the same.
"""

from __future__ import annotations

import functools
import itertools
import math
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from rankwright.data.blocks import Span, blocks
from rankwright.data.pair_texts import FIRST, middle_of
from rankwright.recipe.schema import Bm25, Prompt

if TYPE_CHECKING:
    from rankwright.data.words import Words

CUT_OFF, MAX, BLOCKS = "cut", "max", "blocks"
# Not a value of prompt.long_documents: a contract with it is that of a model that compares two documents.
PAIRWISE = "pairwise"
STRATEGIES = (CUT_OFF, MAX, BLOCKS, PAIRWISE)
# What a prompt of a training group holds of a document beyond the budget, for a sentence that counts them.
PART_READ = {
    CUT_OFF: "",
    MAX: " (to the window that BM25 finds best for the query)",
    BLOCKS: " (to the blocks that BM25 finds best for the query)",
    PAIRWISE: " (each of the two to its share)",
}
# The share of a window that the next one repeats, and the most tokens of a block.
OVERLAP = 0.15
BLOCK_TOKENS = 128
# Between two blocks that do not follow each other: a paragraph ends there.
GAP, GAP_TOKENS = "\n\n", 1
# Those of retrieval/bm25.py.
K1, B = 1.2, 0.75


@dataclass(frozen=True, slots=True)
class LongDocuments:
    """strategy: one of STRATEGIES. language, code: how BM25 reads words, as in the recipe's section `bm25`."""

    strategy: str = CUT_OFF
    language: str = "english"
    code: bool = False

    @classmethod
    def of(cls, prompt: Prompt, bm25: Bm25, *, is_pairwise: bool = False) -> LongDocuments:
        """What a recipe states; for `cut` no words are read, and the default stands for all of them."""
        if is_pairwise:
            return cls(PAIRWISE)
        if prompt.long_documents == CUT_OFF:
            return AS_CUT
        return cls(prompt.long_documents, bm25.language, bm25.code)

    @property
    def words(self) -> Words:
        """The words that BM25 counts."""
        return _words(self.language, self.code)

    def wrong(self) -> str | None:
        """What is wrong with the values; None where nothing is."""
        if self.strategy not in STRATEGIES:
            return f"strategy must be one of {', '.join(STRATEGIES)}"
        if type(self.code) is not bool:
            return "code must be true or false"
        if self.strategy != CUT_OFF:
            from rankwright.data.words import languages

            if self.language not in languages():
                return "language must be one that BM25 knows"
        return None


AS_CUT = LongDocuments()


@functools.cache
def _words(language: str, code: bool) -> Words:
    # Tenths of a second to import, which `cut` does not need.
    from rankwright.data.words import Words

    return Words(language, code=code)


class Tokens(NamedTuple):
    """ids: of a text; starts: the place of its character at which each token begins, never falling."""

    ids: list[int]
    starts: Sequence[int]

    @classmethod
    def of(cls, ids: list[int], offsets: Sequence[Span], skipped: int) -> Tokens:
        """skipped: characters of a text before it that was tokenised with it."""
        starts = list(itertools.accumulate((max(0, start - skipped) for start, _ in offsets), max))
        # White space that a tokenizer strips belongs to the first token.
        return cls(ids, [0, *starts[1:]] if starts else starts)


class Part(NamedTuple):
    """A text that is scored in place of a document, and its ids."""

    text: str
    ids: list[int]


Tokenise = Callable[[str], Tokens]


def windows(text: str, room: int, tokenise: Tokenise) -> list[Part]:
    """The text in windows of at most `room` tokens, without white space at their ends; one that fits is one window."""
    tokens = tokenise(text)
    if len(tokens.ids) <= room:
        return [Part(text, tokens.ids)]
    parts = (text[begin:end].strip() for begin, end in window_spans(text, tokens.starts, room, tokenise))
    return [Part(part, tokenise(part).ids) for part in parts if part]


def window_spans(text: str, starts: Sequence[int], room: int, tokenise: Tokenise) -> Iterator[Span]:
    """Where windows of at most `room` tokens lie, each of which begins with the last OVERLAP of the one before.

    A window is as many tokens as fit when it is tokenised alone, which may be fewer than in the whole text. None begins
    or ends inside a character; one character of more tokens than there is room for is a window, cut when it is scored.
    """
    overlap = math.ceil(OVERLAP * room)
    first = 0
    while True:
        begin, least = starts[first], bisect_right(starts, starts[first])
        last = max(least, min(first + room, len(starts)))
        while True:
            end = starts[last] if last < len(starts) else len(text)
            more = len(tokenise(text[begin:end].strip()).ids) - room
            if more <= 0 or last == least:
                break
            last = max(least, last - more)
        yield begin, end
        if last >= len(starts):
            return
        # The overlap is before the character that did not fit, of whose tokens some may have.
        first = max(bisect_left(starts, end) - overlap, least)


def halves(text: str, room: int, tokenise: Tokenise) -> Part:
    """A text of two documents (data/pair_texts.py) in at most `room` tokens, each cut to its share at its end.

    Half of the room is each one's own; what one of them leaves of it is the other's. The marks count as part of the
    documents. Any other text is cut at its end.
    """
    tokens, middle = tokenise(text), middle_of(text)
    if len(tokens.ids) <= room or middle is None:
        return Part(text, tokens.ids[:room])
    # At least the mark and one token more.
    least = len(tokenise(FIRST).ids) + 1
    first = bisect_left(tokens.starts, middle)
    second = len(tokens.ids) - first
    left = room
    while True:
        shorter = min(first, second, left // 2)
        kept = (left - shorter, shorter) if second <= first else (shorter, left - shorter)
        begin, end = kept[0], first + kept[1]
        shown = text[:middle] if begin >= first else text[: tokens.starts[begin]].rstrip()
        shown += text[middle:] if end >= len(tokens.ids) else text[middle : tokens.starts[end]].rstrip()
        ids = tokenise(shown).ids
        # A document that is cut may be a token more alone than inside the text.
        if len(ids) <= room or left <= 2 * least:
            return Part(shown, ids)
        left -= len(ids) - room


def window_count(tokens: int, room: int) -> int:
    """How many windows a document of so many tokens has, give or take one: a window alone may have a few more."""
    step = room - math.ceil(OVERLAP * room)
    return 1 if tokens <= room else 1 + math.ceil((tokens - room) / step)


def bm25_scores(query: Sequence[str], texts: Sequence[Sequence[str]]) -> list[float]:
    """BM25 of each text among these texts alone, in the form of retrieval/bm25.py; all arguments are words."""
    counts = [Counter(text) for text in texts]
    mean = sum(map(len, texts)) / max(1, len(texts))
    scores = [0.0] * len(texts)
    for word in query:
        having = [place for place, count in enumerate(counts) if word in count]
        idf = math.log(1 + (len(texts) - len(having) + 0.5) / (len(having) + 0.5))
        for place in having:
            tf = counts[place][word]
            scores[place] += idf * tf / (tf + K1 * (1 - B + B * len(texts[place]) / mean))
    return scores


def best_window(query: str, parts: Sequence[Part], words: Words) -> Part:
    """The window with the best BM25 score among those of its document, the first of equal ones.

    Where no window has a word of the query, that is the document's beginning, as it is cut.
    """
    if len(parts) == 1:
        return parts[0]
    scores = bm25_scores(words(query), [words(part.text) for part in parts])
    return parts[max(range(len(parts)), key=lambda place: (scores[place], -place))]


class Blocks:
    """A long document in blocks, with their words: what does not depend on a query."""

    def __init__(self, text: str, tokens: Tokens, words: Words) -> None:
        self.text = text
        self._spans = blocks(text, tokens.starts, BLOCK_TOKENS)
        # A block's tokens alone may be a few more than in the text: packed() counts again.
        self._sizes = [
            bisect_left(tokens.starts, end) - bisect_left(tokens.starts, begin) for begin, end in self._spans
        ]
        self._words = [words(text[begin:end]) for begin, end in self._spans]

    def tokens_to_best(self, query: Sequence[str]) -> int | None:
        """How much of the document the best block by BM25 needs, in tokens; None where no block has a word of it."""
        scores = bm25_scores(query, self._words)
        best = max(range(len(scores)), key=lambda place: (scores[place], -place))
        return sum(self._sizes[: best + 1]) if scores[best] > 0 else None

    def packed(self, query: Sequence[str], room: int, tokenise: Tokenise) -> Part:
        """The first block and the best others by BM25 that fit into `room` tokens, in the document's order.

        query: its words. Blocks of equal score, and those without a word of the query, are taken from the beginning.
        """
        scores = bm25_scores(query, self._words)
        chosen, used = [0], self._sizes[0]
        for place in sorted(range(1, len(scores)), key=lambda place: (-scores[place], place)):
            size = self._sizes[place] + GAP_TOKENS
            if used + size <= room:
                chosen.append(place)
                used += size
        while True:
            text = self._joined(sorted(chosen))
            ids = tokenise(text).ids
            if len(ids) <= room or len(chosen) == 1:
                return Part(text, ids)
            # The last one is the worst of them.
            chosen.pop()

    def _joined(self, places: Sequence[int]) -> str:
        runs: list[Span] = []
        for place in places:
            begin, end = self._spans[place]
            if runs and runs[-1][1] == begin:
                runs[-1] = runs[-1][0], end
            else:
                runs.append((begin, end))
        return GAP.join(self.text[begin:end].strip() for begin, end in runs).strip()

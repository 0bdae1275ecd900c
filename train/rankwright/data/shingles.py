"""Texts as the sets of shingles that duplicates.py compares: words of prose, tokens of code, words of a query."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from rankwright.data import normalisation
from rankwright.data.normalisation import folded, is_plain_word, plain

Hashes = npt.NDArray[np.uint64]

# Words, or tokens of code, in a shingle of a document (the size of Lee et al. 2022, "Deduplicating training data",
# and of most near-duplicate filters); of a query, which is ten times shorter, two.
DOCUMENT_SHINGLE = 5
QUERY_SHINGLE = 2
# A query of this many words is still the same question with one word replaced; a shorter one is not:
# "What was the change in total revenue / total sales between 2018 and 2019?" (12 words).
LONG_QUERY = 16
# In a long query one word in so many may differ.
WORDS_A_CHANGE = 20

# A comment begins only where no common language would continue the code: `#` and `--` are also flags and lengths, `//`
# a division and part of an address, `/*` part of a path. Strings come first: a mark inside a string begins nothing.
_CODE = re.compile(
    r"""
    (?P<string>'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*"|`(?:[^`\\\n]|\\.)*`)
    |(?P<comment>
        (?:(?<=\s)|(?<![\s\S]))\#(?=[\s#!]|$)[^\n]*
        |(?:(?<=[;{},]\ )|(?<=[;{},])|(?<![\s\S])|(?<=\n))[ \t]*//[^\n]*
        |(?:(?<=[\s;{},])|(?<![\s\S]))/\*[\s\S]*?\*/(?=[\s;,)}\]]|$)
        |(?<![\s\S])--\ [^\n]*|(?<=\n)--\ [^\n]*
    )
    |(?P<token>\w+|[^\w\s])
    """,
    re.VERBOSE | re.MULTILINE,
)

_ARTICLES = frozenset(("a", "an", "the"))
# Words that decide an answer: they may not differ, nor stand in another order.
_TURNING = frozenset(
    """not no nor non never none neither without except excluding including exclude include only but if unless until
    and or either both all any each every some more less fewer most least many few than at above below over under
    before after since between within outside inside up down from to in out on off first last next previous earlier
    later greater smaller larger bigger higher lower highest lowest largest smallest minimum maximum min max longer
    shorter newer older increase increased decrease decreased gain loss buy sell may must shall should can cannot
    who whom whose when where why how which what recursively non-recursively case-insensitive case-insensitively
    case-sensitive ascending descending percent percentage average mean median sum total net gross second seconds
    minute minutes hour hours day days week weeks month months quarter quarters year years""".split()
)
_EDGES = "\"'.,;:!?()[]{}"


def words(text: str) -> list[str]:
    """The words of prose, casefolded, without punctuation; each character of a script without spaces is one."""
    return list(map(folded, normalisation.words(text)))


def code_tokens(text: str) -> list[str]:
    """The tokens of code in any language, without comments and white space; a string is the tokens inside its quotes.

    Case counts (`Path` and `path`, `-r` and `-R` are two things). Docstrings stay: they are strings. Indentation is
    white space: two programs that differ in nothing else count as equal.
    """
    found: list[str] = []
    for match in _CODE.finditer(plain(text)):
        if match.lastgroup == "token":
            found.append(match.group())
        elif match.lastgroup == "string":
            found += [match.group()[0], *re.findall(r"\w+|[^\w\s]", match.group()[1:])]
    return found


def query_words(text: str) -> list[tuple[str, bool]]:
    """(word, whether it is fixed) of a query, without articles, and without punctuation around a word.

    Fixed are words that make it another question when they differ: with a digit, with a sign (a path, `*.txt`, `c++`),
    with a capital inside the sentence (a name), in quotes, and those that decide the answer (`not`, `or`, `before`).
    """
    found: list[tuple[str, bool]] = []
    quote, starts = "", True
    for raw in plain(text).split():
        # A point before a word belongs to it: `.yaml`, `./run`.
        bare = raw.rstrip(_EDGES).lstrip(_EDGES.replace(".", ""))
        opening = raw.lstrip("([{")[:1]
        if not quote and opening in ('"', "'", "`"):
            quote = opening
        word = folded(bare or raw)
        name = not starts and bare != bare.lower() and bare != "I"
        sign = not is_plain_word(bare)
        fixed = bool(quote) or name or sign or word in _TURNING
        if quote and raw.rstrip(".,;:!?)]}").endswith(quote) and (len(raw) > 1 or opening != quote):
            quote = ""
        starts = raw[-1] in ".!?:"
        # A mark on its own is punctuation, unless the query asks about it.
        if (bare or (fixed and raw not in ".!?")) and word not in _ARTICLES:
            found.append((word, fixed))
    return found or [(folded(plain(text)).strip(), True)]


def same_question(one: str, other: str) -> bool:
    """Whether two similar queries differ in few words and in no fixed one, and have their fixed words in one order."""
    ours, theirs = query_words(one), query_words(other)
    if [w for w, _ in ours] == [w for w, _ in theirs]:
        return True
    counts, others = (Counter(w for w, _ in found) for found in (ours, theirs))
    few = max(1, min(len(ours), len(theirs)) // WORDS_A_CHANGE)
    if (counts - others).total() > few or (others - counts).total() > few:
        return False
    our_words, their_words = set(counts), set(others)
    if any(fixed and w not in their_words for w, fixed in ours):
        return False
    if any(fixed and w not in our_words for w, fixed in theirs):
        return False
    # A word may be a name in one text only: words that are fixed in both must have the same order.
    both = {w for w, fixed in ours if fixed} & {w for w, fixed in theirs if fixed}
    return [w for w, _ in ours if w in both] == [w for w, _ in theirs if w in both]


class Vocabulary(dict[str, int]):
    """Token -> 64 bits of BLAKE2b, the same in every process; each distinct token is hashed once."""

    def __missing__(self, token: str) -> int:
        digest = hashlib.blake2b(token.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        self[token] = value = int.from_bytes(digest, "little")
        return value

    def of(self, tokens: Sequence[str]) -> Hashes:
        return np.fromiter(map(self.__getitem__, tokens), np.uint64, len(tokens))


def _windows(tokens: Hashes, size: int) -> Hashes:
    """A hash for each run of `size` tokens: a polynomial modulo 2^64 of their hashes."""
    count = len(tokens) - size + 1
    value = np.full(count, size, dtype=np.uint64)
    for start in range(size):
        value = value * np.uint64(0x9E3779B97F4A7C15) + tokens[start : start + count]
    return np.unique(value)


def prose_shingles(text: str, vocabulary: Vocabulary) -> Hashes:
    """Five-word shingles; a shorter text is one shingle, its words in any order; without words there is none."""
    tokens = vocabulary.of(words(text))
    if len(tokens) < DOCUMENT_SHINGLE:
        return _windows(np.sort(tokens), len(tokens)) if len(tokens) else tokens
    return _windows(tokens, DOCUMENT_SHINGLE)


def code_shingles(text: str, vocabulary: Vocabulary) -> Hashes:
    """Five-token shingles; code of fewer tokens is one shingle, its tokens in their order."""
    tokens = vocabulary.of(code_tokens(text))
    return _windows(tokens, min(DOCUMENT_SHINGLE, len(tokens))) if len(tokens) else tokens


def query_shingles(text: str, vocabulary: Vocabulary) -> Hashes:
    """Two-word shingles, beginning and end included, of a long query; a shorter one is one shingle, all its words."""
    tokens = [w for w, _ in query_words(text)]
    if len(tokens) < LONG_QUERY:
        return _windows(vocabulary.of(tokens), len(tokens))
    return _windows(vocabulary.of(["\x02", *tokens, "\x03"]), QUERY_SHINGLE)

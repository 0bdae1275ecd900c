"""The normal form in which search, slices, duplicates and leaks compare texts, and the words of such a text.

What the model reads stays as it is written.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from dataclasses import dataclass
from functools import cache

from rankwright.common.hashing import text_key

# Quotes, dashes and the fraction slash as a keyboard has them.
_KEYBOARD = dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2212", "-") | {"\u2044": "/"}
_KEYBOARD |= dict.fromkeys("\u2018\u2019\u02bc", "'") | dict.fromkeys("\u201c\u201d\u00ab\u00bb", '"')
# NFKC would make a trade mark the end of the word before it, and a fraction that of the number.
_FRACTIONS = map(chr, (*range(0xBC, 0xBF), *range(0x2150, 0x215F)))
_APART = dict.fromkeys("\u2122\u2120", " ") | {sign: f" {sign}" for sign in _FRACTIONS}
_TO_APART = re.compile(f"[{''.join(_APART)}]")
_ASCII_WORD, _ASCII_VISIBLE = re.compile(r"\w+"), re.compile("[!-~]")

# Letters and marks of scripts that put no spaces between words; SA are those of South East Asia (UAX 14).
_UNSPACED = r"[[\p{scx=Han}\p{scx=Hira}\p{scx=Kana}\p{scx=Bopo}\p{lb=SA}\p{Yi}\p{Bali}\p{Java}]&&[\p{L}\p{Nl}\p{M}]]"


@dataclass(frozen=True, slots=True)
class _Patterns:
    """dropped: what nobody sees, and what the keyboard has otherwise; visible: what a text consists of;
    token: a word, or a run of a script without spaces (named `run`); character: a letter with its marks;
    plain_word: letters with - and ' between them.
    """

    dropped: re.Pattern[str]
    visible: re.Pattern[str]
    token: re.Pattern[str]
    character: re.Pattern[str]
    plain_word: re.Pattern[str]


def _patterns_for(text: str) -> _Patterns:
    # `re` looks beyond the first plane range by range: only texts that are there pay for it.
    return _patterns(0x110000 if text and max(text) > "\uffff" else 0x10000)


@cache
def _patterns(end: int) -> _Patterns:
    """For characters below `end`, made when it is first needed: properties from `regex`, patterns of the quicker `re`.

    Importing `regex`, and asking it for every character, takes tenths of a second.
    """
    import regex

    every = "".join(map(chr, range(end)))

    def of(characters: str) -> str:
        """The inside of a character class of `re`."""
        runs = regex.finditer(f"[{characters}]+", every, regex.V1)
        return "".join(f"\\U{match.start():08x}-\\U{match.end() - 1:08x}" for match in runs)

    letters, marks = of(rf"[\p{{L}}\p{{N}}_]--{_UNSPACED}"), of(rf"[\p{{Mn}}\p{{Mc}}]--{_UNSPACED}")
    first, run, any_mark = of(rf"{_UNSPACED}--\p{{M}}"), of(_UNSPACED), of(r"\p{Mn}\p{Mc}")
    any_letter, cyrillic = of(r"\p{L}"), of(r"\p{Cyrillic}")
    ignorable, visible = of(r"\p{DI}"), of(r"^\s\p{Cc}\p{Cf}\p{DI}\u2800")
    word = f"[{any_letter}][{any_letter}{any_mark}]*"
    return _Patterns(
        # Only dictionaries write the stress of Cyrillic words.
        re.compile(f"[{ignorable}{''.join(_KEYBOARD)}]|(?<=[{cyrillic}])[\u0300\u0301]"),
        re.compile(f"[{visible}]"),
        re.compile(f"[{letters}][{letters}{marks}]*|(?P<run>[{first}][{run}]*)"),
        re.compile(f".[{any_mark}]*", re.DOTALL),
        re.compile(f"{word}(?:['-]{word})*"),
    )


def plain(text: str) -> str:
    """A text in NFKC, without what nobody sees, with quotes and dashes as a keyboard has them; ASCII stays as it is.

    Source: NFKC_Casefold of the Unicode Standard, 3.13.5, except for the case, quotes and dashes.
    """
    if text.isascii():
        return text
    text = unicodedata.normalize("NFKC", _TO_APART.sub(lambda match: _APART[match[0]], text))
    dropped, count = _patterns_for(text).dropped.subn(lambda match: _KEYBOARD.get(match[0], ""), text)
    # What is gone may have stood between a letter and its mark.
    return unicodedata.normalize("NFKC", dropped) if count else text


def folded(text: str) -> str:
    """A plain text without differences of case: ß is ss, and the Turkish İ is i."""
    if text.isascii():
        return text.lower()
    # Case folding takes some letters apart.
    return unicodedata.normalize("NFKC", text.casefold()).replace("i\u0307", "i")


def normalised(text: str) -> str:
    """A text without differences that do not count: plain, folded, white space collapsed."""
    return " ".join(folded(plain(text)).split())


def normalised_key(text: str) -> bytes:
    """16 bytes that stand for a normalised text, all that is held of many texts."""
    return text_key(normalised(text))


def is_blank(text: str) -> bool:
    """Whether a text has nothing that can be seen."""
    return _ASCII_VISIBLE.search(text) is None and _patterns_for(text).visible.search(text) is None


def is_plain_word(text: str) -> bool:
    """Whether a plain text is one word of letters, with no digit and no sign except - and ' inside it."""
    return _patterns_for(text).plain_word.fullmatch(text) is not None


def words(text: str, *, pairs: bool = False) -> list[str]:
    """The words of a text in order, in its plain form and its own case; a mark belongs to the letter before it.

    In scripts without spaces each letter, with its marks, is a word. pairs: so are two neighbours there, as search
    needs it (Nie et al. 2000: letters and pairs of Chinese find about as much as the words of a dictionary).
    """
    if text.isascii():
        return _ASCII_WORD.findall(text)
    text = plain(text)
    patterns = _patterns_for(text)
    found: list[str] = []
    for match in patterns.token.finditer(text):
        if match["run"] is None:
            found.append(match[0])
            continue
        characters = patterns.character.findall(match[0])
        found += characters
        if pairs:
            found += map("".join, itertools.pairwise(characters))
    return found

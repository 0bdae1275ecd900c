"""The words of a text as search counts them: stemmed, without stop words."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

import bm25s.stopwords
import Stemmer

from rankwright.common.errors import UserError, no_such
from rankwright.data.normalisation import folded, normalised, words

# camelCase | HTTPServer | snake_case
_SUB_WORD = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|_+")

# Lower case in languages that have rules of their own: in Turkish, I is \u0131 and \u0130 is i.
_FOLDS: dict[str, Callable[[str], str]] = {
    "turkish": lambda word: folded(word.translate({ord("I"): "\u0131", ord("\u0130"): "i"})),
}


def languages() -> list[str]:
    """Names that bm25 knows: those with a stemmer, and "none" for words as they are."""
    return ["none", *sorted(set(Stemmer.algorithms()) - {"porter", "dutch_porter"})]


def stop_words(language: str) -> frozenset[str]:
    """The words that bm25s leaves out for a language; empty where it has no list."""
    name = "STOPWORDS_EN" if language == "english" else f"STOPWORDS_{language.upper()}"
    return frozenset(getattr(bm25s.stopwords, name, ()))


class Words:
    """Text -> stemmed words in normal form, see normalisation.py, without stop words.

    In scripts without spaces, letters and pairs of neighbours; `code` adds the parts of camelCase and snake_case.
    """

    def __init__(self, language: str, *, code: bool = False) -> None:
        if language not in languages():
            raise UserError(no_such("language", language, languages()))
        stem = (lambda word: word) if language == "none" else Stemmer.Stemmer(language).stemWord
        # A corpus repeats its words: each is looked up and stemmed once.
        self._known = _Stems(stem, frozenset(map(normalised, stop_words(language))), _FOLDS.get(language, folded))
        self._code = code

    def __call__(self, text: str) -> list[str]:
        """The words of a text in order, repeated as often as they occur."""
        found = words(text, pairs=True)
        written = self._with_parts(found) if self._code else found
        return [word for word in map(self._known.__getitem__, written) if word is not None]

    @staticmethod
    def _with_parts(found: Iterable[str]) -> Iterator[str]:
        for whole in found:
            yield whole
            parts = [part for part in _SUB_WORD.split(whole) if part]
            if parts != [whole]:
                yield from parts


class _Stems(dict[str, "str | None"]):
    """A word as it is written -> its stem in lower case, None for a stop word; filled as words are asked for."""

    def __init__(self, stem: Callable[[str], str], stop: frozenset[str], fold: Callable[[str], str]) -> None:
        self._stem, self._stop, self._fold = stem, stop, fold

    def __missing__(self, written: str) -> str | None:
        lower = self._fold(written)
        self[written] = found = None if lower in self._stop else self._stem(lower)
        return found

"""Distinct texts that need not fit into memory: known by their keys, each read again when it is asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import overload

import numpy as np

# Texts that are read at once.
AT_ONCE = 4096


def text_key(text: str) -> bytes:
    """16 bytes that stand for a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16]


def get_many(texts: Mapping[str, str], ids: Sequence[str]) -> list[str]:
    """The texts of these ids; in one go where the mapping can (get_many of a TextStore)."""
    many = getattr(texts, "get_many", None)
    found: list[str] = [texts[i] for i in ids] if many is None else many(ids)
    return found


class KeyedTexts(Sequence[str]):
    """The distinct texts of a mapping, in the order of their keys: it depends on the texts alone.

    keys, lengths (characters) and ids (all that have the text) run in parallel and are what is held: about 300 bytes
    a document. chosen: only these ids.
    """

    def __init__(self, texts: Mapping[str, str], chosen: Iterable[str] | None = None) -> None:
        self._texts = texts
        found: dict[bytes, list[str]] = {}
        lengths: dict[bytes, int] = {}
        for identifier, text in texts.items() if chosen is None else read_some(texts, chosen):
            key = text_key(text)
            found.setdefault(key, []).append(identifier)
            lengths[key] = len(text)
        self.keys = sorted(found)
        self.ids = [found[key] for key in self.keys]
        self.lengths = np.fromiter((lengths[key] for key in self.keys), dtype=np.int64, count=len(lengths))

    @classmethod
    def of(cls, texts: Iterable[str]) -> KeyedTexts:
        """Of texts that are in memory anyway."""
        return texts if isinstance(texts, cls) else cls({text: text for text in texts})

    def __len__(self) -> int:
        return len(self.keys)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            return self.take(range(len(self))[place])
        return self._texts[self.ids[place][0]]

    def take(self, places: Sequence[int]) -> list[str]:
        """The texts at these places."""
        return get_many(self._texts, [self.ids[place][0] for place in places])

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), AT_ONCE):
            yield from self[start : start + AT_ONCE]


def read_some(texts: Mapping[str, str], ids: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(id, text) of these ids, in their order, streaming."""
    rest = iter(ids)
    while some := list(islice(rest, AT_ONCE)):
        yield from zip(some, get_many(texts, some), strict=True)


class Joined(Mapping[str, str]):
    """Several corpora as one: NUMBER/ID, for the place of the corpus and its own id."""

    def __init__(self, corpora: Sequence[Mapping[str, str]]) -> None:
        self.corpora = corpora

    def _split(self, identifier: str) -> tuple[int, str]:
        number, _, rest = identifier.partition("/")
        return int(number), rest

    def __getitem__(self, identifier: str) -> str:
        number, rest = self._split(identifier)
        return self.corpora[number][rest]

    def __len__(self) -> int:
        return sum(map(len, self.corpora))

    def __iter__(self) -> Iterator[str]:
        return (f"{number}/{identifier}" for number, corpus in enumerate(self.corpora) for identifier in corpus)

    def get_many(self, identifiers: Sequence[str]) -> list[str]:
        """The texts of these ids, those of one corpus in one go."""
        texts = [""] * len(identifiers)
        wanted: dict[int, list[tuple[int, str]]] = {}
        for place, identifier in enumerate(identifiers):
            number, rest = self._split(identifier)
            wanted.setdefault(number, []).append((place, rest))
        for number, pairs in wanted.items():
            for (place, _), text in zip(pairs, get_many(self.corpora[number], [d for _, d in pairs]), strict=True):
                texts[place] = text
        return texts

"""Views of stored texts that copy nothing: distinct texts by their keys, and mappings under a prefix."""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterable, Iterator, Mapping, Sequence, ValuesView
from itertools import islice
from typing import TypeVar, overload

import numpy as np

from rankwright.common.hashing import text_key

V = TypeVar("V")
# Texts that are read together.
AT_ONCE = 4096


class StreamedItems(ItemsView[str, V]):
    """The items of a mapping as `stream()` yields them: one pass, where a look-up per key would be slow."""

    def __init__(self, mapping: Mapping[str, V], stream: Callable[[], Iterator[tuple[str, V]]]) -> None:
        super().__init__(mapping)
        self._stream = stream

    def __iter__(self) -> Iterator[tuple[str, V]]:
        return self._stream()


class StreamedValues(ValuesView[V]):
    """The values of a mapping, as StreamedItems."""

    def __init__(self, mapping: Mapping[str, V], stream: Callable[[], Iterator[V]]) -> None:
        super().__init__(mapping)
        self._stream = stream

    def __iter__(self) -> Iterator[V]:
        return self._stream()


def get_many(texts: Mapping[str, str], ids: Sequence[str]) -> list[str]:
    """The texts of these ids, in one go where the mapping has get_many, as a TextStore has."""
    many = getattr(texts, "get_many", None)
    found: list[str] = [texts[i] for i in ids] if many is None else many(ids)
    return found


class KeyedTexts(Sequence[str]):
    """The distinct texts of a mapping, in the order of their keys: it depends on the texts alone.

    keys, lengths (characters) and ids (all that have the text) run in parallel; only they are held, about 300 bytes
    per document. chosen: only these ids.
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
        """The distinct ones of texts that are in memory."""
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


class Prefixed(Mapping[str, V]):
    """The same values under PREFIX + key."""

    def __init__(self, values: Mapping[str, V], prefix: str) -> None:
        self.of, self.prefix = values, prefix

    def __getitem__(self, key: str) -> V:
        if not key.startswith(self.prefix):
            raise KeyError(key)
        return self.of[key[len(self.prefix) :]]

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and key.startswith(self.prefix) and key[len(self.prefix) :] in self.of

    def __len__(self) -> int:
        return len(self.of)

    def __iter__(self) -> Iterator[str]:
        return (self.prefix + key for key in self.of)

    def items(self) -> ItemsView[str, V]:
        """(PREFIX + key, value), streaming."""
        return StreamedItems(self, lambda: ((self.prefix + key, value) for key, value in self.of.items()))

    def values(self) -> ValuesView[V]:
        """The values, streaming."""
        return self.of.values()


class PrefixedTexts(Prefixed[str]):
    """Texts of a corpus under PREFIX + id."""

    def get_many(self, keys: Sequence[str]) -> list[str]:
        """The texts under these keys, which must all exist."""
        return get_many(self.of, [key.removeprefix(self.prefix) for key in keys])


class PrefixedQrels(Prefixed[Mapping[str, float]]):
    """Judgements under PREFIX + query id, with PREFIX + document id."""

    def _row(self, row: Mapping[str, float]) -> dict[str, float]:
        return {self.prefix + document_id: value for document_id, value in row.items()}

    def __getitem__(self, key: str) -> dict[str, float]:
        return self._row(super().__getitem__(key))

    def items(self) -> ItemsView[str, Mapping[str, float]]:
        """(PREFIX + query id, its row), streaming."""
        return StreamedItems(self, lambda: ((self.prefix + key, self._row(row)) for key, row in self.of.items()))

    def values(self) -> ValuesView[Mapping[str, float]]:
        """The rows, one made after another."""
        return ValuesView(self)

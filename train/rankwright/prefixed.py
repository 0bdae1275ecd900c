"""Mappings under PREFIX + key: nothing is copied, so what lies in a file stays there."""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterator, Mapping, Sequence, ValuesView
from typing import TypeVar

from rankwright.keyed_texts import get_many

V = TypeVar("V")


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
        return _PrefixedItems(self)

    def values(self) -> ValuesView[V]:
        """The values, streaming."""
        return self.of.values()


class PrefixedTexts(Prefixed[str]):
    """Texts of a corpus under PREFIX + id."""

    def get_many(self, keys: Sequence[str]) -> list[str]:
        """The texts of these, which must all be there."""
        return get_many(self.of, [key.removeprefix(self.prefix) for key in keys])


class PrefixedQrels(Prefixed[Mapping[str, float]]):
    """Judgements under PREFIX + query id, of PREFIX + document id."""

    def _row(self, row: Mapping[str, float]) -> dict[str, float]:
        return {self.prefix + document_id: value for document_id, value in row.items()}

    def __getitem__(self, key: str) -> dict[str, float]:
        return self._row(super().__getitem__(key))

    def items(self) -> ItemsView[str, Mapping[str, float]]:
        """(PREFIX + query id, its row), streaming."""
        return _PrefixedItems(self, self._row)

    def values(self) -> ValuesView[Mapping[str, float]]:
        """The rows, one made after another."""
        return ValuesView(self)


class _PrefixedItems(ItemsView[str, V]):
    _mapping: Prefixed[V]

    def __init__(self, mapping: Prefixed[V], convert: Callable[[V], V] | None = None) -> None:
        super().__init__(mapping)
        self._convert = convert

    def __iter__(self) -> Iterator[tuple[str, V]]:
        prefix, convert = self._mapping.prefix, self._convert
        rows = self._mapping.of.items()
        return ((prefix + key, value if convert is None else convert(value)) for key, value in rows)

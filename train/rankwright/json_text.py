"""JSON as it is read everywhere: strict about what Python's parser lets pass or dies of."""

from __future__ import annotations

import json
from typing import Any


class Json:
    """A parser that refuses an object with one key twice (Python keeps the last) and nesting without end."""

    def __init__(self) -> None:
        self._doubled: list[str] = []
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        row = dict(pairs)
        if len(row) < len(pairs):
            names = [name for name, _ in pairs]
            self._doubled += [name for name in row if names.count(name) > 1]
        return row

    def decode(self, text: str) -> Any:
        """The value that a text holds. Raises ValueError."""
        value, end = self.decode_at(text, len(text) - len(text.lstrip()))
        if text[end:].strip():
            raise json.JSONDecodeError("Extra data", text, end)
        self.refuse_doubled()
        return value

    def decode_at(self, text: str, start: int) -> tuple[Any, int]:
        """(value, end) of the value that starts there; ask refuse_doubled afterwards. Raises ValueError."""
        self._doubled.clear()
        try:
            return self._decoder.raw_decode(text, start)
        except RecursionError:
            raise ValueError("nested too deeply") from None

    def refuse_doubled(self) -> None:
        """Raise ValueError when the value that was decoded last has a key twice."""
        if self._doubled:
            raise ValueError(f"the key {self._doubled[0]!r} stands twice in one object")

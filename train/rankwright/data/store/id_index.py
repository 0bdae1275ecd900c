"""From ids to rows: 64-bit hashes of the ids in ascending order, in memory or mapped from a file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

# Hashes in a dict before they are sorted into the arrays: a dict takes six times their room.
RECENT_IDS = 262_144


def id_hash(identifier: str) -> int:
    """64 bits that stand for an id; the caller tells ids that share them apart by their text."""
    digest = hashlib.blake2b(identifier.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


class IdIndex:
    """Hash of an id -> rows: 16 bytes per row in two sorted arrays, and the newest rows in a dict.

    hashes, rows: uint64 [rows] of an index that was saved, by ascending hash; by default the index is empty.
    """

    def __init__(self, hashes: Any = None, rows: Any = None) -> None:
        self.hashes: Any = np.empty(0, dtype=np.uint64) if hashes is None else hashes
        self.rows: Any = np.empty(0, dtype=np.uint64) if rows is None else rows
        self._recent: dict[int, int] = {}
        # (hash, row) of new rows whose hash another new row has already.
        self._collisions: list[tuple[int, int]] = []

    def add(self, identifier: str, row: int) -> None:
        """Note that a row has this id."""
        hashed = id_hash(identifier)
        if self._recent.setdefault(hashed, row) != row:
            self._collisions.append((hashed, row))
        if len(self._recent) + len(self._collisions) >= RECENT_IDS:
            self._settle()

    def find(self, identifier: str) -> Iterator[int]:
        """The rows whose id has the hash of this one: one, none, or several after a collision."""
        hashed = id_hash(identifier)
        if hashed in self._recent:
            yield self._recent[hashed]
            yield from (row for other, row in self._collisions if other == hashed)
        # Anything but uint64 would have numpy copy the whole array to a common type.
        place = int(self.hashes.searchsorted(np.uint64(hashed)))
        while place < len(self.hashes) and int(self.hashes[place]) == hashed:
            yield int(self.rows[place])
            place += 1

    def _settle(self) -> None:
        """Sort the newest rows into the arrays."""
        pairs = [*self._recent.items(), *self._collisions]
        self._recent, self._collisions = {}, []
        new: Any = np.array(pairs, dtype=np.uint64).reshape(-1, 2)
        new = new[np.argsort(new[:, 0], kind="stable")]
        places = np.searchsorted(self.hashes, new[:, 0], side="right")
        self.rows = np.insert(self.rows, places, new[:, 1])
        self.hashes = np.insert(self.hashes, places, new[:, 0])

    def save(self, path: Path) -> None:
        """Write uint64 [2, rows]: the hashes, and the rows that have them."""
        self._settle()
        with path.open("wb") as file:
            shape = (2, len(self.hashes))
            np.lib.format.write_array_header_1_0(file, {"descr": "<u8", "fortran_order": False, "shape": shape})
            self.hashes.astype("<u8", copy=False).tofile(file)
            self.rows.astype("<u8", copy=False).tofile(file)
            file.flush()
            os.fsync(file.fileno())

"""Scores of (query, document) pairs on the disk: made once by the same reranker, in files that survive a kill."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rankwright.atomic import atomic_file
from rankwright.kept_files import make_cache_folder, read_kept

KEY_BYTES = 16
# Raw bytes, not text: numpy cuts zeros off the end of text.
_ROW = np.dtype([("key", f"V{KEY_BYTES}"), ("score", "<f8")])


def pair_key(query: str, document: str) -> bytes:
    """16 bytes that stand for a pair; the texts themselves are not kept."""
    # As JSON no two pairs look alike, and a text that is no valid Unicode still has bytes.
    return hashlib.sha256(json.dumps([query, document]).encode("ascii")).digest()[:KEY_BYTES]


class PairScores:
    """A folder of files `HASH.npy`, each with the keys and scores of the pairs that were scored together.

    The caller names the folder after all that decides a score but the pair's texts. Files appear whole or not at
    all, and one that exists is never changed: any number of processes may read and write at once.
    """

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        """Raises UserError where nothing can be kept."""
        self.folder = folder
        self._say = say
        self._read: set[str] = set()
        self._scores: dict[bytes, float] = {}
        make_cache_folder(folder, "a teacher's scores")
        self.look()

    def look(self) -> None:
        """Read what other processes have written since. Raises UserError for a file that the disk does not give."""
        for path in sorted(self.folder.glob("*.npy")):
            if path.name not in self._read:
                self._add(path)

    def _add(self, path: Path) -> None:
        found = read_kept(path, _scores_in, self._say, "its pairs are scored again")
        if found is None:
            return
        self._read.add(path.name)
        for key, score in found.items():
            self._scores.setdefault(key, score)

    def find(self, key: bytes) -> float | None:
        """The score, exactly as it was added, or None."""
        return self._scores.get(key)

    def add(self, scores: Mapping[bytes, float]) -> None:
        """Keep these; they are on the disk when this returns."""
        rows = np.zeros(len(scores), dtype=_ROW)
        rows["key"] = np.frombuffer(b"".join(scores), dtype=f"V{KEY_BYTES}")
        rows["score"] = list(scores.values())
        # By its keys: two processes that score the same pairs at the same time keep one file.
        name = f"{hashlib.sha256(b''.join(scores)).hexdigest()[:32]}.npy"
        with atomic_file(self.folder / name) as draft, draft.open("xb") as file:
            np.save(file, rows)
        self._read.add(name)
        self._scores.update(scores)


def _scores_in(path: Path) -> dict[bytes, float]:
    rows: Any = np.load(path, allow_pickle=False)
    found = dict(zip((key.tobytes() for key in rows["key"]), rows["score"].tolist(), strict=True))
    if rows.dtype != _ROW or not np.isfinite(rows["score"]).all():
        raise ValueError("holds no scores")
    return found

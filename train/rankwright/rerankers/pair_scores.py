"""Scores of (query, document) pairs on the disk: made or paid for once, in files that survive a kill.

ScoreCache holds the answers of a server in one file that grows by each answer; PairScores holds what processes compute
at the same time, in files that never change.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rankwright.common.errors import UserError
from rankwright.common.files import append_lines, json_line, make_cache_folder, read_kept, write_kept
from rankwright.common.outputs import SEAL, sealed, unsealed
from rankwright.data.store.rows import read_query_rows

KEY_BYTES = 16
_START = b'{"key": "'


def _bytes_of(*texts: str) -> bytes:
    # As JSON no two lists of texts are the same, and a text with half a surrogate pair still has bytes.
    return json.dumps(texts).encode("ascii")


def score_key(endpoint: str, shape: str, model: str, query: str, document: str) -> str:
    """32 hexadecimal digits that stand for one score of a server; the texts themselves are not kept."""
    return hashlib.blake2b(_bytes_of(endpoint, shape, model, query, document), digest_size=KEY_BYTES).hexdigest()


def pair_key(query: str, document: str) -> bytes:
    """16 bytes that stand for a pair; the texts themselves are not kept."""
    return hashlib.sha256(_bytes_of(query, document)).digest()[:KEY_BYTES]


class ScoreCache:
    """JSON lines {"key": ..., "score": ..., "seal": ...}, read whole at the start and appended to.

    A line that a kill cut short, or that no longer fits its seal, is counted in `damaged_lines` and its score is asked
    for again. Several processes may append to one file of a local disk; each sees what was there when it started.
    """

    def __init__(self, path: Path) -> None:
        """Raises UserError for a file that holds anything else, so that nothing is appended to it."""
        self.path = path
        self.damaged_lines = 0
        self._scores: dict[str, float] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                self._read()
        except OSError as error:
            raise UserError(f"{path}: cannot be used as the cache of scores: {error.strerror}") from None

    def _read(self) -> None:
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                found = _parse(line)
                if found is not None:
                    self._scores[found[0]] = found[1]
                elif line.startswith(_START) or _START.startswith(line.rstrip(b"\n")):
                    self.damaged_lines += line != b"\n"
                else:
                    raise UserError(f"{self.path}:{number}: not a line of a cache of scores: name another file")

    def find(self, key: str) -> float | None:
        """The score, exactly as it was added, or None."""
        return self._scores.get(key)

    def add(self, scores: Mapping[str, float]) -> None:
        """Keep these; they are on the disk when this returns."""
        append_lines(self.path, (json.dumps(sealed({"key": key, "score": s})) for key, s in scores.items()))
        self._scores.update(scores)


def _parse(line: bytes) -> tuple[str, float] | None:
    try:
        row = json.loads(line)
        # Answers of earlier versions have no seal, and were paid for.
        row = unsealed(row) if SEAL in row else row
        key, score = row["key"], row["score"]
    except (ValueError, KeyError, TypeError):
        return None
    good = isinstance(key, str) and isinstance(score, float) and math.isfinite(score) and len(row) == 2
    return (key, score) if good else None


# Raw bytes, not text: numpy cuts zeros off the end of text.
_ROW = np.dtype([("key", f"V{KEY_BYTES}"), ("score", "<f8")])


class PairScores:
    """A folder of files of write_kept, each with the keys and scores of the pairs that were scored together.

    The folder's name stands for all that decides a score beside the pair's texts. Files appear whole or not at all, and
    an existing one never changes: any number of processes may read and write at once.
    """

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        """Raises UserError where nothing can be kept."""
        self.folder = folder
        self._say = say
        self._read: set[str] = set()
        self._scores: dict[bytes, float] = {}
        make_cache_folder(folder, "scores of pairs")
        self.look()

    def look(self) -> None:
        """Read what other processes have written since. Raises UserError for a file that the disk fails to read."""
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
        # Two processes that score the same pairs at the same time keep one file.
        self._read.add(write_kept(self.folder, scores, rows).name)
        self._scores.update(scores)


def _scores_in(path: Path) -> dict[bytes, float]:
    rows: Any = np.load(path, allow_pickle=False)
    found = dict(zip((key.tobytes() for key in rows["key"]), rows["score"].tolist(), strict=True))
    if rows.dtype != _ROW or not np.isfinite(rows["score"]).all():
        raise ValueError("holds no scores")
    return found


def read_teacher_scores(path: Path) -> Mapping[str, Mapping[str, float]]:
    """The rows of teacher_line: query id -> document id -> raw score; a large file is read row by row when asked.

    Raises UserError for a damaged file.
    """
    return read_query_rows(path, "scores", lambda rows: dict(_score(**row) for row in rows))


def teacher_line(query_id: str, scores: Mapping[str, float]) -> str:
    """A row of teacher.jsonl: `query_id, scores: [{document_id, score}]`."""
    return json_line({"query_id": query_id, "scores": [{"document_id": d, "score": s} for d, s in scores.items()]})


def _score(*, document_id: str, score: float) -> tuple[str, float]:
    return document_id, float(score)

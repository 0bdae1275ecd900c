"""Scores that were paid for once: an append-only file that survives a kill at any moment."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

from rankwright.errors import UserError

_START = b'{"key": "'


def score_key(endpoint: str, shape: str, model: str, query: str, document: str) -> str:
    """32 hexadecimal digits that stand for one score; the texts themselves are not kept."""
    # As JSON no two lists of texts look alike, and a text that is no valid Unicode still has bytes.
    text = json.dumps([endpoint, shape, model, query, document])
    return hashlib.blake2b(text.encode("ascii"), digest_size=16).hexdigest()


class NoCache:
    """Keeps nothing."""

    def find(self, key: str) -> float | None:
        """Always None."""
        return None

    def add(self, scores: Mapping[str, float]) -> None:
        """Does nothing."""


class ScoreCache(NoCache):
    """JSON lines {"key": ..., "score": ...}, read whole at the start and appended to.

    A line that a kill cut short is counted in `damaged_lines` and its score is asked for again. Several processes
    may append to one file of a local disk; each sees what was there when it started.
    """

    def __init__(self, path: Path) -> None:
        """Raises UserError for a file that holds anything else, so that nothing is appended to it."""
        self.path = path
        self.damaged_lines = 0
        self._scores: dict[str, float] = {}
        self._cut = False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                self._read()
        except OSError as error:
            raise UserError(f"{path}: cannot be used as the cache of scores: {error.strerror}") from None

    def _read(self) -> None:
        line = b"\n"
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                found = _parse(line)
                if found is not None:
                    self._scores[found[0]] = found[1]
                elif line.startswith(_START) or _START.startswith(line.rstrip(b"\n")):
                    self.damaged_lines += line != b"\n"
                else:
                    raise UserError(f"{self.path}:{number}: not a line of a cache of scores: name another file")
        self._cut = not line.endswith(b"\n")

    def find(self, key: str) -> float | None:
        """The score, exactly as it was added, or None."""
        return self._scores.get(key)

    def add(self, scores: Mapping[str, float]) -> None:
        """Keep these; they are on the disk when this returns."""
        lines = "".join(json.dumps({"key": key, "score": score}) + "\n" for key, score in scores.items())
        # What a writer left unfinished must not swallow the first new line: so it is if this one fails, too.
        cut, self._cut = self._cut, True
        with self.path.open("ab") as file:
            file.write(b"\n" * cut + lines.encode("ascii"))
            file.flush()
            os.fsync(file.fileno())
        self._cut = False
        self._scores.update(scores)


def _parse(line: bytes) -> tuple[str, float] | None:
    try:
        row = json.loads(line)
        key, score = row["key"], row["score"]
    except (ValueError, KeyError, TypeError):
        return None
    good = isinstance(key, str) and isinstance(score, float) and math.isfinite(score) and len(row) == 2
    return (key, score) if good else None

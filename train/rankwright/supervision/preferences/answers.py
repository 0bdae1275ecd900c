"""answers.jsonl: what judges answered, by the content of the question; bought once, and never written over."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rankwright.common.errors import UserError
from rankwright.common.files import append_lines
from rankwright.common.outputs import sealed, unsealed
from rankwright.supervision.preferences.judges import Reply

_START = b'{"hash": "'


class AnswerFile:
    """Rows `hash, judge, query, order, t, tokens, seal`, and `said` of a malformed answer, whose t is null.
    Those of a student have `orders` too, see judges.Reply.

    hash: Judge.key; order: ids of the documents, as they were shown. A row that no longer fits its seal is counted in
    `damaged`, and asked for again. The half row that a kill left is removed, so that the file goes on as it would have.
    """

    def __init__(self, path: Path) -> None:
        """Raises UserError for a file that holds anything else."""
        self.path = path
        self.damaged = 0
        self._replies: dict[str, Reply] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            self._read()

    def _read(self) -> None:
        good = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    break
                good += len(line)
                try:
                    key, reply = _row(line)
                    self._replies[key] = reply
                except (ValueError, LookupError, TypeError):
                    if not line.startswith(_START):
                        raise UserError(f"{self.path}:{number}: not an answer of a judge: move the file away") from None
                    self.damaged += 1
        if good < self.path.stat().st_size:
            with self.path.open("rb+") as file:
                file.truncate(good)

    def __len__(self) -> int:
        return len(self._replies)

    def find(self, key: str) -> Reply | None:
        """The answer to a question, None where it was not asked."""
        return self._replies.get(key)

    def take(self, path: Path) -> None:
        """Add the rows of another such file that are not here yet, as they stand; its damaged ones are left there."""
        lines = []
        with path.open("rb") as file:
            for line in file:
                try:
                    text, (key, reply) = line.decode("ascii").rstrip("\n"), _row(line)
                except (ValueError, LookupError, TypeError):
                    continue
                if key not in self._replies:
                    self._replies[key] = reply
                    lines.append(text)
        if lines:
            append_lines(self.path, lines)

    def add(self, key: str, reply: Reply, *, judge: str, query: str, order: tuple[str, str]) -> None:
        """Keep an answer; it is on the disk when this returns."""
        tokens = None if reply.tokens is None else list(reply.tokens)
        row: dict[str, Any] = {"hash": key, "judge": judge, "query": query, "order": list(order)}
        row |= {"t": reply.first_wins, "tokens": tokens}
        row |= {"said": reply.said} if reply.first_wins is None else {}
        row |= {} if reply.orders is None else {"orders": list(reply.orders)}
        append_lines(self.path, [json.dumps(sealed(row))])
        self._replies[key] = reply


def _row(line: bytes) -> tuple[str, Reply]:
    """(hash, reply) of a line. Raises ValueError, LookupError or TypeError for any other."""
    row = unsealed(json.loads(line))
    return str(row["hash"]), _reply(row)


def _reply(row: Mapping[str, Any]) -> Reply:
    value, tokens, orders = row["t"], row["tokens"], row.get("orders")
    if value is not None and not (isinstance(value, float) and math.isfinite(value) and 0 <= value <= 1):
        raise ValueError("not a probability")
    counts = None if tokens is None else (int(tokens[0]), int(tokens[1]))
    both = None if orders is None else (float(orders[0]), float(orders[1]))
    return Reply(value, counts, str(row.get("said", "")), both)

"""answers.jsonl: what models answered, by the content of the question; bought once, and never written over."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from rankwright.common.errors import UserError
from rankwright.common.files import append_lines
from rankwright.common.outputs import sealed, unsealed
from rankwright.supervision.preferences.judges import Reply

R = TypeVar("R")
_START = b'{"hash": "'


class AnswerFile(Generic[R]):
    """Rows `hash`, what was asked and answered, `seal`; read: makes an answer of a row, and raises for what is none.

    hash: the key of the question. Those of judges have `judge, query, order, t, tokens`, and `said` of a malformed
    answer, whose t is null; order: ids of the documents, as they were shown. A row that no longer fits its seal is
    counted in `damaged`, and asked for again. The half row that a kill left is removed, so that the file goes on as it
    would have.
    """

    def __init__(self, path: Path, read: Callable[[Mapping[str, Any]], R]) -> None:
        """Raises UserError for a file that holds anything else."""
        self.path = path
        self.damaged = 0
        self._reply = read
        self._replies: dict[str, R] = {}
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
                    key, reply = self._row(line)
                    self._replies[key] = reply
                except (ValueError, LookupError, TypeError):
                    if not line.startswith(_START):
                        raise UserError(f"{self.path}:{number}: not a kept answer: move the file away") from None
                    self.damaged += 1
        if good < self.path.stat().st_size:
            with self.path.open("rb+") as file:
                file.truncate(good)

    def __len__(self) -> int:
        return len(self._replies)

    def find(self, key: str) -> R | None:
        """The answer to a question, None where it was not asked."""
        return self._replies.get(key)

    def take(self, path: Path) -> None:
        """Add the rows of another such file that are not here yet, as they stand; its damaged ones are left there."""
        lines = []
        with path.open("rb") as file:
            for line in file:
                try:
                    text, (key, reply) = line.decode("ascii").rstrip("\n"), self._row(line)
                except (ValueError, LookupError, TypeError):
                    continue
                if key not in self._replies:
                    self._replies[key] = reply
                    lines.append(text)
        if lines:
            append_lines(self.path, lines)

    def _row(self, line: bytes) -> tuple[str, R]:
        """(hash, answer) of a line. Raises ValueError, LookupError or TypeError for any other."""
        row = unsealed(json.loads(line))
        return str(row["hash"]), self._reply(row)

    def add(self, key: str, reply: R, row: Mapping[str, Any]) -> None:
        """Keep an answer; it is on the disk when this returns. row: what was asked and answered, for `read`."""
        append_lines(self.path, [json.dumps(sealed({"hash": key, **row}))])
        self._replies[key] = reply


def judged_row(judge: str, query: str, order: tuple[str, str], reply: Reply) -> dict[str, Any]:
    """What answers.jsonl holds of a judge's answer."""
    row: dict[str, Any] = {"judge": judge, "query": query, "order": list(order), "t": reply.first_wins}
    row["tokens"] = None if reply.tokens is None else list(reply.tokens)
    row |= {"said": reply.said} if reply.first_wins is None else {}
    return row | ({} if reply.orders is None else {"orders": list(reply.orders)})


def judged_reply(row: Mapping[str, Any]) -> Reply:
    """A judge's answer of its row. Raises ValueError, LookupError and TypeError for what is none."""
    value, tokens, orders = row["t"], row["tokens"], row.get("orders")
    if value is not None and not (isinstance(value, float) and math.isfinite(value) and 0 <= value <= 1):
        raise ValueError("not a probability")
    counts = None if tokens is None else (int(tokens[0]), int(tokens[1]))
    both = None if orders is None else (float(orders[0]), float(orders[1]))
    return Reply(value, counts, str(row.get("said", "")), both)

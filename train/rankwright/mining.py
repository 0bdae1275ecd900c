"""Hard negatives with a source and a reason for each: what one is, and the files that hold them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rankwright.atomic import file_sha256, write_lines_atomic
from rankwright.errors import UserError
from rankwright.retrieve import Candidate

T = TypeVar("T")
JUDGED, PROMOTED = "judged", "promoted"
TEACHER_SCORES = "teacher.jsonl"


@dataclass(frozen=True, slots=True)
class Negative:
    """A document taken as not relevant to a query.

    source: the retriever, "judged", "random" or "promoted"; reason: `unjudged` (retrieved, nobody judged it),
    `judged_not_relevant`, `fill` or `teacher_above_margin`. rank (from 1) and score are the retriever's; None for a
    document that it did not return. decisions: (filter, the number it noted); label: what it is trained with, 0 unless
    a filter said otherwise: above 0 it is relevant after all, None where only losses of a teacher's scores may see it.
    """

    document_id: str
    source: str
    rank: int | None
    score: float | None
    reason: str
    decisions: tuple[tuple[str, float], ...] = ()
    label: float | None = 0.0

    @property
    def is_promoted(self) -> bool:
        return self.label is not None and self.label > 0


def write_negatives(path: Path, pools: Mapping[str, Sequence[Negative]]) -> None:
    """JSONL, a query a line, by query id: `query_id, negatives: [{document_id, source, rank, score, reason}]`.

    A negative has `decisions` (filter -> number) and `label` where there is something to say.
    """
    write_lines_atomic(path, (negatives_line(q, pools[q]) for q in sorted(pools)))


def negatives_line(query_id: str, pool: Sequence[Negative]) -> str:
    """A row of negatives.jsonl."""
    return _line({"query_id": query_id, "negatives": [_negative_row(n) for n in pool]})


def _negative_row(negative: Negative) -> dict[str, Any]:
    n = negative
    row: dict[str, Any] = {"document_id": n.document_id, "source": n.source, "rank": n.rank}
    row |= {"score": n.score, "reason": n.reason}
    row |= {"decisions": dict(n.decisions)} if n.decisions else {}
    return row | ({"label": n.label} if n.label != 0 else {})


def _negative(*, decisions: Mapping[str, float] | None = None, **values: Any) -> Negative:
    return Negative(**values, decisions=tuple(sorted((decisions or {}).items())))


def read_negatives(path: Path) -> dict[str, tuple[Negative, ...]]:
    """What write_negatives wrote. Raises UserError with file and line for anything else."""
    return {q: tuple(rows) for q, rows in _read(path, "negatives", _negative)}


def write_candidates(path: Path, candidates: Mapping[str, Sequence[Candidate]]) -> None:
    """JSONL, a query a line, by query id: `query_id, candidates: [{document_id, score, rank}]`."""
    write_lines_atomic(path, (candidates_line(q, candidates[q]) for q in sorted(candidates)))


def candidates_line(query_id: str, candidates: Sequence[Candidate]) -> str:
    """A row of candidates.jsonl."""
    rows = [{"document_id": c.document_id, "score": c.score, "rank": c.rank} for c in candidates]
    return _line({"query_id": query_id, "candidates": rows})


def read_candidates(path: Path) -> dict[str, list[Candidate]]:
    """What write_candidates wrote. Raises UserError with file and line for anything else."""
    return dict(_read(path, "candidates", Candidate))


def read_teacher_scores(path: Path) -> dict[str, dict[str, float]]:
    """What teacher_line wrote: query id -> document id -> raw score. Raises UserError as the others do."""
    return {q: dict(rows) for q, rows in _read(path, "scores", _score)}


def teacher_line(query_id: str, scores: Mapping[str, float]) -> str:
    """A row of teacher.jsonl: `query_id, scores: [{document_id, score}]`."""
    return _line({"query_id": query_id, "scores": [{"document_id": d, "score": s} for d, s in scores.items()]})


def _score(*, document_id: str, score: float) -> tuple[str, float]:
    return document_id, float(score)


def pool_id(path: Path) -> str:
    """The name of a pool file: the first 16 hexadecimal digits of its SHA-256."""
    return file_sha256(path)[:16]


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, allow_nan=False)


def _read(path: Path, key: str, kind: Callable[..., T]) -> Iterator[tuple[str, list[T]]]:
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                try:
                    row = json.loads(line)
                    yield row["query_id"], [kind(**item) for item in row[key]]
                except (ValueError, KeyError, TypeError) as error:
                    raise UserError(
                        f"{path}:{number}: not a row of {key} ({type(error).__name__}: {error}): mine again"
                    ) from None
    except FileNotFoundError:
        raise UserError(f"{path}: no such file: run the mining stage first") from None

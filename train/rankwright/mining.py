"""Hard negatives with a source and a reason for each: what one is, and the files that hold them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rankwright import row_file
from rankwright.atomic import file_sha256, write_lines_atomic
from rankwright.errors import UserError
from rankwright.retrieve import Candidate
from rankwright.row_file import RowFile, RowValues

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


def count_negatives(pool: Sequence[Negative]) -> int:
    """How many of a pool are drawn as negatives: what was promoted is drawn as relevant."""
    return sum(not n.is_promoted for n in pool)


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


def read_negatives(path: Path) -> Mapping[str, Sequence[Negative]]:
    """What write_negatives wrote, left in its file where that is large. Raises UserError for anything else."""
    return _read(path, "negatives", _negatives)


def write_candidates(path: Path, candidates: Mapping[str, Sequence[Candidate]]) -> None:
    """JSONL, a query a line, by query id: `query_id, candidates: [{document_id, score, rank}]`."""
    write_lines_atomic(path, (candidates_line(q, candidates[q]) for q in sorted(candidates)))


def candidates_line(query_id: str, candidates: Sequence[Candidate]) -> str:
    """A row of candidates.jsonl."""
    rows = [{"document_id": c.document_id, "score": c.score, "rank": c.rank} for c in candidates]
    return _line({"query_id": query_id, "candidates": rows})


def read_candidates(path: Path) -> Mapping[str, Sequence[Candidate]]:
    """What write_candidates wrote, left in its file where that is large. Raises UserError for anything else."""
    return _read(path, "candidates", _candidates)


def read_teacher_scores(path: Path) -> Mapping[str, Mapping[str, float]]:
    """What teacher_line wrote: query id -> document id -> raw score. Left in its file and raises as the others."""
    return _read(path, "scores", _scores)


def teacher_line(query_id: str, scores: Mapping[str, float]) -> str:
    """A row of teacher.jsonl: `query_id, scores: [{document_id, score}]`."""
    return _line({"query_id": query_id, "scores": [{"document_id": d, "score": s} for d, s in scores.items()]})


def pool_id(path: Path) -> str:
    """The name of a pool file: the first 16 hexadecimal digits of its SHA-256."""
    return file_sha256(path)[:16]


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, allow_nan=False)


def _read(path: Path, key: str, convert: Callable[[Any], T]) -> Mapping[str, T]:
    large = path.exists() and path.stat().st_size > row_file.IN_MEMORY_BYTES
    file = RowFile(path, "query_id") if large else None
    found: dict[str, T] = {}
    start = 0
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    row = json.loads(line)
                    query_id, items = row["query_id"], convert(row[key])
                except (ValueError, KeyError, TypeError) as error:
                    raise UserError(
                        f"{path}:{number}: not a row of {key} ({type(error).__name__}: {error}): mine again"
                    ) from None
                if file is None:
                    found[query_id] = items
                else:
                    file.add(start, query_id)
                start += len(line)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file: run the mining stage first") from None
    return found if file is None else RowValues(file, key, len(file), convert)


def _negative(*, decisions: Mapping[str, float] | None = None, **values: Any) -> Negative:
    return Negative(**values, decisions=tuple(sorted((decisions or {}).items())))


def _negatives(rows: Sequence[Mapping[str, Any]]) -> tuple[Negative, ...]:
    return tuple(_negative(**row) for row in rows)


def _candidates(rows: Sequence[Mapping[str, Any]]) -> list[Candidate]:
    return [Candidate(**row) for row in rows]


def _scores(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    return dict(_score(**row) for row in rows)


def _score(*, document_id: str, score: float) -> tuple[str, float]:
    return document_id, float(score)

"""Rerank fixed candidate lists, measure, and set base beside tuned."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rankwright.atomic import read_json_object, write_lines_atomic, write_text_atomic
from rankwright.errors import UserError
from rankwright.examples import Collection, Qrels
from rankwright.metrics import Measured, measure_run, write_trec_run
from rankwright.ranking import stable_hash
from rankwright.retrieve import Candidate

Candidates = Mapping[str, Sequence[Candidate]]
Run = dict[str, dict[str, float]]
HEADLINE = "nDCG@10"


class Scorer(Protocol):
    """A Reranker or a ServedReranker: scores of each (query, documents) in turn, in the order of the documents."""

    def score_groups(self, groups: Iterable[tuple[str, Sequence[str]]]) -> Iterator[list[float]]: ...


@dataclass(frozen=True, slots=True)
class TestSet:
    """The queries of a set that are evaluated: those with a relevant document, the limit applied."""

    name: str
    query_ids: tuple[str, ...]
    without_relevant: int
    total: int


def choose_queries(collection: Collection, *, limit: int | None, seed: int) -> TestSet:
    """Queries with a relevant document; with a limit, those whose hash of (seed, id) is smallest."""
    relevant = [q for q in collection.queries if collection.positives(q)]
    without = len(collection.queries) - len(relevant)
    if limit is not None and limit < len(relevant):
        relevant = sorted(relevant, key=lambda q: stable_hash("limit", seed, q))[:limit]
    return TestSet(collection.name, tuple(sorted(relevant)), without, len(collection.queries))


def first_stage_run(candidates: Candidates, query_ids: Sequence[str]) -> Run:
    """The retriever's own scores as a run."""
    return {q: {c.document_id: c.score for c in candidates.get(q, ())} for q in query_ids}


def rerank(
    reranker: Scorer,
    collection: Collection,
    candidates: Candidates,
    query_ids: Sequence[str],
    advance: Callable[..., None],
) -> Run:
    """Scores of every query's candidates: query id -> document id -> raw score."""
    run: Run = {}
    groups = (
        (collection.queries[q], [collection.corpus[c.document_id] for c in candidates.get(q, ())]) for q in query_ids
    )
    for query_id, scores in zip(query_ids, reranker.score_groups(groups), strict=True):
        ids = [c.document_id for c in candidates.get(query_id, ())]
        run[query_id] = dict(zip(ids, scores, strict=True))
        advance(1)
    return run


def measure(run: Run, qrels: Qrels, query_ids: Sequence[str], measures: Sequence[str]) -> Measured:
    """Measure over all judgements of the given queries; a query without candidates counts 0."""
    return measure_run(run, {q: qrels[q] for q in query_ids}, measures)


def write_evaluation(folder: Path, run: Run, measured: Measured, *, tag: str, facts: Mapping[str, Any]) -> None:
    """run.trec, per_query.jsonl, and last metrics.json with a flat key a measure."""
    folder.mkdir(parents=True, exist_ok=True)
    # Until the new one is written nothing here counts as finished.
    (folder / "metrics.json").unlink(missing_ok=True)
    write_trec_run(folder / "run.trec", run, tag=tag)
    names = list(measured.per_query)
    query_ids = sorted({q for values in measured.per_query.values() for q in values})
    rows = ({"query_id": q, **{m: measured.per_query[m].get(q) for m in names}} for q in query_ids)
    write_lines_atomic(folder / "per_query.jsonl", (json.dumps(row, ensure_ascii=False) for row in rows))
    summary = {
        **measured.mean,
        "queries": measured.queries,
        "queries_without_relevant": len(measured.without_relevant),
        "queries_missing": len(measured.missing),
        "tie_rate": measured.tie_rate,
        **facts,
    }
    write_text_atomic(folder / "metrics.json", json.dumps(summary, indent=2) + "\n")


def read_metrics_json(folder: Path) -> dict[str, Any] | None:
    """metrics.json of an evaluation that was finished, or None."""
    return read_json_object(folder / "metrics.json")


def read_per_query(folder: Path, name: str) -> dict[str, float]:
    """Query id -> value of one measure; raises as read_values does, and when nothing was measured by it."""
    values = read_values(folder / "per_query.jsonl")
    if name not in values:
        raise UserError(f"{folder / 'per_query.jsonl'}: has no {name}: evaluate again with it in evaluate.measures")
    return values[name]


def read_values(path: Path) -> dict[str, dict[str, float]]:
    """Measure -> query id -> value of a per_query.jsonl. Raises UserError with file and line of the first fault."""
    values: dict[str, dict[str, float]] = {}
    for query_id, row in _rows(path):
        for measure, value in row.items():
            if value is not None:
                values.setdefault(measure, {})[query_id] = float(value)
    return values


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        # Not splitlines(): ids may hold characters that it takes for line ends.
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                try:
                    row = json.loads(line)
                    query_id = row.pop("query_id")
                    if not isinstance(query_id, str):
                        raise ValueError("query_id is not a text")
                    if not all(value is None or is_number(value) for value in row.values()):
                        raise ValueError("a value is not a number")
                except (ValueError, LookupError, AttributeError, TypeError) as error:
                    raise UserError(f"{path}:{number}: not a row of values ({error}): evaluate again") from None
                yield query_id, row
    except FileNotFoundError:
        raise UserError(f"{path}: no such file: delete this folder and evaluate again") from None


def is_number(value: object) -> bool:
    """Whether a value of a JSON file is a finite number; true, false and NaN are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max

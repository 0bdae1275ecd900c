"""Rerank fixed candidate lists, measure, and set base beside tuned."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwright.common.errors import UserError, did_you_mean
from rankwright.common.files import read_json_object, write_lines_atomic, write_text_atomic
from rankwright.common.hashing import stable_hash
from rankwright.data.collection import Collection, Qrels
from rankwright.evaluation.metrics import Measured, measure_run
from rankwright.model.instructions import has_exported
from rankwright.recipe.schema import EXPORTED, Recipe
from rankwright.rerankers.scorer import Reranked
from rankwright.retrieval.candidates import Candidates
from rankwright.retrieval.first_stages import possible_stages
from rankwright.retrieval.retriever import retrievers
from rankwright.retrieval.run_file import write_trec_run


def system_names(recipe: Recipe) -> tuple[str, ...]:
    """All systems of an evaluation, in the order of every table."""
    exported = (EXPORTED,) if has_exported(recipe) else ()
    return (*possible_stages(recipe), "base", "tuned", *exported, *(b.name for b in recipe.evaluate.baselines))


def choose_systems(recipe: Recipe, only: Sequence[str] | None) -> list[str]:
    """The systems that --only names, all of them without it. Raises UserError for others and for none."""
    known = system_names(recipe)
    if only is None:
        return list(known)
    unknown = [s for s in only if s not in known]
    if unknown or not only:
        found = f"unknown system {unknown[0]!r}{did_you_mean(unknown[0], known)}" if unknown else "names no system"
        needed = [retrievers()[s].needs(recipe) for s in unknown[:1] if s in retrievers()]
        hint = f"; it needs {needed[0]}" if needed else ""
        raise UserError(f"--only: {found}: choose from {', '.join(known)}{hint}")
    return list(only)


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


def first_stage_run(candidates: Candidates, query_ids: Sequence[str]) -> Reranked:
    """The retriever's own scores as a run."""
    return {q: {c.document_id: c.score for c in candidates.get(q, ())} for q in query_ids}


def measure(run: Reranked, qrels: Qrels, query_ids: Sequence[str], measures: Sequence[str]) -> Measured:
    """Measure over all judgements of the given queries; a query without candidates counts 0."""
    return measure_run(run, {q: qrels[q] for q in query_ids}, measures)


def write_evaluation(folder: Path, run: Reranked, measured: Measured, *, tag: str, facts: Mapping[str, Any]) -> None:
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

"""Systems and queries of an evaluation, and the files of one system on one test set: run, values, means."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwright.common.errors import UserError, no_such
from rankwright.common.files import json_line, read_jsonl, write_lines_atomic, write_text_atomic
from rankwright.common.hashing import file_sha256, stable_hash
from rankwright.common.outputs import content_of, read_sealed, remove, sealed
from rankwright.common.values import list_of_texts
from rankwright.data.collection import Collection, Qrels
from rankwright.evaluation.metrics import LINEAR, Measured, Scale, measure_run
from rankwright.model.instructions import has_exported
from rankwright.recipe.pretrain import CONTROL, PRETRAINED
from rankwright.recipe.schema import COMBINED, EXPORTED, Recipe
from rankwright.rerankers.scorer import Reranked
from rankwright.retrieval.candidates import Candidates
from rankwright.retrieval.first_stages import possible_stages
from rankwright.retrieval.retriever import retrievers
from rankwright.retrieval.run_file import write_trec_run

# Beside metrics.json.
EVALUATION_FILES = ("run.trec", "per_query.jsonl")


def has_control(recipe: Recipe) -> bool:
    """Whether a second reranker is trained without the stage pretrain, at the same cost."""
    return recipe.pretrain is not None and recipe.pretrain.control != "none"


def system_names(recipe: Recipe) -> tuple[str, ...]:
    """All systems of an evaluation, in the order of every table."""
    exported = (EXPORTED,) if has_exported(recipe) else ()
    combined = (COMBINED,) if recipe.evaluate.combine is not None else ()
    pretrained = () if recipe.pretrain is None else (PRETRAINED,)
    control = (CONTROL,) if has_control(recipe) else ()
    ours = ("base", *pretrained, "tuned", *exported, *combined, *control)
    return (*possible_stages(recipe), *ours, *(b.name for b in recipe.evaluate.baselines))


def choose_systems(recipe: Recipe, only: Sequence[str] | None) -> list[str]:
    """The systems that --only names; all systems without it. Raises UserError for unknown names and for no name."""
    known = system_names(recipe)
    if only is None:
        return list(known)
    only = list_of_texts("--only", only)
    if not only:
        raise UserError(f"--only: names no system: choose from {', '.join(known)}")
    if unknown := [s for s in only if s not in known]:
        needed = retrievers()[unknown[0]].needs(recipe) if unknown[0] in retrievers() else None
        needed = "evaluate.combine, which is switched off" if unknown[0] == COMBINED else needed
        advice = f"it needs {needed}" if needed else ""
        raise UserError(f"--only: {no_such('system', unknown[0], known, advice)}")
    # It is made of their scores.
    needs = [s for s in known if s in ("tuned", EXPORTED) and s not in only] if COMBINED in only else []
    return [*needs, *only]


@dataclass(frozen=True, slots=True)
class TestSet:
    """The queries of a test set that are evaluated: those with a relevant document, up to the limit."""

    query_ids: tuple[str, ...]
    without_relevant: int
    total: int


def choose_queries(collection: Collection, *, limit: int | None, seed: int, level: int = 1) -> TestSet:
    """The queries with a relevant document; with a limit, those among them whose hash of (seed, id) is smallest.

    level: the lowest label that is relevant.
    """
    relevant = [q for q in collection.queries if collection.positives(q, level)]
    without = len(collection.queries) - len(relevant)
    if limit is not None and limit < len(relevant):
        relevant = sorted(relevant, key=lambda q: stable_hash("limit", seed, q))[:limit]
    return TestSet(tuple(sorted(relevant)), without, len(collection.queries))


def first_stage_run(candidates: Candidates, query_ids: Sequence[str]) -> Reranked:
    """The retriever's own scores as a run."""
    return {q: {c.document_id: c.score for c in candidates.get(q, ())} for q in query_ids}


def measure(
    run: Reranked, qrels: Qrels, query_ids: Sequence[str], measures: Sequence[str], scale: Scale = LINEAR
) -> Measured:
    """Measure over all judgements of the given queries; a query without candidates counts 0. See measure_run."""
    return measure_run(run, {q: qrels[q] for q in query_ids}, measures, scale)


def write_evaluation(folder: Path, run: Reranked, measured: Measured, *, tag: str, facts: Mapping[str, Any]) -> None:
    """Write run.trec, per_query.jsonl, and last metrics.json, which has one key for each measure.

    It also has the hashes of the two files and its own: see read_evaluation.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Without metrics.json nothing here counts as finished.
    remove(folder / "metrics.json")
    write_trec_run(folder / "run.trec", run, tag=tag)
    names = list(measured.per_query)
    query_ids = sorted({q for values in measured.per_query.values() for q in values})
    rows = ({"query_id": q, **{m: measured.per_query[m].get(q) for m in names}} for q in query_ids)
    write_lines_atomic(folder / "per_query.jsonl", map(json_line, rows))
    summary = {
        **measured.mean,
        "queries": measured.queries,
        "queries_without_relevant": len(measured.without_relevant),
        "queries_missing": len(measured.missing),
        "tie_rate": measured.tie_rate,
        **facts,
    }
    summary["sha256"] = {name: file_sha256(folder / name) for name in EVALUATION_FILES}
    write_text_atomic(folder / "metrics.json", json.dumps(sealed(summary), indent=2) + "\n")


def read_evaluation(folder: Path) -> dict[str, Any] | None:
    """metrics.json of one system, or None where it or a file beside it is missing or not as it was written.

    Raises UserError for a file that the disk does not give.
    """
    values = read_sealed(folder / "metrics.json")
    if values is None or not isinstance(values.get("sha256"), dict):
        return None
    written = {name: content_of(folder / name) for name in EVALUATION_FILES}
    return values if values["sha256"] == written else None


def read_per_query(folder: Path, name: str) -> dict[str, float]:
    """Query id -> value of one measure. Raises as read_values does, and when the file lacks the measure."""
    values = read_values(folder / "per_query.jsonl")
    if name not in values:
        raise UserError(f"{folder / 'per_query.jsonl'}: has no {name}: evaluate again with it in evaluate.measures")
    return values[name]


def read_values(path: Path) -> dict[str, dict[str, float]]:
    """Measure -> query id -> value of a per_query.jsonl. Raises UserError with file and line of the first fault."""
    if not path.is_file():
        raise UserError(f"{path}: no such file: delete this folder and evaluate again")
    values: dict[str, dict[str, float]] = {}
    for query_id, row in read_jsonl(path, _query_values, "a row of values, evaluate again"):
        for measure, value in row.items():
            values.setdefault(measure, {})[query_id] = value
    return values


def _query_values(row: Mapping[str, Any]) -> tuple[str, dict[str, float]]:
    """The query's id, and its value by measure, without the measures that have none."""
    query_id, measured = row["query_id"], {m: v for m, v in row.items() if m != "query_id" and v is not None}
    if not isinstance(query_id, str):
        raise ValueError("query_id is not a text")
    if not all(map(is_number, measured.values())):
        raise ValueError("a value is not a number")
    return query_id, {measure: float(value) for measure, value in measured.items()}


def is_number(value: object) -> bool:
    """Whether a value of a JSON file is a finite number. True, false and NaN are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max

"""The evaluate stage: BM25, base and tuned on the same candidate lists of every test set, and the final table."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from rankwright import console, mining
from rankwright.atomic import write_text_atomic
from rankwright.data_files import read_split
from rankwright.evaluate import (
    HEADLINE,
    Candidates,
    Run,
    TestSet,
    choose_queries,
    first_stage_run,
    measure,
    read_metrics_json,
    read_per_query,
    rerank,
    write_evaluation,
)
from rankwright.examples import Collection
from rankwright.metrics import ceiling
from rankwright.prepare_stage import retrieve
from rankwright.recipe import Recipe
from rankwright.reranker import Reranker
from rankwright.run_folder import RunFolder
from rankwright.setup_model import base_reranker, tuned_reranker
from rankwright.stats import Difference, paired_difference

SYSTEMS = ("bm25", "base", "tuned")


@dataclass(frozen=True, slots=True)
class Job:
    """One test set with its fixed candidates and its folder under eval/."""

    collection: Collection
    chosen: TestSet
    candidates: Candidates
    folder: Path


def prepare_jobs(recipe: Recipe, run: RunFolder, inputs: str) -> list[Job]:
    """Candidates of every test set, made once and kept in eval/TESTSET/candidates.jsonl."""
    jobs = []
    for collection in read_split(run.path / "data", "test"):
        folder = run.path / "eval" / collection.name
        folder.mkdir(parents=True, exist_ok=True)
        chosen = choose_queries(collection, limit=recipe.evaluate.limit_queries, seed=recipe.seed)
        _say_choice(recipe, collection, chosen)
        path, record = folder / "candidates.jsonl", folder / "candidates.json"
        wanted = {"inputs": inputs, "queries": list(chosen.query_ids)}
        if not (path.exists() and record.exists() and json.loads(record.read_text()) == wanted):
            record.unlink(missing_ok=True)
            subset = _only(collection, chosen.query_ids)
            mining.write_candidates(path, retrieve(recipe, subset, recipe.evaluate.depth))
            write_text_atomic(record, json.dumps(wanted))
        jobs.append(Job(collection, chosen, mining.read_candidates(path), folder))
    return jobs


def _only(collection: Collection, query_ids: Sequence[str]) -> Collection:
    queries = {q: collection.queries[q] for q in query_ids}
    return Collection(collection.name, collection.corpus, queries, collection.qrels)


def _say_choice(recipe: Recipe, collection: Collection, chosen: TestSet) -> None:
    limited = len(chosen.query_ids) < chosen.total - chosen.without_relevant
    console.say(
        f"test set {collection.name}: {len(chosen.query_ids):,} of {chosen.total:,} queries"
        + (f" (evaluate.limit_queries, by seed {recipe.seed})" if limited else "")
        + (f", {chosen.without_relevant} without a relevant document left out" if chosen.without_relevant else "")
        + f"; BM25 top {recipe.evaluate.depth} reranked"
    )


def evaluate(
    recipe: Recipe,
    run: RunFolder,
    *,
    inputs: Mapping[str, str],
    checkpoint: Path | None,
    only: Sequence[str] = SYSTEMS,
) -> None:
    """Evaluate the systems that are not done yet. inputs: system -> hash of what its numbers depend on."""
    jobs = prepare_jobs(recipe, run, inputs["bm25"])
    rerankers: dict[str, Callable[[], Reranker]] = {"base": lambda: base_reranker(recipe)}
    if checkpoint is not None:
        rerankers["tuned"] = lambda: tuned_reranker(recipe, checkpoint)
    for system in only:
        todo = [job for job in jobs if not _is_done(job, system, inputs[system])]
        if not todo:
            console.say(f"{system}: unchanged, kept")
        elif system == "bm25":
            for job in todo:
                _finish(recipe, job, system, first_stage_run(job.candidates, job.chosen.query_ids), inputs[system])
        else:
            reranker = rerankers[system]()
            for job in todo:
                _rerank(recipe, job, system, reranker, inputs[system])


def _is_done(job: Job, system: str, inputs: str) -> bool:
    done = read_metrics_json(job.folder / system)
    return done is not None and done.get("inputs") == inputs


def _rerank(recipe: Recipe, job: Job, system: str, reranker: Reranker, inputs: str) -> None:
    reranker.cut_documents = reranker.cut_queries = 0
    started = time.perf_counter()
    with console.progress(f"{system} on {job.collection.name}", len(job.chosen.query_ids)) as advance:
        run = rerank(reranker, job.collection, job.candidates, job.chosen.query_ids, advance)
    seconds = time.perf_counter() - started
    pairs = sum(map(len, run.values()))
    facts = {"pairs": pairs, "pairs_per_s": round(pairs / seconds, 1), "seconds": round(seconds, 2)}
    facts |= {"documents_cut": reranker.cut_documents, "queries_cut": reranker.cut_queries}
    facts["prompt_mode"] = reranker.contract.mode  # type: ignore[assignment]
    _finish(recipe, job, system, run, inputs, **facts)


def _finish(recipe: Recipe, job: Job, system: str, run: Run, inputs: str, **facts: Any) -> None:
    measures = list(dict.fromkeys([HEADLINE, *recipe.evaluate.measures]))
    measured = measure(run, job.collection.qrels, job.chosen.query_ids, measures)
    qrels = {q: job.collection.qrels[q] for q in job.chosen.query_ids}
    facts |= {"depth": recipe.evaluate.depth, "ceiling": ceiling(run, qrels, HEADLINE), "inputs": inputs}
    write_evaluation(job.folder / system, run, measured, tag=f"rankwright-{system}", facts=facts)
    console.say(
        f"{job.collection.name} {system}: {HEADLINE} {measured.mean[HEADLINE]:.3f}"
        + (f", {facts['pairs_per_s']:.0f} pairs/s" if "pairs_per_s" in facts else "")
        + (f", tie rate {measured.tie_rate:.1%}" if measured.tie_rate else "")
    )


@dataclass(frozen=True, slots=True)
class ResultRow:
    """One line of the final table. values: system -> mean nDCG@10 over `queries` queries."""

    name: str
    values: Mapping[str, float]
    queries: int
    difference: Difference | None


def results(run: RunFolder, seed: int, inputs: Mapping[str, str]) -> list[ResultRow]:
    """A row a test set, and `all` over all queries where there are several sets.

    inputs: system -> hash of what its numbers depend on; numbers of other settings are left out.
    """
    per_set: dict[str, dict[str, dict[str, float]]] = {}
    report = json.loads((run.path / "data_report.json").read_text(encoding="utf-8"))
    for name in (row["set"] for row in report["splits"]["test"]):
        folder = run.path / "eval" / name
        done = [s for s in SYSTEMS if (read_metrics_json(folder / s) or {}).get("inputs") == inputs[s]]
        per_set[name] = {s: read_per_query(folder / s, HEADLINE) for s in done}
    rows = [_row(name, systems, seed) for name, systems in per_set.items() if systems]
    if len(rows) > 1:
        shared = [s for s in SYSTEMS if all(s in systems for systems in per_set.values())]
        pooled = {
            s: {f"{name}/{q}": v for name, systems in per_set.items() for q, v in systems[s].items()} for s in shared
        }
        if pooled:
            rows.append(_row("all", pooled, seed))
    return rows


def _row(name: str, systems: Mapping[str, Mapping[str, float]], seed: int) -> ResultRow:
    means = {s: sum(values.values()) / len(values) for s, values in systems.items()}
    both = "base" in systems and "tuned" in systems
    difference = paired_difference(systems["base"], systems["tuned"], seed=seed) if both else None
    queries = max(len(values) for values in systems.values())
    return ResultRow(name, means, queries, difference)


def results_table(rows: Sequence[ResultRow]) -> Table:
    """The table that every run ends with."""
    table = Table(title=f"{HEADLINE} on the test queries", title_justify="left")
    for column in ("test set", "queries", "BM25", "base", "tuned", "tuned - base [95 % interval]"):
        table.add_column(column, justify="left" if column == "test set" else "right", no_wrap=True)
    for row in rows:
        values = [f"{row.values[s]:.3f}" if s in row.values else "-" for s in SYSTEMS]
        d = row.difference
        interval = f"{d.mean:+.3f} [{d.low:+.3f}, {d.high:+.3f}]" if d is not None else "-"
        style = "bold" if row.name == "all" else None
        table.add_row(row.name, f"{row.queries:,}", *values, interval, style=style)
    return table


def verdict(row: ResultRow) -> str:
    """One honest sentence about the last row."""
    d = row.difference
    if d is None:
        return ""
    if d.low > 0:
        text = "tuned is better than the base: the interval is above zero"
    elif d.high < 0:
        text = "tuned is WORSE than the base: the interval is below zero"
    else:
        text = "tuned and base cannot be told apart: the interval includes zero"
    if "bm25" in row.values and row.values["tuned"] < row.values["bm25"]:
        text += (
            f"; BM25 ({row.values['bm25']:.3f}) is better than both"
            if row.values["base"] < row.values["bm25"]
            else "; BM25 is better than tuned"
        )
    return text

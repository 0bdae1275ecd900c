"""The mine stage: candidates, negatives with a reason for each, and what every filter removed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.table import Column, Table

from rankwright.common import console
from rankwright.common.files import json_line, lines_atomic
from rankwright.common.plurals import counted
from rankwright.common.processes import Processes
from rankwright.common.run_folder import RunFolder
from rankwright.data.collection import Collection
from rankwright.data.split_files import qualified, read_split
from rankwright.mining.false_negatives import estimate
from rankwright.mining.filters import TeacherOf, bind_filters, split_filters
from rankwright.mining.pools import (
    ALWAYS,
    FILL,
    JUDGED,
    JUDGED_NOT_RELEVANT,
    POSITIVE,
    Negative,
    Sifted,
    apply,
    count_negatives,
    filled,
    negatives_line,
    pool_of,
    read_negatives,
)
from rankwright.mining.shards import Job, Shards
from rankwright.recipe.schema import Recipe
from rankwright.retrieval.candidates import Candidates, candidates_line, read_candidates
from rankwright.retrieval.first_stages import own_of, training_stage
from rankwright.supervision.teacher import Teacher, write_teacher_scores
from rankwright.training.loss_terms import scores_candidates

# Split -> set -> its TREC run file, where it has one.
RunFiles = Mapping[str, Mapping[str, Path | None]]
# Rows of removed.jsonl per query, those of the best rank: what an auditor reads, not a second copy of the lists.
MOST_REMOVED = 20


def mine(recipe: Recipe, run: RunFolder, *, inputs: str, run_files: RunFiles, processes: Processes) -> dict[str, Any]:
    """The whole stage, which every process of the group calls; returns its facts on the first one.

    inputs: hash of what decides candidates and the filters that look at a query alone. run_files: train and dev ->
    set -> its TREC run file, where it has one.
    """
    teacher = None if recipe.mine.teacher is None else Teacher(recipe.mine.teacher, recipe.prompt, bm25=recipe.bm25)
    of = None if teacher is None else teacher.of
    shards = make_shards(recipe, run, inputs=inputs, run_files=run_files, processes=processes, teacher=of)
    facts = gather(recipe, run, shards) if processes.is_first else {}
    processes.meet()
    train = [job.collection for job in shards.jobs if job.kind == "train"]
    if teacher is not None:
        ask_teacher(recipe, run, teacher, train, processes)
    if processes.is_first:
        # Both documents of a pair are judged.
        missed = {} if recipe.is_pairwise else {"false_negatives": estimate(recipe, run, train)}
        facts |= {**missed, "processes": processes.count}
    return facts


def make_shards(
    recipe: Recipe,
    run: RunFolder,
    *,
    inputs: str,
    run_files: RunFiles,
    processes: Processes,
    teacher: TeacherOf | None = None,
) -> Shards:
    """Retrieve and filter for every query of train, and retrieve for dev."""
    filters = bind_filters(recipe.mine.filters)
    alone, _ = split_filters(filters)
    jobs = []
    stage = training_stage(recipe)
    for plain in read_split(run.data, "train"):
        own = {name: filters[name] for name in alone}
        run_file = run_files.get("train", {}).get(plain.name)
        collection = qualified(plain)
        jobs.append(Job("train", collection, plain, recipe.mine.retriever, recipe.mine.depth, run_file, own))
        if recipe.keys_of_lists:
            # What evaluation reranks, whatever is mined from.
            jobs.append(Job("train_lists", collection, plain, stage, _list_depth(recipe, plain), run_file, {}))
    jobs += _dev_jobs(recipe, run, run_files.get("dev", {}))
    used = f"; on dev {stage}'s lists are reranked: dev has no run file"
    console.say(
        f"  train: {recipe.mine.retriever} top {recipe.mine.depth}; dev: {stage} top {recipe.evaluate.depth}"
        + used * (stage != recipe.evaluate.first_stage)
        + f"; train: {stage} top {recipe.evaluate.depth} for {' and '.join(recipe.keys_of_lists)}"
        * bool(recipe.keys_of_lists)
    )
    shards = Shards(run.mining, inputs, recipe, jobs, teacher)
    shards.make(processes)
    return shards


def _dev_jobs(recipe: Recipe, run: RunFolder, run_files: Mapping[str, Path | None]) -> list[Job]:
    stage = training_stage(recipe)
    return [
        Job("dev", qualified(plain), plain, stage, _list_depth(recipe, plain), run_files.get(plain.name), {})
        for plain in read_split(run.data, "dev")
    ]


def dev_lists(
    recipe: Recipe,
    run: RunFolder,
    *,
    shards: str,
    mined: str,
    run_files: Mapping[str, Path | None],
    processes: Processes,
) -> Candidates:
    """The lists of the dev queries: those that were mined, or the mine stage's shards of them, which it then finds.

    shards, mined: what the shards and the whole stage depend on. run_files: of the dev sets.
    """
    is_mined = run.is_done("mine", mined) and run.dev_candidates.name not in run.changed("mine", keep_times=False)
    # What the first process finds counts: to another machine a file may seem to have another time.
    if processes.from_first(is_mined):
        return read_candidates(run.dev_candidates)
    made = Shards(run.mining, shards, recipe, _dev_jobs(recipe, run, run_files))
    made.make(processes)
    return {q: found for job in made.jobs for part in made.read(job) for q, found in part.retrieved.items()}


def _list_depth(recipe: Recipe, collection: Collection) -> int:
    """How much is retrieved of lists that are reranked: one more where one may lose its query's own document."""
    return recipe.evaluate.depth + bool(own_of(recipe, collection))


def gather(recipe: Recipe, run: RunFolder, shards: Shards) -> dict[str, Any]:
    """Write the stage's files from all shards; prints its facts and returns them."""
    tally = _Tally(recipe)
    # By the start of their ids, so that the files' order does not depend on the recipe's.
    jobs = sorted(shards.jobs, key=lambda job: f"{job.collection.name}/")
    with ExitStack() as files:
        paths = (run.candidates, run.negatives, run.removed, run.dev_candidates)
        candidates, negatives, removed, dev = (files.enter_context(lines_atomic(path)) for path in paths)
        lists = {"dev": dev}
        if recipe.keys_of_lists:
            lists["train_lists"] = files.enter_context(lines_atomic(run.train_lists))
        for job in jobs:
            if job.kind in lists:
                for found in shards.read(job):
                    _write(lists[job.kind], candidates_line, found.retrieved)
                continue
            for found, pools in _pools(recipe, shards, job):
                _write(candidates, candidates_line, found.retrieved)
                _write(negatives, negatives_line, pools)
                for query_id in sorted(found.removed):
                    if line := removed_line(found, query_id):
                        removed(line)
                tally.add(found, pools)
    return tally.facts()


def ask_teacher(
    recipe: Recipe, run: RunFolder, teacher: Teacher, train: Sequence[Collection], processes: Processes
) -> None:
    """Write teacher.jsonl: scores of all documents that training can draw, and of all that a refresh may need."""
    pools = read_negatives(run.negatives)
    candidates = read_candidates(run.candidates) if scores_candidates(recipe) else {}

    def wanted(collection: Collection) -> dict[str, list[str]]:
        found = {}
        for query_id in collection.queries:
            pool = [n.document_id for n in pools.get(query_id, ())]
            others = [c.document_id for c in candidates.get(query_id, ())]
            found[query_id] = list(dict.fromkeys([*collection.positives(query_id), *pool, *others]))
        return found

    kept = write_teacher_scores(run.teacher_scores, teacher, train, wanted, processes)
    console.say(teacher.describe(kept))


def _write(write: Callable[[str], object], line: Callable[[str, Any], str], lists: Mapping[str, Any]) -> None:
    for query_id in sorted(lists):
        write(line(query_id, lists[query_id]))


def _pools(recipe: Recipe, shards: Shards, job: Job) -> Iterator[tuple[Sifted, dict[str, tuple[Negative, ...]]]]:
    """(what the filters decided, pools) of a set: shard by shard, or all at once if a filter looks across queries."""
    filters = bind_filters(recipe.mine.filters)
    _, across = split_filters(filters)
    parts = shards.read(job)
    if across:
        whole = Sifted({}, {})
        for part in parts:
            whole.merge(part)
        apply(whole, {name: filters[name] for name in across}, shards.view(job, job.collection))
        parts = iter([whole])
    document_ids = sorted(job.collection.corpus) if recipe.mine.fill == "random" else []
    for found in parts:
        pools = {q: pool_of(job.collection, found, q, job.retriever) for q in found.retrieved}
        if document_ids:
            view = shards.view(job, job.collection).of(found.retrieved, {})
            pools = {
                q: filled(pool, q, recipe.mine.negatives, view=view, filters=filters, document_ids=document_ids)
                for q, pool in pools.items()
            }
        yield found, pools


def removed_line(found: Sifted, query_id: str) -> str | None:
    """A row of removed.jsonl: `query_id, removed: [{document_id, rank, score, filter, reason, decisions}], more`.

    At most MOST_REMOVED per query, those of the best rank; more: how many others there are. Relevant and judged
    documents are not listed. None when nothing was removed.
    """
    gone, notes = found.removed[query_id], found.notes.get(query_id, {})
    rows = []
    for c in found.retrieved[query_id]:
        by = gone.get(c.document_id)
        if by is not None and by.reason not in (POSITIVE, JUDGED):
            row: dict[str, Any] = {"document_id": c.document_id, "rank": c.rank, "score": c.score}
            row |= {"filter": by.filter or "always", "reason": by.reason}
            rows.append(row | ({"decisions": notes[c.document_id]} if c.document_id in notes else {}))
    if not rows:
        return None
    row = {"query_id": query_id, "removed": rows[:MOST_REMOVED], "more": max(0, len(rows) - MOST_REMOVED)}
    return json_line(row)


class _Tally:
    """Counts of the stage over all sets."""

    def __init__(self, recipe: Recipe) -> None:
        self._mine, self._is_pairwise = recipe.mine, recipe.is_pairwise
        self.reasons: Counter[str] = Counter()
        self.by_filter: Counter[str] = Counter()
        self.said: Counter[str] = Counter()
        self.queries = self.short = self.filled = self.judged = 0

    def add(self, found: Sifted, pools: Mapping[str, tuple[Negative, ...]]) -> None:
        self.reasons.update(found.counts())
        self.by_filter.update(found.counts_by_filter())
        self.said.update(found.said)
        self.queries += len(pools)
        self.short += sum(count_negatives(pool) < self._mine.negatives for pool in pools.values())
        self.filled += sum(n.reason == FILL for pool in pools.values() for n in pool)
        self.judged += sum(n.reason == JUDGED_NOT_RELEVANT for pool in pools.values() for n in pool)

    def facts(self) -> dict[str, Any]:
        """Print the counts; returns them as facts of the stage."""
        left = self.reasons.total()
        rows: list[dict[str, Any]] = []
        removed = [(f"always: {words}", self.reasons[reason]) for reason, words in ALWAYS.items()]
        for name, count in [*removed, *((name, self.by_filter[name]) for name in self._mine.filters)]:
            left -= count
            rows.append({"filter": name, "removed": count, "left": left})
        numbers = (Column(name, justify="right") for name in ("removed", "left"))
        title = "candidates of the training queries"
        table = Table("what was removed", *numbers, title=title, title_justify="left")
        table.add_row("(retrieved)", "", f"{self.reasons.total():,}")
        for row in rows:
            table.add_row(row["filter"], f"{row['removed']:,}", f"{row['left']:,}")
        console.show(table)
        for words, count in sorted(self.said.items()):
            console.say(f"{words}: {count:,}")
        wanted = self._mine.negatives
        if self.filled:
            console.say(
                f"{counted(self.filled, 'negative')} filled in at random from the corpus (mine.fill), marked as such"
            )
        if self.short and not self._is_pairwise:
            console.say(
                f"{self.short:,} of {counted(self.queries, 'query')} {'has' if self.short == 1 else 'have'} "
                f"fewer than {counted(wanted, 'negative')}: kept short"
            )
        counts = {**dict(sorted(self.reasons.items())), "kept_judged": self.judged, "filled": self.filled}
        return {
            "counts": {reason: count for reason, count in counts.items() if count},
            "filters": rows,
            "said": dict(sorted(self.said.items())),
            "queries": self.queries,
            "short_pools": self.short,
        }

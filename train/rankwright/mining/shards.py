"""Mining in shards of queries: each a file that is made once, by any number of processes, whatever is killed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rankwright.common import console
from rankwright.common.errors import UserError
from rankwright.common.files import json_line, write_lines_atomic
from rankwright.common.hashing import content_hash
from rankwright.common.plurals import counted
from rankwright.common.processes import Processes
from rankwright.data.collection import Collection
from rankwright.mining.filters import Filter, MiningView, TeacherOf, recipe_view
from rankwright.mining.pools import Sifted, apply, read_rows, rows_of, sift
from rankwright.recipe.schema import Recipe
from rankwright.retrieval.candidates import prefixed, without_own
from rankwright.retrieval.first_stages import own_of
from rankwright.retrieval.retriever import Retriever, Searcher, retrievers

# What a kill can lose, and what one process takes at a time.
SHARD_QUERIES = 512


@dataclass(frozen=True)
class Job:
    """One set to mine, with qualified ids; plain: the same set with the ids of its files, which run files use.

    kind: `train`, whose candidates are filtered; `dev` and `train_lists`, whose lists stay as they are retrieved.
    """

    kind: str
    collection: Collection
    plain: Collection
    retriever: str
    depth: int
    run_file: Path | None
    filters: Mapping[str, Filter]

    @property
    def stage(self) -> Retriever:
        return retrievers()[self.retriever]

    @cached_property
    def shards(self) -> list[tuple[str, ...]]:
        """The sorted queries in parts: a function of their ids alone. They may lie in a file, which is read once."""
        ids = sorted(self.collection.queries)
        return [tuple(ids[start : start + SHARD_QUERIES]) for start in range(0, len(ids), SHARD_QUERIES)]


@dataclass(slots=True)
class Shards:
    """The shards of some jobs under `folder`; inputs: hash of what decides their content beside the job's name.

    A file holds one row `shard, said, sha256`, and one row per query (pools.rows_of). It appears whole or not at all.
    sha256: hash of the other rows; a file that no longer fits it is made again.
    """

    folder: Path
    inputs: str
    recipe: Recipe
    jobs: Sequence[Job]
    teacher: TeacherOf | None = None

    def path(self, job: Job, number: int) -> Path:
        """Where a shard lies: its name is the hash of what it was made from."""
        name = content_hash(self.inputs, job.kind, job.collection.name, number, job.shards[number])
        return self.folder / f"{name}.jsonl"

    def missing(self) -> list[tuple[Job, int]]:
        """The shards that are not made yet."""
        all_of_them = [(job, number) for job in self.jobs for number in range(len(job.shards))]
        return [(job, number) for job, number in all_of_them if _rows(self.path(job, number)) is None]

    def make(self, processes: Processes) -> None:
        """Make what is missing, each process its share, and wait for the others."""
        missing = self.missing()
        # No process makes one before all have looked, so that all share out the same ones.
        processes.meet()
        if missing:
            for job in self.jobs:
                if job.stage.prepare is not None and any(job is other for other, _ in missing):
                    job.stage.prepare(self.recipe, job.collection.corpus, job.collection.queries, processes)
        own = missing[processes.rank :: processes.count]
        searchers = _Searchers(self.recipe, self.jobs)
        if own:
            with console.progress("mine queries", sum(len(job.shards[number]) for job, number in own)) as advance:
                for job, number in own:
                    processes.look()
                    self._make(job, number, searchers.of(job))
                    advance(len(job.shards[number]))
        processes.meet()

    def _make(self, job: Job, number: int, search: Searcher) -> None:
        collection = job.collection.subset(job.shards[number])
        retrieved = search(collection.queries)
        own = own_of(self.recipe, collection)
        if job.kind != "train":
            lists = without_own(retrieved, own, self.recipe.evaluate.depth) if own else retrieved
            found = Sifted(lists, {query_id: {} for query_id in lists})
        else:
            found = sift(collection, retrieved, own)
            apply(found, job.filters, self.view(job, collection))
        rows = list(rows_of(found))
        head = {"shard": number, "said": dict(found.said), "sha256": content_hash(rows)}
        write_lines_atomic(self.path(job, number), map(json_line, [head, *rows]))

    def view(self, job: Job, collection: Collection) -> MiningView:
        """What filters see of a job, without candidates."""
        teacher = None if self.teacher is None else self.teacher(collection)
        return recipe_view(self.recipe, collection, job.retriever, teacher)

    def read(self, job: Job) -> Iterator[Sifted]:
        """The shards of a job, in order, once all are made."""
        for number in range(len(job.shards)):
            found = _rows(self.path(job, number))
            if found is None:
                raise UserError(f"{self.path(job, number)}: damaged or gone: give the command again")
            head, *rows = found
            yield read_rows(rows, head["said"])

    @staticmethod
    def forget(folder: Path) -> None:
        """Remove all shards, whatever their inputs, and what a kill left of one."""
        if folder.is_dir():
            shutil.rmtree(folder)


def _rows(path: Path) -> list[dict[str, Any]] | None:
    """The rows of a shard, or None where it is missing or not as it was written."""
    try:
        if not path.is_file():
            return None
        with path.open(encoding="utf-8") as file:
            head, *rows = map(json.loads, file)
        return [head, *rows] if head["sha256"] == content_hash(rows) else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


class _Searchers:
    """A job's searcher; the last one is kept, since train and dev of one set share a corpus."""

    def __init__(self, recipe: Recipe, jobs: Sequence[Job]) -> None:
        self._recipe, self._jobs = recipe, jobs
        self._last: tuple[Job, Searcher] | None = None

    def of(self, job: Job) -> Searcher:
        if self._last is None or not _same_searcher(self._last[0], job):
            # The old index goes before the new one is made.
            self._last = None
            self._last = (job, self._make(job))
        search = self._last[1]
        return lambda queries: {query_id: found[: job.depth] for query_id, found in search(queries).items()}

    def _make(self, job: Job) -> Searcher:
        console.say(f"  {job.collection.name}: {job.retriever} over {counted(len(job.collection.corpus), 'document')}")
        depth = job.depth
        if job.stage.nested:
            depth = max(other.depth for other in self._jobs if other.retriever == job.retriever)
        make = job.stage.of(self._recipe, depth, job.run_file)
        if not job.stage.reads_run_file:
            return make(job.collection.corpus)
        # The whole file at once: what it lacks is reported for the set, not for every shard.
        lists, prefix = make(job.plain.corpus)(job.plain.queries), f"{job.collection.name}/"
        found = prefixed(lists, prefix)
        return lambda queries: {query_id: found[query_id] for query_id in queries}


def _same_searcher(one: Job, other: Job) -> bool:
    """Whether one searcher serves both."""
    if one is other:
        return True
    # Ids are qualified by the set's name.
    if (one.retriever, one.plain.name) != (other.retriever, other.plain.name) or one.stage.reads_run_file:
        return False
    if one.depth != other.depth and not one.stage.nested:
        return False
    first, second = one.plain.corpus, other.plain.corpus
    if first is second:
        return True
    # One text after another: a corpus may lie on the disk and exceed the memory.
    return len(first) == len(second) and all(second.get(d) == text for d, text in first.items())

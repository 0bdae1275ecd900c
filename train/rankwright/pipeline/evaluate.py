"""The evaluate stage: first stages, then base, tuned and baselines on the same fixed lists of every test set."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwright.common import console
from rankwright.common.files import json_line, read_json_object, write_lines_atomic, write_text_atomic
from rankwright.common.hashing import content_hash, file_sha256, stable_hash
from rankwright.common.outputs import content_of, remove
from rankwright.common.plurals import counted
from rankwright.common.processes import Processes
from rankwright.common.resources import resolve_base
from rankwright.common.run_folder import RunFolder
from rankwright.data.cards import load_card
from rankwright.data.collection import Collection
from rankwright.data.sources import with_share
from rankwright.data.split_files import qualified, read_split
from rankwright.data.words import Words
from rankwright.evaluation.combine import (
    CROSS_FITTED_QUERIES,
    cross_fitted,
    depths_within,
    grid_values,
    scored_lists,
)
from rankwright.evaluation.evaluate import (
    TestSet,
    choose_queries,
    first_stage_run,
    measure,
    read_evaluation,
    system_names,
    write_evaluation,
)
from rankwright.evaluation.metrics import HEADLINE, Scale, ceiling, measures_of
from rankwright.evaluation.results import few_lists
from rankwright.evaluation.slices import FILE, attributes, seen_in_training
from rankwright.evaluation.speed import forget_other_speed, measure_speed, speed_is_known
from rankwright.model.instructions import frozen_instruction, is_read_otherwise
from rankwright.pipeline.combine import combine_measure, fit_combination, is_fitted
from rankwright.pipeline.inputs import StageInputs, code_of
from rankwright.pipeline.pretrain_recipes import control_checkpoint, control_recipe, from_pretrained
from rankwright.recipe.pretrain import CONTROL, PRETRAINED
from rankwright.recipe.schema import COMBINED, EXPORTED, Baseline, Recipe
from rankwright.rerankers.combination import Combination, combined_run, normaliser_of
from rankwright.rerankers.kinds import baseline_under, load_baseline
from rankwright.rerankers.score_blocks import BlockScores
from rankwright.rerankers.scorer import Reranked, Scorer
from rankwright.retrieval.candidates import Candidates, read_candidates, write_candidates
from rankwright.retrieval.first_stages import retrieve
from rankwright.retrieval.retriever import retrievers
from rankwright.training.setup import base_reranker, recipe_encoder, tuned_reranker


def write_attributes(recipe: Recipe, run: RunFolder) -> None:
    """Write eval/TESTSET/queries.jsonl for every test set that has candidates. Unchanged files are kept."""
    todo = []
    tests = read_split(run.data, "test")
    for collection in tests:
        folder = run.eval_folder(collection.name)
        if not (folder / "candidates.jsonl").is_file():
            continue
        inputs = {"inputs": _inputs(recipe, run, folder / "candidates.jsonl")}
        if read_json_object(folder / "queries.json") != {**inputs, "sha256": content_of(folder / FILE)}:
            todo.append((collection, folder, inputs))
    if not todo:
        return
    encoder, domains = recipe_encoder(recipe), _domains(recipe)
    trained = with_share(map(qualified, read_split(run.data, "train")), recipe.train.queries_share, seed=recipe.seed)
    seen = seen_in_training(trained)
    words = Words(**recipe.bm25.model_dump())
    for collection, folder, inputs in todo:
        candidates = read_candidates(folder / "candidates.jsonl")
        domain = domains.get(collection.name, collection.name)
        under, level = encoder.under(collection.instruction), recipe.evaluate.relevance_level
        rows = attributes(collection, candidates, under, words, seen, domain, level)
        remove(folder / "queries.json")
        write_lines_atomic(folder / FILE, (json_line(dataclasses.asdict(row)) for row in rows))
        write_text_atomic(folder / "queries.json", json.dumps({**inputs, "sha256": file_sha256(folder / FILE)}) + "\n")


def _domains(recipe: Recipe) -> dict[str, str]:
    cards = [(source.name, load_card(source.card)) for source in recipe.data.test_sources if source.card is not None]
    return {name or card.name: card.domain for name, card in cards}


def _inputs(recipe: Recipe, run: RunFolder, candidates: Path) -> str:
    base = Path(resolve_base(recipe.model.base))
    tokenizer = [file_sha256(f) for f in (base / "tokenizer.json", base / "rankwright.json") if f.is_file()]
    sections = recipe.model_dump(mode="json", include={"prompt", "data"})
    data = [file_sha256(run.split(split)) for split in ("train", "test")]
    words = recipe.bm25.model_dump()
    model = (recipe.model.base, recipe.model.revision)
    # The domain in a card may change while its path does not.
    trained = (recipe.train.queries_share, recipe.seed)
    texts = (words, data, trained, _domains(recipe), recipe.evaluate.relevance_level)
    return content_hash(sections, model, tokenizer, texts, file_sha256(candidates), code_of("attributes"))


@dataclass(frozen=True, slots=True)
class Job:
    """One test set: the queries that are evaluated, its folder under eval/, and its TREC run file where it has one.

    is_read_otherwise: whether exports read it under another instruction than its own
    """

    collection: Collection
    chosen: TestSet
    folder: Path
    run_file: Path | None
    is_read_otherwise: bool

    def has(self, system: str) -> bool:
        if system in retrievers() and retrievers()[system].reads_run_file:
            return self.run_file is not None
        return system != EXPORTED or self.is_read_otherwise


class Evaluation:
    """What one evaluation works with. made_from: what everything depends on."""

    def __init__(
        self,
        recipe: Recipe,
        run: RunFolder,
        *,
        made_from: StageInputs,
        run_files: Mapping[str, Path | None],
        processes: Processes,
        checkpoint: Path | None,
    ) -> None:
        self.recipe, self.run = recipe, run
        self.made_from = made_from
        # Test set -> system -> hash of what its scores on this set depend on.
        self.scores = made_from.scores
        # System -> hash of what its numbers on all sets depend on.
        self.inputs = made_from.systems
        self.processes = processes
        self.checkpoint = checkpoint
        self.jobs = []
        for test in read_split(run.data, "test"):
            evaluation = recipe.evaluate
            level, limit = evaluation.relevance_level, evaluation.limit_queries
            chosen = choose_queries(test, limit=limit, seed=recipe.seed, level=level)
            otherwise = is_read_otherwise(recipe, test.instruction)
            self.jobs.append(Job(test, chosen, run.eval_folder(test.name), run_files.get(test.name), otherwise))

    def __call__(self, only: Sequence[str]) -> None:
        """Evaluate the systems of `only` that are not done. Every process of the group calls this."""
        first = self.recipe.evaluate.first_stage
        reranked = any(system not in retrievers() for system in only)
        if self.processes.is_first:
            for job in self.jobs:
                self._say_choice(job)
                self._forget_others(job)
                if reranked or first in only:
                    lists, path = self._lists(job, first), job.folder / "candidates.jsonl"
                    if content_of(path) != file_sha256(lists):
                        write_text_atomic(path, lists.read_text(encoding="utf-8"))
            if COMBINED not in self.inputs or not is_fitted(self.run, self.made_from.combine):
                remove(self.run.combine)
            if "tuned" in only:
                forget_other_speed(self.run, self._speed_inputs)
        self.processes.meet()
        for system in (s for s in system_names(self.recipe) if s in only):
            todo = [job for job in self.jobs if job.has(system) and not self._is_done(job, system)]
            if not todo:
                console.say(f"{system}: unchanged, kept")
            elif system == COMBINED:
                self._combine(todo)
            elif system not in retrievers():
                self._rerank(system, todo)
            elif self.processes.is_first:
                for job in todo:
                    found = read_candidates(self._lists(job, system))
                    self._finish(job, system, first_stage_run(found, job.chosen.query_ids), {})
            if system == "tuned":
                self._speed()

    def _forget_others(self, job: Job) -> None:
        """Remove numbers of other settings, so that a kill leaves none of them beside new ones. Scores are kept."""
        for path in sorted(job.folder.glob("*/metrics.json")):
            system = path.parent.name
            if read_evaluation(path.parent) is None:
                console.say(f"{path.parent}: not as it was written: measured again")
            if system not in self.inputs or not job.has(system) or not self._is_done(job, system):
                remove(path)

    def _is_done(self, job: Job, system: str) -> bool:
        done = read_evaluation(job.folder / system)
        return done is not None and done.get("inputs") == self.inputs[system]

    def _say_choice(self, job: Job) -> None:
        recipe, chosen = self.recipe, job.chosen
        limited = len(chosen.query_ids) < chosen.total - chosen.without_relevant
        scale, left_out = Scale.of(recipe.evaluate), chosen.without_relevant > 0
        level = f" (a label of {scale.level} or more)" if scale.level > 1 else ""
        judged = (job.collection.qrels[q].values() for q in chosen.query_ids) if scale.gains else ()
        flat = sum(not any(scale.gain(int(label)) for label in labels) for labels in judged)
        console.say(
            f"test set {job.collection.name}: {len(chosen.query_ids):,} of {counted(chosen.total, 'query')}"
            + (f" (evaluate.limit_queries, by seed {recipe.seed})" if limited else "")
            + (f", {chosen.without_relevant} without a relevant document{level} left out" if left_out else "")
            + (f", {flat:,} without a document that has a gain: they count 0 in {HEADLINE}" if flat else "")
            + f"; {recipe.evaluate.first_stage} top {recipe.evaluate.depth} reranked"
            + f"; exports read it under another instruction (row {EXPORTED})" * job.is_read_otherwise
        )

    def _lists(self, job: Job, name: str) -> Path:
        """The file with the lists of a first stage, eval/TESTSET/NAME/candidates.jsonl; written where it is missing."""
        folder = job.folder / name
        path, record = folder / "candidates.jsonl", folder / "candidates.json"
        wanted = {"inputs": self.scores[job.collection.name][name], "queries": list(job.chosen.query_ids)}
        # With the hash of the file, so that a damaged file is written again.
        if read_json_object(record) != {**wanted, "sha256": content_of(path)}:
            remove(record)
            chosen = job.collection.subset(job.chosen.query_ids)
            lists = retrieve(self.recipe, name, chosen, self.recipe.evaluate.depth, job.run_file)
            write_candidates(path, lists)
            write_text_atomic(record, json.dumps({**wanted, "sha256": file_sha256(path)}))
        return path

    def _rerank(self, system: str, todo: Sequence[Job]) -> None:
        files = [self._files(job, system) for job in todo]
        missing = [sorted(set(range(len(f.blocks))) - set(f.done())) for f in files]
        # Every process must have read what is done before any of them adds to it, or the shares below would overlap.
        self.processes.meet()
        scorer = self._load(system) if any(missing) else None
        rank, count = self.processes.rank, self.processes.count
        for job, scores, numbers in zip(todo, files, missing, strict=True):
            share = numbers[rank::count]
            if scorer is not None and scorer.one_process:
                share = numbers if rank == 0 else []
            kept = sum(len(block) for number, block in enumerate(scores.blocks) if number not in set(numbers))
            if kept and numbers:
                console.say(
                    f"{system} on {job.collection.name}: {counted(kept, 'query was', 'queries were')} "
                    "scored before: continuing"
                )
            if scorer is not None and share:
                self._score(job, system, self._under(system, scorer, job.collection), scores, share)
            self.processes.meet()
            if self.processes.is_first:
                run, facts = scores.gather()
                self._finish(job, system, run, facts)
            self.processes.meet()
        if system == "tuned" and scorer is not None:
            self._speed(scorer)

    def _combine(self, todo: Sequence[Job]) -> None:
        """Combine the scores that an export gives with those of the first stage, on the first process."""
        parts = [(job, EXPORTED if job.is_read_otherwise else "tuned") for job in todo]
        # Evaluated before; but a file of scores may be damaged since.
        for system in ("tuned", EXPORTED):
            files = [(job, self._files(job, system)) for job, part in parts if part == system]
            damaged = [job for job, scores in files if len(scores.done()) < len(scores.blocks)]
            # Every process must have read before any of them writes.
            self.processes.meet()
            if damaged:
                self._rerank(system, damaged)
        if self.processes.is_first:
            assert self.checkpoint is not None
            made = self.made_from
            hashes = {"inputs": made.combine, "tuned": made.tuned, "trained": made.train}
            chosen = fit_combination(self.recipe, self.run, self.checkpoint, **hashes)
            for job, system in parts:
                lists = read_candidates(job.folder / "candidates.jsonl")
                reranked, _ = self._files(job, system).gather()
                combination = Combination(chosen["weight"], chosen["normaliser"], chosen["depth"])
                run = combined_run(reranked, first_stage_run(lists, job.chosen.query_ids), combination)
                facts = {key: chosen[key] for key in ("weight", "depth", "normaliser")}
                crossed, queries = self._cross_fitted(job, lists, reranked)
                if chosen["note"] and crossed is not None:
                    console.say(
                        f"{job.collection.name}: {combine_measure(self.recipe)} {crossed:.3f} when each half of the "
                        "queries is combined as the other half would choose"
                    )
                facts = {"combined": facts | {"cross_fitted": crossed, "cross_fitted_queries": queries}}
                self._finish(job, COMBINED, run, facts)
        self.processes.meet()

    def _cross_fitted(self, job: Job, lists: Candidates, reranked: Reranked) -> tuple[float | None, int]:
        """The mean on a test set when each half is combined as the other half would choose; see cross_fitted.

        With it the number of queries: of a large set those whose hash is smallest.
        """
        combine = self.recipe.evaluate.combine
        assert combine is not None
        measure, qrels = combine_measure(self.recipe), job.collection.qrels
        asked = job.chosen.query_ids
        if len(asked) > CROSS_FITTED_QUERIES:
            asked = tuple(sorted(asked, key=lambda q: stable_hash("cross-fitted", self.recipe.seed, q)))
            asked = tuple(sorted(asked[:CROSS_FITTED_QUERIES]))
        scored = scored_lists(lists, reranked, asked)
        depths = depths_within(combine.depths, self.recipe.evaluate.depth)
        normaliser = normaliser_of([c.score for c in lists[one.query_id]] for one in scored)
        if not scored:
            return None, len(asked)
        values_DWQ = grid_values(scored, qrels, measure, depths, normaliser, Scale.of(self.recipe.evaluate))
        values_Q = cross_fitted(values_DWQ, combine.prefer, seed=self.recipe.seed)
        # Queries without candidates count 0.
        return None if values_Q is None else float(values_Q.sum()) / len(asked), len(asked)

    def _files(self, job: Job, system: str) -> BlockScores:
        path = job.folder / "candidates.jsonl"
        inputs = content_hash(self.scores[job.collection.name][system], file_sha256(path))
        return BlockScores(job.folder / system, inputs, read_candidates(path), job.chosen.query_ids)

    def _score(self, job: Job, system: str, scorer: Scorer, scores: BlockScores, share: Sequence[int]) -> None:
        blocks, count = scores.blocks, self.processes.count
        queries = sum(len(blocks[number]) for number in share)
        of = f" (process 1 of {count})" if count > 1 else ""
        with console.progress(f"{system} on {job.collection.name}{of}", queries) as advance:
            rank, look = self.processes.rank, self.processes.look
            scores.score(share, scorer, job.collection, rank=rank, advance=advance, look=look)

    def _load(self, system: str) -> Scorer:
        if system == "base":
            return base_reranker(self.recipe)
        if system == PRETRAINED:
            return base_reranker(from_pretrained(self.recipe, self.run))
        if system == CONTROL:
            return tuned_reranker(control_recipe(self.recipe, self.run), control_checkpoint(self.run))
        if system in ("tuned", EXPORTED):
            assert self.checkpoint is not None
            trained = from_pretrained(self.recipe, self.run)
            return tuned_reranker(trained, self.checkpoint, inputs=self.made_from.train)
        recipe, cache = self.recipe, self.run.cache
        scorer: Scorer = load_baseline(self._baseline(system), recipe.prompt, cache=cache, bm25=recipe.bm25)
        return scorer

    def _baseline(self, system: str) -> Baseline:
        return next(b for b in self.recipe.evaluate.baselines if b.name == system)

    def _under(self, system: str, scorer: Scorer, collection: Collection) -> Scorer:
        """The scorer under the instruction with which this system reads a test set."""
        if system in ("base", "tuned", EXPORTED, PRETRAINED, CONTROL):
            return scorer.under(frozen_instruction(self.recipe) if system == EXPORTED else collection.instruction)
        return baseline_under(self._baseline(system), scorer, collection.instruction)

    def _finish(self, job: Job, system: str, run: Reranked, facts: dict[str, Any]) -> None:
        """Measure and write. When only the measures changed, scores that were kept are measured again."""
        recipe, query_ids = self.recipe, job.chosen.query_ids
        measures, scale = measures_of(recipe.evaluate), Scale.of(recipe.evaluate)
        measured = measure(run, job.collection.qrels, query_ids, measures, scale)
        qrels = {q: job.collection.qrels[q] for q in query_ids}
        stage = {} if system in retrievers() else {"first_stage": recipe.evaluate.first_stage}
        best = {"depth": recipe.evaluate.depth, "ceiling": ceiling(run, qrels, HEADLINE, scale)}
        # Counted over the whole set: these queries are not among query_ids.
        left_out = {"queries_without_relevant": job.chosen.without_relevant}
        facts = {**facts, **left_out, **stage, **best, **scale.as_json(), "inputs": self.inputs[system]}
        write_evaluation(job.folder / system, run, measured, tag=f"rankwright-{system}", facts=facts)
        empty, refused = len(measured.missing), facts.get("documents_refused", 0)
        console.say(
            f"{job.collection.name} {system}: {scale.name(HEADLINE)} {measured.mean[HEADLINE]:.3f}"
            + (f", {facts['pairs_per_s']:.0f} pairs/s" if "pairs_per_s" in facts else "")
            + (
                f", {counted(facts['windows'], 'window')} for {counted(facts['pairs'], 'document')}"
                if "windows" in facts
                else ""
            )
            + (f", tie rate {measured.tie_rate:.1%}" if measured.tie_rate else "")
            + (f", queries without candidates (they count 0): {empty:,}" if empty else "")
            + (f", documents refused as too long, ranked last: {facts['documents_refused']:,}" if refused else "")
        )
        if system == recipe.evaluate.first_stage and (
            warning := few_lists(job.collection.name, empty, len(job.chosen.query_ids))
        ):
            console.say(warning)

    @property
    def _speed_inputs(self) -> str:
        """Hash of what the speed depends on. Measures are not part of it."""
        return content_hash([self.scores[job.collection.name]["tuned"] for job in self.jobs])

    def _speed(self, scorer: Scorer | None = None) -> None:
        """Measure the latency of tuned, on the first process while the others wait."""
        inputs = self._speed_inputs
        if self.processes.is_first and not speed_is_known(self.run, inputs):
            scorer = self._load("tuned") if scorer is None else scorer
            lists: list[tuple[Scorer, Collection, Candidates]] = []
            for job in self.jobs:
                found = read_candidates(job.folder / "candidates.jsonl")
                lists.append((self._under("tuned", scorer, job.collection), job.collection, found))
            measure_speed(self.run, lists, seed=self.recipe.seed, inputs=inputs)
        self.processes.meet()

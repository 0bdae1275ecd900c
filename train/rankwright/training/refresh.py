"""Negatives mined again during training: candidates ranked by the current model, filtered by the same rules."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from rankwright.common import console
from rankwright.common.errors import UserError
from rankwright.common.files import write_text_atomic
from rankwright.common.hashing import content_hash
from rankwright.common.plurals import counted
from rankwright.common.processes import Processes
from rankwright.common.run_folder import RunFolder
from rankwright.data.collection import Collection
from rankwright.mining.filters import bind_filters, known_scores, recipe_view
from rankwright.mining.pools import (
    Negative,
    apply,
    count_negatives,
    negatives_line,
    pool_id,
    pool_of,
    read_negatives,
    sift,
)
from rankwright.model import sharding
from rankwright.model.trainable import trainable_state
from rankwright.recipe.schema import Recipe
from rankwright.rerankers.pair_scores import read_teacher_scores
from rankwright.rerankers.reranker import Reranker
from rankwright.rerankers.score_blocks import BlockScores
from rankwright.retrieval.candidates import Candidate, best_candidates, read_candidates
from rankwright.retrieval.first_stages import own_of
from rankwright.training.checkpoint import TrainState
from rankwright.training.sampling import GroupSource, Pools

# The source of negatives that a refresh ranked.
MODEL = "model"
# The hardest HARDEST * mine.negatives that the filters leave stay, so that every sampler draws hard ones.
HARDEST = 4


class Refresh:
    """A new pool after every `mine.refresh_steps` steps, an immutable file pools/step-N-HASH.jsonl.

    The pool after step N holds the queries that the steps until the next refresh draw. It is a function of the weights
    after step N: a process that continues from there makes the same pool again, from the scores that were kept. The
    file appears before the first step that draws from it. Its name has the hash of its content, and the checkpoints of
    these steps name it.
    """

    def __init__(
        self,
        recipe: Recipe,
        run: RunFolder,
        source: GroupSource,
        reranker: Reranker,
        collections: Sequence[Collection],
        *,
        total_steps: int,
    ) -> None:
        """collections: the training sets, with qualified ids."""
        assert recipe.mine.refresh_steps is not None
        self.every = recipe.mine.refresh_steps
        self._recipe = recipe
        self._folder = run.pools
        self._source = source
        self._reranker = reranker
        self._collections = collections
        self._processes = Processes.of_group()
        self._total_steps = total_steps
        self._candidates = read_candidates(run.candidates)
        self._first = read_negatives(run.negatives)
        self._teacher = None if recipe.mine.teacher is None else read_teacher_scores(run.teacher_scores)
        self._current: str | None = None
        if self.every >= total_steps:
            console.say(
                f"WARNING: mine.refresh_steps: {self.every}: never, training has {counted(total_steps, 'step')}"
            )
        # Queries of the current pool for which the filters left no negative.
        self._emptied = 0

    def due(self, step: int) -> bool:
        """Whether negatives are mined again between this step and the next."""
        return 0 < step < self._total_steps and step % self.every == 0

    def __call__(self, state: TrainState) -> str | None:
        """Have the source draw from the pool of the step after `state`, made now if it is due; returns its name.

        Every rank calls this. Raises UserError if the pool that a checkpoint names is gone or damaged.
        """
        name = self._make(state) if self.due(state.step) else state.pool
        if name != self._current and name is not None:
            self._source.use(Pools.read(self._path(name)))
            self._current = name
        return name

    def _path(self, name: str) -> Path:
        path = self._folder / f"{name}.jsonl"
        if not path.is_file() or pool_id(path) != name.rsplit("-", 1)[1]:
            raise UserError(
                f"{path}: the negatives that the checkpoint continues with are gone or damaged: put the file back, or "
                f"delete the checkpoints after step {name.split('-')[1]}"
            )
        return path

    def _make(self, state: TrainState) -> str:
        started = time.perf_counter()
        steps = range(state.step + 1, min(state.step + self.every, self._total_steps) + 1)
        queries = self._source.queries_of(steps, self._recipe.train.groups_per_step)
        own = [(c, [q for q in c.queries if q in queries]) for c in self._collections]
        weights = self._processes.from_first(_weights_hash(self._reranker))
        scores = [
            self._block_scores(number, state, weights, c, query_ids)
            for number, (c, query_ids) in enumerate(own)
            if query_ids
        ]
        pairs = sum(len(found) for one, _ in scores for found in one.candidates.values())
        console.say(
            f"mine.refresh_steps: after step {state.step} {counted(len(queries), 'query')}, "
            f"{counted(pairs, 'pair')} to score"
        )
        with console.progress("refresh", len(queries)) as advance, sharding.gathered(self._reranker.model):
            scored = sum(self._score(blocks, collection, advance) for blocks, collection in scores)
        name = ""
        if self._processes.is_first:
            pools: dict[str, tuple[Negative, ...]] = {}
            self._emptied = 0
            for blocks, collection in scores:
                pools |= self._pools(collection, blocks.gather()[0])
            name = self._publish(state.step, pools)
            shutil.rmtree(self._folder / f"scores-{state.step}", ignore_errors=True)
        name = self._processes.from_first(name)
        seconds = time.perf_counter() - started
        # The pairs that were scored before a kill do not count.
        console.say(f"mine.refresh_steps: {name} in {seconds:.1f} s, {scored / seconds:,.0f} pairs/s")
        return name

    def _block_scores(
        self, number: int, state: TrainState, weights: str, collection: Collection, query_ids: Sequence[str]
    ) -> tuple[BlockScores, Collection]:
        """All that was retrieved for each query, and its judged documents: filters compare with the relevant ones."""
        lists = {}
        for query_id in query_ids:
            retrieved = [c.document_id for c in self._candidates.get(query_id, ())]
            ids = dict.fromkeys([*retrieved, *collection.qrels.get(query_id, {})])
            lists[query_id] = [Candidate(d, 0.0, place) for place, d in enumerate(ids, start=1)]
        inputs = content_hash(state.inputs, state.step, weights, collection.name)
        folder = self._folder / f"scores-{state.step}" / str(number)
        return BlockScores(folder, inputs, lists, tuple(query_ids)), collection

    def _score(self, blocks: BlockScores, collection: Collection, advance: Any) -> int:
        """Score what is missing, over all ranks; returns the number of pairs."""
        missing = sorted(set(range(len(blocks.blocks))) - set(blocks.done()))
        # No process may add scores before all have read what is there.
        ranks = self._processes
        ranks.meet()
        share = missing[ranks.rank :: ranks.count]
        kept = sum(len(block) for number, block in enumerate(blocks.blocks) if number not in missing)
        advance(kept)
        blocks.score(
            share,
            self._reranker.under(collection.instruction),
            collection,
            rank=ranks.rank,
            advance=lambda n: advance(n * ranks.count),
            look=ranks.look,
            lists=self._source.lists,
        )
        ranks.meet()
        return sum(len(blocks.candidates[q]) for number in missing for q in blocks.blocks[number])

    def _pools(self, collection: Collection, run: Mapping[str, Mapping[str, float]]) -> dict[str, tuple[Negative, ...]]:
        """The model's own ranking, by the scores that the loss sees, after the recipe's filters."""
        run = run if self._source.offset is None else self._source.offset.added(run)
        lists = {q: best_candidates(q, scores, len(scores)) for q, scores in run.items()}
        part = collection.subset(lists)
        teacher = None if self._teacher is None else known_scores(self._teacher)
        sifted = sift(part, lists, own_of(self._recipe, part))
        apply(sifted, bind_filters(self._recipe.mine.filters), recipe_view(self._recipe, part, MODEL, teacher))
        return {q: self._hardest(q, pool_of(part, sifted, q, MODEL)) for q in lists}

    def _hardest(self, query_id: str, pool: Sequence[Negative]) -> tuple[Negative, ...]:
        """The judged negatives and the hardest others; if these are too few, also the first pool's fill.

        A query that would have no negative keeps its first pool.
        """
        wanted, first = self._recipe.mine.negatives, self._first[query_id]
        others = [n for n in pool if n.reason != "judged_not_relevant" and not n.is_promoted]
        left_out = {n.document_id for n in others[HARDEST * wanted :]}
        found = [n for n in pool if n.document_id not in left_out]
        if not count_negatives(found):
            self._emptied += 1
            return tuple(first)
        here = {n.document_id for n in found}
        fill = [n for n in first if n.reason == "fill" and n.document_id not in here]
        return (*found, *fill[: max(0, wanted - count_negatives(found))])

    def _publish(self, step: int, pools: Mapping[str, Sequence[Negative]]) -> str:
        text = "".join(f"{negatives_line(q, pools[q])}\n" for q in sorted(pools))
        name = f"step-{step}-{hashlib.sha256(text.encode('utf-8')).hexdigest()[:16]}"
        write_text_atomic(self._folder / f"{name}.jsonl", text)
        self._say_change(pools)
        return name

    def _say_change(self, pools: Mapping[str, Sequence[Negative]]) -> None:
        count = self._recipe.mine.negatives
        new = whole = 0
        for query_id, pool in pools.items():
            one, two = (_top(found, count) for found in (pool, self._first[query_id]))
            new += len(one - two)
            whole += len(one)
        if whole:
            console.say(f"{new / whole:.0%} of the {count} hardest negatives of a query are not those mined at first")
        if self._emptied:
            console.say(
                f"{counted(self._emptied, 'query keeps', 'queries keep')} the negatives mined at first: the "
                "filters left none"
            )
        if short := sum(count_negatives(pool) < count for pool in pools.values()):
            console.say(
                f"{short:,} of {counted(len(pools), 'query')} {'has' if short == 1 else 'have'} fewer than "
                f"{counted(count, 'negative')}: kept short"
            )


def _top(pool: Sequence[Negative], count: int) -> set[str]:
    best = sorted((n for n in pool if n.rank is not None and not n.is_promoted), key=lambda n: n.rank or 0)
    return {n.document_id for n in best[:count]}


def _weights_hash(reranker: Reranker) -> str:
    """Hash of all trained parameters, bit for bit. Every rank calls it; for a sharded model only the first has it."""
    digest = hashlib.sha256()
    for name, tensor in sorted(trainable_state(reranker.model).items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()

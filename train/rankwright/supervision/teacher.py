"""The teacher of mine.teacher: a reranker that scores (query, document) pairs, each pair once for the same weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from rankwright.common import console
from rankwright.common.errors import UserError
from rankwright.common.files import cache_folder, write_lines_atomic
from rankwright.common.hashing import content_hash
from rankwright.common.plurals import counted
from rankwright.common.processes import Processes, launched
from rankwright.common.resources import resolve_base
from rankwright.data.collection import Collection
from rankwright.recipe.schema import Baseline, Bm25, Prompt
from rankwright.rerankers.kinds import TEACHER, baseline_inputs, baseline_under, load_baseline
from rankwright.rerankers.pair_scores import PairScores, pair_key, teacher_line
from rankwright.rerankers.scorer import Scorer, windows

# Pairs that are scored by one call and kept together: what a kill can lose, and what a scorer sorts by length.
BLOCK_PAIRS = 1024
# Blocks that a process takes at a time where several write teacher.jsonl together.
SHARE_BLOCKS = 4

Wanted = Mapping[str, Sequence[str]]
Scores = dict[str, dict[str, float]]


class Teacher:
    """Raw scores of any kind of reranker that an evaluation can hold (see rerankers.kinds), read from the disk or made.

    Scores are kept under `cache` (by default files.cache_folder) by the content of weights, options, prompt, query and
    document. Pairs are scored in blocks that depend on the wanted pairs alone, and each block is kept when it is done:
    a killed process continues at its block and gives the same scores. The weights are loaded when a score is missing.
    """

    def __init__(
        self, baseline: Baseline, prompt: Prompt, *, bm25: Bm25 | None = None, cache: Path | None = None
    ) -> None:
        """Raises UserError for a served teacher among several processes, whose limits are those of one client."""
        if baseline.kind == "served" and launched() > 1:
            raise UserError(
                f"{TEACHER}: {baseline.name} is served, and asked by one process: `rankwright mine` alone first"
            )
        self.baseline = baseline
        self.scored = 0
        self._prompt = prompt
        self._bm25 = bm25
        self._cache = cache or cache_folder()
        # Instruction of a set -> scorer under it; all of them share the weights.
        self._scorers: dict[str | None, Scorer] = {}
        self._stores: dict[Prompt, PairScores] = {}

    def of(self, collection: Collection) -> Callable[[Wanted], Scores]:
        """The teacher as filters ask it: query id -> document ids, to query id -> document id -> score."""
        return lambda wanted: self.score_pairs(collection, wanted)

    def score_pairs(self, collection: Collection, wanted: Wanted) -> Scores:
        """Scores of the wanted documents of each query, under the set's own instruction where it has one.

        Raises UserError when the teacher cannot be loaded, or gives a score that is not finite.
        """
        stated = collection.instruction
        prompt = self._prompt if stated is None else self._prompt.model_copy(update={"instruction": stated})
        store = self._store(prompt, stated)
        store.look()
        blocks = [[(q, list(dict.fromkeys(wanted[q]))) for q in block] for block in _blocks(wanted, BLOCK_PAIRS)]
        pairs = sum(len(documents) for block in blocks for _, documents in block)
        with console.progress(f"teacher {self.baseline.name}", pairs) as advance:
            # Loading the weights counts as time, too.
            advance(0)
            for block in blocks:
                missing = _missing(block, collection, store)
                if missing:
                    store.add(self._score(stated, missing))
                    self.scored += sum(map(len, missing.values()))
                advance(sum(len(documents) for _, documents in block))
        return {q: dict(_known(store, collection, q, documents)) for block in blocks for q, documents in block}

    def _score(self, stated: str | None, block: Mapping[str, Sequence[str]]) -> dict[bytes, float]:
        scorer = self._scorer(stated)
        found: dict[bytes, float] = {}
        groups = ((query, scorer.listed(documents)) for query, documents in block.items())
        for (query, documents), scores in zip(block.items(), scorer.score_groups(groups), strict=True):
            for document, score in zip(documents, scores, strict=True):
                if not math.isfinite(score):
                    raise UserError(
                        f"{TEACHER}: {self.baseline.name}: the score of query {query[:60]!r} and document "
                        f"{document[:60]!r} is not finite: the model is broken, or needs options.precision: fp32"
                    )
                found[pair_key(query, document)] = score
        return found

    def _scorer(self, stated: str | None) -> Scorer:
        if None not in self._scorers:
            console.say(f"  teacher {self.baseline.name}: loading {self.baseline.model}")
            self._scorers[None] = load_baseline(
                self.baseline, self._prompt, cache=self._cache, key=TEACHER, bm25=self._bm25
            )
        if stated not in self._scorers:
            self._scorers[stated] = baseline_under(self.baseline, self._scorers[None], stated)
        return self._scorers[stated]

    def _store(self, prompt: Prompt, stated: str | None) -> PairScores:
        if prompt not in self._stores:
            folder = self._cache / "teacher" / self._inputs(prompt, stated)
            self._stores[prompt] = PairScores(folder, console.say)
        return self._stores[prompt]

    def _inputs(self, prompt: Prompt, stated: str | None) -> str:
        """What the scores depend on beside the pair: kinds.baseline_inputs, and what the machine and the hub decide."""
        commit = None
        if self.baseline.kind != "served" and not Path(resolve_base(self.baseline.model, TEACHER)).is_dir():
            # A branch of a hub repository moves: what counts is the commit that was loaded.
            self._scorer(stated)
            commit = _commit(self.baseline)
        # Here, since the report reads a teacher's scores and loads no torch.
        import torch

        inputs = baseline_inputs(self.baseline, prompt, key=TEACHER, bm25=self._bm25)
        return content_hash(inputs, commit, torch.cuda.is_available())

    def describe(self, kept: int) -> str:
        """What this process did, in one line; kept: how many pairs teacher.jsonl holds."""
        cut = "".join(f", {name.replace('_', ' ')} {count:,}" for name, count in self.cut.items() if count)
        here = " by this process" if launched() > 1 else ""
        return (
            f"teacher {self.baseline.name}: {counted(self.scored, 'pair')} scored{here}, {kept:,} in teacher.jsonl{cut}"
        )

    @property
    def cut(self) -> dict[str, int]:
        """Texts that were cut in this process, as far as the scorer counts them."""
        found: dict[str, int] = {}
        for scorer in {id(scorer): scorer for scorer in self._scorers.values()}.values():
            for name, count in scorer.cut.items():
                found[name] = found.get(name, 0) + count
        return found


def write_teacher_scores(
    path: Path,
    teacher: Teacher,
    collections: Sequence[Collection],
    wanted: Callable[[Collection], Wanted],
    processes: Processes,
) -> int:
    """Write teacher.jsonl: raw scores of all wanted pairs, one line per query, by query id; returns how many pairs.

    Every process of the group calls this: each scores its share of the queries, and the first one writes. The ids of
    the collections are qualified.
    """
    asked = [(collection, wanted(collection)) for collection in collections]
    shares = [
        (collection, {q: pairs[q] for q in block})
        for collection, pairs in asked
        for block in _blocks(pairs, SHARE_BLOCKS * BLOCK_PAIRS)
    ]
    for collection, share in shares[processes.rank :: processes.count]:
        processes.look()
        teacher.of(collection)(share)
    processes.meet()
    if processes.is_first:
        scores: Scores = {}
        for collection, share in shares:
            scores |= teacher.of(collection)(share)
        write_lines_atomic(path, (teacher_line(q, scores[q]) for q in sorted(scores)))
    return sum(len(set(documents)) for _, pairs in asked for documents in pairs.values())


def _commit(baseline: Baseline) -> str | None:
    """The commit of a hub model that was loaded, by the folder where huggingface_hub keeps its files."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(baseline.model, "config.json", revision=baseline.revision)
    return Path(found).parent.name if isinstance(found, str) else None


def _blocks(wanted: Wanted, most: int) -> Iterator[list[str]]:
    """The queries in the order of their ids, cut where `most` pairs are reached: a function of what is wanted alone."""
    return windows(sorted(wanted), lambda q: len(wanted[q]), most)


def _missing(
    block: Sequence[tuple[str, Sequence[str]]], collection: Collection, store: PairScores
) -> dict[str, list[str]]:
    """Query -> documents, as texts, whose score is not there."""
    found: dict[str, dict[str, None]] = {}
    for query_id, documents in block:
        query = collection.queries[query_id]
        for document in (collection.corpus[d] for d in documents):
            if store.find(pair_key(query, document)) is None:
                found.setdefault(query, {})[document] = None
    return {query: list(documents) for query, documents in found.items()}


def _known(
    store: PairScores, collection: Collection, query_id: str, documents: Sequence[str]
) -> Iterator[tuple[str, float]]:
    for document_id in documents:
        score = store.find(pair_key(collection.queries[query_id], collection.corpus[document_id]))
        assert score is not None, "a wanted pair was not scored"
        yield document_id, score

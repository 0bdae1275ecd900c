"""A reranker whose scores of pairs are kept on the disk: each pair is scored once for the same weights and prompt."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from rankwright.common import console
from rankwright.common.errors import UserError
from rankwright.common.processes import Processes
from rankwright.data.collection import Collection
from rankwright.rerankers.pair_scores import PairScores, pair_key
from rankwright.rerankers.scorer import Reranked, Scorer, windows

# Pairs that are scored by one call and kept together: what a kill can lose, and what a scorer sorts by length.
BLOCK_PAIRS = 1024
# Blocks that a process takes at a time where several score together.
SHARE_BLOCKS = 4

Wanted = Mapping[str, Sequence[str]]


class KeptScorer(ABC):
    """Raw scores of a reranker, read from the disk or made.

    Scores are kept by what `_inputs` names and by the texts of query and document. Pairs are scored in blocks that
    depend on the wanted pairs alone, and each block is kept when it is done: a killed process continues at its block
    and gives the same scores. The weights are loaded when a score is missing.
    """

    def __init__(self, label: str, model: str, folder: Path, *, key: str) -> None:
        """label: in words, for progress and errors; model: what is loaded; key: of the recipe, where it is named."""
        self.label = label
        self.scored = 0
        self._model, self._folder, self._key = model, folder, key
        # Instruction of a set -> scorer under it; all of them share the weights.
        self._scorers: dict[str | None, Scorer] = {}
        self._stores: dict[str | None, PairScores] = {}

    @abstractmethod
    def _load(self) -> Scorer:
        """The scorer with its weights."""

    @abstractmethod
    def _under(self, scorer: Scorer, stated: str | None) -> Scorer:
        """The same weights under the instruction of a set, None where it has none."""

    @abstractmethod
    def _inputs(self, stated: str | None) -> str:
        """Hash of what a score depends on beside the texts of its pair."""

    def of(self, collection: Collection) -> Callable[[Wanted], Reranked]:
        """As filters ask it: query id -> document ids, to query id -> document id -> score."""
        return lambda wanted: self.score_pairs(collection, wanted)

    def score_pairs(self, collection: Collection, wanted: Wanted) -> Reranked:
        """Scores of the wanted documents of each query, under the set's own instruction where it has one.

        Raises UserError when the weights cannot be loaded, or give a score that is not finite.
        """
        stated = collection.instruction
        store = self._store(stated)
        store.look()
        parts = [[(q, list(dict.fromkeys(wanted[q]))) for q in block] for block in blocks(wanted, BLOCK_PAIRS)]
        pairs = sum(len(documents) for part in parts for _, documents in part)
        with console.progress(self.label, pairs) as advance:
            # Loading the weights counts as time, too.
            advance(0)
            for part in parts:
                missing = _missing(part, collection, store)
                if missing:
                    store.add(self._score(stated, missing))
                    self.scored += sum(map(len, missing.values()))
                advance(sum(len(documents) for _, documents in part))
        return {q: dict(_known(store, collection, q, documents)) for part in parts for q, documents in part}

    def knows(self, collection: Collection, wanted: Wanted) -> bool:
        """Whether the score of every wanted pair is kept."""
        return not _missing(list(wanted.items()), collection, self._store(collection.instruction))

    def _score(self, stated: str | None, block: Mapping[str, Sequence[str]]) -> dict[bytes, float]:
        scorer = self._scorer(stated)
        found: dict[bytes, float] = {}
        groups = ((query, scorer.listed(documents)) for query, documents in block.items())
        for (query, documents), scores in zip(block.items(), scorer.score_groups(groups), strict=True):
            for document, score in zip(documents, scores, strict=True):
                if not math.isfinite(score):
                    raise UserError(
                        f"{self._key}: the score of query {query[:60]!r} and document {document[:60]!r} is not "
                        "finite: the model is broken, or needs `precision: fp32`"
                    )
                found[pair_key(query, document)] = score
        return found

    def _scorer(self, stated: str | None) -> Scorer:
        if None not in self._scorers:
            console.say(f"  {self.label}: loading {self._model}")
            self._scorers[None] = self._load()
        if stated not in self._scorers:
            self._scorers[stated] = self._under(self._scorers[None], stated)
        return self._scorers[stated]

    def _store(self, stated: str | None) -> PairScores:
        if stated not in self._stores:
            self._stores[stated] = PairScores(self._folder / self._inputs(stated), console.say)
        return self._stores[stated]

    @property
    def cut(self) -> dict[str, int]:
        """Texts that were cut in this process, as far as the scorer counts them."""
        found: dict[str, int] = {}
        for scorer in {id(scorer): scorer for scorer in self._scorers.values()}.values():
            for name, count in scorer.cut.items():
                found[name] = found.get(name, 0) + count
        return found


def score_together(scorer: KeptScorer, asked: Sequence[tuple[Collection, Wanted]], processes: Processes) -> Reranked:
    """All wanted scores on the first process, nothing on the others: each scores its share of the queries.

    Every process of the group calls this. The ids of the collections are qualified.
    """
    shares = [
        (collection, {q: pairs[q] for q in block})
        for collection, pairs in asked
        for block in blocks(pairs, SHARE_BLOCKS * BLOCK_PAIRS)
    ]
    for collection, share in shares[processes.rank :: processes.count]:
        processes.look()
        scorer.score_pairs(collection, share)
    processes.meet()
    scores: Reranked = {}
    if processes.is_first:
        for collection, share in shares:
            scores |= scorer.score_pairs(collection, share)
    return scores


def blocks(wanted: Wanted, most: int) -> Iterator[list[str]]:
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

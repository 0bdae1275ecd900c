"""Which training queries are judged, which of their documents are compared, and the scores that the fit starts from."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rankwright.common import console
from rankwright.common.errors import UserError
from rankwright.common.hashing import stable_hash, text_key
from rankwright.common.plurals import counted
from rankwright.common.run_folder import RunFolder
from rankwright.data.collection import Collection
from rankwright.data.duplicates import QUERY, find_duplicates
from rankwright.data.normalisation import normalised
from rankwright.data.split_files import qualified, read_split
from rankwright.pipeline.inputs import StageInputs
from rankwright.recipe.schema import Recipe
from rankwright.recipe.teacher import Pairs
from rankwright.rerankers.kept_scorer import KeptScorer
from rankwright.retrieval.candidates import Candidate, prefixed
from rankwright.retrieval.first_stages import reads_run_file, retrieve, training_stage
from rankwright.supervision.preferences.fit import standardised
from rankwright.supervision.preferences.judging import JudgedList
from rankwright.supervision.teacher import Teacher
from rankwright.training.setup import BaseScorer

KEY = "teacher.pairs"
# Letters of a document that judges are shown for a token that the student reads: English has about four in a token.
LETTERS_A_TOKEN = 4
# Why a training query is left out -> in words.
LEFT_OUT = {
    "equal": "have the text of another one",
    "near": "are nearly equal to another one",
    "in_dev": "are dev queries too",
}
# Query id -> document that is not judged -> the one with its text that is.
Copies = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class Chosen:
    """collections: the training sets with the queries that are judged, their ids qualified.

    left_out: row of LEFT_OUT -> the queries that came before the last one of these and are not among them.
    """

    collections: list[Collection]
    left_out: Mapping[str, int]


def chosen_queries(recipe: Recipe, settings: Pairs, run: RunFolder) -> Chosen:
    """At most settings.queries training queries, by seed: each text once, and none that dev has too.

    One of several queries that are nearly equal is judged, the first by seed, unless settings.skip_near_duplicates is
    off. Prints how many are left out. Raises UserError where no query is left, and where a test set has one: the data
    stage refuses such queries, or drops them, so the files are not as it wrote them.
    """
    train = [qualified(c) for c in read_split(run.data, "train")]
    draw = _Draw(recipe, run, train)
    kept: list[str] = []
    while len(kept) < settings.queries:
        # Twice as many each time: what has nearly equal ones again and again is not compared with all for each.
        if not draw.add(max(settings.queries - len(kept), len(draw.texts))):
            break
        kept = _one_of_each(draw.texts) if settings.skip_near_duplicates else list(draw.texts)
    is_all = len(kept) < settings.queries
    kept = kept[: settings.queries]
    if not kept:
        raise UserError(f"{KEY}: no training query is left to judge: add queries to data.train")
    looked = list(draw.seen) if is_all else list(draw.seen)[: list(draw.seen).index(kept[-1])]
    judged = set(kept)
    counts = Counter(draw.seen[q] or "near" for q in looked if q not in judged)
    for reason, words in LEFT_OUT.items():
        if counts[reason]:
            console.say(f"  {counted(counts[reason], 'training query')} left out: they {words}")
    shares = [c.subset(sorted(q for q in kept if q in c.queries)) for c in train]
    return Chosen([c for c in shares if c.queries], {reason: counts[reason] for reason in LEFT_OUT})


class _Draw:
    """The training queries in the order of the seed, as far as they were looked at.

    seen: query id -> row of LEFT_OUT, or None for one that may be judged. texts: id -> text of the latter.
    """

    def __init__(self, recipe: Recipe, run: RunFolder, train: Sequence[Collection]) -> None:
        self.seen: dict[str, str | None] = {}
        self.texts: dict[str, str] = {}
        self._held = {split: _texts(read_split(run.data, split)) for split in ("test", "dev")}
        self._known: set[str] = set()
        places = [(c, q) for c in train for q in c.queries]
        places.sort(key=lambda place: stable_hash("judge", recipe.seed, place[1]))
        self._fitting = self._look(places)

    def add(self, count: int) -> bool:
        """Look until `count` more may be judged, or none is left; returns whether there was one."""
        before = len(self.texts)
        self.texts.update(itertools.islice(self._fitting, count))
        return len(self.texts) > before

    def _look(self, places: Sequence[tuple[Collection, str]]) -> Iterator[tuple[str, str]]:
        for collection, query_id in places:
            text = normalised(collection.queries[query_id])
            refuse_test_query(query_id, text, self._held["test"])
            why = "in_dev" if text in self._held["dev"] else "equal" if text in self._known else None
            self._known.add(text)
            self.seen[query_id] = why
            if why is None:
                yield query_id, collection.queries[query_id]


def refuse_test_query(query_id: str, text: str, test: set[str]) -> None:
    """Raises UserError for a training query, in its normal form, that is among those of test."""
    if text in test:
        raise UserError(
            f"{KEY}: training query {query_id} is a test query too: judges must not see it: remove it from "
            "data.train, or set data.on_leak: drop"
        )


def test_texts(run: RunFolder) -> set[str]:
    """The test queries in their normal form."""
    return _texts(read_split(run.data, "test"))


def _texts(collections: Sequence[Collection]) -> set[str]:
    return {normalised(text) for c in collections for text in c.queries.values()}


def _one_of_each(texts: Mapping[str, str]) -> list[str]:
    """The ids without those that are nearly equal to one before them: the first of each group stays."""
    place = {query_id: number for number, query_id in enumerate(texts)}
    later: set[str] = set()
    for group in find_duplicates(texts, code=False, kind=QUERY).near:
        later |= set(group) - {min(group, key=place.__getitem__)}
    return [query_id for query_id in texts if query_id not in later]


def retrieved_lists(
    recipe: Recipe,
    settings: Pairs,
    run: RunFolder,
    chosen: Sequence[Collection],
    run_files: Mapping[str, Path | None],
) -> dict[str, list[Candidate]]:
    """The candidates of the chosen queries: those of evaluate.first_stage."""
    depth, stage = settings.depth, training_stage(recipe)
    found: dict[str, list[Candidate]] = {}
    # A run file has the ids of the set's files.
    plain = {c.name: c for c in read_split(run.data, "train")} if reads_run_file(stage) else {}
    for collection in chosen:
        console.say(f"  {collection.name}: {stage} top {depth}")
        if collection.name in plain:
            prefix = f"{collection.name}/"
            asked = plain[collection.name].subset(q.removeprefix(prefix) for q in collection.queries)
            found |= prefixed(retrieve(recipe, stage, asked, depth, run_files[collection.name]), prefix)
        else:
            found |= retrieve(recipe, stage, collection, depth)
    return found


def prior_scorer(recipe: Recipe, settings: Pairs, inputs: StageInputs) -> KeptScorer | None:
    """The reranker whose scores the fit starts from; None where it starts from the first stage's, or from nothing."""
    name = settings.fit.prior_baseline
    if name is not None:
        baseline = next(one for one in recipe.evaluate.baselines if one.name == name)
        return Teacher(baseline, recipe.prompt, bm25=recipe.bm25, key=f"{KEY}.fit.prior")
    return BaseScorer(recipe, inputs.base) if settings.fit.prior == "base" else None


def make_lists(
    recipe: Recipe,
    settings: Pairs,
    chosen: Sequence[Collection],
    retrieved: Mapping[str, Sequence[Candidate]],
    prior: KeptScorer | None,
) -> tuple[list[JudgedList], dict[str, dict[str, str]]]:
    """The lists to judge, by query id; and the documents that are not, see Copies.

    prior: see prior_scorer; it scores every document of the lists, once.
    """
    room = LETTERS_A_TOKEN * recipe.prompt.max_tokens
    found: list[JudgedList] = []
    twins: dict[str, dict[str, str]] = {}
    short = cut = 0
    for collection in chosen:
        scores: dict[str, dict[str, float]] = {}
        for query_id in sorted(collection.queries):
            by_text: dict[bytes, str] = {}
            own: dict[str, float] = {}
            for candidate in retrieved[query_id]:
                text = collection.corpus[candidate.document_id]
                first = by_text.setdefault(text_key(text[:room]), candidate.document_id)
                if first != candidate.document_id:
                    twins.setdefault(query_id, {})[candidate.document_id] = first
                else:
                    own[first] = candidate.score
                    cut += len(text) > room
            if len(own) > 1:
                scores[query_id] = own
            short += len(own) < 2
        if prior is not None:
            scores = prior.score_pairs(collection, {q: list(own) for q, own in scores.items()})
        none = settings.fit.prior == "none"
        found += [
            judged_list(recipe, collection, query_id, list(own), None if none else standardised(list(own.values())))
            for query_id, own in scores.items()
        ]
    _say_of_lists(short, sum(map(len, twins.values())), cut, room)
    if not found:
        stage = training_stage(recipe)
        raise UserError(f"{KEY}: {stage} finds less than two documents for every query: there is no pair to judge")
    return sorted(found, key=lambda one: one.query_id), twins


def _say_of_lists(short: int, equal: int, cut: int, room: int) -> None:
    for count, words in (
        (short, f"{counted(short, 'query')} with fewer than two documents: not judged"),
        (equal, f"{counted(equal, 'document')} with the text of another one of the list: judged once"),
        (cut, f"{counted(cut, 'document')} cut to {room:,} letters for the judges (4 for each of prompt.max_tokens)"),
    ):
        if count:
            console.say(f"  {words}")


def judged_list(
    recipe: Recipe, collection: Collection, query_id: str, ids: Sequence[str], prior: np.ndarray | None
) -> JudgedList:
    """One query of a set with these documents. prior: see JudgedList."""
    instruction = collection.instruction or recipe.prompt.instruction
    shown = _Shown(collection.corpus, LETTERS_A_TOKEN * recipe.prompt.max_tokens)
    return JudgedList(query_id, collection.queries[query_id], instruction, ids, shown, prior)


@dataclass(frozen=True, slots=True)
class _Shown:
    """What judges are shown of a document: its first letters, read when they are asked for."""

    corpus: Mapping[str, str]
    room: int

    def __call__(self, document_id: str) -> str:
        return self.corpus[document_id][: self.room]

"""Groups for training: the queries and documents that a step draws, and mix.json with the draws of each set."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from rankwright.common import console
from rankwright.common.errors import UserError
from rankwright.common.hashing import stable_hash
from rankwright.common.run_folder import RunFolder
from rankwright.data.collection import Collection, Group
from rankwright.data.split_files import read_split
from rankwright.mining.pools import JUDGED, PROMOTED, Negative, count_negatives, pool_id, read_negatives
from rankwright.mining.samplers import DrawKey, Sampler, bind_sampler, uniform
from rankwright.model.instructions import frozen_instruction, recipe_instruction, shortened, training_instructions
from rankwright.model.prompt import EncodedGroup, PromptEncoder
from rankwright.recipe.schema import Mine, Recipe
from rankwright.rerankers.combination import listed
from rankwright.retrieval.candidates import Candidates
from rankwright.training.abstraction import COUNTED_GROUPS, Abstraction, describe_abstraction
from rankwright.training.loss_terms import only_teacher
from rankwright.training.mixture import Mixture
from rankwright.training.offset import FirstStageOffset


class Pools(NamedTuple):
    """Query id -> negatives, and the id that draws depend on: the hash of the file they were read from."""

    by_query: Mapping[str, Sequence[Negative]]
    id: str

    @classmethod
    def read(cls, path: Path) -> Pools:
        """The pools of a file such as negatives.jsonl."""
        return cls(read_negatives(path), pool_id(path))


def build_group(
    collection: Collection,
    pool: Sequence[Negative],
    key: DrawKey,
    *,
    negatives: int,
    positives: int,
    sampler: Sampler = uniform,
    teacher: Mapping[str, float] | None = None,
) -> Group:
    """The key's query with up to `positives` relevant documents (labels kept) and up to `negatives` of its pool.

    Relevant documents come first, drawn uniformly: judged ones, then those of the pool that were promoted. The sampler
    draws the others. teacher: document id -> a teacher's score, where there are any.
    """
    query_id = key.query_id
    judged = collection.positives(query_id)
    labels = {**{n.document_id: float(n.label or 0.0) for n in pool if n.is_promoted}, **judged}

    def order(document_id: str) -> tuple[bool, int, str]:
        return document_id not in judged, stable_hash("draw", "positives", *key, document_id), document_id

    relevant = sorted(labels, key=order)[:positives]
    left = [n for n in pool if not n.is_promoted]
    if teacher is not None:
        left = [dataclasses.replace(n, teacher=teacher.get(n.document_id)) for n in left]
    others = sampler(left, negatives, key)
    assert not {n.document_id for n in others} & set(labels), f"query {query_id}: a relevant document in the pool"
    ids = [*relevant, *(n.document_id for n in others)]
    return Group(
        query_id,
        collection.queries[query_id],
        tuple(ids),
        tuple(collection.corpus[d] for d in ids),
        tuple([float(labels[d]) for d in relevant] + [math.nan if n.label is None else n.label for n in others]),
        tuple(["positive" if d in judged else PROMOTED for d in relevant] + [n.source for n in others]),
        collection.weight(query_id),
        None if teacher is None else tuple(teacher.get(d, math.nan) for d in ids),
    )


@dataclass(frozen=True, slots=True)
class TrainGroup:
    """One query's token ids and the labels of its documents, in the same order; weight: its share in the loss.

    teacher: a teacher's raw score of each document, NaN if unknown. offset: what is added to each score before the
    loss. Either all groups of a training have them or none.
    """

    query_id: str
    labels: tuple[float, ...]
    encoded: EncodedGroup
    weight: float = 1.0
    teacher: tuple[float, ...] | None = None
    offset: tuple[float, ...] | None = None


class GroupSource:
    """The groups of every step, as a pure function of (seed, step), so that resuming needs no state; see mixture.py.

    Queries that the loss cannot use (no relevant document, or nothing to compare it with) are left out and counted.
    A query without a relevant document gives judged negatives only: what it retrieves may well be relevant. Where a
    teacher has scored that, it is drawn without a label.
    offset: what is added to the scores of its groups (train.first_stage_offset); lists: the first stage's, whose
    scores its prompts hold (prompt.first_stage_score), but for a share `dropout` of the groups; abstraction: the
    placeholders of its first steps (data.train[].abstract). All of these are set before the first step.
    """

    offset: FirstStageOffset | None = None
    lists: Candidates | None = None
    dropout = 0.0
    abstraction: Abstraction | None = None

    def __init__(
        self,
        collections: Sequence[Collection],
        pools: Pools,
        encoder: PromptEncoder,
        *,
        settings: Mine,
        seed: int,
        need_positive: bool,
        shuffle_labels: bool = False,
        teacher_scores: Mapping[str, Mapping[str, float]] | None = None,
    ) -> None:
        """teacher_scores: query id -> document id -> a teacher's score; by default those of the sets' own files."""
        self._owner = {q: c for c in collections for q in c.queries}
        assert len(self._owner) == sum(len(c.queries) for c in collections), "query ids are not qualified"
        self._pools = pools
        # Takes the place of those for the queries that it has: see use().
        self._fresh = Pools({}, pools.id)
        # Each set is read under its own instruction.
        self.encoders = {c.name: encoder.under(c.instruction) for c in collections}
        self._settings = settings
        self._sampler = bind_sampler(settings.sampler)
        self._seed = seed
        self._shuffle_labels = shuffle_labels
        self._teacher_scores = teacher_scores
        self._abstraction_facts: dict[str, dict[str, Any]] = {}
        # Either all groups have scores (NaN where unknown) or none: a group's loss must not depend on its neighbours.
        given = [c.teacher_scores for c in collections] if teacher_scores is None else [teacher_scores]
        self._has_scores = any(given)
        self.query_ids = [q for q in self._owner if self._usable(q, need_positive)]
        self.left_out = len(self._owner) - len(self.query_ids)
        self.cut_queries = self.cut_documents = 0
        usable: dict[str, list[str]] = {c.name: [] for c in collections}
        for query_id in self.query_ids:
            usable[self._owner[query_id].name].append(query_id)
        self.left_out_of = {c.name: len(c.queries) - len(usable[c.name]) for c in collections}
        self.mixture = Mixture(((c.name, usable[c.name], c.draws) for c in collections), seed=seed)
        if not self.query_ids:
            wanted = "both a relevant document and a negative" if need_positive else "a judged document"
            raise UserError(f"data.train: no query has {wanted}: check the judgements, or raise mine.depth")

    def queries_of(self, steps: range, groups_per_step: int) -> set[str]:
        """The queries that these steps draw."""
        return {query_id for step in steps for query_id, _ in self.mixture.step(step, groups_per_step)}

    def use(self, pools: Pools) -> None:
        """Draw from these pools from now on; queries that they lack keep their first pools.

        The order of queries does not change.
        """
        self._fresh = pools

    def _pool(self, query_id: str) -> Sequence[Negative]:
        fresh = self._fresh.by_query
        pool = fresh[query_id] if query_id in fresh else self._pools.by_query.get(query_id, ())
        if self._owner[query_id].positives(query_id):
            return pool
        scores = self._scores(query_id) if self._has_scores else {}
        judged = [n for n in pool if n.source == JUDGED]
        # Without a label: only losses of a teacher's scores see them.
        rest = [dataclasses.replace(n, label=None) for n in pool if n.source != JUDGED and n.document_id in scores]
        return [*judged, *rest]

    @property
    def has_scores(self) -> bool:
        """Whether groups have a teacher's scores."""
        return self._has_scores

    def teacher_list(self, query_id: str) -> dict[str, float]:
        """A teacher's score of every document that the query can be trained with, NaN where there is none."""
        ids = [*self._owner[query_id].positives(query_id), *(n.document_id for n in self._pool(query_id))]
        scores = self._scores(query_id)
        return {d: scores.get(d, math.nan) for d in ids}

    def instruction(self, query_id: str) -> str | None:
        """The instruction of the query's own set, None where it states none."""
        return self._owner[query_id].instruction

    def _scores(self, query_id: str) -> Mapping[str, float]:
        of = self._owner[query_id].teacher_scores if self._teacher_scores is None else self._teacher_scores
        return of.get(query_id, {})

    def _usable(self, query_id: str, need_positive: bool) -> bool:
        positives = len(self._owner[query_id].positives(query_id))
        negatives = count_negatives(self._pool(query_id))
        return (positives > 0 and negatives > 0) if need_positive else positives + negatives > 0

    def group(self, query_id: str, draw: int) -> Group:
        """The documents of one draw. draw: how often the query was drawn before (at a weight of 1: the epoch)."""
        group = build_group(
            self._owner[query_id],
            self._pool(query_id),
            DrawKey(self._seed, draw, query_id, self._fresh.id),
            negatives=self._settings.negatives,
            positives=self._settings.positives,
            sampler=self._sampler,
            teacher=self._scores(query_id) if self._has_scores else None,
        )
        return self._shuffled(group, draw) if self._shuffle_labels else group

    def _shuffled(self, group: Group, draw: int) -> Group:
        """A control: the same documents under shuffled labels."""
        order = sorted(
            range(len(group.labels)),
            key=lambda i: stable_hash("shuffle", self._seed, draw, group.query_id, i),
        )
        labels = tuple(group.labels[i] for i in order)
        teacher = None if group.teacher is None else tuple(group.teacher[i] for i in order)
        return dataclasses.replace(group, labels=labels, teacher=teacher)

    def step(self, step: int, groups_per_step: int) -> list[TrainGroup]:
        """The groups of step `step` (from 1), tokenised."""
        drawn = self.mixture.step(step, groups_per_step)
        return [self._encode(self._shown(self.group(*one), step), one[1]) for one in drawn]

    def _shown(self, group: Group, step: int) -> Group:
        """The group as this step sees it: with or without placeholders."""
        name = self._owner[group.query_id].name
        if self.abstraction is None or not self.abstraction.is_on(name, step):
            return group
        return self.abstraction.applied(name, group, self.encoders[name].contract)

    def abstraction_facts(self, name: str) -> dict[str, Any] | None:
        """What the placeholders of a set replace in the first draws of some queries, chosen by seed; counted once."""
        if self.abstraction is None or name not in self.abstraction:
            return None
        if name in self._abstraction_facts:
            # A refresh draws other documents by now.
            return self._abstraction_facts[name]
        own = next(part.query_ids for part in self.mixture.parts if part.name == name)
        chosen = sorted(own, key=lambda q: (stable_hash("abstract", self._seed, q), q))[:COUNTED_GROUPS]
        facts = self.abstraction.facts(name, (self.group(q, 0) for q in chosen), self.encoders[name].contract)
        self._abstraction_facts[name] = facts
        return facts

    def _encode(self, group: Group, draw: int) -> TrainGroup:
        encoder = self.encoders[self._owner[group.query_id].name]
        lists = {} if self.lists is None or self.is_dropped(group.query_id, draw) else self.lists
        documents = listed(encoder.contract, group.documents, group.document_ids, lists.get(group.query_id, ()))
        encoded = encoder.encode(group.query, documents)
        self.cut_queries += encoded.query_cut
        self.cut_documents += encoded.documents_cut
        offset = None if self.offset is None else self.offset.of(group.query_id, group.document_ids)
        return TrainGroup(group.query_id, group.labels, encoded, group.weight, group.teacher, offset)

    def is_dropped(self, query_id: str, draw: int) -> bool:
        """Whether this draw of a query has no scores of the first stage in its prompts."""
        return stable_hash("first_stage_score", self._seed, draw, query_id) < self.dropout * 2**64


def write_mix(
    run: RunFolder, source: GroupSource, groups_per_step: int, planned_steps: int, steps: int | None
) -> dict[str, Any]:
    """Write mix.json and return it. steps: how many were made; None before the end of training."""
    parts = source.mixture.parts
    an_epoch = source.mixture.draws_an_epoch
    planned = source.mixture.counts(planned_steps * groups_per_step)
    drawn = None if steps is None else source.mixture.counts(steps * groups_per_step)
    sets: list[dict[str, Any]] = [
        {
            "set": part.name,
            "queries": len(part.query_ids),
            "left_out": source.left_out_of[part.name],
            "weight": float(part.weight),
            "draws_an_epoch": float(len(part.query_ids) * part.weight),
            "share": float(len(part.query_ids) * part.weight) / an_epoch,
            "instruction": source.encoders[part.name].contract.instruction,
            "planned_groups": planned[part.name],
            "groups": drawn and drawn[part.name],
        }
        for part in parts
    ]
    for row in sets:
        if (facts := source.abstraction_facts(row["set"])) is not None:
            row["abstract"] = facts
    totals = {"groups_per_step": groups_per_step, "planned_steps": planned_steps, "steps": steps}
    mix = {**totals, "draws_an_epoch": an_epoch, "sets": sets}
    run.write_json(run.mix, mix)
    return mix


def draws_of_prepared(recipe: Recipe, run: RunFolder) -> float | None:
    """Draws of an epoch, from the training split that an earlier run has prepared, or None."""
    folder = run.data
    if not (folder / "train.jsonl").is_file():
        return None
    collections, weights = read_split(folder, "train"), [source.weight for source in recipe.data.train]
    if len(weights) != len(collections):
        # The recipe names other sets by now.
        weights = [collection.draws for collection in collections]
    draws = sum(len(c.queries) * weight for c, weight in zip(collections, weights, strict=True))
    count = sum(len(c.queries) for c in collections)
    if recipe.pairs is not None and only_teacher(recipe.loss) and count:
        # Queries without scores are not drawn.
        draws *= min(1.0, recipe.pairs.queries / count)
    return draws * recipe.train.queries_share


def describe_mix(mix: dict[str, Any], recipe: Recipe) -> None:
    """A table, and what the exports will hold where the sets have several instructions."""
    table = Table(title="mix of the training sets", title_justify="left")
    for column in ("set", "queries", "weight", "draws an epoch", "share", "groups in all", "instruction"):
        table.add_column(column, justify="left" if column in ("set", "instruction") else "right")
    for row in mix["sets"]:
        counts = (f"{row['queries']:,}", f"{row['weight']:g}", f"{row['draws_an_epoch']:,.5g}", f"{row['share']:.1%}")
        table.add_row(row["set"], *counts, f"{row['planned_groups']:,}", shortened(row["instruction"]) or "-")
    console.show(table)
    for row in mix["sets"]:
        if "abstract" in row:
            console.say(describe_abstraction(row["set"], row["abstract"], mix["planned_steps"]))
    trained = training_instructions(recipe)
    if recipe.export_targets and (len(trained) > 1 or frozen_instruction(recipe) not in trained):
        frozen = frozen_instruction(recipe)
        text = recipe_instruction(recipe) if frozen is None else frozen
        untrained = "" if frozen in trained else ", which no set is trained under"
        console.say(f"exports hold the instruction {text!r}{untrained}")

"""Groups for training: which queries a step draws, with which documents, as token ids."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rankwright.errors import UserError
from rankwright.examples import Collection, Group
from rankwright.mining import JUDGED, Negative, count_negatives
from rankwright.mixture import Mixture
from rankwright.prompts import EncodedGroup, PromptEncoder
from rankwright.ranking import stable_hash
from rankwright.recipe import Mine
from rankwright.samplers import bind_sampler, build_group


@dataclass(frozen=True, slots=True)
class TrainGroup:
    """One query's token ids and the labels of its documents, in the same order; weight: its share in the loss.

    teacher: a teacher's raw score of each; all groups of a training have it, or none. NaN: not known.
    """

    query_id: str
    labels: tuple[float, ...]
    encoded: EncodedGroup
    weight: float = 1.0
    teacher: tuple[float, ...] | None = None


class GroupSource:
    """The groups of every step, as a pure function of (seed, step): resuming needs no state. See mixture.py.

    Queries that the loss cannot use (no relevant document, or nothing to compare it with) are left out and counted.
    A query without a relevant document gives judged negatives only: what it retrieves may well be relevant.
    """

    def __init__(
        self,
        collections: Sequence[Collection],
        pools: Mapping[str, Sequence[Negative]],
        encoder: PromptEncoder,
        *,
        settings: Mine,
        seed: int,
        pool_id: str,
        need_positive: bool,
        shuffle_labels: bool = False,
        teacher_scores: Mapping[str, Mapping[str, float]] | None = None,
    ) -> None:
        """teacher_scores: query id -> document id -> a teacher's score; by default those of the sets' own files."""
        self._owner = {q: c for c in collections for q in c.queries}
        assert len(self._owner) == sum(len(c.queries) for c in collections), "query ids are not qualified"
        self._pools = pools
        # In place of those, for some queries: see use().
        self._fresh: Mapping[str, Sequence[Negative]] = {}
        # Each set is read under its own instruction.
        self.encoders = {c.name: encoder.under(c.instruction) for c in collections}
        self._settings = settings
        self._sampler = bind_sampler(settings.sampler)
        self._seed = seed
        self._pool_id = pool_id
        self._shuffle_labels = shuffle_labels
        self._teacher_scores = teacher_scores
        # All groups have scores, if only NaN, or none has: what a loss does must not depend on its neighbours.
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

    def use(self, pools: Mapping[str, Sequence[Negative]], pool_id: str) -> None:
        """Draw from these pools from now on, and from the first ones for queries that they lack.

        Which queries are drawn, and when, stays as it is.
        """
        self._fresh, self._pool_id = pools, pool_id

    def _pool(self, query_id: str) -> Sequence[Negative]:
        pool = self._fresh[query_id] if query_id in self._fresh else self._pools.get(query_id, ())
        return pool if self._owner[query_id].positives(query_id) else [n for n in pool if n.source == JUDGED]

    def _scores(self, query_id: str) -> Mapping[str, float]:
        of = self._owner[query_id].teacher_scores if self._teacher_scores is None else self._teacher_scores
        return of.get(query_id, {})

    def _usable(self, query_id: str, need_positive: bool) -> bool:
        positives = len(self._owner[query_id].positives(query_id))
        negatives = count_negatives(self._pool(query_id))
        return (positives > 0 and negatives > 0) if need_positive else positives + negatives > 0

    def group(self, query_id: str, draw: int) -> Group:
        """The documents of a query's draw; `draw`: how often it was drawn before, at a weight of 1 the epoch."""
        group = build_group(
            self._owner[query_id],
            self._pool(query_id),
            query_id,
            negatives=self._settings.negatives,
            positives=self._settings.positives,
            seed=self._seed,
            draw=draw,
            pool_id=self._pool_id,
            sampler=self._sampler,
            teacher=self._scores(query_id) if self._has_scores else None,
        )
        return self._shuffled(group, draw) if self._shuffle_labels else group

    def _shuffled(self, group: Group, draw: int) -> Group:
        """The control: the same documents under labels that mean nothing."""
        order = sorted(
            range(len(group.labels)),
            key=lambda i: stable_hash("shuffle", self._seed, draw, group.query_id, i),
        )
        labels = tuple(group.labels[i] for i in order)
        teacher = None if group.teacher is None else tuple(group.teacher[i] for i in order)
        return dataclasses.replace(group, labels=labels, teacher=teacher)

    def step(self, step: int, groups_per_step: int) -> list[TrainGroup]:
        """The groups of step `step` (from 1), tokenised."""
        return [self._encode(self.group(*draw)) for draw in self.mixture.step(step, groups_per_step)]

    def _encode(self, group: Group) -> TrainGroup:
        encoded = self.encoders[self._owner[group.query_id].name].encode(group.query, group.documents)
        self.cut_queries += encoded.query_cut
        self.cut_documents += encoded.documents_cut
        return TrainGroup(group.query_id, group.labels, encoded, group.weight, group.teacher)

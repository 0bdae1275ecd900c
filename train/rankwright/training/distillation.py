"""Distillation: what is wrong with a teacher's scores, and the scale on which they are trained with."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rankwright.common import console
from rankwright.common.errors import UserErrors
from rankwright.common.hashing import stable_hash
from rankwright.common.outputs import read_sealed, sealed
from rankwright.common.plurals import counted
from rankwright.common.processes import Processes
from rankwright.common.run_folder import RunFolder
from rankwright.data.collection import Group
from rankwright.model import sharding
from rankwright.recipe.schema import Recipe
from rankwright.rerankers.reranker import Reranker
from rankwright.training.loss_terms import (
    PROBABILITIES,
    AffineMatch,
    expecting_logits,
    needs_match,
    probability_scales,
    reads_teacher,
)
from rankwright.training.sampling import GroupSource

# The share of the pairs that may lack a teacher's score before its file counts as incomplete.
MOST_MISSING = 0.05
# Lists on which the match is fitted: 64 of 10 documents give a standard deviation to within 3 %.
MATCHED_LISTS = 64


@dataclass(slots=True)
class TeacherFacts:
    """A teacher's scores of all pairs that training can draw from the mined pools.

    missing: pairs without a score. lists: queries with at least two scores; constant: those where all are equal.
    lowest, highest: (score, query id, document id), None without any score.
    """

    pairs: int = 0
    missing: int = 0
    lists: int = 0
    constant: int = 0
    lowest: tuple[float, str, str] | None = None
    highest: tuple[float, str, str] | None = None

    @classmethod
    def of(cls, source: GroupSource) -> TeacherFacts:
        """The facts of a run's groups."""
        facts = cls()
        for query_id in source.query_ids:
            row = source.teacher_list(query_id)
            found = [(score, query_id, d) for d, score in row.items() if not math.isnan(score)]
            facts.pairs += len(row)
            facts.missing += len(row) - len(found)
            if not found:
                continue
            low, high = min(found), max(found)
            facts.lists += len(found) > 1
            facts.constant += len(found) > 1 and low[0] == high[0]
            facts.lowest = low if facts.lowest is None else min(low, facts.lowest)
            facts.highest = high if facts.highest is None else max(high, facts.highest)
        return facts


def check_scores(recipe: Recipe, source: GroupSource, say: Callable[[str], None] = console.say) -> None:
    """Report what losses of a teacher cannot use of its scores, once and with its count.

    Raises UserErrors where mine.teacher has not scored more than MOST_MISSING of the pairs, and where scores that are
    taken for probabilities are none.
    """
    if not (reads_teacher(recipe.loss) and source.has_scores):
        return
    facts = TeacherFacts.of(source)
    faults = [*_outside(recipe, facts)]
    if facts.missing:
        share = f"{facts.missing:,} of {counted(facts.pairs, 'pair')} ({facts.missing / facts.pairs:.1%})"
        too_many = facts.missing > MOST_MISSING * facts.pairs
        if too_many and recipe.mine.teacher is not None:
            faults.append(
                f"mine.teacher: teacher.jsonl has no score for {share} that training can draw: delete it, and give the "
                "command again"
            )
        else:
            more = "; mine.teacher would score them all" * (too_many and not recipe.has_teacher)
            say(
                f"{'WARNING: ' * too_many}the teacher has no score for {share} that training can draw: its losses "
                f"leave them out{more}"
            )
    if faults:
        raise UserErrors(faults)
    if facts.constant:
        of = f"{facts.constant:,} of {counted(facts.lists, 'list')}"
        say(f"the teacher gives all documents of a query one score in {of}: nothing is learned from their order")
    _warn_of_probabilities(recipe, facts, say)


def _outside(recipe: Recipe, facts: TeacherFacts) -> list[str]:
    faults = []
    for key, scale in probability_scales(recipe.loss, of_teacher=True):
        for extreme in (facts.lowest, facts.highest):
            if extreme is not None and not 0 <= extreme[0] <= scale:
                score, query_id, document_id = extreme
                faults.append(
                    f"{key}: {scale:g}: the teacher's score {score:g} of query {query_id!r} and document "
                    f"{document_id!r} is not from 0 to {scale:g}: write the scale of its probabilities, or targets: "
                    "teacher for logits"
                )
                break
    return faults


def _warn_of_probabilities(recipe: Recipe, facts: TeacherFacts, say: Callable[[str], None]) -> None:
    names = list(dict.fromkeys(expecting_logits(recipe.loss)))
    if facts.lowest is None or facts.highest is None or not names:
        return
    if facts.lowest[0] >= 0 and facts.highest[0] <= 1 and facts.lowest[0] < facts.highest[0]:
        say(
            f"WARNING: all scores of the teacher lie from {facts.lowest[0]:.3g} to {facts.highest[0]:.3g}, as "
            f"probabilities do, and {' and '.join(names)} {'takes' if len(names) == 1 else 'take'} logits: use "
            f"soft_bce with options.targets: {PROBABILITIES}, or kl_distil with normalise: zscore"
        )


def affine_match(
    recipe: Recipe, run: RunFolder, source: GroupSource, reranker: Reranker, accelerator: Any, *, inputs: str
) -> AffineMatch | None:
    """The scale of mse's targets, fitted once with the model as it stands before step 1; None where none is asked for.

    It is kept in teacher_match.json under `inputs`, the hash of what the training depends on: a training that continues
    goes on with the same one. Every process of the group calls this.
    """
    if not (needs_match(recipe.loss) and source.has_scores):
        return None
    processes = Processes.of_group()
    kept = processes.from_first(read_sealed(run.teacher_match) if processes.is_first else None)
    if kept is None or kept.get("inputs") != inputs:
        groups = _groups(source, recipe.training_seed)
        with sharding.gathered(reranker.model), accelerator.autocast():
            mine = _scores(source, reranker, groups[processes.rank :: processes.count])
        pairs = [pair for part in processes.gather(mine) for pair in part]
        match = fit_match(*(np.array([pair[side] for pair in pairs]) for side in (0, 1)))
        kept = {**match._asdict(), "lists": len(groups), "pairs": len(pairs), "inputs": inputs}
        if processes.is_first:
            run.write_json(run.teacher_match, sealed(kept))
    match = AffineMatch(kept["slope"], kept["intercept"])
    console.say(
        f"mse: the teacher's scores are matched to the model's: (score - {match.intercept:.4g}) / {match.slope:.4g}, "
        f"fitted before step 1 on {counted(kept['pairs'], 'pair')} of {counted(kept['lists'], 'list')}"
    )
    return match


def fit_match(model_N: np.ndarray, teacher_N: np.ndarray) -> AffineMatch:
    """What gives a teacher's scores the mean and the standard deviation of the model's, of the same pairs.

    Not a regression, whose slope would fall to 0, or below, with a base that does not order documents as the teacher
    does. Where one side has no spread the slope is 1. Source: mean/sigma linking, Kolen & Brennan 2014, section 6.3.
    """
    if not len(model_N):
        return AffineMatch(1.0, 0.0)
    spreads = [float(side_N.std()) if np.ptp(side_N) > 0 else 0.0 for side_N in (model_N, teacher_N)]
    slope = spreads[1] / spreads[0] if min(spreads) > 0 else 1.0
    return AffineMatch(slope, float(teacher_N.mean()) - slope * float(model_N.mean()))


def _groups(source: GroupSource, seed: int) -> list[Group]:
    """The first draw of MATCHED_LISTS queries that have a teacher's score, chosen by seed."""
    found: list[Group] = []
    for query_id in sorted(source.query_ids, key=lambda q: (stable_hash("match", seed, q), q)):
        group = source.group(query_id, 0)
        if not all(map(math.isnan, group.teacher or ())):
            found.append(group)
        if len(found) == MATCHED_LISTS:
            break
    return found


def _scores(source: GroupSource, reranker: Reranker, groups: Sequence[Group]) -> list[tuple[float, float]]:
    """(the model's score, the teacher's) of each document that has one."""
    pairs = []
    for group in groups:
        under = reranker.under(source.instruction(group.query_id))
        scores = under.score(group.query, group.documents)
        known = zip(scores, group.teacher or (), strict=True)
        pairs += [(score, teacher) for score, teacher in known if not math.isnan(teacher)]
    return pairs

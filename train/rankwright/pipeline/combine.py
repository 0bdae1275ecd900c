"""The combination of tuned with the first stage: weight and depth fitted to dev, kept in combine.json."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rankwright.common import console
from rankwright.common.outputs import read_sealed, sealed
from rankwright.common.run_folder import RunFolder
from rankwright.evaluation.combine import WEIGHTS, Chosen, ScoredList, depths_within, fit
from rankwright.evaluation.metrics import HEADLINE, Scale
from rankwright.pipeline.dev_scores import dev_scores
from rankwright.recipe.schema import Combine, Recipe
from rankwright.rerankers.combination import Combination
from rankwright.retrieval.first_stages import training_stage

RULE = "one_standard_error"


def combine_measure(recipe: Recipe) -> str:
    """What weight and depth are chosen by: the gate's measure where there is a gate."""
    return HEADLINE if recipe.gate is None else recipe.gate.metric


def is_fitted(run: RunFolder, inputs: str) -> bool:
    """Whether combine.json was fitted with these inputs and is as it was written."""
    return (read_sealed(run.combine) or {}).get("inputs") == inputs


def fit_combination(
    recipe: Recipe, run: RunFolder, checkpoint: Path, *, inputs: str, tuned: str, trained: str
) -> dict[str, Any]:
    """combine.json: read where it was fitted with these inputs, else fitted and written.

    inputs: hash of all that it depends on. tuned: that of tuned's scores on dev. trained: of the checkpoint's training.
    """
    found = read_sealed(run.combine)
    if found is not None and found.get("inputs") == inputs:
        return found
    combine = recipe.evaluate.combine
    assert combine is not None
    chosen, by_set = _chosen(recipe, combine, run, checkpoint, tuned, trained)
    found = {
        **chosen.as_json(),
        "by_set": by_set,
        "measure": combine_measure(recipe),
        "rule": RULE,
        "prefer": combine.prefer,
        "first_stage": recipe.evaluate.first_stage,
        "inputs": inputs,
    }
    run.write_json(run.combine, sealed(found))
    console.say(_described(recipe, found))
    return found


def _chosen(
    recipe: Recipe, combine: Combine, run: RunFolder, checkpoint: Path, tuned: str, trained: str
) -> tuple[Chosen, dict[str, Any]]:
    """(the choice on all dev queries, dev set -> what its queries alone would choose, where there are several sets)."""
    first = recipe.evaluate.first_stage
    if training_stage(recipe) != first:
        return Chosen(Combination(), 0, "dev has no run files (add run: FILE to the sets that it comes from)"), {}
    dev = dev_scores(recipe, run, checkpoint, tuned, trained)
    lists: dict[str, list[ScoredList]] = {}
    qrels: dict[str, Mapping[str, float]] = {}
    for collection, query_id in dev.queries:
        found = dev.candidates[query_id]
        one = ScoredList(query_id, [c.document_id for c in found], [c.score for c in found], dev.scores[query_id])
        lists.setdefault(collection.name, []).append(one)
        qrels[query_id] = collection.qrels.get(query_id, {})
    depths = depths_within(combine.depths, recipe.evaluate.depth)
    measure, scale = combine_measure(recipe), Scale.of(recipe.evaluate)
    together = [one for some in lists.values() for one in some]
    chosen = fit(together, qrels, measure, depths, combine.prefer, scale)
    if chosen.note and recipe.train.first_stage_offset and together:
        # The model learned its part of a sum: without dev queries to choose by, the sum that was trained.
        weight = trained_weight(recipe.train.first_stage_offset, [one.reranker for one in together])
        chosen = dataclasses.replace(chosen, combination=dataclasses.replace(chosen.combination, weight=weight))
    if len(lists) < 2:
        return chosen, {}
    alone = {name: fit(some, qrels, measure, depths, combine.prefer, scale) for name, some in lists.items()}
    keys = ("weight", "depth", "dev_queries", "note")
    return chosen, {name: {key: one.as_json()[key] for key in keys} for name, one in alone.items()}


def trained_weight(gamma: float, scores: Iterable[Sequence[float]]) -> float:
    """The weight whose order is that of score + gamma * z(first stage), for lists of the scores' mean spread.

    s / spread * w + z * (1 - w) is proportional to s + gamma * z where w = spread / (spread + gamma).
    """
    spread = float(np.mean([np.std(one) for one in scores]))
    return min(WEIGHTS, key=lambda weight: abs(weight - spread / (spread + gamma)))


def _described(recipe: Recipe, found: Mapping[str, Any]) -> str:
    if found["note"]:
        instead = "the combination is tuned alone (w = 1)"
        if found["weight"] < 1:
            instead = f"w = {found['weight']:g}, as in training (train.first_stage_offset)"
        return f"WARNING: combined: {found['note']}: weight and depth cannot be chosen, so {instead}"
    return (
        f"combined: w = {found['weight']:g} of tuned, {1 - found['weight']:g} of {recipe.evaluate.first_stage}, "
        f"depth {found['depth']}; chosen on {found['dev_queries']:,} dev queries by {found['measure']}"
    )


def read_combination(run: RunFolder) -> Combination:
    """The combination of a finished evaluation; without one, tuned alone."""
    found = read_sealed(run.combine)
    return Combination() if found is None else Combination(found["weight"], found["normaliser"], found["depth"])

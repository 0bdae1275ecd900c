"""The calibrate stage: tuned scores the dev lists, a temperature is fitted to them, and reliability is recorded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwright.common import console
from rankwright.common.plurals import counted
from rankwright.common.run_folder import RunFolder
from rankwright.data.collection import Collection
from rankwright.data.split_files import read_split
from rankwright.evaluation.calibration import fit_temperature, summary, thresholds
from rankwright.model.instructions import is_read_otherwise
from rankwright.pipeline.dev_scores import dev_scores
from rankwright.recipe.schema import EXPORTED, Recipe
from rankwright.retrieval.run_file import read_trec_run, trec_column


@dataclass(frozen=True, slots=True)
class Pairs:
    """Scored pairs of a set of queries. An unjudged document counts as not relevant."""

    scores: list[float]
    relevant: list[bool]
    queries: int

    def summary(self, temperature: float) -> dict[str, Any]:
        return summary(self.scores, self.relevant, queries=self.queries, temperature=temperature)


def calibrate(recipe: Recipe, run: RunFolder, checkpoint: Path, scores_inputs: str, trained: str) -> dict[str, Any]:
    """Fit the temperature on dev, measure reliability on dev and test, write calibration.json; returns the temperature.

    The scores on test sets are those of run.trec. If there are exports, all scores are under the instruction of the
    exports, because their probabilities are what is calibrated. trained: the inputs of the checkpoint's training.
    """
    dev = dev_pairs(recipe, run, checkpoint, scores_inputs, trained)
    fitted = fit_temperature(dev.scores, dev.relevant)
    sets = read_split(run.data, "test")
    systems = {c.name: EXPORTED if is_read_otherwise(recipe, c.instruction) else "tuned" for c in sets}
    level = recipe.evaluate.relevance_level
    test = {c.name: run_pairs(c, run.eval_folder(c.name, systems[c.name]) / "run.trec", level) for c in sets}
    found: dict[str, Any] = {
        "temperature": fitted.temperature,
        "fitted_on": "dev",
        "dev": dev.summary(fitted.temperature),
        "test": {name: pairs.summary(fitted.temperature) for name, pairs in test.items()},
        "thresholds": thresholds(dev.scores, dev.relevant, temperature=fitted.temperature),
    }
    found["alarm"] = fitted.note or found["dev"]["alarm"]
    run.write_json(run.calibration, found)
    _describe(found)
    return {"temperature": fitted.temperature}


def run_pairs(collection: Collection, path: Path, level: int) -> Pairs:
    """The pairs of a TREC run file that we wrote, labelled by the judgements: from `level` on they are relevant."""
    positives = {trec_column(q): {trec_column(d) for d in collection.positives(q, level)} for q in collection.queries}
    run = read_trec_run(path)
    found = [(score, d in positives[q]) for q, scores in run.items() for d, score in scores.items()]
    return Pairs([score for score, _ in found], [relevant for _, relevant in found], len(run))


def dev_pairs(recipe: Recipe, run: RunFolder, checkpoint: Path, inputs: str, trained: str) -> Pairs:
    """The pairs of the dev lists, labelled by the judgements of their sets; see dev_scores."""
    found = dev_scores(recipe, run, checkpoint, inputs, trained)
    pairs = Pairs([], [], len(found.queries))
    for collection, query_id in found.queries:
        positives = collection.positives(query_id, recipe.evaluate.relevance_level)
        pairs.scores.extend(found.scores[query_id])
        pairs.relevant.extend(c.document_id in positives for c in found.candidates[query_id])
    return pairs


def _describe(found: Mapping[str, Any]) -> None:
    dev = found["dev"]
    share = dev["relevant"] / dev["pairs"] if dev["pairs"] else 0.0
    console.say(
        f"temperature {found['temperature']:.4g}, fitted on dev ({counted(dev['queries'], 'query')}, "
        f"{counted(dev['pairs'], 'pair')}, "
        f"{share:.1%} of them relevant; an unjudged document counts as not relevant)"
    )
    for name, figures in {"dev": dev, **{f"test set {name}": s for name, s in found["test"].items()}}.items():
        console.say(
            f"{name}: expected calibration error {figures['ece']:.3f}, with the temperature {figures['ece_fitted']:.3f}"
        )
        if figures["alarm"]:
            console.say(f"WARNING: {name}: {figures['alarm']}")
    if found["alarm"] and found["alarm"] != dev["alarm"]:
        console.say(f"WARNING: {found['alarm']}")

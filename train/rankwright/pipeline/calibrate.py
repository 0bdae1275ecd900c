"""The calibrate stage: tuned scores the dev lists, a temperature is fitted to them, and reliability is recorded."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwright.common import console
from rankwright.common.errors import UserError
from rankwright.common.files import append_lines, read_jsonl, write_lines_atomic
from rankwright.common.outputs import sealed, unsealed
from rankwright.common.run_folder import RunFolder
from rankwright.data.collection import Collection
from rankwright.data.split_files import qualified, read_split
from rankwright.evaluation.calibration import fit_temperature, summary, thresholds
from rankwright.model.instructions import frozen_instruction, is_read_otherwise
from rankwright.pipeline.train import dev_queries
from rankwright.recipe.schema import EXPORTED, Recipe
from rankwright.rerankers.reranker import Reranker
from rankwright.retrieval.candidates import Candidates, read_candidates
from rankwright.retrieval.run_file import read_trec_run, trec_column
from rankwright.training.setup import tuned_reranker


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
    test = {c.name: run_pairs(c, run.eval_folder(c.name, systems[c.name]) / "run.trec") for c in sets}
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


def run_pairs(collection: Collection, path: Path) -> Pairs:
    """The pairs of a TREC run file that we wrote, labelled by the judgements of the set."""
    positives = {trec_column(q): {trec_column(d) for d in collection.positives(q)} for q in collection.queries}
    run = read_trec_run(path)
    found = [(score, d in positives[q]) for q, scores in run.items() for d, score in scores.items()]
    return Pairs([score for score, _ in found], [relevant for _, relevant in found], len(run))


def dev_pairs(recipe: Recipe, run: RunFolder, checkpoint: Path, inputs: str, trained: str) -> Pairs:
    """Tuned's scores of the candidates of the dev queries that training looks at (train.dev_queries).

    They are kept query by query in dev_scores.jsonl, so that a kill loses little.
    """
    candidates = read_candidates(run.dev_candidates)
    shares = dev_queries(recipe, [qualified(c) for c in read_split(run.data, "dev")])
    wanted = [(collection, q) for collection, query_ids in shares for q in query_ids if candidates.get(q)]
    path = run.dev_scores
    done = _read_scores(path, inputs)
    todo = [(collection, q) for collection, q in wanted if q not in done]
    if todo:
        lines = [_line(sealed({"inputs": inputs})), *(_score_line(q, s) for q, s in done.items())]
        # Written again as a whole: the last line of a killed process may be incomplete.
        write_lines_atomic(path, lines)
        with console.progress("tuned on dev", len(wanted)) as advance:
            advance(len(done))
            for query_id, scores in _score(
                tuned_reranker(recipe, checkpoint, inputs=trained), recipe, todo, candidates
            ):
                done[query_id] = scores
                append_lines(path, [_score_line(query_id, scores)])
                advance(1)
    pairs = Pairs([], [], len(wanted))
    for collection, query_id in wanted:
        positives = collection.positives(query_id)
        pairs.scores.extend(done[query_id])
        pairs.relevant.extend(c.document_id in positives for c in candidates[query_id])
    return pairs


def _score(
    reranker: Reranker, recipe: Recipe, todo: Sequence[tuple[Collection, str]], candidates: Candidates
) -> Iterator[tuple[str, list[float]]]:
    """Yields (query id, scores of its candidates in their order).

    Under the instruction of the exports, which get the temperature; without exports under each set's own instruction.
    """
    frozen, exports = frozen_instruction(recipe), bool(recipe.export_targets)
    for instruction, part in itertools.groupby(todo, lambda pair: frozen if exports else pair[0].instruction):
        pairs = list(part)
        groups = ((c.queries[q], [c.corpus[found.document_id] for found in candidates[q]]) for c, q in pairs)
        for (_, query_id), scores in zip(pairs, reranker.under(instruction).score_groups(groups), strict=True):
            yield query_id, scores


def _read_scores(path: Path, inputs: str) -> dict[str, list[float]]:
    """Query id -> scores that an earlier process kept for the same inputs."""
    done: dict[str, list[float]] = {}
    try:
        if not path.is_file():
            return done
        rows = read_jsonl(path, unsealed, "a row of scores")
        if next(rows, None) == {"inputs": inputs}:
            done.update((row["query_id"], row["scores"]) for row in rows)
    except (OSError, UserError, LookupError):
        # The last line of a killed process may be incomplete.
        pass
    return done


def _score_line(query_id: str, scores: Sequence[float]) -> str:
    return _line(sealed({"query_id": query_id, "scores": scores}))


def _line(row: Mapping[str, Any]) -> str:
    try:
        return json.dumps(row, allow_nan=False)
    except ValueError:
        raise UserError(
            f"calibrate: query {row['query_id']!r}: a score is not a finite number: lower train.learning_rate"
        ) from None


def _describe(found: Mapping[str, Any]) -> None:
    dev = found["dev"]
    share = dev["relevant"] / dev["pairs"] if dev["pairs"] else 0.0
    console.say(
        f"temperature {found['temperature']:.4g}, fitted on dev ({dev['queries']:,} queries, {dev['pairs']:,} pairs, "
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

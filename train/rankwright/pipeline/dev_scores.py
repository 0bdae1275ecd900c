"""Tuned's scores of the dev lists, which calibration and the combination with the first stage are fitted to."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwright.common import console
from rankwright.common.errors import UserError
from rankwright.common.files import append_lines, read_json_object, read_jsonl, write_lines_atomic
from rankwright.common.outputs import sealed, unsealed
from rankwright.common.plurals import counted
from rankwright.common.run_folder import RunFolder
from rankwright.data.collection import Collection
from rankwright.data.split_files import qualified, read_split
from rankwright.model.instructions import frozen_instruction
from rankwright.pipeline.pretrain_recipes import from_pretrained
from rankwright.pipeline.train import dev_queries
from rankwright.recipe.schema import Recipe
from rankwright.rerankers.reranker import Reranker
from rankwright.retrieval.candidates import Candidate, Candidates, read_candidates
from rankwright.training.setup import tuned_reranker

# Dev pairs on which the merged model is compared with the one that was trained.
COMPARED = 200


@dataclass(frozen=True, slots=True)
class DevScores:
    """queries: (collection, query id) of those with candidates; scores: query id -> of its candidates in order."""

    queries: list[tuple[Collection, str]]
    candidates: Candidates
    scores: dict[str, list[float]]


def dev_scores(recipe: Recipe, run: RunFolder, checkpoint: Path, inputs: str, trained: str) -> DevScores:
    """Tuned's scores of the candidates of the dev queries that training looks at (train.dev_queries).

    They are kept query by query in dev_scores.jsonl, so that a kill loses little. inputs: hash of what they depend on;
    trained: the inputs of the checkpoint's training.
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
                tuned_reranker(from_pretrained(recipe, run), checkpoint, inputs=trained), recipe, todo, candidates
            ):
                done[query_id] = scores
                append_lines(path, [_score_line(query_id, scores)])
                advance(1)
    if recipe.model.quantize:
        _compare_with_trained(recipe, run, checkpoint, trained, DevScores(wanted, candidates, done), inputs)
    return DevScores(wanted, candidates, done)


def _compare_with_trained(
    recipe: Recipe, run: RunFolder, checkpoint: Path, trained: str, found: DevScores, inputs: str
) -> None:
    """Write quantization.json: how far tuned, whose adapters are merged, scores from the model that was trained.

    The difference is one of rounding: products of quantised weights and of adapters are one product now.
    """
    if (read_json_object(run.quantization) or {}).get("inputs") == inputs:
        return
    todo, pairs = list[tuple[Collection, str]](), 0
    for collection, query_id in found.queries:
        if pairs < COMPARED:
            todo.append((collection, query_id))
            pairs += len(found.scores[query_id])
    with_4_bits = tuned_reranker(recipe, checkpoint, inputs=trained, as_trained=True)
    differences = [
        abs(one - other)
        for query_id, scores in _score(with_4_bits, recipe, todo, found.candidates)
        for one, other in zip(scores, found.scores[query_id], strict=True)
    ]
    if not differences:
        return
    mean, most = sum(differences) / len(differences), max(differences)
    run.write_json(
        run.quantization, {"inputs": inputs, "pairs": len(differences), "mean_difference": mean, "max_difference": most}
    )
    console.say(
        f"model.quantize {recipe.model.quantize}: tuned, merged into the dequantised base, scores "
        f"{counted(len(differences), 'dev pair')} {mean:.1e} away from the model with 4-bit weights in the mean, "
        f"{most:.1e} at most"
    )


def _score(
    reranker: Reranker, recipe: Recipe, todo: Sequence[tuple[Collection, str]], candidates: Candidates
) -> Iterator[tuple[str, list[float]]]:
    """Yields (query id, scores of its candidates in their order).

    Under the instruction of the exports, which get the temperature; without exports under each set's own instruction.
    """
    frozen, exports = frozen_instruction(recipe), bool(recipe.export_targets)
    for instruction, part in itertools.groupby(todo, lambda pair: frozen if exports else pair[0].instruction):
        pairs = list(part)
        under = reranker.under(instruction)
        groups = ((c.queries[q], _listed(under, c, candidates[q])) for c, q in pairs)
        for (_, query_id), scores in zip(pairs, under.score_groups(groups), strict=True):
            yield query_id, scores


def _listed(reranker: Reranker, collection: Collection, found: Sequence[Candidate]) -> Sequence[str]:
    ids = [c.document_id for c in found]
    return reranker.listed([collection.corpus[d] for d in ids], ids, found)


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
            f"dev scores: query {row['query_id']!r}: a score is not a finite number: lower train.learning_rate"
        ) from None

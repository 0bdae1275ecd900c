"""Run folders with a finished evaluation, as `compare` and the report over several runs take them; no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwright.common.errors import UserError
from rankwright.common.files import read_json_object
from rankwright.common.hashing import content_hash
from rankwright.common.run_folder import RunFolder
from rankwright.evaluation.evaluate import is_number, read_values
from rankwright.evaluation.metrics import HEADLINE, Scale
from rankwright.evaluation.results import find_finished
from rankwright.recipe.schema import result_values
from rankwright.retrieval.candidates import read_candidates

# The mean in metrics.json must agree with per_query.jsonl to this, or the two files are of different evaluations.
SAME_MEAN = 1e-9

# Measure -> query id -> value.
Values = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class EvaluatedSet:
    """One test set of a run.

    systems: system -> its values; unfinished: systems that are not evaluated to the end
    depth: candidates per query, first_stage: whose lists were reranked; None where this is not recorded
    lists: query id -> hash of its candidates (ids in order), None without candidates.jsonl
    scale: what labels meant to the measures
    """

    systems: Mapping[str, Values]
    unfinished: tuple[str, ...]
    depth: int | None
    first_stage: str | None
    lists: Mapping[str, str] | None
    scale: Scale


@dataclass(frozen=True, slots=True)
class EvaluatedRun:
    """A run folder with a finished evaluation.

    name: short, and different from the names of the other runs of the call
    recipe: as it now stands in the folder; experiment, seed: of the recipe that the evaluation was made with; the seed
        is that of the training
    """

    name: str
    folder: Path
    recipe: Mapping[str, Any]
    sets: Mapping[str, EvaluatedSet]
    experiment: str
    seed: int


def read_runs(folders: Sequence[Path]) -> list[EvaluatedRun]:
    """Read the evaluations of run folders.

    Raises UserError for a folder that is given twice or is not a run folder, and for an evaluation that is missing,
    unfinished, or mixed from several settings. The error names the folder and the command to run.
    """
    return [read_run(folder, name) for folder, name in zip(folders, run_names(folders), strict=True)]


def run_names(folders: Sequence[Path]) -> list[str]:
    """The shortest endings of the paths that tell them apart, of one length for all: `a`, or `x/a` and `y/a`."""
    parts = [folder.resolve().parts for folder in folders]
    twice = next((f for n, f in enumerate(folders) if parts[n] in parts[:n]), None)
    if twice is not None:
        raise UserError(f"{twice}: given twice: name each run once")
    length = 1
    while len({p[-length:] for p in parts}) < len(parts):
        length += 1
    return ["/".join(p[-length:]) for p in parts]


def read_run(folder: Path, name: str) -> EvaluatedRun:
    """One run; raises as read_runs does."""
    recipe = read_json_object(RunFolder(folder).recipe_json)
    if recipe is None:
        raise not_a_run(folder)
    again = RunFolder(folder).command("evaluate")
    facts = {"experiment": experiment_of(recipe), "seed": _seed_of(recipe), **RunFolder(folder).facts("evaluate")}
    experiment, seed = facts["experiment"], facts["seed"]
    if not isinstance(seed, int) or isinstance(seed, bool):
        place = folder / ("stages/evaluate.json" if seed != _seed_of(recipe) else "recipe.json")
        raise UserError(f"{place}: seed: must be a whole number, found {seed!r}: run `{again}`")
    names = RunFolder(folder).test_sets()
    if not names:
        raise UserError(f"{folder}: no test set is evaluated: run `{again}`")
    return EvaluatedRun(name, folder, recipe, {n: _read_set(folder, n) for n in names}, str(experiment), seed)


def not_a_run(folder: Path) -> UserError:
    """The error for a folder without a readable recipe.json."""
    near = Path("runs") / folder
    hint = "give folders such as runs/quickstart, or the command that made it again"
    if near != folder and (near / "recipe.json").is_file():
        hint = f"did you mean {near}?"
    return UserError(f"{folder}: not a run folder (it has no readable recipe.json): {hint}")


def experiment_of(recipe: Mapping[str, Any]) -> str:
    """Hash of everything in a recipe that can change a number, except the seed. Every evaluation records it.

    Runs with the same hash are of one experiment. recipe.json does not tell that: it is the recipe of the last
    command, which may have come after the evaluation.
    """
    # The order of filters decides what is mined, and a mapping's hash does not keep it.
    mine = recipe.get("mine")
    filters = list(mine.get("filters") or ()) if isinstance(mine, dict) else []
    order = [filters] if len(filters) > 1 else []
    values = {k: v for k, v in result_values(recipe).items() if k != "seed"}
    if isinstance(train := values.get("train"), dict):
        values["train"] = {k: v for k, v in train.items() if k != "seed"}
    return content_hash(values, *order)


def _seed_of(recipe: Mapping[str, Any]) -> Any:
    """The seed of the training, as a recipe.json has it."""
    train = recipe.get("train")
    own = train.get("seed") if isinstance(train, dict) else None
    return recipe.get("seed") if own is None else own


def same_but_for_seed(runs: Sequence[EvaluatedRun]) -> list[list[EvaluatedRun]]:
    """Groups of runs whose recipes differ only in `seed`, and in where they lie and what they are called."""
    groups: dict[str, list[EvaluatedRun]] = {}
    for run in runs:
        groups.setdefault(run.experiment, []).append(run)
    return [group for group in groups.values() if len({run.seed for run in group}) > 1]


def _read_set(folder: Path, name: str) -> EvaluatedSet:
    place, again = RunFolder(folder).eval_folder(name), RunFolder(folder).command("evaluate")
    again = f"run `{again}`"
    done, unfinished = find_finished(place)
    if "tuned" not in done:
        raise UserError(f"{folder}: tuned is not evaluated on test set {name!r}, or not to the end: {again}")
    # The record of the last evaluation names the inputs of its systems. Other systems are left from before it, such as
    # a baseline that the recipe no longer names.
    recorded = RunFolder(folder).facts("evaluate").get("system_inputs")
    if recorded is not None:
        if any(done[system].get("inputs") != recorded[system] for system in done if system in recorded):
            raise UserError(
                f"{folder}: test set {name!r}: the systems were evaluated with different settings, or the last "
                f"evaluation is not finished: {again}"
            )
        done = {system: metrics for system, metrics in done.items() if system in recorded}
        unfinished = [system for system in unfinished if system in recorded]
    systems = {system: _read_values(place / system, metrics, again) for system, metrics in done.items()}
    lists = None
    if (place / "candidates.jsonl").is_file():
        found = read_candidates(place / "candidates.jsonl")
        lists = {q: content_hash([c.document_id for c in candidates]) for q, candidates in found.items()}
    tuned = done["tuned"]
    try:
        scale = Scale.read(tuned)
    except (TypeError, ValueError, AttributeError):
        path = place / "tuned" / "metrics.json"
        raise UserError(f"{path}: relevance_level, gains: not as written: delete this file, then {again}") from None
    return EvaluatedSet(systems, tuple(unfinished), tuned.get("depth"), tuned.get("first_stage"), lists, scale)


def _read_values(folder: Path, metrics: Mapping[str, Any], again: str) -> Values:
    """per_query.jsonl of one system, checked against its metrics.json."""
    for key, kind in ((HEADLINE, "a number"), ("depth", "a whole number")):
        value = metrics.get(key)
        if value is not None and not (is_number(value) and (kind == "a number" or isinstance(value, int))):
            path = folder / "metrics.json"
            raise UserError(f"{path}: {key}: must be {kind}, found {value!r}: delete this file, then {again}")
    values = read_values(folder / "per_query.jsonl")
    query_values = list(values.get(HEADLINE, {}).values())
    recorded = metrics.get(HEADLINE)
    # A NaN agrees with nothing.
    if not query_values or recorded is None or not abs(sum(query_values) / len(query_values) - recorded) <= SAME_MEAN:
        raise UserError(
            f"{folder}: metrics.json and per_query.jsonl do not agree on {HEADLINE}: delete this folder, then {again}"
        )
    return values

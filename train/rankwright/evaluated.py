"""Finished evaluations, read from run folders: what each system scored on every test set, query by query."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwright import mining
from rankwright.errors import UserError
from rankwright.evaluate import HEADLINE, is_number, read_metrics_json, read_values
from rankwright.run_folder import RunFolder, content_hash

# Measure -> query id -> value.
Values = Mapping[str, Mapping[str, float]]
# These say where a run lies and what it is called, and change no number.
NOT_THE_EXPERIMENT = ("seed", "name", "description", "run_dir")
# A mean in metrics.json agrees with per_query.jsonl to this, or they are of two evaluations.
SAME_MEAN = 1e-9


@dataclass(frozen=True, slots=True)
class EvaluatedSet:
    """One test set of a run. systems: system -> values; depth: candidates a query, where it is recorded.

    first_stage: whose lists were reranked; lists: query id -> hash of its candidates (ids in order), None without
    candidates.jsonl.
    """

    systems: Mapping[str, Values]
    depth: int | None
    first_stage: str | None
    lists: Mapping[str, str] | None


@dataclass(frozen=True, slots=True)
class EvaluatedRun:
    """A run folder with a finished evaluation. name: short, and no other run of the call has it.

    recipe: as it stands in the folder; experiment, seed: of the recipe that the evaluation was made with.
    """

    name: str
    folder: Path
    recipe: Mapping[str, Any]
    sets: Mapping[str, EvaluatedSet]
    experiment: str
    seed: int


def read_runs(folders: Sequence[Path]) -> list[EvaluatedRun]:
    """Read the evaluations of run folders; no model, no torch.

    Raises UserError for a folder that is given twice or is no run, and for an evaluation that is missing, not
    finished or mixed of several settings: it names the folder and the command to run.
    """
    return [read_run(folder, name) for folder, name in zip(folders, run_names(folders), strict=True)]


def run_names(folders: Sequence[Path]) -> list[str]:
    """The shortest endings of the paths that tell them apart, as long for one as for the other: `a`, `x/a`."""
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
    try:
        recipe: Any = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        recipe = None
    if not isinstance(recipe, dict):
        near = Path("runs") / folder
        hint = f"did you mean {near}?" if (near / "recipe.json").is_file() else "give folders such as runs/quickstart"
        raise UserError(f"{folder}: no folder of a run (it has no readable recipe.json): {hint}")
    facts = {"experiment": experiment_of(recipe), "seed": recipe.get("seed"), **RunFolder(folder).facts("evaluate")}
    experiment, seed = facts["experiment"], facts["seed"]
    if not isinstance(seed, int) or isinstance(seed, bool):
        place = folder / ("stages/evaluate.json" if seed != recipe.get("seed") else "recipe.json")
        raise UserError(f"{place}: seed: must be a whole number, found {seed!r}: run `{evaluate_command(folder)}`")
    names = _test_sets(folder)
    if not names:
        raise UserError(f"{folder}: no test set is evaluated: run `{evaluate_command(folder)}`")
    return EvaluatedRun(name, folder, recipe, {n: _read_set(folder, n) for n in names}, str(experiment), seed)


def experiment_of(recipe: Mapping[str, Any]) -> str:
    """Hash of all in a recipe that can change a number, but for the seed; recorded when it is evaluated.

    By it runs of one experiment are known: recipe.json is that of the last command, which may have come later.
    """
    # Their order decides what is mined, and a mapping's hash does not keep it.
    mine = recipe.get("mine")
    filters = list(mine.get("filters") or ()) if isinstance(mine, dict) else []
    order = [filters] if len(filters) > 1 else []
    return content_hash({k: v for k, v in recipe.items() if k not in NOT_THE_EXPERIMENT}, *order)


def evaluate_command(folder: Path) -> str:
    """The command that evaluates this run: the recipe and the settings that it was last started with."""
    try:
        command = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))["command"][2:]
    except (OSError, ValueError, LookupError):
        command = []
    words = [
        word
        for before, word in zip(["", *command], command, strict=False)
        if not word.startswith("-") and before not in ("--only", "--override")
    ]
    return shlex.join(["rankwright", "evaluate", *(words or ["RECIPE", f"run_dir={folder}"])])


def same_but_for_seed(runs: Sequence[EvaluatedRun]) -> list[list[EvaluatedRun]]:
    """Groups of runs evaluated with recipes that differ in `seed` (and in how they are called) only."""
    groups: dict[str, list[EvaluatedRun]] = {}
    for run in runs:
        groups.setdefault(run.experiment, []).append(run)
    return [group for group in groups.values() if len({run.seed for run in group}) > 1]


def _test_sets(folder: Path) -> list[str]:
    """The sets of the run's data; folders that an earlier recipe left in eval/ are not among them."""
    try:
        report = json.loads((folder / "data_report.json").read_text(encoding="utf-8"))
        return [str(row["set"]) for row in report["splits"]["test"]]
    except (OSError, ValueError, LookupError, TypeError):
        return sorted(path.name for path in (folder / "eval").glob("*") if path.is_dir())


def _read_set(folder: Path, name: str) -> EvaluatedSet:
    place = folder / "eval" / name
    metrics = {path.name: read_metrics_json(path) for path in sorted(place.glob("*")) if path.is_dir()}
    done = {system: values for system, values in metrics.items() if values is not None}
    if "tuned" not in done:
        raise UserError(
            f"{folder}: tuned is not evaluated on test set {name!r}, or not to the end: "
            f"run `{evaluate_command(folder)}`"
        )
    _check_one_evaluation(folder, name, done)
    recorded = RunFolder(folder).facts("evaluate").get("system_inputs")
    if recorded is not None:
        # A baseline that the recipe named once.
        done = {system: values for system, values in done.items() if system in recorded}
    systems = {}
    for system, means in done.items():
        _check_types(folder, place / system / "metrics.json", means)
        values = read_values(place / system / "per_query.jsonl")
        query_values = list(values.get(HEADLINE, {}).values())
        mean = sum(query_values) / len(query_values) if query_values else None
        recorded = means.get(HEADLINE)
        # A NaN agrees with nothing.
        if mean is None or recorded is None or not abs(mean - recorded) <= SAME_MEAN:
            raise UserError(
                f"{place / system}: metrics.json and per_query.jsonl do not agree on {HEADLINE}: delete this folder, "
                f"then run `{evaluate_command(folder)}`"
            )
        systems[system] = values
    lists = None
    if (place / "candidates.jsonl").is_file():
        found = mining.read_candidates(place / "candidates.jsonl")
        lists = {q: content_hash([c.document_id for c in candidates]) for q, candidates in found.items()}
    return EvaluatedSet(systems, done["tuned"].get("depth"), done["tuned"].get("first_stage"), lists)


def _check_types(folder: Path, path: Path, values: Mapping[str, Any]) -> None:
    """Of what is used of a metrics.json."""
    for key, number in ((HEADLINE, "a number"), ("depth", "a whole number")):
        value = values.get(key)
        if value is not None and not (is_number(value) and (number == "a number" or isinstance(value, int))):
            raise UserError(
                f"{path}: {key}: must be {number}, found {value!r}: delete this file, then run "
                f"`{evaluate_command(folder)}`"
            )


def _check_one_evaluation(folder: Path, name: str, done: Mapping[str, Mapping[str, Any]]) -> None:
    """The record of the last evaluation names the inputs of its systems; others are left from before it."""
    recorded = RunFolder(folder).facts("evaluate").get("system_inputs", {})
    if any(done[system].get("inputs") != inputs for system, inputs in recorded.items() if system in done):
        raise UserError(
            f"{folder}: test set {name!r}: the systems were evaluated with different settings, or the last "
            f"evaluation is not finished: run `{evaluate_command(folder)}`"
        )

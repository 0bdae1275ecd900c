"""Finished evaluations, read from run folders: what each system scored on every test set, query by query."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwright import mining
from rankwright.errors import UserError
from rankwright.evaluate import HEADLINE, read_metrics_json
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
    """A run folder with a finished evaluation. name: short, and no other run of the call has it."""

    name: str
    folder: Path
    recipe: Mapping[str, Any]
    sets: Mapping[str, EvaluatedSet]

    @property
    def seed(self) -> int:
        return int(self.recipe["seed"])


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
        recipe: dict[str, Any] = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
        int(recipe["seed"])
    except (OSError, ValueError, LookupError, TypeError):
        near = Path("runs") / folder
        hint = f"did you mean {near}?" if (near / "recipe.json").is_file() else "give folders such as runs/quickstart"
        raise UserError(f"{folder}: no folder of a run (it has no readable recipe.json): {hint}") from None
    names = _test_sets(folder)
    if not names:
        raise UserError(f"{folder}: no test set is evaluated: run `{evaluate_command(folder)}`")
    return EvaluatedRun(name, folder, recipe, {n: _read_set(folder, n) for n in names})


def evaluate_command(folder: Path) -> str:
    """The command that evaluates this run: the recipe and the settings that it was last started with."""
    try:
        command = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))["command"][2:]
    except (OSError, ValueError, LookupError):
        command = []
    words = [
        word
        for before, word in zip(["", *command], command, strict=False)
        if not word.startswith("-") and before != "--only"
    ]
    return shlex.join(["rankwright", "evaluate", *(words or ["RECIPE", f"run_dir={folder}"])])


def same_but_for_seed(runs: Sequence[EvaluatedRun]) -> list[list[EvaluatedRun]]:
    """Groups of runs whose recipes differ in `seed` (and in how they are called) only."""
    groups: dict[str, list[EvaluatedRun]] = {}
    for run in runs:
        key = content_hash({k: v for k, v in run.recipe.items() if k not in NOT_THE_EXPERIMENT})
        groups.setdefault(key, []).append(run)
    return [group for group in groups.values() if len({run.seed for run in group}) > 1]


def _test_sets(folder: Path) -> list[str]:
    """The sets of the run's data; folders that an earlier recipe left in eval/ are not among them."""
    try:
        report = json.loads((folder / "data_report.json").read_text(encoding="utf-8"))
        return [row["set"] for row in report["splits"]["test"]]
    except (OSError, ValueError, LookupError, TypeError):
        return sorted(path.name for path in (folder / "eval").glob("*") if path.is_dir())


def _read_set(folder: Path, name: str) -> EvaluatedSet:
    place = folder / "eval" / name
    metrics = {path.name: read_metrics_json(path) for path in sorted(place.glob("*")) if path.is_dir()}
    done = {system: values for system, values in metrics.items() if isinstance(values, dict)}
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
        values = read_values(place / system / "per_query.jsonl")
        query_values = list(values.get(HEADLINE, {}).values())
        mean = sum(query_values) / len(query_values) if query_values else None
        # A NaN agrees with nothing.
        if mean is None or not abs(mean - float(means.get(HEADLINE, "nan"))) <= SAME_MEAN:
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


def _check_one_evaluation(folder: Path, name: str, done: Mapping[str, Mapping[str, Any]]) -> None:
    """The record of the last evaluation names the inputs of its systems; others are left from before it."""
    recorded = RunFolder(folder).facts("evaluate").get("system_inputs", {})
    if any(done[system].get("inputs") != inputs for system, inputs in recorded.items() if system in done):
        raise UserError(
            f"{folder}: test set {name!r}: the systems were evaluated with different settings, or the last "
            f"evaluation is not finished: run `{evaluate_command(folder)}`"
        )


def read_values(path: Path) -> dict[str, dict[str, float]]:
    """Measure -> query id -> value of a per_query.jsonl. Raises UserError with file and line of the first fault."""
    values: dict[str, dict[str, float]] = {}
    for query_id, row in _rows(path):
        for measure, value in row.items():
            if value is not None:
                values.setdefault(measure, {})[query_id] = float(value)
    return values


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        # Not splitlines(): ids may hold characters that it takes for line ends.
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                try:
                    row = json.loads(line)
                    query_id = row.pop("query_id")
                    if not all(isinstance(value, int | float | None) for value in row.values()):
                        raise ValueError("a value is not a number")
                except (ValueError, LookupError, AttributeError) as error:
                    raise UserError(f"{path}:{number}: not a row of values ({error}): evaluate again") from None
                yield query_id, row
    except FileNotFoundError:
        raise UserError(f"{path}: no such file: delete this folder and evaluate again") from None

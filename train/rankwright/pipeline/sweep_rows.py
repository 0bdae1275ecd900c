"""What the run folders of a sweep hold, as the rows of its table."""

from __future__ import annotations

import functools
import json
from typing import Any

from rankwright.common.files import read_json_object
from rankwright.common.run_folder import RunFolder
from rankwright.evaluation.compare import compare
from rankwright.evaluation.dev_values import read_dev_values, read_evaluations
from rankwright.evaluation.halving import Progress, standing
from rankwright.evaluation.metrics import HEADLINE
from rankwright.evaluation.runs import experiment_of
from rankwright.evaluation.sweep_table import OnTest, RunRow, SweepTable, build_table
from rankwright.pipeline.control import TOKENS, cost
from rankwright.recipe.loading import recipe_json
from rankwright.recipe.sweep_runs import Configuration, LoadedSweep, PlannedRun
from rankwright.training.checkpoint import newest_step
from rankwright.training.eta import DEV_SECONDS, STEP_SECONDS
from rankwright.training.tracking import read_metrics, read_steps


def read_table(loaded: LoadedSweep) -> SweepTable:
    """The table of a sweep as its folders are now."""
    pruned: frozenset[str] = frozenset()
    if loaded.sweep.early is not None:
        progress = {run.name: read_progress(run) for run in loaded.runs}
        pruned = standing(loaded.sweep.early.asha, progress, loaded.default.name).pruned
    return build_table(loaded, [_pruned_row(run) if run.name in pruned else _row(run) for run in loaded.runs])


def read_tests(loaded: LoadedSweep, table: SweepTable) -> list[OnTest]:
    """Chosen and default on the test sets, and each against its base; empty where they are not evaluated."""
    runs = {name: [r for r in loaded.runs if r.configuration.name == name] for name in (table.default, table.chosen)}
    done = {
        str(name): [r for r in of if is_of(RunFolder(r.folder), r) and RunFolder(r.folder).facts("evaluate")]
        for name, of in runs.items()
    }
    folders = {run.folder: name for name, of in done.items() for run in of}
    if not all(done.values()) or not folders:
        return []
    comparison = compare(list(folders))
    owner = {run.name: folders[run.folder] for run in comparison.runs}
    seen = [
        OnTest(row.test_set, owner[row.runs[0]], owner.get(row.other[0], row.other[0]), row.found, row.found.p, True)
        for row in comparison.seed_differences
    ]
    if seen:
        return seen
    names = [*comparison.sets, None] if comparison.pooled else list(comparison.sets)
    return [
        OnTest(test_set, folders[system.runs[0].folder], table.default, row.difference, row.p, False)
        for test_set in names
        for system in comparison.systems
        if system.kind == "tuned" and (row := comparison.rows(test_set)[system.name][1]) is not None
    ]


def dev_curves(loaded: LoadedSweep, table: SweepTable, most: int) -> dict[str, list[dict[str, float]]]:
    """Configuration -> mean nDCG@10 on dev over its seeds by step: default, chosen, and the best of the others."""
    key = f"dev_{HEADLINE}"
    ranked = sorted((row for row in table.configurations if row.dev is not None), key=lambda row: -(row.dev or 0.0))
    names = list(dict.fromkeys([n for n in (table.default, table.chosen) if n] + [row.name for row in ranked]))[:most]
    curves = {}
    for name in names:
        by_step: dict[int, list[float]] = {}
        for run in loaded.runs:
            if run.configuration.name == name and is_of(RunFolder(run.folder), run):
                for row in read_steps(RunFolder(run.folder).metrics):
                    if key in row:
                        by_step.setdefault(row["step"], []).append(row[key])
        curves[name] = [{"step": step, key: sum(v) / len(v)} for step, v in sorted(by_step.items())]
    return {name: rows for name, rows in curves.items() if rows}


def pruned_curves(loaded: LoadedSweep, table: SweepTable) -> dict[str, list[dict[str, float]]]:
    """Run -> its nDCG@10 on dev by step, of the runs that were stopped early."""
    key, names = f"dev_{HEADLINE}", {row.name for row in table.runs if row.state == "pruned"}
    found = {run.name: read_steps(RunFolder(run.folder).metrics) for run in loaded.runs if run.name in names}
    return {name: [{"step": r["step"], key: r[key]} for r in rows if key in r] for name, rows in found.items()}


def is_of(folder: RunFolder, run: PlannedRun) -> bool:
    """Whether the folder holds a finished training of just this run."""
    return folder.facts("train").get("best_value") is not None and _states(folder, run)


def _states(folder: RunFolder, run: PlannedRun) -> bool:
    """Whether the last command in the folder was of just this run."""
    stated = read_json_object(folder.recipe_json) or {}
    train: Any = stated.get("train")
    own = isinstance(train, dict) and train.get("seed") == run.seed
    return own and experiment_of(stated) == _experiment(run.configuration)


@functools.cache
def _experiment(configuration: Configuration) -> str:
    """What experiment_of gives for the recipes of all its runs: they differ in the seed, the name and the folder."""
    return experiment_of(json.loads(recipe_json(configuration.recipe)))


def read_progress(run: PlannedRun, inputs: str | None = None) -> Progress:
    """How far a run is. inputs: of its training, None: of the one that wrote last.

    An evaluation counts once a checkpoint holds it: the training goes on from there.
    """
    folder = RunFolder(run.folder)
    ended = is_of(folder, run) and inputs in (None, folder.facts("train").get("inputs"))
    newest = newest_step(folder.checkpoints) if _states(folder, run) else 0
    found = read_evaluations(folder.dev_values, inputs) if newest else []
    values = [one.values for one in found if 0 < one.step <= newest]
    return Progress(run.configuration.name, values, ended, not ended and folder.failure.is_file())


def training_seconds(folder: RunFolder) -> float:
    """Seconds of the steps and of the evaluations on dev, over all commands that a killed training took."""
    return sum(_seconds(row, STEP_SECONDS) + _seconds(row, DEV_SECONDS) for row in read_metrics(folder.metrics))


def _pruned_row(run: PlannedRun) -> RunRow:
    folder = RunFolder(run.folder)
    newest = newest_step(folder.checkpoints)
    found = [one for one in read_evaluations(folder.dev_values) if one.step <= newest]
    best = max((one for one in found if one.step), key=lambda one: one.mean)
    return RunRow(
        run.name,
        run.configuration.name,
        run.seed,
        "pruned",
        base=next((one.mean for one in found if one.step == 0), None),
        dev=best.mean,
        best_step=best.step,
        steps=newest,
        seconds=round(training_seconds(folder), 1),
        tokens=round(cost(folder)[TOKENS]),
    )


def _row(run: PlannedRun) -> RunRow:
    folder = RunFolder(run.folder)
    failed = read_json_object(folder.failure)
    if failed is not None and not is_of(folder, run):
        return RunRow(run.name, run.configuration.name, run.seed, "failed", str(failed.get("error", "?")))
    if not is_of(folder, run):
        return RunRow(run.name, run.configuration.name, run.seed, "not run")
    facts, values = folder.facts("train"), read_dev_values(folder.dev_values)
    return RunRow(
        run.name,
        run.configuration.name,
        run.seed,
        "done",
        # The error of its evaluation on test.
        None if failed is None else str(failed.get("error", "?")),
        base=facts["base_value"],
        dev=facts["best_value"],
        best_step=facts["best_step"],
        steps=facts["step"],
        seconds=round(training_seconds(folder), 1),
        tokens=round(cost(folder)[TOKENS]),
        train_queries=_train_queries(folder),
        values=values.best if values is not None else None,
    )


def _train_queries(folder: RunFolder) -> int | None:
    mix: Any = read_json_object(folder.mix) or {}
    try:
        return sum(int(row["queries"]) for row in mix["sets"])
    except (LookupError, TypeError, ValueError):
        return None


def _seconds(row: Any, key: str) -> float:
    value = row.get(key) if isinstance(row, dict) else None
    return float(value) if isinstance(value, int | float) else 0.0

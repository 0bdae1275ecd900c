"""The report stage: the page, and what the run came to, which its trackers show too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rankwright.common import console
from rankwright.common.files import read_json_object
from rankwright.common.run_folder import RunFolder
from rankwright.evaluation.metrics import HEADLINE, measures_of
from rankwright.evaluation.results import SetResults, read_results, rows_of, verdict
from rankwright.evaluation.teacher_gate import recorded_verdict
from rankwright.pipeline.evaluate import write_attributes
from rankwright.pipeline.train import flat_config
from rankwright.recipe.schema import Recipe
from rankwright.report.page import write_report
from rankwright.training.trackers import Outcome, Tracked, TrackingRecord, show_outcome
from rankwright.training.tracking import read_steps

# The trackers' table of results: fields of its rows.
COLUMNS = ("test_set", "system", "measure", "value", "difference", "low", "high", "to_first", "queries")


def report(recipe: Recipe, run: RunFolder, sets: Sequence[str], inputs: Mapping[str, str]) -> dict[str, Any]:
    """Write report.html, and show the outcome in the trackers of the training. inputs: see read_results."""
    console.heading("report")
    write_attributes(recipe, run)
    console.say(f"report: {write_report(run.path, inputs)}")
    if recipe.train.trackers:
        record = TrackingRecord(run)
        tracked = Tracked(run.path, recipe.name, flat_config(recipe), record.id, record.group)
        outcome = outcome_of(recipe, run, sets, inputs)
        show_outcome(recipe.train.trackers, tracked, record, read_steps(run.metrics), outcome, console.say)
    return {}


def outcome_of(recipe: Recipe, run: RunFolder, sets: Sequence[str], inputs: Mapping[str, str]) -> Outcome:
    """The outcome, from the files of the run."""
    results, _ = read_results(run.path, recipe, sets, inputs)
    rows = rows_of(results)
    values = dict(_values(results, measures_of(recipe.evaluate)))
    sentences = list(verdict(rows).sentences)
    gate = read_json_object(run.gate)
    if recipe.gate is not None and gate is not None:
        values["gate/accepted"] = float(bool(gate["accepted"]))
        sentences += [f"Gate, {'passed' if rule['passed'] else 'FAILED'}: {rule['sentence']}" for rule in gate["rules"]]
    teacher = recorded_verdict(run) if recipe.has_teacher else None
    if teacher is not None and teacher["verdict"] != "not judged":
        values["teacher/accepted"] = float(teacher["verdict"] == "accepted")
        sentences.append(teacher["sentence"])
    return Outcome(
        values=values,
        sentences=sentences,
        rows=[{column: getattr(row, column) for column in COLUMNS} for row in rows],
        page=run.report if recipe.train.track_report else None,
        step=int(run.facts("train").get("step", 0)),
    )


def _values(results: Sequence[SetResults], measures: Sequence[str]) -> Iterator[tuple[str, float]]:
    """(name, number): `test/SET/SYSTEM/MEASURE`, and the differences of the headline with their intervals."""
    for one in results:
        for system, mean in one.means.items():
            name, measured = f"test/{one.name}/{system}", one.metrics.get(system, {})
            yield f"{name}/{HEADLINE}", mean
            for measure in measures:
                if measure != HEADLINE and isinstance(measured.get(measure), float):
                    yield f"{name}/{measure}", measured[measure]
            of_tuned = {"first_stage": one.to_first, "no_pretrain": one.to_control} if system == "tuned" else {}
            differences = {"base": one.to_base.get(system), **of_tuned}
            for other, found in differences.items():
                if found is not None:
                    yield f"{name}/minus_{other}", found.mean
                    yield f"{name}/minus_{other}_low", found.low
                    yield f"{name}/minus_{other}_high", found.high

"""What a run would do, and what it has done, as plain objects: for `run --dry-run` and `run --json`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rankwright.common.errors import UserError
from rankwright.common.files import read_json_object
from rankwright.common.plurals import counted
from rankwright.evaluation.gate import recorded_verdict
from rankwright.evaluation.results import read_results, rows_of, verdict
from rankwright.evaluation.teacher_gate import recorded_verdict as teacher_verdict
from rankwright.pipeline.judge import bill
from rankwright.pipeline.pretrain_recipes import pretraining_recipe, settings_of
from rankwright.pipeline.stage_table import STAGES, Stage
from rankwright.pipeline.stages import Pipeline
from rankwright.pipeline.synthesize import bill as bill_of_writer
from rankwright.recipe.schema import Recipe

MFU = 0.35  # as `rankwright plan` assumes


@dataclass(frozen=True, slots=True)
class StageState:
    """What a run would do with one stage. seconds: what it took when it was last done; hours: an estimate."""

    name: str
    state: Literal["done", "would run"]
    why: str
    seconds: float | None = None
    hours: float | None = None


def preview(pipeline: Pipeline) -> list[StageState]:
    """The stages that a run would do or skip, in their order; reads no weights and writes nothing.

    Raises UserErrors for mistakes of the recipe, as `check` does.
    """
    pipeline.check()
    if pipeline.recipe.gate is not None:
        # The decision that let the model through is an input of the exports.
        pipeline.gate = recorded_verdict(pipeline.folder)
    return [_state(pipeline, stage) for stage in STAGES if stage.is_asked(pipeline)]


def _state(p: Pipeline, stage: Stage) -> StageState:
    record = p.folder.facts(stage.name) if stage.inputs is not None else {}
    seconds = record.get("seconds")
    if stage.inputs is None:
        if stage.name == "gate" and p.recipe.gate is None:
            return StageState(stage.name, "done", "the recipe has none")
        return StageState(stage.name, "would run", "runs every time, in seconds")
    why = _why_again(p, stage, record)
    if why is None:
        return StageState(stage.name, "done", "unchanged", seconds)
    hours, more = _train_hours(p) if stage.name == "train" else (None, "")
    if stage.name == "synthesize":
        more = f"; {bill_of_writer(p.recipe)}"
    if stage.name == "pretrain":
        hours, more = _pretrain_hours(p)
    if stage.name == "control":
        more = "; as long as training and pre-training together"
    if stage.name == "judge":
        more = f"; {bill(p.recipe, p.folder).words}"
    return StageState(stage.name, "would run", why + more, seconds, hours)


def _why_again(p: Pipeline, stage: Stage, record: Mapping[str, Any]) -> str | None:
    assert stage.inputs is not None
    if not record:
        return "not done yet"
    if record.get("inputs") != stage.inputs(p):
        return "its recipe keys, files or code changed"
    if changed := p.folder.changed(stage.name, keep_times=False):
        name, what = next(iter(sorted(changed.items())))
        return f"{name} is {what}"
    return None if stage.by_parts or stage.is_whole(p) else "files of it are missing"


def _train_hours(p: Pipeline) -> tuple[float | None, str]:
    """(hours on this machine, what is known of it in words)."""
    from rankwright.training.sampling import draws_of_prepared
    from rankwright.training.setup import most_steps, total_steps

    draws = draws_of_prepared(p.recipe, p.folder)
    steps = most_steps(p.recipe) if draws is None else total_steps(p.recipe, draws)
    if steps is None:
        return None, "; steps are not known before the data is read"
    return _hours(p.recipe, steps, "at most " if draws is None else "")


def _hours(recipe: Recipe, steps: int, most: str) -> tuple[float | None, str]:
    from rankwright.training.estimate.devices import KNOWN
    from rankwright.training.estimate.plan import make_plan

    device = _device(KNOWN)
    try:
        seconds = None if device is None else make_plan(recipe, device).step_seconds(MFU)
    except UserError as error:
        return None, f"; {counted(steps, 'step')} ({error})"
    if seconds is None:
        return None, f"; {counted(steps, 'step')}, at an unknown speed: see `rankwright plan`"
    return steps * seconds / 3600, f"; {most}{counted(steps, 'step')}, hours if every prompt had its full length"


def _pretrain_hours(p: Pipeline) -> tuple[float | None, str]:
    """As _train_hours, of the weak pairs alone: what text costs depends on its tokens."""
    settings = settings_of(p.recipe)
    parts = [f"{counted(len(settings.pairs), 'set')} of pairs"] if settings.pairs else []
    parts += [f"{counted(len(settings.text), 'text')}"] if settings.text else []
    words = f"; {', '.join(parts)}"
    if settings.steps is None or not settings.pairs:
        return None, f"{words}; steps are not known before they are read"
    hours, more = _hours(pretraining_recipe(p.recipe, p.folder), settings.steps, "at most ")
    return hours, words + more + (" (without its text)" if settings.text else "")


def _device(known: Any) -> str | None:
    """The name by which `plan` knows this machine's device, None where it does not."""
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    name = torch.cuda.get_device_name().lower()
    found = [one for one in known if all(part in name.replace(" ", "") for part in one.split("-"))]
    return f"{torch.cuda.device_count()}x{max(found, key=len)}" if found else None


def summary(pipeline: Pipeline) -> dict[str, Any]:
    """What a finished run has: its folder, stages, results, verdict, gate, exports and report.

    results: as Pipeline.results() gives them. gate: gate.json, or None. teacher: its verdict, or
    None. pretrain: the facts of its stage, with those of the control, or None. exports: target -> folder.
    """
    run, recipe = pipeline.folder, pipeline.recipe
    results, _ = read_results(run.path, recipe, pipeline.test_sets, pipeline.inputs.systems)
    rows = rows_of(results, p_values=True, seed=recipe.seed)
    found = verdict(rows)
    return {
        "run": str(run.path),
        "stages": dict(_seconds(pipeline)),
        "verdict": {"tone": found.tone, "sentences": list(found.sentences)},
        "results": [dataclasses.asdict(row) for row in rows],
        "gate": read_json_object(run.gate) if recipe.gate is not None else None,
        "teacher": teacher_verdict(run) if recipe.has_teacher else None,
        "pretrain": {**run.facts("pretrain"), "control": run.facts("control")} if recipe.pretrain is not None else None,
        "exports": {t: str(run.export(t)) for t in recipe.export_targets if run.export(t).is_dir()},
        "report": str(run.report) if run.report.is_file() else None,
    }


def _seconds(p: Pipeline) -> Iterator[tuple[str, float]]:
    for stage in STAGES:
        if stage.inputs is not None and stage.is_asked(p) and (record := p.folder.facts(stage.name)):
            yield stage.name, record["seconds"]

"""The teacher stage: whether mine.teacher orders dev better than the base, before it scores anything to train with."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from rich.table import Column, Table

from rankwright.common import console
from rankwright.common.outputs import remove, sealed
from rankwright.common.processes import Processes
from rankwright.common.run_folder import RunFolder
from rankwright.data.collection import Collection
from rankwright.data.sources import of_people
from rankwright.data.split_files import qualified, read_split
from rankwright.evaluation.evaluate import first_stage_run, measure
from rankwright.evaluation.metrics import HEADLINE, Scale
from rankwright.evaluation.teacher_gate import (
    LEAST_QUERIES,
    TeacherRefused,
    Values,
    Verdict,
    judge_teacher,
    not_judged,
    recorded_verdict,
)
from rankwright.pipeline.inputs import StageInputs
from rankwright.pipeline.mine import dev_lists
from rankwright.pipeline.train import dev_queries
from rankwright.recipe.schema import Recipe
from rankwright.rerankers.kept_scorer import score_together
from rankwright.rerankers.scorer import Reranked
from rankwright.retrieval.candidates import Candidates
from rankwright.retrieval.first_stages import stage_label, training_stage
from rankwright.supervision.teacher import Teacher
from rankwright.training.setup import BaseScorer

# The queries of each set of dev that are looked at; the ids are qualified.
Asked = Sequence[tuple[Collection, Sequence[str]]]


def check_teacher(
    recipe: Recipe, run: RunFolder, inputs: StageInputs, processes: Processes, *, override: str | None, command: str
) -> dict[str, Any]:
    """The whole stage, which every process of the group calls; writes teacher_gate.json.

    An override belongs to one teacher, one base and one dev: it is forgotten when what the verdict depends on changes.
    command: continues this run, for the error. Raises UserError for a refused teacher without an override.
    """
    teacher = recipe.mine.teacher
    assert teacher is not None
    if processes.is_first:
        forget_other_verdict(run, inputs.teacher)
    asked, found = judged_dev(recipe, run, teacher.name, least=LEAST_QUERIES)
    if found is None:
        files = inputs.run_files("dev")
        made = {"shards": inputs.shards, "mined": inputs.mine}
        lists = dev_lists(recipe, run, **made, run_files=files, processes=processes)
        wanted = [(c, {q: [one.document_id for one in lists.get(q, ())] for q in ids}) for c, ids in asked]
        # One after the other, so that the weights of one of them are loaded at a time.
        taught = score_together(Teacher(teacher, recipe.prompt, bm25=recipe.bm25), wanted, processes)
        untrained = score_together(BaseScorer(recipe, inputs.base), wanted, processes)
        if not processes.is_first:
            return {}
        found = verdict_on_dev(recipe, teacher.name, taught, untrained, asked, lists)
    if not processes.is_first:
        return {}
    conclude(run, found, "mine.teacher", inputs=inputs.teacher, override=override, command=command)
    return {"verdict": found.verdict, "queries": found.queries}


def judged_dev(
    recipe: Recipe, run: RunFolder, teacher: str, *, least: int = 0, most: int | None = None
) -> tuple[Asked, Verdict | None]:
    """The dev queries that people judged and the verdict rests on; and the verdict where they are too few for one.

    least, most: see train.dev_queries.
    """
    sets = [qualified(c) for c in of_people(read_split(run.data, "dev"))]
    asked = [(c, ids) for c, ids in dev_queries(recipe, sets, least=least, most=most) if ids]
    count = sum(len(ids) for _, ids in asked)
    if count >= LEAST_QUERIES:
        return asked, None
    return asked, not_judged(teacher, count, measure=Scale.of(recipe.evaluate).name(HEADLINE))


def forget_other_verdict(run: RunFolder, inputs: str) -> None:
    """Remove a verdict on something else, which must not stay if the new one ends early. inputs: of the new one."""
    if recorded_verdict(run, inputs) is None:
        remove(run.teacher_gate)


def conclude(run: RunFolder, found: Verdict, key: str, *, inputs: str, override: str | None, command: str) -> None:
    """Write a verdict with the reason to use a refused teacher, given now or before for the same inputs, and print it.

    key: where the recipe names the teacher. Raises TeacherRefused without a reason.
    """
    if found.verdict == "refused":
        # On one line, as that of the gate.
        before = recorded_verdict(run, inputs) or {}
        reason = " ".join(override.split()) if override is not None else before.get("override")
        found = dataclasses.replace(found, override=reason)
    run.write_json(run.teacher_gate, sealed({**found.as_json(), "inputs": inputs}))
    if found.rows:
        console.show(_table(found))
    if not found.may_train:
        advice = f"Choose another teacher, or go on with: {command} --override 'why'"
        raise TeacherRefused(f"{key}: {found.sentence}. {advice}")
    console.say(found.sentence)
    if found.override is not None:
        console.say(f"used although it is refused: {found.override}")


def _table(verdict: Verdict) -> Table:
    """The rows of a verdict for the console."""
    level = f"[{100 * verdict.confidence:g} %]"
    numbers = (Column(title, justify="right") for title in (f"{verdict.measure} {level}", f"system - base {level}"))
    table = Table("on dev", *numbers)
    for row in verdict.rows:
        d = row.difference
        difference = "" if d is None else f"{d.mean:+.3f} [{d.low:+.3f}, {d.high:+.3f}]"
        table.add_row(row.system, f"{row.value:.3f} [{row.low:.3f}, {row.high:.3f}]", difference)
    return table


def verdict_on_dev(
    recipe: Recipe, teacher: str, taught: Reranked, untrained: Reranked, asked: Asked, lists: Candidates
) -> Verdict:
    """The verdict on scores of the dev lists: taught to train with, whatever gave them, and untrained of the base."""
    scale = Scale.of(recipe.evaluate)
    ids = [q for _, query_ids in asked for q in query_ids]
    of_teacher, of_prior, of_base = (
        values_on(run, asked, scale) for run in (taught, first_stage_run(lists, ids), untrained)
    )
    prior, values = stage_label(training_stage(recipe)), (of_teacher, of_prior, of_base)
    return judge_teacher(teacher, prior, values, measure=scale.name(HEADLINE), seed=recipe.seed)


def values_on(run: Reranked, asked: Asked, scale: Scale) -> Values:
    """nDCG@10 of each query; one without candidates counts 0."""
    values: dict[str, float] = {}
    for collection, query_ids in asked:
        values |= measure(run, collection.qrels, query_ids, [HEADLINE], scale).per_query[HEADLINE]
    return values


def left_of_override(run: RunFolder, override: str | None, *, has_gate: bool) -> str | None:
    """The reason of `--override` for the gate of the trained model: one that was given for the teacher is not for it.

    Prints what becomes of it. has_gate: whether the recipe has one.
    """
    if override is None:
        return None
    recorded = (recorded_verdict(run) or {}).get("override")
    if recorded == " ".join(override.split()):
        more = "; the gate of the trained model needs a reason of its own" if has_gate else ""
        console.say(f"--override: counts for the teacher{more}")
        return None
    becomes = "left for the gate of the trained model" if has_gate else "not recorded"
    why = "the teacher is not refused" if recorded is None else "the teacher's reason is on record"
    console.say(f"--override: {becomes}, because {why}")
    return override

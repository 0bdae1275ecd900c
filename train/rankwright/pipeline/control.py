"""The control of a pre-training: the reranker without it, trained longer by what the pre-training cost."""

from __future__ import annotations

import math
from typing import Any

from rankwright.common import console
from rankwright.common.plurals import counted
from rankwright.common.run_folder import RunFolder
from rankwright.pipeline.context import Context
from rankwright.pipeline.pretrain_recipes import control_recipe
from rankwright.training.loop import TFLOP
from rankwright.training.tracking import read_steps

# What a step costs where the FLOPs of a base are not known.
TOKENS = "tokens"
# What runs from the same data share, whatever base they train.
BEFORE_TRAINING = ("synthesize", "data", "teacher", "mine", "judge")


def control(p: Context) -> dict[str, Any]:
    """The whole stage, which every process of the group calls; returns its facts on the first one."""
    facts = p.processes.from_first(_steps(p) if p.processes.is_first else {})
    console.say(
        f"control: {counted(facts['steps'], 'step')} without pre-training, {facts['further']:,} of them for its "
        f"{facts['pretrain_cost']:,.4g} {facts['unit']}"
    )
    recipe = control_recipe(p.recipe, p.folder, facts["steps"])
    child = p.nested(recipe, RunFolder(p.folder.control), p.inputs.control)
    if p.processes.is_first:
        child.folder.create()
        for stage in BEFORE_TRAINING:
            inputs = p.folder.facts(stage).get("inputs")
            # Both recipes agree in all that these depend on.
            if isinstance(inputs, str) and not child.folder.is_done(stage, inputs):
                child.folder.adopt(stage, inputs, p.folder)
    p.processes.meet()
    child.run_to("train")
    trained = child.folder.facts("train")
    return {**facts, **{key: trained.get(key) for key in ("step", "best_step", "base_value", "best_value")}}


def _steps(p: Context) -> dict[str, Any]:
    """steps: of the control; further: those that the pre-training pays for. Mining and dev are not counted."""
    pretrained, trained = p.folder.facts("pretrain")["cost"], cost(p.folder)
    unit = TFLOP if TFLOP in pretrained and TFLOP in trained else TOKENS
    steps = int(p.folder.facts("train")["step"])
    further = math.ceil(pretrained.get(unit, 0.0) / max(trained.get(unit, 0.0) / steps, 1e-12))
    planned = int(p.folder.facts("train")["planned_steps"])
    return {"steps": planned + further, "further": further, "unit": unit, "pretrain_cost": pretrained.get(unit, 0.0)}


def cost(run: RunFolder) -> dict[str, float]:
    """What the steps of a training cost together: TFLOP, where all of them have it, and tokens."""
    rows = [row for row in read_steps(run.metrics) if row["step"] > 0]
    found = {TOKENS: sum(row.get("tokens_per_s", 0.0) * row.get("step_seconds", 0.0) for row in rows)}
    if rows and all(TFLOP in row for row in rows):
        found[TFLOP] = sum(row[TFLOP] for row in rows)
    return found

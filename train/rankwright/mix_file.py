"""mix.json: how often each training set is drawn, as planned and as it came; printed when training starts."""

from __future__ import annotations

from typing import Any

from rich.markup import escape
from rich.table import Table

from rankwright import console
from rankwright.data_files import read_split
from rankwright.instructions import frozen_instruction, recipe_instruction, shortened, training_instructions
from rankwright.recipe import Recipe
from rankwright.run_folder import RunFolder
from rankwright.sampling import GroupSource

MIX_FILE = "mix.json"


def write_mix(
    run: RunFolder, source: GroupSource, groups_per_step: int, planned_steps: int, steps: int | None
) -> dict[str, Any]:
    """Write mix.json, and return it. steps: those that were made; None before the end of training."""
    parts = source.mixture.parts
    an_epoch = source.mixture.draws_an_epoch
    planned = source.mixture.counts(planned_steps * groups_per_step)
    drawn = None if steps is None else source.mixture.counts(steps * groups_per_step)
    sets = [
        {
            "set": part.name,
            "queries": len(part.query_ids),
            "left_out": source.left_out_of[part.name],
            "weight": float(part.weight),
            "draws_an_epoch": float(len(part.query_ids) * part.weight),
            "share": float(len(part.query_ids) * part.weight) / an_epoch,
            "instruction": source.encoders[part.name].contract.instruction,
            "planned_groups": planned[part.name],
            "groups": drawn and drawn[part.name],
        }
        for part in parts
    ]
    totals = {"groups_per_step": groups_per_step, "planned_steps": planned_steps, "steps": steps}
    mix = {**totals, "draws_an_epoch": an_epoch, "sets": sets}
    run.write_json(MIX_FILE, mix)
    return mix


def draws_of_prepared(recipe: Recipe, run: RunFolder) -> float | None:
    """Draws of an epoch, from the training split that an earlier run has prepared, or None."""
    folder = run.path / "data"
    if not (folder / "train.jsonl").is_file():
        return None
    collections, weights = read_split(folder, "train"), [source.weight for source in recipe.data.train]
    if len(weights) != len(collections):
        # The recipe names other sets since.
        weights = [collection.draws for collection in collections]
    return sum(len(c.queries) * weight for c, weight in zip(collections, weights, strict=True))


def describe_mix(mix: dict[str, Any], recipe: Recipe) -> None:
    """A table, and what the exports will hold where the sets have several instructions."""
    table = Table(title="mix of the training sets", title_justify="left")
    for column in ("set", "queries", "weight", "draws an epoch", "share", "groups in all", "instruction"):
        table.add_column(column, justify="left" if column in ("set", "instruction") else "right")
    for row in mix["sets"]:
        counts = (f"{row['queries']:,}", f"{row['weight']:g}", f"{row['draws_an_epoch']:,.5g}", f"{row['share']:.1%}")
        table.add_row(
            escape(row["set"]), *counts, f"{row['planned_groups']:,}", escape(shortened(row["instruction"])) or "-"
        )
    console.show(table)
    trained = training_instructions(recipe)
    if recipe.export_targets and (len(trained) > 1 or frozen_instruction(recipe) not in trained):
        frozen = frozen_instruction(recipe)
        text = recipe_instruction(recipe) if frozen is None else frozen
        untrained = "" if frozen in trained else ", which no set is trained under"
        console.say(f"exports hold the instruction {text!r}{untrained}")

"""What a run folder holds before its first stage: the recipe, where it ran, and the licence ledger."""

from __future__ import annotations

import json
import sys

from rankwright.licence_stage import Sets, write_ledger
from rankwright.loading import recipe_json
from rankwright.recipe import Recipe
from rankwright.run_folder import RunFolder, provenance


def begin_run(recipe: Recipe, located: Sets, run: RunFolder) -> None:
    """Write recipe.json, provenance.json and licences.json, and say which licences are in doubt."""
    run.write_json("recipe.json", json.loads(recipe_json(recipe)))
    run.write_json("provenance.json", provenance(recipe.seed, ["rankwright", *sys.argv[1:]]))
    write_ledger(recipe, located, run)

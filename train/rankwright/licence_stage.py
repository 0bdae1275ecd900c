"""When the licence ledger of a run is written, and when it stops one: before anything runs, and once files are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rankwright import console
from rankwright.derived_licence import ledger_json
from rankwright.errors import UserErrors
from rankwright.ledger import LEDGER, Input, faults, make_inputs, warning
from rankwright.recipe import Recipe
from rankwright.run_folder import RunFolder
from rankwright.sources import Located

Sets = Mapping[str, Sequence[Located]]


def licence_faults(recipe: Recipe, located: Sets) -> list[str]:
    """What licence.require refuses before files are read, and decisions about nothing."""
    return _faults(make_inputs(recipe, located), recipe, located)


def _faults(inputs: Sequence[Input], recipe: Recipe, located: Sets) -> list[str]:
    return faults(inputs, recipe.licence, [entry.name for entry in located.get("train", ())])


def write_ledger(recipe: Recipe, located: Sets, run: RunFolder) -> None:
    """licences.json as far as it is known before the files are read, and one line of doubts."""
    inputs = make_inputs(recipe, located)
    run.write_json(LEDGER, ledger_json(inputs, recipe.licence))
    if doubts := warning(inputs, recipe.licence):
        console.say(doubts)


def settle_licences(recipe: Recipe, located: Sets, run: RunFolder) -> dict[str, Any]:
    """licences.json after the data stage. Raises UserErrors where a set holds scores of a teacher that is refused."""
    teachers = run.facts("data").get("teacher_scores", [])
    inputs = make_inputs(recipe, located, teachers)
    ledger = ledger_json(inputs, recipe.licence)
    run.write_json(LEDGER, ledger)
    if found := _faults(inputs, recipe, located):
        raise UserErrors(found)
    return ledger

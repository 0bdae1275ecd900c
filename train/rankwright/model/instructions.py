"""The instruction that each set is read under, and the one that is frozen into the exports.

`None` stands for the instruction of the recipe: prompt.instruction, or where the recipe states none, the base's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rankwright.common.errors import UserError
from rankwright.common.resources import resolve_base
from rankwright.model.prompt import PromptContract
from rankwright.recipe.schema import Recipe
from rankwright.recipe.sources import Source

SHOWN_CHARACTERS = 60


def entries(recipe: Recipe) -> Iterator[tuple[str, Source]]:
    """(key, entry) of every set that the recipe names: `data.train.0`."""
    for split in ("train", "dev", "test"):
        sources = getattr(recipe.data, split)
        for number, source in enumerate(sources if isinstance(sources, tuple) else ()):
            yield f"data.{split}.{number}", source


def stated_instruction(recipe: Recipe) -> str | None:
    """prompt.instruction, or None if the recipe states none: a base that carries an instruction then keeps it."""
    return recipe.prompt.instruction if "instruction" in recipe.prompt.model_fields_set else None


def stated_instructions(recipe: Recipe) -> dict[str, str]:
    """Key -> instruction, for every instruction that the recipe states."""
    found = {f"{key}.instruction": source.instruction for key, source in entries(recipe)}
    found = {"prompt.instruction": stated_instruction(recipe), **found, "export.instruction": recipe.export.instruction}
    return {key: text for key, text in found.items() if text is not None}


def recipe_instruction(recipe: Recipe) -> str:
    """The text that None stands for. A base on the hub is assumed to carry no instruction."""
    stated = stated_instruction(recipe)
    if stated is not None:
        return stated.strip()
    try:
        saved = PromptContract.load(Path(resolve_base(recipe.model.base)))
    except UserError:
        # Reported where the base is loaded.
        saved = None
    return recipe.prompt.instruction if saved is None else saved.instruction


def frozen_instruction(recipe: Recipe) -> str | None:
    """The instruction that the exports hold: export.instruction, else the only one of the training sets."""
    chosen = recipe.export.instruction
    if chosen is None:
        return next(iter(training_instructions(recipe)), None)
    return _own(chosen, recipe_instruction(recipe))


def training_instructions(recipe: Recipe) -> dict[str | None, list[str]]:
    """Instruction -> keys of the training sets that are read under it."""
    default = recipe_instruction(recipe)
    found: dict[str | None, list[str]] = {}
    for key, source in entries(recipe):
        if key.startswith("data.train."):
            found.setdefault(_own(source.instruction, default), []).append(key)
    return found


def _own(instruction: str | None, default: str) -> str | None:
    return None if instruction is None or instruction.strip() == default else instruction.strip()


def is_read_otherwise(recipe: Recipe, instruction: str | None) -> bool:
    """Whether exports read a test set under an instruction that is not its own."""
    if not recipe.export_targets:
        return False
    return frozen_instruction(recipe) != _own(instruction, recipe_instruction(recipe))


def has_exported(recipe: Recipe) -> bool:
    """Whether some test set has a row for the instruction of the exports."""
    return any(is_read_otherwise(recipe, source.instruction) for source in recipe.data.test_sources)


def check_mixture(recipe: Recipe) -> list[str]:
    """Mistakes of weights, placeholders and instructions, each as `key: what, how to fix it`."""
    faults = [
        f"{key}.weight: how often a training set is drawn: remove it here, every query counts once in an evaluation"
        for key, source in entries(recipe)
        if source.weight != 1 and not key.startswith("data.train.")
    ]
    faults += [
        f"{key}.abstract: of training alone: remove it here, dev and test are read as they are"
        for key, source in entries(recipe)
        if source.abstract is not None and not key.startswith("data.train.")
    ]
    trained = training_instructions(recipe)
    if recipe.export_targets and recipe.export.instruction is None and len(trained) > 1:
        default = recipe_instruction(recipe)
        known = "; ".join(f"{(default if i is None else i)!r} of {', '.join(keys)}" for i, keys in trained.items())
        faults.append(
            f"export.instruction: the training sets have {len(trained)} instructions, and an export holds one: choose "
            f"it ({known}), or export nothing (export.targets=[])"
        )
    return faults


def shortened(text: str) -> str:
    """An instruction for a table."""
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…"

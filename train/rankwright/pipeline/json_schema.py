"""The JSON schema of recipes, for editors: keys, types and meanings, with all names that a recipe may choose."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from rankwright.recipe.schema import Recipe


def recipe_schema() -> dict[str, Any]:
    """The schema of a recipe in a file, where a recipe that `extends` another may leave out what that one has."""
    whole = _without_titles(Recipe.model_json_schema())
    sections = whole.pop("$defs")
    for section, key, names in registered_names():
        _offer(sections[section]["properties"][key], list(names))
    sections["Model"].pop("required")
    sections["Dense"].pop("required")
    extends = {
        "type": "string",
        "description": "Name or path of a recipe to start from; the keys given here are merged into it.",
    }
    root = {"properties": {"model": {"required": ["base"]}, "dense": {"required": ["model"]}}}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Rankwright recipe",
        **whole,
        "properties": {"extends": extends, **whole["properties"]},
        "required": ["name"],
        "if": {"not": {"required": ["extends"]}},
        "then": {"required": ["model", "data"], **root},
        "$defs": sections,
    }


def schema_text() -> str:
    """The schema as recipes/schema.json holds it, which `rankwright recipes --schema` prints."""
    return json.dumps(recipe_schema(), indent=2, ensure_ascii=False) + "\n"


def registered_names() -> Iterable[tuple[str, str, Iterable[str]]]:
    """(section, key, what a recipe may write there) for keys that choose from a registry."""
    from rankwright.data.formats.detect import FOLDERS, FORMS
    from rankwright.export.targets import TARGETS
    from rankwright.mining.filters import FILTERS
    from rankwright.mining.samplers import SAMPLERS
    from rankwright.model.attention import PLAIN, ROUTES
    from rankwright.model.frames import FRAMES
    from rankwright.rerankers.kinds import BASELINES
    from rankwright.retrieval.first_stages import stage_names
    from rankwright.supervision.preferences.judging import DESIGNS
    from rankwright.training.losses import LOSSES
    from rankwright.training.optim import SCHEDULES

    yield "Source", "format", [*FOLDERS, *FORMS]
    yield "Model", "attention", ["auto", PLAIN, *ROUTES]
    yield "Prompt", "mode", ["auto", *(frame.name for frame in FRAMES.values() if frame.trainable)]
    yield "Mine", "retriever", stage_names()
    yield "Evaluate", "first_stage", stage_names()
    yield "Mine", "filters", FILTERS
    yield "Mine", "sampler", SAMPLERS
    yield "Baseline", "kind", BASELINES
    yield "Pairs", "design", DESIGNS
    yield "Loss", "name", LOSSES
    yield "LossTerm", "name", LOSSES
    yield "Train", "schedule", SCHEDULES
    yield "Export", "targets", TARGETS


def _offer(key: dict[str, Any], names: list[str]) -> None:
    """Restrict a key's text, the elements of its list, or the names in its mapping."""
    if any(kind.get("type") == "object" for kind in key.get("anyOf", ())):
        # export.targets: a list of names stands for a mapping without options.
        key["anyOf"].insert(0, {"type": "array", "items": {"type": "string"}})
    for kind in key.get("anyOf", [key]):
        if kind["type"] == "string":
            kind["enum"] = names
        elif kind["type"] == "array":
            kind["items"]["enum"] = names
        elif kind["type"] == "object":
            kind["propertyNames"] = {"enum": names}


def _without_titles(value: Any) -> Any:
    """pydantic repeats each key's name as its title."""
    if isinstance(value, list):
        return [_without_titles(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {key: _without_titles(item) for key, item in value.items() if not (key == "title" and isinstance(item, str))}

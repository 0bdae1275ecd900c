"""Recipes with one wrong value each, made from the schema, so that a new key is covered when it is written.

KEYS                          all dotted keys with their fields, `[]` for the elements of a list
VALUES                        wrong types, extremes and hostile texts, each tried under every key
with_value(recipe, key, v)    a copy of a recipe with one value, and with what the key's section needs
numbers_of(field)             the numbers (whole, or any) that a field can hold, with their bounds
"""

from __future__ import annotations

import copy
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from rankwright.recipe.schema import walk_keys

KEYS: dict[str, FieldInfo] = dict(walk_keys())
TEXTS = ["", " ", "nope", "a" * 255, "a" * 100_000, "../x", "a/b", "/etc", "/dev/zero", "/dev/null/x", "\0", "x\ny"]
TEXTS += ["\x1b[31m", "\u202e", "~", "~nobody/x", "x" * 300 + "/y", "{{ 9 ** 9 ** 9 }}", "(a+)+$", "nDCG@10", "1"]
NUMBERS = [-1, 0, 1, 0.5, -0.0, 1e-300, 1e12, 1e300, 10**30, 10**299, True]
SHAPES: list[Any] = [None, [], [None], ["nope"], [[]], [{}], ["nope"] * 3, {}, {"nope": 1}, {"a": {"b": {}}}, {"": ""}]
VALUES: list[Any] = [*TEXTS, *NUMBERS, *SHAPES]
# What a section needs beside the key that is tried; MODEL stands for the folder of a model.
NEEDS: dict[str, Any] = {
    "dense": {"model": "MODEL"},
    "mine.teacher": {"name": "t", "kind": "cross-encoder", "model": "MODEL"},
    "teacher.pairs": {"judges": [{"name": "j", "url": "http://127.0.0.1:1", "model": "m"}]},
    "evaluate.baselines": [{"name": "b", "kind": "cross-encoder", "model": "MODEL"}],
    "loss.plus": [{"name": "pairwise_logistic"}],
    "licence.decisions": [{"input": "x", "by": "me", "why": "so"}],
    "gate": {},
    "data.test": {"from": "train"},
}
SERVED = {"served": {"url": "http://127.0.0.1:1", "shape": "jina"}}


def with_value(recipe: dict[str, Any], key: str, value: Any, *, model: Path | str) -> dict[str, Any]:
    """A copy of `recipe` in which `key` has the value."""
    made = copy.deepcopy(recipe)
    for section, needed in NEEDS.items():
        if key == section or key.startswith((f"{section}.", f"{section}[]")):
            _put(made, section, _with_model(needed, str(model)))
    _put(made, key, value)
    return made


def _with_model(value: Any, model: str) -> Any:
    if isinstance(value, dict):
        return {key: _with_model(inner, model) for key, inner in value.items()}
    if isinstance(value, list):
        return [_with_model(inner, model) for inner in value]
    return model if value == "MODEL" else value


def _put(target: Any, key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        name = section.removesuffix("[]")
        if not isinstance(target.get(name), dict | list):
            target[name] = [{}] if section.endswith("[]") else {}
        target = target[name]
        if isinstance(target, list):
            target = target[0]
    target[last] = value


def numbers_of(field: FieldInfo) -> Iterator[tuple[type, list[Any]]]:
    """(int or float, its constraints) for each kind of number in the annotation of a field."""
    yield from _numbers(field.annotation, list(field.metadata))


def _numbers(annotation: Any, constraints: list[Any]) -> Iterator[tuple[type, list[Any]]]:
    if annotation in (int, float):
        yield annotation, constraints
    elif typing.get_origin(annotation) is typing.Annotated:
        yield from _numbers(annotation.__origin__, [*constraints, *annotation.__metadata__])
    else:
        for inner in typing.get_args(annotation):
            # A union may stand around a number; options of functions are checked by the functions.
            if typing.get_origin(annotation) is not dict:
                yield from _numbers(inner, constraints)


def bounds(constraints: list[Any]) -> dict[str, Any]:
    """gt, ge, lt and le of a field's constraints."""
    found: dict[str, Any] = {}
    for one in constraints:
        for part in getattr(one, "metadata", [one]):
            found |= {name: getattr(part, name) for name in ("gt", "ge", "lt", "le") if hasattr(part, name)}
    return found


def options() -> dict[str, tuple[str, Any]]:
    """Name of each option of what a recipe chooses by name -> (key of the recipe, its value with VALUE in it)."""
    from rankwright.common.registry import parameters
    from rankwright.export.targets import TARGETS
    from rankwright.mining.filters import FILTERS
    from rankwright.mining.samplers import SAMPLERS
    from rankwright.rerankers.kinds import BASELINES
    from rankwright.training.losses import LOSSES

    found: dict[str, tuple[str, Any]] = {}
    for name in LOSSES:
        for key in parameters(LOSSES[name]):
            found[f"loss {name} {key}"] = ("loss", {"name": name, "options": {key: "VALUE"}})
    for name in SAMPLERS:
        for key in parameters(SAMPLERS[name]):
            found[f"sampler {name} {key}"] = ("mine.sampler", {name: {key: "VALUE"}})
    for name in FILTERS:
        for key in parameters(FILTERS[name].decide):
            found[f"filter {name} {key}"] = ("mine.filters", {name: {key: "VALUE"}})
    for name in TARGETS:
        for key in parameters(TARGETS[name].write):
            found[f"target {name} {key}"] = ("export.targets", {name: {key: "VALUE"}})
    for kind in BASELINES:
        for key in parameters(BASELINES[kind]):
            row = {"name": "b", "kind": kind, "model": "MODEL", "options": {**SERVED.get(kind, {}), key: "VALUE"}}
            found[f"baseline {kind} {key}"] = ("evaluate.baselines", [row])
    return found


def placed(value: Any, wanted: Any) -> Any:
    """A copy of `value` with `wanted` in the place of VALUE."""
    if isinstance(value, dict):
        return {key: placed(inner, wanted) for key, inner in value.items()}
    if isinstance(value, list):
        return [placed(inner, wanted) for inner in value]
    return wanted if value == "VALUE" else value

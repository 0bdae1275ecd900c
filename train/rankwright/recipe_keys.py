"""The keys of a recipe, as a file spells them, from the schema."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from typing import Any

from rankwright.recipe import Recipe, Section


def keys_of(section: type[Section]) -> dict[str, Any]:
    """The keys of a section as a file spells them -> their annotations."""
    hints = typing.get_type_hints(section)
    return {field.alias or name: hints[name] for name, field in section.model_fields.items()}


def sections_in(annotation: Any, in_list: bool = False) -> Iterator[tuple[type[Section], bool]]:
    """The sections that an annotation can hold, each with whether it is the element of a list."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation, in_list
    for argument in typing.get_args(annotation):
        yield from sections_in(argument, in_list or typing.get_origin(annotation) is tuple)


def recipe_keys(root: type[Section] | None = None) -> list[str]:
    """All keys of a recipe, dotted; those of the elements of a list (`[]`) only where they first appear."""
    seen: set[type[Section]] = set()

    def walk(section: type[Section], prefix: str) -> Iterator[str]:
        for key, annotation in keys_of(section).items():
            inner = [(found, in_list) for found, in_list in sections_in(annotation) if found not in seen]
            seen.update(found for found, _ in inner)
            if not inner:
                yield prefix + key
            for found, in_list in inner:
                yield from walk(found, f"{prefix}{key}{'[]' if in_list else ''}.")

    return ["extends", *walk(Recipe, "")] if root in (None, Recipe) else list(walk(root, ""))

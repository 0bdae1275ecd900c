"""Find a recipe, apply `extends` and overrides, and report all mistakes at once as `file:line: key: what`."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rankwright.common import resources
from rankwright.common.errors import UserError
from rankwright.common.values import list_of_texts, path_text
from rankwright.recipe.paths import start_paths
from rankwright.recipe.schema import Key, Recipe
from rankwright.recipe.yaml_file import DEEPEST, MISSING, Place, YamlFile, parse_value, read_yaml, validate

# Filters are run in their order, a sampler is one of several, and targets may be a list: none is mixed with the base's.
WHOLE: frozenset[Key] = frozenset({("mine", "filters"), ("mine", "sampler"), ("export", "targets")})


@dataclass(frozen=True, slots=True)
class LoadedRecipe:
    """A recipe with where it came from; sources is the `extends` chain, the file itself first."""

    recipe: Recipe
    path: Path
    sources: tuple[Path, ...]
    overrides: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RecipeInfo:
    """A shipped recipe, for a list of them."""

    name: str
    description: str


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Read a recipe by its name in recipes/ or by its path, with overrides such as `train.max_steps=10`.

    An override sets its key: a mapping given there replaces, it does not merge. When two
    set one key, the last counts. Relative paths in a file start at its folder, those of overrides at the working
    directory. Raises UserError when the recipe is not found, and UserErrors with all its mistakes.
    """
    known = resources.recipe_files()
    overrides = list_of_texts("overrides", overrides)
    if name_or_path not in known and name_or_path in resources.sweep_files():
        raise UserError(f"recipe {name_or_path!r} is a sweep: give `rankwright sweep {name_or_path}`")
    # A Path is a path, whatever its name; a text may be the name of a recipe.
    wanted = f"./{name_or_path}" if isinstance(name_or_path, Path) and not name_or_path.is_absolute() else name_or_path
    path = resources.find_yaml(path_text("recipe", wanted), known, kind="recipe")
    tree, sources = read_yaml(path), [path]
    if "over" in tree.data:
        tree.blame(("over",), f"this file is a sweep, not a recipe: give `rankwright sweep {name_or_path}`")
        tree.data.pop("over")
    extend(tree, sources, known)
    for override in overrides:
        apply_override(tree, override, rank=len(sources))
    start_paths(tree, sources)
    return LoadedRecipe(validate(Recipe, tree), path, tuple(sources), tuple(overrides))


def extend(tree: YamlFile, sources: list[Path], known: dict[str, Path]) -> None:
    """Put all that a tree `extends` under it; the files that are read are added to `sources`."""
    while "extends" in tree.data:
        base = _read_base(tree, sources, known)
        tree.complete &= base is not None
        if base is not None:
            merge_under(tree, base)


def _read_base(tree: YamlFile, sources: list[Path], known: dict[str, Path]) -> YamlFile | None:
    """Take `extends` out of the tree and read what it names; None after a mistake."""
    place, other = tree.places[("extends",)], tree.data.pop("extends")
    if not isinstance(other, str):
        tree.blame(("extends",), "must be the name or the path of a recipe", place)
        return None
    if len(sources) == 1 and "name" not in tree.data:
        # Inherited, it would make both recipes write to one folder.
        tree.spoil(("name",), f"{MISSING}: a recipe that extends another needs a name of its own", place)
    try:
        path = resources.find_yaml(other, known, kind="recipe", folder=sources[-1].parent)
    except UserError as error:
        tree.blame(("extends",), str(error), place)
        return None
    if path.resolve() in [p.resolve() for p in sources]:
        chain = " -> ".join(resources.shown(p) for p in [*sources, path])
        tree.blame(("extends",), f"goes round in a circle: {chain}", place)
        return None
    sources.append(path)
    return read_yaml(path, rank=len(sources) - 1)


def merge_under(tree: YamlFile, base: YamlFile, whole: frozenset[Key] = WHOLE) -> None:
    """Put `base` under the tree: mappings merge deeply, lists, scalars and what is in `whole` replace."""
    merged = copy.deepcopy(base.data)
    replaced: set[Key] = set()

    def lay(target: dict[str, Any], over: dict[str, Any], prefix: Key) -> None:
        for name, value in over.items():
            both = isinstance(value, dict) and isinstance(target.get(name), dict)
            if both and (*prefix, name) not in whole:
                lay(target[name], value, (*prefix, name))
            else:
                target[name] = value
                replaced.add((*prefix, name))

    lay(merged, tree.data, ())
    # What lay below them in the base is gone, and must not be blamed.
    base.forget(replaced)
    tree.data, tree.places = merged, {**base.places, **tree.places}
    tree.broken |= base.broken
    tree.mistakes += base.mistakes
    tree.complete &= base.complete


def apply_override(tree: YamlFile, override: str, rank: int) -> None:
    """Set one key from `a.b.c=value`; the value is a scalar, or YAML in [ ], { } or quotes."""
    dotted, equals, text = override.partition("=")
    place = Place(rank, 0, "override")
    parts: list[str] = dotted.strip().split(".")
    if not equals or not all(parts) or parts == ["extends"]:
        tree.blame((), f"{override[:60]!r} must be KEY=VALUE, such as train.max_steps=10", place)
        return
    if len(parts) > DEEPEST:
        tree.blame((), f"{override[:60]!r}: names a key in more than {DEEPEST} sections", place)
        return
    try:
        value = parse_value(text.strip())
    except ValueError as error:
        tree.blame(tuple(parts), str(error), place)
        return
    target: Any = tree.data
    key: Key = ()
    for n, part in enumerate(parts):
        step: Any = part
        if isinstance(target, list):
            if not (part.isdecimal() and int(part) < len(target)):
                tree.blame((*key, part), f"no such element, the list has {len(target)}", place)
                return
            step = int(part)
        key = (*key, step)
        inner = target[step] if isinstance(target, list) else target.get(step)
        if n == len(parts) - 1 or not isinstance(inner, dict | list):
            inner = value if n == len(parts) - 1 else {}
            target[step] = inner
            tree.forget({key})
            tree.places[key] = place
        target = inner


def list_recipes() -> list[RecipeInfo]:
    """All shipped recipes, by name."""
    files = resources.recipe_files().items()
    return [RecipeInfo(name, str(read_yaml(path).data.get("description") or "")) for name, path in files]


def list_sweeps() -> list[RecipeInfo]:
    """All shipped sweeps, by name."""
    files = resources.sweep_files().items()
    return [RecipeInfo(name, str(read_yaml(path).data.get("description") or "")) for name, path in files]


def recipe_json(recipe: Recipe) -> str:
    """A recipe as canonical JSON: every key, sorted but for mine.filters, whose order counts; it validates back."""
    plain = recipe.model_dump(mode="json", by_alias=True)
    values = _sorted(plain)
    values["mine"]["filters"] = {name: _sorted(options) for name, options in plain["mine"]["filters"].items()}
    return json.dumps(values, indent=2, ensure_ascii=False)


def recipe_yaml(recipe: Recipe) -> str:
    """A recipe as a YAML file with every key in the order of the schema; it loads as the same recipe."""
    plain = recipe.model_dump(mode="json", by_alias=True)
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=120)


def _sorted(value: Any) -> Any:
    if isinstance(value, list):
        return [_sorted(item) for item in value]
    return {key: _sorted(value[key]) for key in sorted(value)} if isinstance(value, dict) else value

"""A YAML file as values with the place of every key, and its mistakes in words: for recipes and cards."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from rankwright.common import resources
from rankwright.common.errors import UserErrors, did_you_mean, one_line
from rankwright.common.plurals import counted
from rankwright.recipe.kinds import LONGEST_TEXT, Section
from rankwright.recipe.schema import MOVED, Key, Recipe, keys_of, recipe_keys, sections_in

S = TypeVar("S", bound=Section)
MISSING = "missing, must be given"
# Far more than a recipe of hundreds of sets; a file of megabytes would be read for minutes.
LARGEST_BYTES = 1 << 18
DEEPEST, LONGEST_KEY = 32, 500
# A file of another kind has a mistake in each line.
MOST_MISTAKES = 50

# At most 300 digits: Python refuses to read very long integers, and no key needs one.
_INTEGER = re.compile(r"[-+]?[0-9]{1,300}|[-+]?[0-9]{1,3}(_[0-9]{3}){1,99}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)(e[-+]?[0-9]+)?|[-+]?\.inf|\.nan")
_EXPECTED = {
    "string_type": "must be text",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "tuple_type": "must be a list",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "literal_error": "must be {expected}",
    "string_pattern_mismatch": "must match {pattern}",
    "too_short": "must hold at least {min_length}",
    "too_long": "must hold at most {max_length}",
    "string_too_long": "must have at most {max_length} characters",
}
_HINTS = {
    ("must be text", int): ": put it in quotes",
    ("must be text", float): ": put it in quotes",
    ("must be text", bool): ": put it in quotes",
    ("must be a list", str): ": put it in [ ]",
    ("must be a mapping", type(None)): ": give it keys, or delete the line",
}


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where a key was set. rank orders files: the recipe, what it extends, then the overrides."""

    rank: int
    line: int
    file: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


@dataclass(slots=True)
class YamlFile:
    """Values of a YAML file, the place of every key, and the mistakes found so far.

    complete is false when a file could not be read, so that its keys are not called missing; broken holds the
    keys whose value could not be read, so that they are not blamed twice.
    """

    rank: int
    file: str
    data: dict[str, Any] = field(default_factory=dict)
    places: dict[Key, Place] = field(default_factory=dict)
    mistakes: list[tuple[Place, str]] = field(default_factory=list)
    broken: set[Key] = field(default_factory=set)
    complete: bool = True

    def blame(self, key: Key, what: str, place: Place | None = None) -> None:
        """Note a mistake at `place`, or else where the key, or the nearest key around it, was set."""
        around = (self.places[key[:n]] for n in range(len(key), 0, -1) if key[:n] in self.places)
        dotted = ".".join(str(part) for part in key)
        place = place or next(around, Place(self.rank, 1, self.file))
        self.mistakes.append((place, f"{place}: {dotted}: {what}" if dotted else f"{place}: {what}"))

    def spoil(self, key: Key, what: str, place: Place) -> None:
        """Note a mistake that leaves a key without a value."""
        self.broken.add(key)
        self.blame(key, what, place)

    def forget(self, keys: Set[Key]) -> None:
        """Drop what is known of these keys and of all below them, when their values are replaced."""

        def replaced(key: Key) -> bool:
            return any(key[:n] in keys for n in range(1, len(key) + 1))

        self.places = {k: p for k, p in self.places.items() if not replaced(k)}
        self.broken = {k for k in self.broken if not replaced(k)}

    def unreadable(self, what: str, line: int = 1) -> None:
        """Note a mistake that leaves nothing of the file to validate."""
        self.complete = False
        self.blame((), what, Place(self.rank, line, self.file))

    def at(self, node: yaml.Node) -> Place:
        """The place of a node of this file."""
        return Place(self.rank, node.start_mark.line + 1, self.file)


def read_yaml(path: Path, rank: int = 0) -> YamlFile:
    """Read a YAML file whose top level is a mapping; its mistakes are noted in the tree, not raised."""
    tree = YamlFile(rank, resources.shown(path))
    try:
        root = yaml.compose(_text_of(path), Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = "a tab, indent with spaces" if "'\\t'" in str(error.problem) else error.problem
        tree.unreadable(f"not valid YAML: {what}", mark.line + 1 if mark else 1)
    except (OSError, UnicodeDecodeError) as error:
        tree.unreadable(f"cannot be read: {one_line(str(error))}")
    except RecursionError:
        tree.unreadable("is nested too deeply")
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        # PyYAML lets some of Python's own errors out, such as that of a character number too large.
        tree.unreadable(f"not valid YAML: {' '.join(str(error).split())}")
    else:
        if root is None:
            tree.unreadable("is empty")
        elif not isinstance(root, yaml.MappingNode):
            tree.unreadable("must be a mapping (key: value) at the top level", root.start_mark.line + 1)
        else:
            try:
                tree.data = _value(tree, root, (), set())
            except RecursionError:
                tree.unreadable("is nested too deeply")
    return tree


def _text_of(path: Path) -> str:
    """The text of a file. Raises ValueError for one that is larger than LARGEST_BYTES, or grows while it is read."""
    with path.open("rb") as file:
        data = file.read(LARGEST_BYTES + 1)
    if len(data) > LARGEST_BYTES:
        raise ValueError(f"it has more than {LARGEST_BYTES:,} bytes: keep lists of documents in files of data")
    return data.decode("utf-8-sig")


def _value(tree: YamlFile, node: Any, key: Key, seen: set[int]) -> Any:
    """The Python value of a node; notes the place of every key, and mistakes, on the way."""
    if len(key) > DEEPEST:
        raise RecursionError
    if id(node) in seen:
        tree.spoil(key, "aliases (*name) are not supported, write it out or use extends", tree.at(node))
        return None
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        items = []
        for index, item in enumerate(node.value):
            tree.places[(*key, index)] = tree.at(item)
            items.append(_value(tree, item, (*key, index), seen))
        return items
    if isinstance(node, yaml.MappingNode):
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            place = tree.at(key_node)
            name = key_node.value
            if not isinstance(name, str) or not name.isprintable() or len(name) > LONGEST_KEY:
                tree.blame(key, f"a key must be plain text of at most {LONGEST_KEY} characters", place)
                continue
            if name in result:
                first = tree.places[(*key, name)].line
                tree.blame((*key, name), f"given twice, first on line {first}: keep one", place)
                continue
            tree.places[(*key, name)] = place
            result[name] = _value(tree, value_node, (*key, name), seen)
        return result
    try:
        return scalar(node.value, plain=node.style is None)
    except ValueError as error:
        tree.spoil(key, str(error), tree.at(node))
        return None


def scalar(text: str, *, plain: bool = True) -> Any:
    """The value of a YAML scalar by the rules of YAML 1.2: `2e-5` is a number, `no` and dates are text.

    PyYAML follows YAML 1.1, which reads `2e-5` as text, `no` as false, `1:30` as ninety. Raises ValueError.
    """
    if len(text) > LONGEST_TEXT:
        raise ValueError(f"has {len(text):,} characters, must have at most {LONGEST_TEXT:,}")
    if plain and text in ("", "~", "null", "Null", "NULL"):
        return None
    if plain and text in ("true", "True", "TRUE", "false", "False", "FALSE"):
        return text.lower() == "true"
    if plain and _INTEGER.fullmatch(text):
        return int(text)
    if plain and _FLOAT.fullmatch(text.lower()):
        number = float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        if not math.isfinite(number):
            raise ValueError(f"must be a finite number, found {text[:60]}")
        return number
    try:
        # JSON writes a character beyond the first 65,536 as a pair of surrogates.
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise ValueError("holds half of a surrogate pair, which is not text") from None


def parse_value(text: str) -> Any:
    """The value of a text such as a command line holds: one scalar, or YAML in [ ], { } or quotes.

    A colon or a # in a scalar is part of its text. Raises ValueError.
    """
    if not text.startswith(("[", "{", "'", '"')):
        return scalar(text)
    tree = YamlFile(0, "")
    try:
        value = _value(tree, yaml.compose(text, Loader=yaml.SafeLoader), (), set())
    except yaml.MarkedYAMLError as error:
        raise ValueError(f"not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, OverflowError, RecursionError) as error:
        raise ValueError(f"not valid YAML: {' '.join(str(error).split())}") from None
    if tree.mistakes:
        raise ValueError(tree.mistakes[0][1].partition(": ")[2])
    return value


def validate(model: type[S], tree: YamlFile) -> S:
    """The values as a section. Raises UserErrors with the mistakes of files, overrides and schema."""
    result, more = None, 0
    try:
        # Through JSON, because the strict schema takes a tuple only from a JSON array.
        result = model.model_validate_json(json.dumps(tree.data))
    except ValidationError as error:
        for key, what in explain(model, error):
            if key not in tree.broken and (tree.complete or what != MISSING):
                tree.blame(key, what)
        more = max(0, error.error_count() - MOST_MISTAKES)
    except RecursionError:
        tree.unreadable("is nested too deeply")
    if tree.mistakes:
        found = [text for _, text in sorted(tree.mistakes, key=lambda m: m[0])]
        more += max(0, len(found) - MOST_MISTAKES)
        rest = [f"{tree.file}: and {counted(more, 'more mistake')}: mend these first"] if more else []
        raise UserErrors(found[:MOST_MISTAKES] + rest)
    assert result is not None
    return result


def describe(value: Any) -> str:
    """A value in words: `text 'abc'`, `the number 3`, `a list`, `nothing (null)`."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"the number {value if len(str(value)) <= 60 else str(value)[:57] + '...'}"
    if isinstance(value, str):
        return f"text {value if len(value) <= 60 else value[:57] + '...'!r}"
    return "a list" if isinstance(value, list | tuple) else "a mapping"


def explain(model: type[Section], error: ValidationError) -> list[tuple[Key, str]]:
    """The first MOST_MISTAKES faults of a validation in words, each with the key it is about."""
    found = []
    for item in error.errors(include_url=False)[:MOST_MISTAKES]:
        key, parents = _locate(model, item["loc"])
        found.append((key, _message(model, key, parents, dict(item))))
    return found


def _locate(model: type[Section], loc: Key) -> tuple[Key, list[type[Section]]]:
    """The key that pydantic's location means, and the sections that could hold it."""
    key: list[str | int] = []
    parents, sections = [model], [model]
    for part in loc:
        # The member of a union is not a key; nor is the mark of a mapping's key.
        chosen = [s for s in sections if s.__name__ == part] if len(sections) > 1 else []
        if chosen or part == "[key]":
            sections = chosen or sections
            continue
        key.append(part)
        parents = sections
        if isinstance(part, str):
            sections = [found for s in sections for found, _ in sections_in(keys_of(s).get(part))]
    return tuple(key), parents


def _message(model: type[Section], key: Key, parents: list[type[Section]], item: dict[str, Any]) -> str:
    kind, value = item["type"], item["input"]
    if kind == "extra_forbidden":
        return _unknown_key(model, key, parents)
    if kind == "missing":
        return MISSING
    if kind == "value_error":
        return str(item["ctx"]["error"])
    expected = _EXPECTED[kind].format(**item.get("ctx", {})) if kind in _EXPECTED else item["msg"]
    words = re.findall(r"'([^']*)'", expected) if kind == "literal_error" else []
    near = did_you_mean(value, words) if isinstance(value, str) else ""
    return f"{expected}, found {describe(value)}{_HINTS.get((expected, type(value)), '')}{near}"


def _unknown_key(model: type[Section], key: Key, parents: list[type[Section]]) -> str:
    if key in MOVED:
        return f"is now {MOVED[key]}: move it there"
    name = str(key[-1])
    known = [k for s in parents for k in keys_of(s)]
    known += ["extends"] if model is Recipe and len(key) == 1 else []
    near = did_you_mean(name, known)
    homes = [k.rpartition(".")[0] for k in recipe_keys(model) if k.rpartition(".")[2] == name and "." in k]
    if near or not homes:
        return f"unknown key{near or ', known: ' + ', '.join(known)}"
    return f"unknown key here, it belongs to {' or '.join(homes)}"

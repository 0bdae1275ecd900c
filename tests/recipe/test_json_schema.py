"""The JSON schema of recipes and the table of keys are of this version, and accept what the package accepts."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import jobs
import pytest
import yaml

from rankwright.cli.init import SCHEMA
from rankwright.common.errors import UserError
from rankwright.common.resources import recipe_files, schema_file
from rankwright.pipeline.json_schema import recipe_schema, schema_text
from rankwright.pipeline.keys import find_key, key_rows
from rankwright.recipe.schema import Recipe, recipe_keys, walk_keys
from rankwright.recipe.yaml_file import parse_value, read_yaml

# The form that the YAML language server reads, at the start of the file.
COMMENT = re.compile(r"# yaml-language-server: \$schema=(\S+)\n")
TYPES = {"string": str, "boolean": bool, "object": dict, "array": list, "null": type(None)}


def faults(value: Any, schema: dict[str, Any], root: dict[str, Any], place: str = "") -> list[str]:
    """What of `value` the schema refuses; the keywords of JSON schema that ours uses."""
    if "$ref" in schema:
        return faults(value, root["$defs"][schema["$ref"].rpartition("/")[2]], root, place)
    found = []
    for several in ("anyOf", "oneOf"):
        if several in schema and all(faults(value, one, root, place) for one in schema[several]):
            found.append(f"{place}: none of {several}")
    number = isinstance(value, int | float) and not isinstance(value, bool)
    kind = schema.get("type")
    if kind in ("integer", "number"):
        if not number or (kind == "integer" and value != int(value)):
            return [f"{place}: {value!r} is not of type {kind}"]
    elif kind is not None and not isinstance(value, TYPES[kind]):
        return [f"{place}: {value!r} is not of type {kind}"]
    if "const" in schema and value != schema["const"]:
        found.append(f"{place}: {value!r} is not {schema['const']!r}")
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{place}: {value!r} is not among {schema['enum']}")
    if number:
        broken = {
            "minimum": value < schema.get("minimum", value),
            "maximum": value > schema.get("maximum", value),
            "exclusiveMinimum": value <= schema.get("exclusiveMinimum", value - 1),
            "exclusiveMaximum": value >= schema.get("exclusiveMaximum", value + 1),
        }
        found += [f"{place}: {value!r}: {name}" for name, wrong in broken.items() if wrong]
    if isinstance(value, str) and "pattern" in schema and not re.search(schema["pattern"], value):
        found.append(f"{place}: {value!r} does not match")
    if isinstance(value, list):
        found += [
            f for n, item in enumerate(value) for f in faults(item, schema.get("items", {}), root, f"{place}.{n}")
        ]
    if isinstance(value, dict):
        found += [f"{place}: {key} is missing" for key in schema.get("required", ()) if key not in value]
        known, others = schema.get("properties", {}), schema.get("additionalProperties", True)
        for key, item in value.items():
            found += faults(key, schema.get("propertyNames", {}), root, f"{place} name")
            inner = known.get(key, others)
            if inner is False:
                found.append(f"{place}: unknown key {key}")
            elif isinstance(inner, dict):
                found += faults(item, inner, root, f"{place}.{key}")
        if "if" in schema and not faults(value, schema["if"], root):
            found += faults(value, schema["then"], root, place)
    if "not" in schema and not faults(value, schema["not"], root):
        found.append(f"{place}: not")
    return found


def test_the_schema_and_the_table_are_of_this_version() -> None:
    tool = runpy.run_path(str(jobs.REPOSITORY / "scripts" / "tools" / "recipe_keys.py"))
    advice = "run `python scripts/tools/recipe_keys.py --write`"
    assert schema_file().read_text(encoding="utf-8") == schema_text(), advice
    readme = (jobs.REPOSITORY / "recipes" / "README.md").read_text(encoding="utf-8")
    assert tool["updated"](readme) == readme, advice
    assert re.findall(r"^\| `(\S+)` \|", tool["table"](), re.MULTILINE) == recipe_keys()


def test_every_key_has_a_description() -> None:
    assert [key for key, field in walk_keys() if not (field.description or "").endswith(".")] == []
    assert len(recipe_keys()) < 215, "few keys"


def test_the_example_of_every_key_is_a_value_that_a_recipe_may_have() -> None:
    schema, listed = recipe_schema(), dict[str, str]()
    rows = key_rows()
    assert [row.key for row in rows] == recipe_keys()
    for row in rows:
        key, _ = find_key(schema, row.key, listed)
        assert faults(parse_value(row.example), key, schema) == [], row


def test_keys_of_a_section_and_of_one_key() -> None:
    assert {row.key.split(".")[0] for row in key_rows("mine")} == {"mine"}
    assert [row.key for row in key_rows("train.patience")] == ["train.patience"]
    assert key_rows("data.train") == key_rows("data.train[]") and len(key_rows("data.train")) > 10
    with pytest.raises(UserError, match=r"unknown section or key 'trian', did you mean 'train'\? \(sections: model, "):
        key_rows("trian")


@pytest.mark.parametrize("name", recipe_files())
def test_the_schema_accepts_a_shipped_recipe(name: str) -> None:
    path = recipe_files()[name]
    found = COMMENT.match(path.read_text(encoding="utf-8"))
    assert found and (path.parent / found[1]).resolve() == schema_file().resolve()
    schema = recipe_schema()
    assert faults(read_yaml(path).data, schema, schema) == []


def test_the_schema_accepts_all_that_a_recipe_may_hold() -> None:
    schema = recipe_schema()
    recipe = Recipe.model_validate({"name": "x", "model": {"base": "b"}, "data": {}})
    assert faults(json.loads(recipe.model_dump_json(by_alias=True)), schema, schema) == []
    for part in ({"export": {"targets": ["hf", "gguf"]}}, {"export": {"targets": {"hf": {"dtype": "bf16"}}}}):
        assert faults({"name": "x", "extends": "quickstart", "model": {"rank": 8}, **part}, schema, schema) == []
    for combine in (False, None, {"prefer": "reranker"}):
        part = {"evaluate": {"combine": combine}}
        assert faults({"name": "x", "extends": "quickstart", "model": {"rank": 8}, **part}, schema, schema) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"model": {}},
        {"data": None},
        {"trian": {}},
        {"loss": {"name": "listwise_softmaxx"}},
        {"mine": {"filters": {"margn": {}}}},
        {"mine": {"depth": 0}},
        {"evaluate": {"combine": True}},
        {"export": {"targets": ["hff"]}},
        {"train": {"epochs": "two"}},
        {"name": "../elsewhere"},
    ],
)
def test_the_schema_refuses_mistakes(wrong: dict[str, Any]) -> None:
    schema = recipe_schema()
    good = {"name": "x", "model": {"base": "b"}, "data": {"test": [{"card": "fiqa"}]}}
    assert faults(good, schema, schema) == []
    assert faults({**good, **wrong}, schema, schema)


def test_the_command_prints_the_schema(tmp_path: Path) -> None:
    done = jobs.rankwright("recipes", "--schema")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == recipe_schema()


def test_init_writes_the_schema_beside_the_recipe(tmp_path: Path) -> None:
    output = tmp_path / "mine.yaml"
    fixtures = jobs.REPOSITORY / "data" / "fixtures" / "legal"
    done = jobs.rankwright("init", fixtures, "-o", output, "--base", "fixtures/tiny-base")
    assert done.returncode == 0, done.stderr
    found = COMMENT.match(output.read_text(encoding="utf-8"))
    assert found and found[1] == SCHEMA
    schema = json.loads((tmp_path / SCHEMA).read_text(encoding="utf-8"))
    assert schema == recipe_schema()
    assert faults(yaml.safe_load(output.read_text(encoding="utf-8")), schema, schema) == []

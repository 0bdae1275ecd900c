"""The table of all keys of a recipe, and the JSON schema, both made from the pydantic schema of the package.

python scripts/tools/recipe_keys.py            prints the table
python scripts/tools/recipe_keys.py --write    puts it into recipes/README.md, and writes recipes/schema.json
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rankwright.pipeline.json_schema import recipe_schema, schema_text
from rankwright.recipe.schema import recipe_keys

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
BEGIN, END = "<!-- keys: begin -->", "<!-- keys: end -->"
LIMITS = {"exclusiveMinimum": "above", "minimum": "at least", "exclusiveMaximum": "below", "maximum": "at most"}


def table() -> str:
    """The table as Markdown: key, type or choices, default, meaning."""
    schema = recipe_schema()
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    # Section -> where its keys are listed.
    listed: dict[str, str] = {}
    for dotted in recipe_keys():
        key, required = find(schema, dotted, listed)
        default = "required" if required else value_of(key.get("default"))
        cells = [f"`{dotted}`", type_of(key, listed), default, key.get("description", "")]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def find(schema: dict[str, Any], dotted: str, listed: dict[str, str]) -> tuple[dict[str, Any], bool]:
    """(the key's schema, whether it is required); notes in `listed` which sections lead to it."""
    places, prefix = [schema], ""
    key, required = schema, False
    for part in dotted.split("."):
        name = part.removesuffix("[]")
        place = next(place for place in places if name in place.get("properties", {}))
        key = place["properties"][name]
        required = name in place.get("required", ()) or dotted == "model.base" or dotted == "dense.model"
        prefix += part
        places = []
        for section in references(key):
            if prefix != dotted:
                listed.setdefault(section, prefix)
            places.append(schema["$defs"][section])
        prefix += "."
    return key, required


def references(key: Any) -> Iterator[str]:
    """The sections that a key can hold."""
    if isinstance(key, dict):
        for name, value in key.items():
            if name == "$ref":
                yield value.rpartition("/")[2]
            else:
                yield from references(value)
    elif isinstance(key, list):
        for value in key:
            yield from references(value)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:g}"


def type_of(key: dict[str, Any], listed: dict[str, str]) -> str:
    """The type in words, or the choices."""
    if "$ref" in key:
        return f"as `{listed[key['$ref'].rpartition('/')[2]]}`"
    for several in ("anyOf", "oneOf"):
        if several in key:
            return " or ".join(type_of(kind, listed) for kind in key[several] if kind.get("type") != "null")
    if "enum" in key:
        return ", ".join(f"`{name}`" for name in key["enum"])
    if "const" in key:
        return f"`{key['const']}`"
    kind = key.get("type")
    if kind == "array":
        return f"list of: {type_of(key['items'], listed)}"
    if kind == "object":
        names = key.get("propertyNames", {}).get("enum", ())
        return "mapping" + (f" of {', '.join(f'`{name}`' for name in names)}" if names else "")
    words = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true, false"}[str(kind)]
    limits = [f"{word} {_number(key[name])}" for name, word in LIMITS.items() if name in key]
    return f"{words} {' and '.join(limits)}".strip()


def value_of(default: Any) -> str:
    """A default as a recipe writes it; nothing for null."""
    return "" if default is None else f"`{json.dumps(default, ensure_ascii=False)}`".replace('""', "''")


def updated(text: str) -> str:
    """The README with the table of now."""
    return re.sub(f"{BEGIN}.*{END}", lambda _: f"{BEGIN}\n{table()}\n{END}", text, flags=re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write both files of recipes/")
    if not parser.parse_args().write:
        print(table())
        return
    readme = RECIPES / "README.md"
    readme.write_text(updated(readme.read_text(encoding="utf-8")), encoding="utf-8")
    (RECIPES / "schema.json").write_text(schema_text(), encoding="utf-8")


if __name__ == "__main__":
    main()

"""The table of all keys of a recipe, and the JSON schema, both made from the pydantic schema of the package.

python scripts/tools/recipe_keys.py            prints the table
python scripts/tools/recipe_keys.py --write    puts it into recipes/README.md, and writes recipes/schema.json
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from rankwright.pipeline.json_schema import schema_text
from rankwright.pipeline.keys import key_rows

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
BEGIN, END = "<!-- keys: begin -->", "<!-- keys: end -->"


def table() -> str:
    """The table as Markdown: key, type or choices, default, meaning."""
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for row in key_rows():
        default = "required" if row.required else "" if row.default is None else f"`{row.default}`"
        cells = [f"`{row.key}`", row.kind, default, row.meaning]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def updated(text: str) -> str:
    """The README with the table of now."""
    return re.sub(f"{BEGIN}.*{END}", lambda _: f"{BEGIN}\n{table()}\n{END}", text, flags=re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write both files of recipes/")
    if not parser.parse_args().write:
        print(table())
        return
    # First, since the table is made from it.
    (RECIPES / "schema.json").write_text(schema_text(), encoding="utf-8")
    readme = RECIPES / "README.md"
    readme.write_text(updated(readme.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()

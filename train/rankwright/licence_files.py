"""What the files of a local folder say of its licence: README.md (a model or dataset card) and SOURCE.json."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from rankwright.licences import Statement, find_term, state

# Free text after a name, such as `CC-BY-4.0 (dataset, README "License"); code MIT`.
_REST = re.compile(r"\s*[(;].*", re.DOTALL)
# The hub's word for a licence that is named in another key.
OTHER = "other"


def read_statements(path: Path) -> list[Statement]:
    """Statements of a set's or a model's own files; of a file or a split's folder, also SOURCE.json one level up."""
    folder = path if path.is_dir() else path.parent
    found = list(_readme(folder / "README.md"))
    source = folder / "SOURCE.json"
    if not source.is_file() and path.is_dir():
        source = folder.parent / "SOURCE.json"
    return [*found, *_source(source)]


def _readme(path: Path) -> Iterator[Statement]:
    """The keys `license` and `license_name` of the front matter."""
    matter = _front_matter(path)
    names = matter.get("license")
    names = names if isinstance(names, list) else [names]
    if matter.get("license_name") is not None and names in ([None], [OTHER]):
        names = [matter["license_name"]]
    for name in names:
        if isinstance(name, str) and name.strip():
            yield state(name.strip(), f"license in the front matter of {path.name}")


def _front_matter(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        matter = text.split("---\n", 2)[1] if text.startswith("---\n") and text.count("---\n") > 1 else ""
        # Ids and names are texts; nothing here is a number or a date to us.
        value = yaml.load(matter, Loader=yaml.BaseLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        # Somebody's file, which is not asked for: without a licence in it the input is unknown, which is said.
        return {}
    return value if isinstance(value, dict) else {}


def _source(path: Path) -> Iterator[Statement]:
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return
    text = value.get("licence", value.get("license")) if isinstance(value, dict) else None
    if isinstance(text, str) and text.strip():
        name = _REST.sub("", text.removeprefix("data: ")).strip()
        yield state(name if find_term(name) is not None else text.strip(), f"licence in {path.name}")

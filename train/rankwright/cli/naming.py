"""Names, paths and texts as a written recipe has them."""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from rankwright.common import resources
from rankwright.recipe.kinds import LONGEST_NAME

DEFAULT_STEM = "recipe"


def written_path(path: Path, home: Path) -> str:
    """A path as the recipe in the folder `home` has it.

    Relative to that folder where it lies below it, or where both lie below the working directory; else absolute.
    """
    full, home, here = path.resolve(), home.resolve(), Path.cwd().resolve()
    if not full.is_relative_to(home) and not (full.is_relative_to(here) and home.is_relative_to(here)):
        return full.as_posix()
    text = Path(os.path.relpath(full, home)).as_posix()
    # fixtures/... would mean the embedded ones.
    return f"./{text}" if text.startswith(resources.FIXTURES) else text


def written_base(base: str, home: Path) -> str:
    """As written_path, for what may also be a hub id or an embedded folder."""
    plain = base.startswith(resources.FIXTURES) or not Path(base).is_dir() or Path(base).is_absolute()
    return base if plain else written_path(Path(base), home)


def own_name(output: Path, paths: Sequence[Path]) -> str:
    """The recipe's name: that of its file where the user chose it, else that of the folder or file of the data.

    Letters lose their accents, which a name may not have; "" where nothing is left.
    """
    chosen = output.name.split(".")[0]
    found = chosen if chosen != DEFAULT_STEM or not paths else paths[0].resolve().name.split(".")[0]
    bare = "".join(c for c in unicodedata.normalize("NFKD", found.replace("ß", "ss")) if not unicodedata.combining(c))
    return _plain(bare)


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("._-")[:LONGEST_NAME]


def slug(text: str, *others: str) -> str:
    """A name that a recipe may have; the next of `others` where nothing is left of the text."""
    plain = _plain(text)
    return plain or slug(*others) if others else plain or "recipe"


def yaml_text(value: str) -> str:
    """A YAML text: plain where it is harmless, else in double quotes, which JSON's are."""
    harmless = re.fullmatch(r"[A-Za-z/][\w./-]*", value, re.ASCII) and value.lower() not in _WORDS
    return value if harmless else json.dumps(value, ensure_ascii=False)


_WORDS = {"true", "false", "yes", "no", "on", "off", "null", "y", "n"}

"""Classes that a folder of sentence-transformers names for itself: older versions of it import and run them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rankwright.common.errors import UserError, one_line

LIBRARY = "sentence_transformers."
# Each holds the classes of a model's parts, as the value of `type` or as values of `types`.
FILES = ("modules.json", "router_config.json")


def refuse_foreign_modules(folder: Path) -> None:
    """Raises UserError for a local folder whose parts are of classes that are not sentence-transformers' own.

    Version 5 runs such a class, from a file of the folder, without asking.
    """
    for file in sorted(path for name in FILES for path in (folder / name, *folder.glob(f"*/{name}")) if path.is_file()):
        try:
            found = foreign_modules(json.loads(file.read_text(encoding="utf-8")))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{file}: not JSON ({error}): take the whole folder again") from None
        if found:
            raise UserError(
                f"{file}: names the class {one_line(found[0])!r}, which is not one of sentence-transformers: code of "
                "the folder is not run here: take a model without code of its own"
            )


def foreign_modules(content: Any) -> list[str]:
    """The classes in modules.json or router_config.json that the library does not have itself."""
    listed = content if isinstance(content, list) else [content]
    parts = [part for part in listed if isinstance(part, dict)]
    types = [part["type"] for part in parts if "type" in part]
    types += [kind for part in parts if isinstance(part.get("types"), dict) for kind in part["types"].values()]
    return [str(kind) for kind in types if not (isinstance(kind, str) and kind.startswith(LIBRARY))]

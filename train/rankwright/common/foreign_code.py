"""Classes that a folder of sentence-transformers names for itself: version 5 of it imports and runs them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rankwright.common.errors import UserError, one_line

# Each holds the classes of a model's parts, as the value of `type` or as values of `types`.
FILES = ("modules.json", "router_config.json")
# Classes that settings may name: modules of the library, and activations of torch.
LIBRARY_MODULE = re.compile(r"sentence_transformers(\.[A-Za-z_]\w*)+")
TORCH_ACTIVATION = re.compile(r"torch\.nn\.(modules\.(activation|linear)\.)?[A-Z]\w*")


def refuse_foreign_modules(model: str | Path, revision: str | None = None) -> None:
    """Raises UserError for a folder or hub repository whose settings name a class of its own, before it is loaded.

    Version 5 of sentence-transformers imports such a class from a local folder, which runs its code, without asking.
    """
    for file, content in _settings(str(model), revision):
        if found := foreign_classes(content):
            raise UserError(
                f"{model}: {file} names the class {one_line(found[0])!r}, which is not one of sentence-transformers, "
                "and code of a folder is never run here: choose another model, or serve it (kind: served)"
            )


def foreign_classes(content: Any) -> list[str]:
    """The classes in the settings of a model or of one of its parts that no library has."""
    listed = content if isinstance(content, list) else [content]
    parts = [part for part in listed if isinstance(part, dict)]
    types = [part["type"] for part in parts if "type" in part]
    types += [kind for part in parts if isinstance(part.get("types"), dict) for kind in part["types"].values()]
    foreign = [str(kind) for kind in types if not (isinstance(kind, str) and LIBRARY_MODULE.fullmatch(kind))]
    activations = [part["activation_function"] for part in parts if isinstance(part.get("activation_function"), str)]
    # A name without a dot is one of transformers' own: `gelu`.
    return foreign + [name for name in activations if "." in name and not TORCH_ACTIVATION.fullmatch(name)]


def _settings(model: str, revision: str | None) -> Iterator[tuple[str, Any]]:
    """(name, content) of the settings in which a model may name classes."""
    if Path(model).is_dir():
        folder = Path(model)
        files = [path for name in FILES for path in (folder / name, *folder.glob(f"*/{name}"))]
        for path in sorted([*files, *folder.glob("*/config.json")]):
            if path.is_file():
                yield path.relative_to(folder).as_posix(), _read(path, path)
        return
    todo = ["modules.json"]
    for file in todo:
        fetched = _of_hub(model, file, revision)
        if fetched is None:
            continue
        content = _read(fetched, f"{model}: {file}")
        yield file, content
        parts = content if isinstance(content, list) else []
        places = [str(part.get("path", "")) for part in parts if isinstance(part, dict)]
        todo += [f"{place}/{name}".lstrip("/") for place in places for name in ("router_config.json", "config.json")]


def _of_hub(model: str, file: str, revision: str | None) -> Path | None:
    from transformers.utils import cached_file

    quiet = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    try:
        found = cached_file(model, file, revision=revision, **quiet)
    except (OSError, ValueError):
        # The load that follows raises with the reason.
        return None
    return None if found is None else Path(found)


def _read(path: Path, name: object) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name}: not JSON ({error}): take the whole folder again") from None

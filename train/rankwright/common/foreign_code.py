"""Classes that a folder of sentence-transformers names for itself: version 5 of it imports and runs them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from rankwright.common.errors import UserError, one_line

# Settings of a model, in its folder, and of a part, in the folder of the part.
MODULES, OF_PARTS = "modules.json", ("router_config.json", "config.json")
# Classes that settings may name: modules of the library, and activations of torch.
LIBRARY_MODULE = re.compile(r"sentence_transformers(\.[A-Za-z_]\w*)+")
TORCH_ACTIVATION = re.compile(r"torch\.nn\.(modules\.(activation|linear)\.)?[A-Z]\w*")


def refuse_foreign_modules(model: str | Path, revision: str | None = None) -> None:
    """Raises UserError for a folder or hub repository whose settings name a class of its own, before it is loaded.

    Version 5 of sentence-transformers imports such a class from a local folder, which runs its code, without asking.
    """
    for file, content in _settings(str(model), revision):
        if found := _foreign_classes(file, content):
            raise UserError(
                f"{model}: {file} names the class {one_line(found[0])!r}, which is not one of sentence-transformers, "
                "and code of a folder is never run here: choose another model, or serve it (kind: served)"
            )


def _foreign_classes(file: str, content: Any) -> list[str]:
    """The classes in settings that no library has: parts by `type` or `types`, functions of layers."""
    parts = _parts(content)
    types = [part["type"] for part in parts if "type" in part and PurePosixPath(file).name == MODULES]
    types += [kind for part in parts if isinstance(part.get("types"), dict) for kind in part["types"].values()]
    foreign = [str(kind) for kind in types if not (isinstance(kind, str) and LIBRARY_MODULE.fullmatch(kind))]
    activations = [part["activation_function"] for part in parts if isinstance(part.get("activation_function"), str)]
    # A name without a dot is one of transformers' own: `gelu`.
    return foreign + [name for name in activations if "." in name and not TORCH_ACTIVATION.fullmatch(name)]


def _parts(content: Any) -> list[dict[str, Any]]:
    return [part for part in (content if isinstance(content, list) else [content]) if isinstance(part, dict)]


def _settings(model: str, revision: str | None) -> Iterator[tuple[str, Any]]:
    """(name, content) of the settings in which a model may name classes: its own, then those of its parts in turn."""
    folder = Path(model) if Path(model).is_dir() else None
    todo = [MODULES, *OF_PARTS]
    if folder is not None:
        # Also those of parts that no other file names.
        todo += sorted(path.relative_to(folder).as_posix() for name in todo for path in folder.glob(f"*/{name}"))
    seen: set[Path] = set()
    for file in todo:
        path = _of_hub(model, file, revision) if folder is None else folder / file
        # Links may lead in a circle.
        if path is None or not path.is_file() or path.resolve() in seen:
            continue
        seen.add(path.resolve())
        content = _read(path, f"{model}: {file}" if folder is None else path)
        yield file, content
        for part in _parts(content):
            types = part.get("types")
            places = [part.get("path"), *(types if isinstance(types, dict) else ())]
            inside = [PurePosixPath(file).parent / place for place in places if isinstance(place, str)]
            todo += [(place / name).as_posix() for place in inside for name in OF_PARTS]


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

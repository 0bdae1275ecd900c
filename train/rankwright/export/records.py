"""What an export was proven with: versions of the libraries, sums of the files."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
from collections.abc import Iterable
from pathlib import Path

PARITY_FILE = "parity.json"


def versions_of(modules: Iterable[str]) -> dict[str, str]:
    """Distribution -> version, of those that are installed."""
    found = {}
    for module in modules:
        for name in (module.replace("_", "-"), *_distributions().get(module, [])):
            try:
                found[name] = importlib.metadata.version(name)
                break
            except importlib.metadata.PackageNotFoundError:
                continue
    return found


@functools.cache
def _distributions() -> dict[str, list[str]]:
    return dict(importlib.metadata.packages_distributions())


def sums_of(folder: Path) -> dict[str, str]:
    """SHA-256 of every file that a runtime reads: all but texts for people, and parity.json itself."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    read = [p for p in files if p.suffix != ".md" and p.name != PARITY_FILE and not _hidden(p, folder)]
    return {path.relative_to(folder).as_posix(): _sum(path) for path in read}


def _hidden(path: Path, folder: Path) -> bool:
    """Left by downloaders and git (`.cache`, `.gitattributes`), not by us."""
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

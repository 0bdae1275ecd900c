"""SHA256SUMS: what the files of an export were when it was proven, in the form that `sha256sum -c` reads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rankwright.common.errors import UserError, one_line
from rankwright.common.hashing import file_sha256
from rankwright.common.run_folder import SUMS_FILE

COPY_AGAIN = "copy the whole folder again, or export again"


@dataclass(frozen=True, slots=True)
class Changes:
    """Names of files that are not as they were proven."""

    changed: list[str]
    missing: list[str]
    new: list[str]

    def lines(self) -> list[str]:
        """One for each way in which files differ; empty where none does."""
        words = ("changed since the export", self.changed), ("missing since the export", self.missing)
        return [f"{word}: {one_line(', '.join(names))}" for word, names in words if names]

    @property
    def any(self) -> bool:
        return bool(self.changed or self.missing or self.new)


def sums_of(folder: Path) -> dict[str, str]:
    """Name -> SHA-256 of every file but texts for people (*.md), hidden files and SHA256SUMS itself."""
    sums = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        inside = path.relative_to(folder)
        # Hidden ones are left by downloaders and git (`.cache`, `.gitattributes`), not by us.
        if path.suffix != ".md" and inside.as_posix() != SUMS_FILE and not any(p.startswith(".") for p in inside.parts):
            sums[inside.as_posix()] = file_sha256(path)
    return sums


def write_sums(folder: Path) -> None:
    """The last file of an export."""
    (folder / SUMS_FILE).write_text(sums_text(sums_of(folder)), encoding="utf-8")


def sums_text(sums: Mapping[str, str]) -> str:
    """The content of SHA256SUMS."""
    return "".join(f"{digest}  {name}\n" for name, digest in sums.items())


def read_sums(folder: Path) -> dict[str, str] | None:
    """Name -> SHA-256 as it was proven, or None without the file. Raises UserError for a damaged one."""
    path = folder / SUMS_FILE
    if not path.is_file():
        return None
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}): {COPY_AGAIN}") from None
    found = [re.fullmatch(r"([0-9a-f]{64})  (\S.*)", line) for line in lines]
    if not lines or not all(found):
        raise UserError(f"{path}:{[*map(bool, found), False].index(False) + 1}: damaged: {COPY_AGAIN}")
    return {match[2]: match[1] for match in found if match is not None}


def changes(folder: Path) -> Changes | None:
    """How the folder differs from what was proven; None where it has no sums. Raises UserError for damaged ones."""
    proven = read_sums(folder)
    if proven is None:
        return None
    found = sums_of(folder)
    changed = sorted(name for name in proven.keys() & found.keys() if proven[name] != found[name])
    return Changes(changed, sorted(proven.keys() - found.keys()), sorted(found.keys() - proven.keys()))

"""Files named by their content (vectors, a teacher's scores): damaged ones go, those the disk does not give stay."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from rankwright.errors import UserError

T = TypeVar("T")


def make_cache_folder(folder: Path, what: str) -> None:
    """Raises UserError where `what` cannot be kept."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot keep {what} there ({error.strerror}): set RANKWRIGHT_CACHE to a folder of yours"
        ) from None


def read_kept(path: Path, read: Callable[[Path], T], say: Callable[[str], None], again: str) -> T | None:
    """read(path); None for a file that is damaged, which is said (`again`: what follows from it) and removed.

    Raises UserError for one that the disk does not give: that says nothing of the file, which may have been paid for.
    """
    try:
        return read(path)
    except FileNotFoundError:
        # Another process found it damaged.
        return None
    except OSError as error:
        said = error.strerror or error
        raise UserError(f"{path}: cannot be read ({said}): make it readable, or remove it") from None
    except (ValueError, IndexError, EOFError) as error:
        say(f"{path}: damaged ({error}): removed, {again}")
        path.unlink(missing_ok=True)
        return None

"""Folders for large files that are not whole yet: where they lie, and that nothing is left of them."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import uuid
import weakref
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from rankwright.errors import UserError

PREFIX = ".texts-"

_parent: ContextVar[Path | None] = ContextVar("_parent", default=None)


def make_folder(parent: Path | None = None) -> Path:
    """A new folder under `parent`, by default that of spilling_to(), else TMPDIR's. Raises UserError without room."""
    parent = parent or _parent.get() or Path(tempfile.gettempdir())
    folder = parent / f"{PREFIX}{os.getpid()}-{uuid.uuid4().hex}"
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise UserError(
            f"{parent}: cannot write texts there ({error.strerror}): give another place, run_dir=PATH "
            "(outside of a run: TMPDIR=PATH)"
        ) from None
    return folder


def remove_with(owner: object, folder: Path) -> weakref.finalize[..., Any]:
    """Have `folder` removed when `owner` is gone or the process ends; the returned object's detach() calls it off."""
    return weakref.finalize(owner, _remove, folder, os.getpid())


def _remove(folder: Path, process: int) -> None:
    # A fork has the same objects, and its end is not that of the files.
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def spilling_to(folder: Path) -> Iterator[None]:
    """Inside, make_folder() makes them under `folder`; what killed processes left there is removed before."""
    for place in (folder, folder / "corpora"):
        remove_left_over(place)
    token = _parent.set(folder)
    try:
        yield
    finally:
        _parent.reset(token)


def remove_left_over(folder: Path) -> None:
    """Remove folders of make_folder() whose process is gone."""
    for path in folder.glob(f"{PREFIX}*"):
        process = path.name.removeprefix(PREFIX).split("-")[0]
        if process.isdigit() and not _is_running(int(process)):
            shutil.rmtree(path, ignore_errors=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True

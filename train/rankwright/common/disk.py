"""Full disks in words: which file, how much it needs, what to do; from whichever library the error comes."""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rankwright.common.errors import UserError

_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota is used up",
    errno.EFBIG: "files may not be so large",
}
# How safetensors and tokenizers (Rust), torch and numpy put it.
_BY_CODE = re.compile(r"os error (\d+)\)")
_NO_TEMPORARY = "No usable temporary directory"
_BY_WORDS = re.compile(r"PytorchStreamWriter failed|\d+ requested and \d+ written|unexpected pos \d+ vs \d+")


def why_full(error: BaseException) -> str | None:
    """Why a write failed, where there was no room for it; None for any other error."""
    text = str(error)
    if _NO_TEMPORARY in text:
        return "no folder for temporary files can be written (TMPDIR)"
    if isinstance(error, OSError) and error.errno is not None:
        return _FULL.get(error.errno)
    if found := _BY_CODE.search(text):
        return _FULL.get(int(found.group(1)))
    return "the disk is full" if _BY_WORDS.search(text) else None


@contextmanager
def room_for(path: Path, needed_bytes: int | None = None, *, draft: Path | None = None) -> Iterator[None]:
    """Turns a write of `path` that fails for want of room into a UserError.

    needed_bytes: how much the whole file or folder takes, where that is known. draft: where it is written until it is
    complete, by default `path`: it takes at least what is there already.
    """
    try:
        yield
    except Exception as error:
        why = why_full(error)
        if why is None or isinstance(error, UserError):
            raise
        raise _no_room(path, why, needed_bytes, draft or path) from None


def _no_room(path: Path, why: str, needed_bytes: int | None, draft: Path) -> UserError:
    written = sum(file.stat().st_size for file in ([draft] if draft.is_file() else draft.rglob("*")) if file.is_file())
    needed = f"needs {_megabytes(needed_bytes)}" if needed_bytes else f"needs more than {_megabytes(written)}"
    place = next(folder for folder in path.absolute().parents if folder.is_dir())
    free = _megabytes(shutil.disk_usage(place).free)
    return UserError(
        f"{path}: cannot be written, {why}: it {needed}, {free} are free: make room (earlier runs and checkpoints, "
        "*.changed, export-withdrawn-*) or give another place, run_dir=PATH; the same command then continues"
    )


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"

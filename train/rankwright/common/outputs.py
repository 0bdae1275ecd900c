"""Files as they were written: sizes, times and hashes in records, and records that notice when they are changed."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rankwright.common.errors import UserError
from rankwright.common.files import read_json_object
from rankwright.common.hashing import content_hash, file_sha256

# The key of a record with the hash of its other values.
SEAL = "seal"
# What a changed file is kept as, beside the one that is written again.
CHANGED = ".changed"

# Path in the folder -> its size, its time in nanoseconds, its SHA-256.
Outputs = dict[str, dict[str, Any]]


def sealed(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with a hash of them, which a changed digit no longer fits."""
    return {**values, SEAL: content_hash(values)}


def unsealed(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that were sealed. Raises ValueError where they are no longer those."""
    rest = {key: value for key, value in values.items() if key != SEAL}
    if values.get(SEAL) != content_hash(rest):
        raise ValueError("not as it was written")
    return rest


def read_sealed(path: Path) -> dict[str, Any] | None:
    """A record that we sealed, or None when it is missing, damaged or changed: the caller then makes it again."""
    try:
        return unsealed(read_json_object(path) or {})
    except ValueError:
        return None


def outputs_of(folder: Path, paths: Iterable[Path]) -> Outputs:
    """The record of these files in `folder`, and of all files in these folders; what is missing is left out."""
    files = [file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    return {file.relative_to(folder).as_posix(): _written(file) for file in files if file.is_file()}


def _written(path: Path) -> dict[str, Any]:
    found = path.stat()
    return {"bytes": found.st_size, "mtime_ns": found.st_mtime_ns, "sha256": file_sha256(path)}


def changed_outputs(folder: Path, outputs: Outputs, *, verify: bool = False) -> dict[str, str]:
    """Path -> `gone` or `changed` for the files that are no longer those of the record.

    The size and the time are looked at first, the content where the time differs, as after a copy: its new time is then
    put into `outputs`. verify: the content of all. Raises UserError for a file that the disk does not give.
    """
    faults = {}
    for name, record in outputs.items():
        path = folder / name
        try:
            found = path.stat()
            same = stat.S_ISREG(found.st_mode) and found.st_size == record["bytes"]
            if same and (verify or found.st_mtime_ns != record["mtime_ns"]):
                same = file_sha256(path) == record["sha256"]
            if same:
                record["mtime_ns"] = found.st_mtime_ns
            else:
                faults[name] = "changed"
        except OSError as error:
            if os.path.lexists(path) and not _is_damage(error):
                raise unreadable(path, error) from None
            faults[name] = "gone"
    return faults


def content_of(path: Path) -> str | None:
    """SHA-256 of a file, None where it is missing. Raises UserError for a file that the disk does not give."""
    try:
        # A pipe in its place would never end.
        return file_sha256(path) if stat.S_ISREG(path.stat().st_mode) else None
    except OSError as error:
        if os.path.lexists(path) and not _is_damage(error):
            raise unreadable(path, error) from None
        return None


def _is_damage(error: OSError) -> bool:
    # A link that leads nowhere, or a file where a folder should be. Anything else may pass: a right, a disk's fault.
    return error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)


@contextmanager
def right_places(root: Path) -> Iterator[None]:
    """Turns an error about a file where a folder under `root` belongs, or the other way round, into a UserError."""
    try:
        yield
    except OSError as error:
        fault = _misplaced(error, root)
        if fault is None:
            raise
        raise fault from None


def _misplaced(error: OSError, root: Path) -> UserError | None:
    path = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else root
    if error.errno not in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ELOOP) or not path.is_relative_to(root):
        return None
    if path.is_dir():
        return UserError(f"{path}: a folder is where a file belongs: move it away or delete it")
    for place in [*reversed(path.parents), path]:
        if place.is_relative_to(root) and place != root and os.path.lexists(place) and not place.is_dir():
            return UserError(f"{place}: is not a folder, which belongs there: move it away or delete it")
    return None


def unreadable(path: Path, error: OSError) -> UserError:
    """The error for a file that may be whole, but cannot be read."""
    return UserError(f"{path}: cannot be read ({error.strerror or error}): make it readable, or delete it")


def put_aside(path: Path) -> Path | None:
    """Rename what is at a path to NAME.changed, in place of an earlier one; None where nothing is there."""
    if not os.path.lexists(path):
        return None
    kept = path.with_name(path.name + CHANGED)
    remove(kept)
    path.rename(kept)
    return kept


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, or nothing."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)

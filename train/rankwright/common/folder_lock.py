"""One command at a time writes to a folder: a lock that ends with its process, however that ends."""

from __future__ import annotations

import errno
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from rankwright.common.errors import UserError, one_line
from rankwright.common.files import read_json_object

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None  # type: ignore[assignment]

LOCK_FILE = ".lock"
# What a file system answers that keeps no locks.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
_HELD = {errno.EACCES, errno.EAGAIN}


class InUse(UserError):
    """Another command holds the lock of a folder."""


@dataclass(slots=True)
class _Held:
    """A lock of this process. file: None where the file system keeps no locks."""

    thread: int
    file: IO[bytes] | None
    depth: int = 1


# By device and inode: the locks of POSIX belong to a process, which would be given the same one again.
_held: dict[tuple[int, int], _Held] = {}
_told: set[Path] = set()
_guard = threading.Lock()


@contextmanager
def folder_lock(folder: Path, command: Sequence[str], say: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of an existing folder; inside itself it is taken again.

    Raises InUse, a UserError, at once where another command has it, with that command, its process, machine and start.
    It is POSIX's lock on the file `.lock`: the system gives it back when the process ends, by SIGKILL too, and a forked
    child does not keep it. Where the file system keeps no locks, that is reported once and nothing is locked.
    """
    stat = folder.stat()
    key = (stat.st_dev, stat.st_ino)
    with _guard:
        held = _held.get(key)
        if held is None:
            held = _held[key] = _Held(threading.get_ident(), _take(folder, command, say))
        elif held.thread != threading.get_ident():
            # Its file must stay closed: closing it once more would give the lock back.
            raise _refusal(folder, "another thread of this process")
        else:
            held.depth += 1
    try:
        yield
    finally:
        with _guard:
            held.depth -= 1
            if held.depth == 0:
                del _held[key]
                if held.file is not None:
                    # The next command must not read the name of this one.
                    held.file.truncate(0)
                    held.file.close()


def _take(folder: Path, command: Sequence[str], say: Callable[[str], None]) -> IO[bytes] | None:
    path = folder / LOCK_FILE
    try:
        # Not emptied: it may be another's.
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o666), "r+b", buffering=0)
        if not path.is_file():
            raise OSError(errno.EINVAL, "not a file")
    except OSError as error:
        raise UserError(f"{path}: cannot be locked ({error.strerror}): delete it, or give run_dir=PATH") from None
    try:
        if fcntl is None:
            raise OSError(errno.ENOSYS, "no fcntl")
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        if error.errno in _HELD:
            raise _refusal(folder, _described(folder)) from None
        if error.errno not in _NO_LOCKS:
            raise UserError(f"{path}: cannot be locked ({error.strerror}): delete it, or give run_dir=PATH") from None
        if folder not in _told:
            _told.add(folder)
            say(f"{folder}: its file system keeps no locks: give one command at a time for this folder")
        return None
    row = {"command": " ".join(command), "pid": os.getpid(), "host": socket.gethostname()}
    file.truncate(0)
    file.write(json.dumps({**row, "since": time.strftime("%FT%TZ", time.gmtime())}).encode())
    return file


def _described(folder: Path) -> str:
    """Who holds the lock: in the file, once its holder has written it."""
    found = read_json_object(folder / LOCK_FILE)
    if found is None:
        return "another command"
    command, pid, host, since = (one_line(str(found.get(key, "?"))) for key in ("command", "pid", "host", "since"))
    return f"`{command}` (process {pid} on {host}, since {since})"


def _refusal(folder: Path, holder: str) -> InUse:
    return InUse(f"{folder}: in use by {holder}: wait until it ends, stop it, or give this one run_dir=PATH")

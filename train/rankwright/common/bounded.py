"""Work on files of strangers, bounded in time and memory: a template may loop for ever, or ask for all memory."""

from __future__ import annotations

import json
import os
import select
import signal
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
MEMORY_BYTES = 1 << 30
MOST_BYTES = 1 << 24


def bounded(work: Callable[[], T], *, seconds: float) -> T | None:
    """What `work` returns, which must be JSON; None where it fails, or takes too long or more than MEMORY_BYTES.

    It runs in a copy of this process, which is killed: neither a signal nor a thread would end a single operation such
    as a huge power. Where processes cannot be copied (Windows) it runs here, without a bound.
    """
    if not hasattr(os, "fork"):
        return work()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _answer(work, writing, seconds)
    os.close(writing)
    try:
        data = _read(reading, time.monotonic() + seconds)
    finally:
        os.close(reading)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    found: T | None = json.loads(data) if data else None
    return found


def _answer(work: Callable[[], object], writing: int, seconds: float) -> None:
    """In the copy: work, write the answer with a mark that it is whole, and skip what the original does at exit."""
    try:
        _limit(seconds)
        data = json.dumps(work()).encode() + b"\n"
        while data:
            data = data[os.write(writing, data) :]
    except BaseException:
        pass
    finally:
        os._exit(0)


def _limit(seconds: float) -> None:
    import resource

    whole = int(seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (whole, whole))
    try:
        with open("/proc/self/statm") as file:  # noqa: PTH123 (no import in a copy that is not needed)
            used = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES,) * 2)
    except OSError:
        # Another system than Linux: the time alone is bounded.
        pass


def _read(reading: int, deadline: float) -> bytes:
    """The whole answer, or nothing after the deadline, beyond MOST_BYTES, or where it is not whole."""
    data = b""
    while (left := deadline - time.monotonic()) > 0 and len(data) <= MOST_BYTES:
        if not select.select([reading], [], [], left)[0]:
            break
        part = os.read(reading, 1 << 16)
        if not part:
            return data if data.endswith(b"\n") else b""
        data += part
    return b""

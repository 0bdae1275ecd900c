"""Work that does not end, or asks for all memory, gives nothing and leaves this process as it was."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import pytest

from rankwright.common.bounded import bounded


def forever() -> None:
    while True:
        pass


def asleep() -> None:
    time.sleep(600)


def power() -> int:
    return 9**9**9 % 10


def doubled() -> int:
    text = "x"
    while True:
        text += text


def fails() -> None:
    raise SystemExit(3)


def recursion() -> int:
    return recursion() + 1


@pytest.mark.parametrize(
    "work", [forever, asleep, power, doubled, fails, recursion, lambda: {1, 2}, lambda: "x" * 10**8]
)
def test_work_that_gives_nothing(work: Callable[[], Any]) -> None:
    start = time.monotonic()
    assert bounded(work, seconds=0.5) is None
    assert time.monotonic() - start < 30


def test_work_that_ends() -> None:
    large = ["été\ud800", "x" * 10**6]
    assert bounded(lambda: large, seconds=60) == large
    # It ran in another process, which is gone.
    assert bounded(os.getpid, seconds=60) != os.getpid()
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)

"""How long a training still takes: from its own steps, evaluations, saves and refreshes, each counted ahead."""

from __future__ import annotations

import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

# Steps that the estimate looks back on: a machine may become slower. Batches vary in size, so it needs several.
LOOK_BACK = 200
# Own steps, after the first, from which on those of an earlier start no longer count.
ENOUGH = 3
# In rows of metrics.jsonl.
STEP_SECONDS, DEV_SECONDS = "step_seconds", "dev_seconds"
STEP, EVALUATION, SAVE, REFRESH = "step", "evaluation", "save", "refresh"


class Eta:
    """Estimates the seconds that are left.

    A first step compiles kernels and fills caches, and a first evaluation does so too: neither counts once there is
    another one. A step's size varies by chance alone, so that the mean of the steps so far stands for those to come.

    every: EVALUATION, SAVE, REFRESH -> steps between two of them. Evaluations come after the last step too.
    earlier: rows of metrics.jsonl of the same training before it was stopped.
    """

    def __init__(
        self,
        total_steps: int,
        every: Mapping[str, int],
        earlier: Iterable[Mapping[str, Any]] = (),
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._total, self._every, self._clock = total_steps, every, clock
        rows = list(earlier)
        self._earlier = {STEP: _seconds(rows, STEP_SECONDS), EVALUATION: _seconds(rows, DEV_SECONDS)}
        self._own: dict[str, deque[float]] = {}
        self._inside = 0.0
        self._mark = clock()

    @contextmanager
    def timing(self, kind: str) -> Iterator[None]:
        """Time what is not part of a step: an evaluation, a save or a refresh."""
        started = self._clock()
        yield
        seconds = self._clock() - started
        self._inside += seconds
        self._own.setdefault(kind, deque(maxlen=LOOK_BACK)).append(seconds)

    def start(self) -> None:
        """What came before is not part of a step: loading, and the evaluation of the base."""
        self._mark, self._inside = self._clock(), 0.0

    def step(self) -> None:
        """One step ended, with all that was timed inside it."""
        now = self._clock()
        self._own.setdefault(STEP, deque(maxlen=LOOK_BACK)).append(max(0.0, now - self._mark - self._inside))
        self._mark, self._inside = now, 0.0

    def last(self, kind: str) -> float:
        """Seconds of the last one of its kind."""
        return self._own[kind][-1]

    def left(self, step: int) -> float:
        """Seconds from the end of `step` to that of the training."""
        left = (self._total - step) * self._mean(STEP)
        for kind, every in self._every.items():
            # A save comes with every evaluation and before every refresh, too.
            left += self._times(step, self._every.values() if kind == SAVE else [every], kind) * self._mean(kind)
        return left

    def _times(self, step: int, intervals: Iterable[int], kind: str) -> int:
        """How often it comes after `step`: at all multiples of the intervals, each counted once."""
        if step >= self._total:
            return 0
        every = sorted(set(intervals))
        # After the last step nothing is mined again, and an evaluation and a save come in any case.
        times = 0 if kind == REFRESH else 1
        for size in range(1, len(every) + 1):
            for some in itertools.combinations(every, size):
                together = math.lcm(*some)
                times += (-1) ** (size + 1) * ((self._total - 1) // together - step // together)
        return times

    def _mean(self, kind: str) -> float:
        own, earlier = list(self._own.get(kind, ())), self._earlier.get(kind, [])
        # The first one of this start is left out, where there are others.
        later = own[1:] if len(own) < LOOK_BACK and kind in (STEP, EVALUATION) else own
        if len(later) < ENOUGH:
            later += earlier
        found = later or own
        return sum(found) / len(found) if found else 0.0


def _seconds(rows: Iterable[Mapping[str, Any]], key: str) -> list[float]:
    found = [row[key] for row in rows if isinstance(row.get(key), int | float)]
    return found[-LOOK_BACK:]

"""The processes of one command: how they wait for each other, exchange values, and end together when one fails."""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, TypeVar

from rankwright.common.errors import PeerFailed, Stopped

T = TypeVar("T")
POLL_S = 0.05
_FAILED = "rankwright/failed"


class Processes:
    """This process among `count` of them. `store` is torch.distributed's; without one the process is alone.

    Waiting goes through the store and not through a collective: a process may score for hours while another waits, no
    backend's time limit counts, and a process that fails can tell those that wait. Values and tensors are exchanged by
    collectives (gather, from_first, sum_up, copy_from_first), for which all processes have to come together.
    """

    _of_group: ClassVar[Processes | None] = None

    def __init__(self, rank: int = 0, count: int = 1, store: Any = None) -> None:
        assert count == 1 or store is not None
        self.rank = rank
        self.count = count
        self._store = store
        self._meetings = 0

    @classmethod
    def of_group(cls) -> Processes:
        """The processes that torch.distributed was started with; one where it was not.

        The same object every time, since it counts the meetings.
        """
        dist = _collectives()
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return cls()
        store = dist.distributed_c10d._get_default_store()
        if cls._of_group is None or cls._of_group._store is not store:
            cls._of_group = cls(dist.get_rank(), dist.get_world_size(), store)
            # The store's threads must end before the interpreter does.
            atexit.register(setattr, cls, "_of_group", None)
        return cls._of_group

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def meet(self) -> None:
        """Wait until every process has come here. Raises PeerFailed when one of them failed."""
        if self.count == 1:
            return
        self._meetings += 1
        key = f"rankwright/meeting-{self._meetings}"
        self._ask("add", key, 1)
        self._wait_for(key)
        # The first process may hold the store: it must not end before the others have read that all are here.
        self._ask("add", f"{key}/left", 1)
        if self.is_first:
            self._wait_for(f"{key}/left")

    def _wait_for(self, key: str) -> None:
        while self._ask("add", key, 0) < self.count:
            self.look()
            time.sleep(POLL_S)

    def look(self) -> None:
        """Raises PeerFailed when another process has failed; for between two pieces of work."""
        if self.count > 1 and self._ask("check", [_FAILED]):
            raise PeerFailed

    def _ask(self, question: str, *arguments: Any) -> Any:
        try:
            return getattr(self._store, question)(*arguments)
        except RuntimeError:
            # Whoever held the store is gone.
            raise PeerFailed from None

    @contextmanager
    def together(self) -> Iterator[None]:
        """An error inside ends all processes: the first to fail raises it, the others raise PeerFailed."""
        try:
            yield
        except (PeerFailed, Stopped):
            raise
        except Exception:
            if self.count > 1 and self._ask("compare_set", _FAILED, "", str(self.rank)) != str(self.rank).encode():
                raise PeerFailed from None
            raise

    def gather(self, value: T) -> list[T]:
        """The values of all processes, in the order of their ranks."""
        values = [value] * self.count
        if self.count > 1:
            _collectives().all_gather_object(values, value)
        return values

    def from_first(self, value: T) -> T:
        """The first process's value."""
        values = [value]
        if self.count > 1:
            _collectives().broadcast_object_list(values)
        return values[0]

    def sum_up(self, tensor: Any) -> None:
        """Add up a tensor over the processes, in place."""
        if self.count > 1:
            _collectives().all_reduce(tensor)

    def copy_from_first(self, tensor: Any) -> None:
        """Give a tensor the first process's values, in place."""
        if self.count > 1:
            _collectives().broadcast(tensor, 0)


def _collectives() -> Any:
    """torch.distributed, imported late: commands that need no torch start without it."""
    import torch.distributed as dist

    return dist


def launched() -> int:
    """How many processes the launcher reports; known before torch is imported."""
    return int(os.environ.get("WORLD_SIZE", "1"))

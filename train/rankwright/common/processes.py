"""The processes of one command: they wait for each other, and end together when one of them fails."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rankwright.common.errors import PeerFailed, Stopped

POLL_S = 0.05
_FAILED = "rankwright/failed"


class Processes:
    """This process among `count` of them. `store` is torch.distributed's; without one the process is alone.

    Waiting is done at the store and not by a collective: a process may score for hours while another waits, no
    backend's time limit counts, and one that fails can say so to those that wait.
    """

    def __init__(self, rank: int = 0, count: int = 1, store: Any = None) -> None:
        assert count == 1 or store is not None
        self.rank = rank
        self.count = count
        self._store = store
        self._meetings = 0

    @classmethod
    def of_group(cls) -> Processes:
        """The processes that torch.distributed was started with; one where it was not."""
        import torch.distributed as dist

        if not dist.is_initialized() or dist.get_world_size() == 1:
            return cls()
        store = dist.distributed_c10d._get_default_store()
        return cls(dist.get_rank(), dist.get_world_size(), store)

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def meet(self) -> None:
        """Wait until every process has come here. Raises PeerFailed when one of them failed."""
        if self.count == 1:
            return
        self._meetings += 1
        key = f"rankwright/meeting-{self._meetings}"
        self._wait_for(key)
        # The first process may hold the store: it must not end before the others have read that all are here.
        self._ask("add", f"{key}/left", 1)
        if self.is_first:
            while self._ask("add", f"{key}/left", 0) < self.count:
                self._look()
                time.sleep(POLL_S)

    def _wait_for(self, key: str) -> None:
        here = self._ask("add", key, 1)
        while here < self.count:
            self._look()
            time.sleep(POLL_S)
            here = self._ask("add", key, 0)

    def look(self) -> None:
        """Raises PeerFailed when another process has failed; for between two pieces of work."""
        if self.count > 1:
            self._look()

    def _look(self) -> None:
        if self._ask("check", [_FAILED]):
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


def launched() -> int:
    """How many processes the launcher says that there are; known before torch is imported."""
    return int(os.environ.get("WORLD_SIZE", "1"))

"""A POST to a server whose answer is bounded in whole time and in size, whatever the server sends."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import requests.adapters
import requests.auth
import urllib3

# Decoded at once: a compressed piece becomes at most about a thousand times as large.
PIECE_BYTES = 16 * 1024
# Room for what servers tell beside scores. Some send the documents back, with letters as escapes.
LEAST_ANSWER_BYTES = 16 * 2**20
ANSWER_PER_REQUEST = 16
# What is read of an answer that is only shown.
SHOWN_BYTES = 64 * 1024


class TooLarge(Exception):
    """An answer of more bytes than any list of scores has."""


@dataclass(frozen=True, slots=True)
class Answer:
    """status: of HTTP. content: decoded; cut where the status is not one of success."""

    status: int
    headers: Mapping[str, str]
    content: bytes


class Transport:
    """One session, for one request at a time.

    timeout_seconds: for a whole answer. The timeouts of requests are those of a single read, so that a server which
    sends a byte now and then would hold a client forever.
    """

    def __init__(self, timeout_seconds: float) -> None:
        self.timeout_seconds = timeout_seconds
        self._session = requests.Session()
        self._connections: weakref.WeakSet[Any] = weakref.WeakSet()
        self._expired = threading.Event()
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, _Adapter(self._opened))

    def post(self, url: str, body: Mapping[str, Any], auth: requests.auth.AuthBase) -> Answer:
        """Raises requests' exceptions, Timeout also where the time of the whole answer is over, and TooLarge."""
        data = json.dumps(body).encode("ascii")
        most = LEAST_ANSWER_BYTES + ANSWER_PER_REQUEST * len(data)
        try:
            with (
                self._deadline(),
                self._session.post(
                    url,
                    data=data,
                    headers={"Content-Type": "application/json"},
                    auth=auth,
                    timeout=self.timeout_seconds,
                    stream=True,
                    # A redirected POST would arrive as a GET.
                    allow_redirects=False,
                ) as answer,
            ):
                good = 200 <= answer.status_code < 300
                content = _read(answer, most, cut=None if good else SHOWN_BYTES)
                return Answer(answer.status_code, answer.headers, content)
        except (requests.RequestException, OSError, ValueError):
            # A connection that was closed under a read looks like any other fault.
            if self._expired.is_set():
                raise requests.Timeout from None
            raise

    def _opened(self, connection: Any) -> None:
        self._connections.add(connection)
        if self._expired.is_set():
            _shut(connection)

    @contextlib.contextmanager
    def _deadline(self) -> Iterator[None]:
        self._expired.clear()
        timer = threading.Timer(self.timeout_seconds, self._expire)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _expire(self) -> None:
        self._expired.set()
        for connection in list(self._connections):
            _shut(connection)


def _shut(connection: Any) -> None:
    """End whatever waits for this connection; it is not used again."""
    opened = getattr(connection, "sock", None)
    if opened is not None:
        # It may be closed already.
        with contextlib.suppress(OSError):
            opened.shutdown(socket.SHUT_RDWR)


def _read(answer: requests.Response, most: int, cut: int | None) -> bytes:
    """The decoded content. cut: where to stop, for an answer that is only shown; else one of more is TooLarge."""
    pieces, size = [], 0
    for piece in answer.iter_content(PIECE_BYTES):
        pieces.append(piece)
        size += len(piece)
        if cut is not None and size >= cut:
            break
        if size > most:
            raise TooLarge(f"more than {most // 2**20:,} MiB")
    return b"".join(pieces)


class _Adapter(requests.adapters.HTTPAdapter):
    """Tells of every connection that it opens, with or without a proxy."""

    def __init__(self, opened: Any) -> None:
        # Before the parent's constructor, which makes the pool.
        self._pools = _pools(opened)
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = self._pools

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **kwargs)
        manager.pool_classes_by_scheme = self._pools
        return manager


def _pools(opened: Any) -> dict[str, Any]:
    pools: dict[str, Any] = {}
    for scheme, pool in (("http", urllib3.HTTPConnectionPool), ("https", urllib3.HTTPSConnectionPool)):
        parent: Any = pool.ConnectionCls

        class Connection(parent):  # type: ignore[misc]
            def connect(self) -> None:
                super().connect()
                opened(self)

        pools[scheme] = type(pool.__name__, (pool,), {"ConnectionCls": Connection})
    return pools

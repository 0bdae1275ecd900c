"""A real local HTTP server that speaks every rerank endpoint and can play faults in sequence."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType
from typing import Any, TypeVar

S = TypeVar("S", bound="LocalServer")

# Written out by hand, not taken from rankwright: where each server listens.
PATHS = {
    "cohere": "/v2/rerank",
    "jina": "/v1/rerank",
    "voyage": "/v1/rerank",
    "tei": "/rerank",
    "vllm": "/v1/rerank",
    "infinity": "/rerank",
    "llama_cpp": "/v1/rerank",
}


def true_score(query: str, document: str) -> float:
    """A number in (-8, 8) that only this pair has."""
    digest = hashlib.sha256(json.dumps([query, document]).encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**44 - 8.0


@dataclass
class Fault:
    """What the server does instead of a good answer; the default is one."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    sleep_seconds: float = 0.0
    hang_up: bool = False
    order: list[int] | None = None  # indices to answer with, in place of all by score
    score: float | str | bool | None = None  # in place of the first row's


# What servers answer to a text that is longer than they read: (status, body).
TOO_LONG = {
    "vllm": (400, "This model's maximum context length is 224 tokens. However, you requested 300 tokens."),
    "vllm, older": (400, "The decoder prompt (length 300) is longer than the maximum model length of 224."),
    "tei": (413, '{"error": "`inputs` must have less than 512 tokens. Given: 600", "error_type": "Validation"}'),
    "tei, 422": (422, "Input validation error: `inputs` must have less than 512 tokens. Given: 600"),
    "infinity": (422, "input too long for the model"),
    "llama_cpp": (500, "input (600 tokens) is too large to process. increase the physical batch size"),
    "llama_cpp, context": (400, "the request exceeds the available context size, try increasing it"),
}


@dataclass
class Asked:
    """One request as it arrived."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    at: float

    @property
    def documents(self) -> list[str]:
        return self.body["texts"] if "texts" in self.body else self.body["documents"]


class LocalServer(ThreadingHTTPServer):
    """A server on a free port of this machine, in a thread while `running`."""

    daemon_threads = True

    def __init__(self, handler: type[JsonHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that left is no error here."""


class JsonHandler(BaseHTTPRequestHandler):
    """JSON in, JSON out, and quiet."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def read_json(self) -> dict[str, Any]:
        return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

    def send(self, status: int, content: bytes, headers: Mapping[str, str] = MappingProxyType({})) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@contextmanager
def running(server: S) -> Iterator[S]:
    thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.01), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


class RerankServer(LocalServer):
    """`faults` are played, one for each request, then all is well; `asked` holds every request."""

    def __init__(self) -> None:
        super().__init__(_Handler)
        self.shape = "cohere"
        self.faults: list[Fault] = []
        self.asked: list[Asked] = []
        self.pause_seconds = 0.0
        self.score: Callable[[str, str], float] = true_score
        self.refuses: tuple[int, int, str] | None = None  # requests with a longer text than so many letters, and how

    @property
    def documents(self) -> list[str]:
        return [document for one in self.asked for document in one.documents]

    def reset(self, shape: str, *faults: Fault) -> None:
        self.shape, self.faults, self.asked, self.pause_seconds = shape, list(faults), [], 0.0
        self.refuses = None


class _Handler(JsonHandler):
    server: RerankServer

    def do_POST(self) -> None:
        server = self.server
        asked = Asked(self.path, dict(self.headers), self.read_json(), time.monotonic())
        fault = server.faults.pop(0) if server.faults else Fault()
        server.asked.append(asked)
        time.sleep(fault.sleep_seconds + server.pause_seconds)
        if fault.hang_up:
            self.close_connection = True
            return
        content = fault.body
        if server.refuses is not None and max(map(len, asked.documents)) > server.refuses[0]:
            fault, content = Fault(status=server.refuses[1]), server.refuses[2].encode()
        if content is None:
            content = json.dumps(self._answer(asked, fault)).encode()
        self.send(fault.status if self.path == PATHS[server.shape] else 404, content, fault.headers)

    def _answer(self, asked: Asked, fault: Fault) -> Any:
        shape, texts = self.server.shape, asked.documents
        scores = [self.server.score(asked.body["query"], text) for text in texts]
        order = fault.order
        if order is None:
            order = sorted(range(len(texts)), key=lambda i: -scores[i])
        name = "score" if shape == "tei" else "relevance_score"
        rows = [{"index": i, name: scores[i] if 0 <= i < len(texts) else 0.5} for i in order]
        if fault.score is not None:
            rows[0][name] = fault.score  # type: ignore[assignment]
        if shape == "tei":
            return rows
        if shape == "voyage":
            return {"object": "list", "data": rows[: asked.body["top_k"]], "usage": {"total_tokens": 1}}
        return {"id": "1", "results": rows, "meta": {}}


def running_server() -> AbstractContextManager[RerankServer]:
    return running(RerankServer())

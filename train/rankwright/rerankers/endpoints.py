"""Rerank endpoints of servers: the request and the answer of each, and the check of an answer."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from rankwright.common.errors import UserError
from rankwright.common.plurals import counted
from rankwright.common.registry import Registry

SHOWN_CHARACTERS = 200
Show = Callable[[str | bytes], str]


@dataclass(frozen=True, slots=True)
class Shape:
    """A JSON request and its answer. batch: documents that one request may hold unless the user says otherwise.

    documents, top: names of the list of texts and of the number of results (None: all come anyway).
    rows, score: where the answer's list lies (None: the answer is the list) and what its scores are called.
    probabilities, logits: what a request must hold besides, for a one-label model's score of that scale (None: the
    server has no such scale).
    """

    path: str
    batch: int = 100
    documents: str = "documents"
    top: str | None = "top_n"
    rows: str | None = "results"
    score: str = "relevance_score"
    fixed: Mapping[str, Any] = field(default_factory=dict)
    probabilities: Mapping[str, Any] | None = field(default_factory=dict)
    logits: Mapping[str, Any] | None = None

    def endpoint(self, url: str) -> str:
        """The address to post to: `url` itself when it ends with /rerank, else with the shape's path after it.

        Raises UserError as check_url does.
        """
        check_url(url)
        start = url.rstrip("/")
        if start.endswith("/rerank"):
            return start
        version = self.path.rpartition("/")[0]
        return start.removesuffix(version) + self.path

    def body(self, model: str, query: str, documents: Sequence[str], extra: Mapping[str, Any]) -> dict[str, Any]:
        """The request; `model` is left out when empty: a server with one model needs none. extra: further fields."""
        named = {"model": model} if model else {}
        top = {self.top: len(documents)} if self.top else {}
        return {**named, "query": query, self.documents: list(documents), **top, **self.fixed, **extra}


def check_url(url: str) -> None:
    """Raises UserError for what is not an http address, and for a password in it: addresses get into messages."""
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise UserError("url: not an address: give it like https://api.example.com or http://127.0.0.1:8000")
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise UserError("url: must hold no user, password, ? or #: the key comes from an environment variable")


SHAPES: Registry[Callable[[], Shape]] = Registry("rerank endpoint")


@SHAPES.register
def cohere() -> Shape:
    """https://docs.cohere.com/reference/rerank; bills up to 100 documents of a query as one search."""
    return Shape("/v2/rerank")


@SHAPES.register
def jina() -> Shape:
    """https://jina.ai/reranker; its listwise models (v3) score documents together, the others one by one."""
    return Shape("/v1/rerank", fixed={"return_documents": False})


@SHAPES.register
def voyage() -> Shape:
    """https://docs.voyageai.com/reference/reranker-api"""
    return Shape("/v1/rerank", top="top_k", rows="data", fixed={"return_documents": False})


@SHAPES.register
def tei() -> Shape:
    """Text Embeddings Inference, https://huggingface.github.io/text-embeddings-inference; scores are logits.

    Its --max-client-batch-size is 32 unless the server was started with another.
    """
    fixed = {"raw_scores": True, "truncate": True}
    scales: dict[str, Any] = {"probabilities": {"raw_scores": False}, "logits": {"raw_scores": True}}
    return Shape("/rerank", batch=32, documents="texts", top=None, rows=None, score="score", fixed=fixed, **scales)


@SHAPES.register
def vllm() -> Shape:
    """https://docs.vllm.ai, pooling models; a server that has only /rerank is named by the whole address."""
    return Shape("/v1/rerank", logits={"use_activation": False})


@SHAPES.register
def infinity() -> Shape:
    """https://github.com/michaelfeil/infinity"""
    return Shape("/rerank", fixed={"return_documents": False}, logits={"raw_scores": True})


@SHAPES.register
def llama_cpp() -> Shape:
    """https://github.com/ggml-org/llama.cpp, llama-server --reranking.

    Scores are what the model's graph ends in: logits of most classifiers, probabilities of Qwen3 (and of our files).
    """
    return Shape("/v1/rerank")


class Fault(Exception):
    """A fault that asking again may mend. wait_seconds: how long the server wants to be left alone at least.

    refused: the server answered that it cannot score the request, and may answer so every time.
    """

    def __init__(self, what: str, wait_seconds: float = 0.0, *, refused: bool = False) -> None:
        self.wait_seconds, self.refused = wait_seconds, refused
        super().__init__(what)


def read_answer(shape: Shape, content: bytes, count: int, show: Show) -> list[float]:
    """Scores of `count` documents in the order they were sent, whatever the order of the answer.

    show: turns a piece of the answer into text that a message may hold.
    Raises Fault with what is wrong: no JSON, no list, a missing, doubled or foreign index, no finite score.
    """
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError):
        raise Fault(f"answered no JSON: {show(content)!r}") from None
    rows = answer
    if shape.rows is not None:
        rows = answer.get(shape.rows) if isinstance(answer, dict) else None
    if not isinstance(rows, list):
        where = f"under {shape.rows!r}" if shape.rows else "at the top"
        raise Fault(f"answered without a list {where}: {show(content)!r}")
    scores: dict[int, float] = {}
    for row in rows:
        index = row.get("index") if isinstance(row, dict) else None
        if type(index) is not int or not 0 <= index < count:
            raise Fault(f"answered index {show(repr(index))} for {counted(count, 'document')}")
        if index in scores:
            raise Fault(f"answered index {index} twice")
        scores[index] = _score(row.get(shape.score), f"{shape.score!r} of index {index}", show)
    missing = [index for index in range(count) if index not in scores]
    if missing:
        raise Fault(
            f"answered {counted(len(scores), 'result')} for {counted(count, 'document')}, index {missing[0]} is missing"
        )
    return [scores[index] for index in range(count)]


def _score(value: object, where: str, show: Show) -> float:
    # To Python True is the number 1; and an integer of 400 digits does not fit into a float.
    try:
        score = float(value) if type(value) in (int, float) else math.nan  # type: ignore[arg-type]
    except OverflowError:
        score = math.nan
    if not math.isfinite(score):
        raise Fault(f"answered no finite number as {where}: {show(repr(value))}")
    return score


def one_line(text: str) -> str:
    """The first 200 characters, on one line and without control characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line[:SHOWN_CHARACTERS]

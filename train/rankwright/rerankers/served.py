"""ServedReranker: scores from a served model's rerank endpoint, with retries, a rate limit and a cache on disk."""

from __future__ import annotations

import json
import math
import os
import random
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import requests.auth

from rankwright.common.errors import UserError
from rankwright.common.values import list_of_texts, one_text
from rankwright.rerankers.endpoints import SHAPES, Fault, one_line, read_answer
from rankwright.rerankers.pair_scores import ScoreCache, score_key
from rankwright.rerankers.scorer import Scorer

# About one request: too long, empty, or otherwise impossible to score. llama.cpp answers 500 to long texts.
_REFUSALS = (400, 413, 422, 424, 500)
_FIXES = {
    401: "check the key",
    403: "check the key and what it may use",
    404: "check url, shape and model",
    413: "give a smaller batch",
}


class Refused(UserError):
    """The server is there and refuses to score this request; it may score others."""


@dataclass(frozen=True)
class Limits:
    """How a server is asked, which changes no score.

    requests_per_minute: of one ServedReranker, retries included. timeout_seconds: to connect, and between two bytes.
    retries: after the first request, for 429, 500-599, no connection, a timeout and a wrong answer. Waits are
    backoff_seconds, twice that, and so on up to longest_wait_seconds, with jitter. A Retry-After is waited for, but
    one of more than longest_wait_seconds is an error. Raises UserError for a number out of range.
    """

    requests_per_minute: float | None = None
    timeout_seconds: float = 60.0
    retries: int = 6
    backoff_seconds: float = 1.0
    longest_wait_seconds: float = 120.0

    def __post_init__(self) -> None:
        for name in ("retries", "backoff_seconds", "longest_wait_seconds"):
            _check_at_least(name, getattr(self, name), 0)
        _check_at_least("timeout_seconds", self.timeout_seconds, 0.001)
        if self.requests_per_minute is not None:
            _check_at_least("requests_per_minute", self.requests_per_minute, 0.001)


class ServedReranker(Scorer):
    """A model behind HTTP that scores documents one by one, used like a Reranker.

    Equal documents of a query are asked for once, so they tie exactly. With a cache, what was answered is never asked
    for again, also after a kill. The cache and `batch` presume that a score depends on its query and document alone.

    >>> reranker = ServedReranker("https://api.example.com", shape="cohere", model="rerank-1", key_variable="API_KEY")
    >>> reranker.score("what is a bond?", ["A bond is a loan.", "A cat."])
    [0.98, 0.02]
    """

    def __init__(
        self,
        url: str,
        *,
        shape: str,
        model: str = "",
        key_variable: str | None = None,
        extra: Mapping[str, Any] | None = None,
        cache: Path | None = None,
        batch: int | None = None,
        limits: Limits | None = None,
    ) -> None:
        """Asks nothing yet.

        url: the server's address, or the whole address of its rerank endpoint. shape: a name of SHAPES.
        key_variable: environment variable with the API key; the key goes into the request's header and nowhere else.
        extra: further fields of every request, such as a shape's `logits`.
        cache: file of scores, made when absent. batch: documents per request; by default what the shape allows.
        """
        self.shape_name, self.shape, self.model = shape, SHAPES[shape](), model
        self.endpoint = self.shape.endpoint(url)
        self.extra = dict(extra or {})
        self.batch = self.shape.batch if batch is None else batch
        self.limits = limits or Limits()
        _check_at_least("batch", self.batch, 1)
        self._key = _Key(key_variable)
        self._pace = _Pace(self.limits.requests_per_minute)
        self._cache = None if cache is None else ScoreCache(cache)
        self._session = requests.Session()
        self._random = random.Random()
        self.requests_sent = 0
        self.documents_asked = 0
        self.documents_cached = 0

    @property
    def cached(self) -> int:
        return self.documents_cached

    @property
    def one_process(self) -> bool:
        return True

    def score(self, query: str, documents: Iterable[str]) -> list[float]:
        """Scores of the documents, in their order; their scale is the server's.

        Raises UserError when the server refuses, or still fails after all retries; what it did answer is cached.
        """
        query, documents = one_text("query", query), list_of_texts("documents", documents)
        asked = self.shape_name + (json.dumps(self.extra, sort_keys=True) if self.extra else "")
        keys = {d: score_key(self.endpoint, asked, self.model, query, d) for d in documents}
        cached = {} if self._cache is None else {d: self._cache.find(key) for d, key in keys.items()}
        scores = {d: score for d, score in cached.items() if score is not None}
        self.documents_cached += len(scores)
        missing = [d for d in keys if d not in scores]
        for start in range(0, len(missing), self.batch):
            part = missing[start : start + self.batch]
            answered = dict(zip(part, self._ask(query, part), strict=True))
            if self._cache is not None:
                self._cache.add({keys[d]: score for d, score in answered.items()})
            self.documents_asked += len(part)
            scores |= answered
        return [scores[d] for d in documents]

    def score_groups(self, groups: Iterable[tuple[str, Sequence[str]]]) -> Iterator[list[float]]:
        """Scores of each (query, documents) in turn, streamed."""
        for query, documents in groups:
            yield self.score(query, documents)

    def _ask(self, query: str, documents: Sequence[str]) -> list[float]:
        """Scores of at most `batch` documents, after as many retries as needed and allowed."""
        attempt = 0
        while True:
            try:
                return read_answer(self.shape, self._post(query, documents), len(documents), self._key.show)
            except Fault as fault:
                what, wanted, refused = str(fault), fault.wait_seconds, fault.refused
            if attempt == self.limits.retries:
                raise (Refused if refused else UserError)(
                    f"{self.endpoint}: {what}: gave up after {attempt + 1} requests: check url and shape "
                    f"{self.shape_name!r}, or try again later"
                )
            if wanted > self.limits.longest_wait_seconds:
                raise UserError(
                    f"{self.endpoint}: {what}: asks to wait {wanted:.0f} s: try again then, or raise "
                    f"longest_wait_seconds ({self.limits.longest_wait_seconds:g})"
                )
            time.sleep(self._wait_seconds(attempt, wanted))
            attempt += 1

    def _wait_seconds(self, attempt: int, wanted: float) -> float:
        # Jitter: many clients that were refused together must not come back together.
        if wanted:
            return wanted + self.limits.backoff_seconds * self._random.random()
        # Capped, because two to the power of many retries is more than a float holds.
        longest = min(self.limits.backoff_seconds * 2.0 ** min(attempt, 60), self.limits.longest_wait_seconds)
        return longest * self._random.uniform(0.5, 1.0)

    def _post(self, query: str, documents: Sequence[str]) -> bytes:
        """The answer's body. Raises Fault where asking again may help, else UserError."""
        self._pace.wait()
        self.requests_sent += 1
        try:
            answer = self._session.post(
                self.endpoint,
                json=self.shape.body(self.model, query, documents, self.extra),
                auth=self._key,
                timeout=self.limits.timeout_seconds,
                # A redirected POST would arrive as a GET.
                allow_redirects=False,
            )
        except requests.Timeout:
            raise Fault(f"no answer within {self.limits.timeout_seconds:g} s") from None
        # The last two are what requests raises when a connection breaks in the middle of an answer.
        except (
            requests.ConnectionError,
            requests.exceptions.ChunkedEncodingError,
            requests.exceptions.ContentDecodingError,
        ) as error:
            # requests' own message ends with the cause, and is cut there.
            cause = getattr(error.args[0], "reason", error) if error.args else error
            raise Fault(f"no connection: {self._key.show(str(cause))}") from None
        except requests.RequestException as error:
            raise UserError(f"{self.endpoint}: {self._key.show(str(error))}: check url") from None
        status = answer.status_code
        if 200 <= status < 300:
            return answer.content
        text = self._key.show(answer.content)
        if status == 429 or status >= 500:
            wait_seconds = _retry_after(answer.headers.get("Retry-After", ""))
            raise Fault(f"answered {status}: {text!r}", wait_seconds, refused=status in _REFUSALS)
        fix = _FIXES.get(status, "check url, shape, model and batch")
        kind = Refused if status in _REFUSALS else UserError
        raise kind(f"{self.endpoint}: answered {status}: {text!r}: {fix}")


class _Key(requests.auth.AuthBase):
    """The API key, kept where no `repr` shows it. With an `auth` of ours requests does not read ~/.netrc."""

    def __init__(self, variable: str | None) -> None:
        self._key = ""
        if variable is None:
            return
        self._key = os.environ.get(variable, "").strip()
        if not self._key:
            raise UserError(f"key_variable: {variable} is not set: export it with the API key")
        if not all("!" <= c <= "~" for c in self._key):
            raise UserError(f"key_variable: {variable} holds spaces or letters that no key has: export it again")

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request

    def show(self, text: str | bytes) -> str:
        """The beginning of the text on one line, without the key: servers like to repeat what they were sent."""
        whole = text.decode("utf-8", errors="replace") if isinstance(text, bytes) else text
        # Before the text is cut: half a key would not be recognised.
        return one_line(whole.replace(self._key, "***") if self._key else whole)


class _Pace:
    """Spreads requests evenly: no two are less than 60 / per_minute seconds apart; None: no limit."""

    def __init__(self, per_minute: float | None) -> None:
        self._gap_seconds = 60.0 / per_minute if per_minute else 0.0
        self._next = -math.inf

    def wait(self) -> None:
        """Sleeps until the next request may be sent."""
        now = time.monotonic()
        if self._next > now:
            time.sleep(self._next - now)
        self._next = max(self._next, now) + self._gap_seconds


def _retry_after(value: str) -> float:
    """Seconds of a Retry-After header (RFC 9110, 10.2.3: a number or a date); 0 without a sensible one."""
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = parsedate_to_datetime(value)
        except ValueError:
            return 0.0
        # "-0000" gives a date without a zone; HTTP's dates are in UTC.
        zoned = date if date.tzinfo else date.replace(tzinfo=UTC)
        seconds = (zoned - datetime.now(UTC)).total_seconds()
    return max(seconds, 0.0) if math.isfinite(seconds) else 0.0


def _check_at_least(name: str, value: float, least: float) -> None:
    if not (value >= least and math.isfinite(value)):
        raise UserError(f"{name}: must be at least {least:g}, found {value}")

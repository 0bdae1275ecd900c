"""ServedReranker: scores from a served model's rerank endpoint, with retries, a rate limit and a cache on disk."""

from __future__ import annotations

import json
import math
import os
import random
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import requests.auth

from rankwright.common import console
from rankwright.common.errors import UserError
from rankwright.common.plurals import counted
from rankwright.common.values import list_of_texts, one_text
from rankwright.rerankers.endpoints import SHAPES, Fault, Shape, one_line, read_answer
from rankwright.rerankers.pair_scores import ScoreCache, score_key
from rankwright.rerankers.scorer import Scorer
from rankwright.rerankers.transport import TooLarge, Transport

# How servers word that a text is longer than they read: vLLM, TEI, llama.cpp, Infinity, Cohere, Jina, Voyage.
_TOO_LONG = re.compile(
    r"(context|model|sequence|input|prompt)[ _-]?(length|size|window)|too (long|large|many tokens)|longer than"
    r"|exceed|(less|fewer|more) than \d+ tokens|payload too large|max(imum)?[ _-](model|input|sequence|token|length)",
    re.IGNORECASE,
)
# About one request: too long, empty, or otherwise impossible to score. llama.cpp answers 500 to long texts.
_REFUSALS = (400, 413, 422, 424, 500)
_SHORTER = (
    "let the server cut texts (vLLM: options.extra: {truncate_prompt_tokens: N}; TEI: --auto-truncate; llama.cpp: a "
    "larger --ctx-size and --ubatch-size)"
)
_FIXES = {
    401: "check the key",
    403: "check the key and what it may use",
    404: "check url, shape and model",
    413: "give a smaller batch",
}


class Refused(UserError):
    """The server is there and refuses to score this request; it may score others.

    too_long: by its words, since a text is longer than it reads.
    """

    too_long = False


@dataclass(frozen=True)
class Limits:
    """How a server is asked, which changes no score.

    requests_per_minute: of one ServedReranker, retries included. timeout_seconds: for a whole answer.
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
        extra: further fields of every request, such as a shape's `logits`; not those that a request has anyway.
        cache: file of scores, made when absent. batch: documents per request; by default what the shape allows.
        """
        self.shape_name, self.shape, self.model = shape, SHAPES[shape](), model
        self.endpoint = self.shape.endpoint(url)
        self.extra = _checked_extra(extra, self.shape)
        self.batch = self.shape.batch if batch is None else batch
        self.limits = limits or Limits()
        _check_at_least("batch", self.batch, 1)
        self._key = _Key(key_variable)
        self._pace = _Pace(self.limits.requests_per_minute)
        self._cache = None if cache is None else ScoreCache(cache)
        self._transport = Transport(self.limits.timeout_seconds)
        self._random = random.Random()
        self.requests_sent = 0
        self.documents_asked = 0
        self.documents_cached = 0
        self.refused_last = False
        self.documents_refused = 0
        self._refusal = ""

    @property
    def cut(self) -> dict[str, int]:
        return {"documents_refused": self.documents_refused} if self.documents_refused else {}

    @property
    def cached(self) -> int:
        return self.documents_cached

    @property
    def one_process(self) -> bool:
        return True

    def score(self, query: str, documents: Iterable[str]) -> list[float]:
        """Scores of the documents, in their order; their scale is the server's.

        refused_last (an attribute): a document that the server refuses as too long goes below all others of its list,
        and `documents_refused` counts it; without it such a document ends the scoring, since a teacher must not learn
        from a made-up score. Raises UserError when the server refuses anything else, or still fails after all retries;
        what it did answer is cached.
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
            answered = self._ask_apart(query, part)
            if self._cache is not None and answered:
                self._cache.add({keys[d]: score for d, score in answered.items()})
            self.documents_asked += len(part)
            scores |= answered
        return self._with_refused(scores, documents)

    def _ask_apart(self, query: str, documents: Sequence[str]) -> dict[str, float]:
        """Document -> score, without those that the server refuses as too long where these go last."""
        try:
            return dict(zip(documents, self._ask(query, documents), strict=True))
        except Refused as error:
            if not (self.refused_last and error.too_long):
                raise
            if len(documents) == 1:
                self._refusal = str(error)
                return {}
        # One of them is too long: halves find it in few requests.
        half = len(documents) // 2
        return self._ask_apart(query, documents[:half]) | self._ask_apart(query, documents[half:])

    def _with_refused(self, scores: Mapping[str, float], documents: Sequence[str]) -> list[float]:
        """The scores, with refused documents below all others. Raises Refused where every document was refused."""
        refused = [d for d in documents if d not in scores]
        if not refused:
            return [scores[d] for d in documents]
        if not scores:
            raise Refused(f"{self._refusal}; it refuses every document of this query: {_SHORTER}")
        if not self.documents_refused:
            console.say(f"WARNING: {self._refusal}; such documents go last in their lists: {_SHORTER}")
        self.documents_refused += len(refused)
        last = min(scores.values()) - 1.0
        return [scores.get(d, last) for d in documents]

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
            body = self.shape.body(self.model, query, documents, self.extra)
            answer = self._transport.post(self.endpoint, body, self._key)
        except TooLarge as error:
            raise UserError(
                f"{self.endpoint}: answered {error} for {counted(len(documents), 'document')}: check url and shape"
            ) from None
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
        status = answer.status
        if 200 <= status < 300:
            return answer.content
        text = self._key.show(answer.content)
        too_long = status in _REFUSALS and (status == 413 or bool(_TOO_LONG.search(text)))
        # Asking again would not make it shorter.
        if (status == 429 or status >= 500) and not too_long:
            wait_seconds = _retry_after(answer.headers.get("Retry-After", ""))
            raise Fault(f"answered {status}: {text!r}", wait_seconds, refused=status in _REFUSALS)
        fix = _FIXES.get(status, "check url, shape, model and batch")
        if too_long and len(documents) == 1:
            fix = _SHORTER
        what = f"{self.endpoint}: answered {status}: {text!r}: {fix}"
        if status not in _REFUSALS:
            raise UserError(what)
        refused = Refused(what)
        refused.too_long = too_long
        raise refused


def _checked_extra(extra: Mapping[str, Any] | None, shape: Shape) -> dict[str, Any]:
    """The further fields of a request. Raises UserError for those that each request has of its own, and no JSON."""
    found = dict(extra or {})
    own = [name for name in found if name in {"model", "query", "documents", "texts", shape.top}]
    if own:
        raise UserError(f"extra: {own[0]!r} is a field that each request has of its own: leave it out")
    try:
        json.dumps(found, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise UserError("extra: must hold texts, numbers, true, false, lists and objects only") from None
    return found


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

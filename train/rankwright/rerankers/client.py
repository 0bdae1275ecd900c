"""A client of one address of a server, for any number of threads: key, pace, bounded answers, and asking again."""

from __future__ import annotations

import json
import math
import os
import random
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import requests.auth

from rankwright.common.errors import UserError
from rankwright.rerankers.endpoints import Fault, one_line
from rankwright.rerankers.transport import TooLarge, Transport

T = TypeVar("T")
# How servers word that a text is longer than they read: vLLM, TEI, llama.cpp, Infinity, Cohere, Jina, Voyage.
_TOO_LONG = re.compile(
    r"(context|model|sequence|input|prompt)[ _-]?(length|size|window)|too (long|large|many tokens)|longer than"
    r"|exceed|(less|fewer|more) than \d+ tokens|payload too large|max(imum)?[ _-](model|input|sequence|token|length)",
    re.IGNORECASE,
)
# About one request: too long, empty, or otherwise impossible to answer. llama.cpp answers 500 to long texts.
_REFUSALS = (400, 413, 422, 424, 500)
_FIXES = {401: "check the key", 403: "check the key and what it may use", 404: "check url and model"}


class Refused(UserError):
    """The server is there and refuses to answer this request; it may answer others.

    too_long: by its words, since a text is longer than it reads. gave_up: it answered so after all retries.
    """

    too_long = gave_up = False


@dataclass(frozen=True)
class Limits:
    """How a server is asked, which changes no answer.

    requests_per_minute: of one client, retries included. timeout_seconds: for a whole answer.
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
            check_at_least(name, getattr(self, name), 0)
        check_at_least("timeout_seconds", self.timeout_seconds, 0.001)
        if self.requests_per_minute is not None:
            check_at_least("requests_per_minute", self.requests_per_minute, 0.001)


class Client:
    """Posts to one address. Threads share its key and its pace; each has a connection of its own.

    advice: what to check where all retries failed, such as `check url`. fixes: status -> what to do about it, beside
    those of every server. requests_sent: retries included.
    """

    def __init__(
        self,
        endpoint: str,
        key_variable: str | None,
        limits: Limits,
        *,
        advice: str,
        fixes: Mapping[int, str] | None = None,
    ) -> None:
        """Asks nothing yet. Raises UserError where the environment variable holds no key."""
        self.endpoint, self.limits = endpoint, limits
        self.key = Key(key_variable)
        self.requests_sent = 0
        self._advice = advice
        self._fixes = {**_FIXES, **(fixes or {})}
        self._pace = _Pace(limits.requests_per_minute)
        self._random = random.Random()
        self._own = threading.local()
        self._counting = threading.Lock()
        self._closed = threading.Event()

    def close(self) -> None:
        """End the waits of all threads; nothing is asked any more."""
        self._closed.set()

    def ask(
        self,
        body: Mapping[str, Any],
        read: Callable[[bytes], T],
        *,
        what: str,
        fix: str = "check url and model",
        shorter: str | None = None,
    ) -> T:
        """read(content) of an answer, after as many retries as needed and allowed; a Fault of `read` is asked again.

        what: the request in words, such as `7 documents`; fix: what to do about a status without a rule; shorter:
        about a text that is too long. Raises Refused where the server refuses this request, else UserError.
        """
        attempt = 0
        while True:
            try:
                return read(self._post(body, what, fix, shorter))
            except Fault as fault:
                said, wanted, is_refused = str(fault), fault.wait_seconds, fault.refused
            if attempt == self.limits.retries:
                text = (
                    f"{self.endpoint}: {said}: gave up after {attempt + 1} requests: {self._advice}, or try again later"
                )
                if not is_refused:
                    raise UserError(text)
                refused = Refused(text)
                refused.gave_up = True
                raise refused
            if wanted > self.limits.longest_wait_seconds:
                raise UserError(
                    f"{self.endpoint}: {said}: asks to wait {wanted:.0f} s: try again then, or raise "
                    f"longest_wait_seconds ({self.limits.longest_wait_seconds:g})"
                )
            self._closed.wait(self._wait_seconds(attempt, wanted))
            attempt += 1

    def _wait_seconds(self, attempt: int, wanted: float) -> float:
        # Jitter: many clients that were refused together must not come back together.
        if wanted:
            self._pace.hold(wanted)
            return wanted + self.limits.backoff_seconds * self._random.random()
        # Capped, because two to the power of many retries is more than a float holds.
        longest = min(self.limits.backoff_seconds * 2.0 ** min(attempt, 60), self.limits.longest_wait_seconds)
        return longest * self._random.uniform(0.5, 1.0)

    def _transport(self) -> Transport:
        if not hasattr(self._own, "transport"):
            self._own.transport = Transport(self.limits.timeout_seconds)
        found: Transport = self._own.transport
        return found

    def _post(self, body: Mapping[str, Any], what: str, fix: str, shorter: str | None) -> bytes:
        """The answer's body. Raises Fault where asking again may help, else UserError."""
        self._pace.wait(self._closed)
        if self._closed.is_set():
            raise UserError(f"{self.endpoint}: not asked: stopped")
        with self._counting:
            self.requests_sent += 1
        try:
            answer = self._transport().post(self.endpoint, body, self.key)
        except TooLarge as error:
            raise UserError(f"{self.endpoint}: answered {error} for {what}: {self._advice}") from None
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
            raise Fault(f"no connection: {self.key.show(str(cause))}") from None
        except requests.RequestException as error:
            raise UserError(f"{self.endpoint}: {self.key.show(str(error))}: check url") from None
        status = answer.status
        if 200 <= status < 300:
            return answer.content
        text = self.key.show(answer.content)
        too_long = status in _REFUSALS and (status == 413 or bool(_TOO_LONG.search(text)))
        # Asking again would not make it shorter.
        if (status == 429 or status >= 500) and not too_long:
            wait_seconds = retry_after(answer.headers.get("Retry-After", ""))
            raise Fault(f"answered {status}: {text!r}", wait_seconds, refused=status in _REFUSALS)
        fix = self._fixes.get(status, fix)
        if too_long and shorter is not None:
            fix = shorter
        said = f"{self.endpoint}: answered {status}: {text!r}: {fix}"
        if status not in _REFUSALS:
            raise UserError(said)
        refused = Refused(said)
        refused.too_long = too_long
        raise refused


class Key(requests.auth.AuthBase):
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
        self._lock = threading.Lock()

    def wait(self, closed: threading.Event) -> None:
        """Waits until the next request may be sent, or `closed` is set."""
        with self._lock:
            now = time.monotonic()
            at = max(self._next, now)
            self._next = at + self._gap_seconds
        if at > now:
            closed.wait(at - now)

    def hold(self, seconds: float) -> None:
        """Send nothing for so long: a server that asks one thread to wait means all of them."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)


def retry_after(value: str) -> float:
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


def check_at_least(name: str, value: float, least: float) -> None:
    """Raises UserError for a number below `least`, and for one that is not finite."""
    if not (value >= least and math.isfinite(value)):
        raise UserError(f"{name}: must be at least {least:g}, found {value}")


def check_extra(extra: Mapping[str, Any], own: set[str]) -> None:
    """Raises UserError for further fields of a request that are among its `own`, and for what is not JSON."""
    taken = [name for name in extra if name in own]
    if taken:
        raise UserError(f"extra: {taken[0]!r} is a field that each request has of its own: leave it out")
    try:
        json.dumps(extra, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise UserError("extra: must hold texts, numbers, true, false, lists and objects only") from None

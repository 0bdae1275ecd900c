"""A language model behind an OpenAI-compatible server of chat completions: what judges and writers share.

There is no client library here: `openai` follows redirects, and reads an answer of any size for any time. The client of
the rerank endpoints (rerankers/client.py) bounds both, and knows keys, paces and waits already.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Protocol
from urllib.parse import urlsplit

from rankwright.common.errors import UserError
from rankwright.recipe.teacher import Prices
from rankwright.rerankers.client import Client, Limits, check_extra
from rankwright.rerankers.endpoints import Fault, check_url

# Tokens that a server's chat template may put around the prompt. A token of a text has a byte at least.
AROUND = 256


class Served(Protocol):
    """The keys of a recipe about a served model."""

    @property
    def url(self) -> str | None: ...
    @property
    def key_variable(self) -> str | None: ...
    @property
    def requests_per_minute(self) -> float | None: ...
    @property
    def price_per_million(self) -> Prices | None: ...
    @property
    def extra(self) -> dict[str, Any]: ...


class Chat:
    """One model of one server. Threads may ask it at the same time."""

    def __init__(self, served: Served, limits: Limits | None = None) -> None:
        """Asks nothing yet. Raises UserError for an address or a key that cannot be one."""
        self.served = served
        limits = limits or Limits(requests_per_minute=served.requests_per_minute)
        check_extra(served.extra, {"model", "messages"})
        named = "give key_variable: NAME of the environment variable with the key"
        key = named if served.key_variable is None else f"check the key in {served.key_variable} (key_variable)"
        fixes = {401: key, 403: f"{key}, and what it may use"}
        self.client = Client(
            endpoint(served.url or ""), served.key_variable, limits, advice="check url and that it is up", fixes=fixes
        )

    def close(self) -> None:
        """End the waits of all threads."""
        self.client.close()

    def most_tokens(self, prompt: str) -> tuple[int, int]:
        """(tokens of the prompt, of the answer) that one call can cost at most."""
        asked = self._body("")
        stated = [asked[name] for name in ("max_tokens", "max_completion_tokens") if isinstance(asked.get(name), int)]
        return len(prompt.encode("utf-8", "surrogatepass")) + AROUND, max(stated, default=4096)

    def price(self, tokens: tuple[int, int]) -> float:
        """Money for tokens of prompts and answers; 0 where no price is known."""
        return self.cost(self.served, tokens)

    @staticmethod
    def cost(served: Served, tokens: tuple[int, int]) -> float:
        """As `price`, of a model that is not asked."""
        prices = served.price_per_million
        return 0.0 if prices is None else (tokens[0] * prices.input + tokens[1] * prices.output) / 1e6

    def _body(self, prompt: str) -> dict[str, Any]:
        raise AssertionError("each kind of model has a body of its own")

    def read_choice(self, content: bytes) -> tuple[dict[str, Any], dict[str, Any], str]:
        """(the answer, its first choice, the text of that) of a response; raises Fault for anything else."""
        try:
            answer = json.loads(content)
            choice = answer["choices"][0]
            said = choice["message"].get("content")
            return answer, choice, said if isinstance(said, str) else ""
        except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
            shown = self.client.key.show(content)
            raise Fault(f"answered without choices[0].message: {shown!r}") from None


def endpoint(url: str) -> str:
    """The address to post to. Raises UserError for what is not an http address."""
    if not url:
        raise UserError("url: missing: give the address of the server")
    check_url(url)
    start = url.rstrip("/")
    if start.endswith("/chat/completions"):
        return start
    return f"{start}{'' if urlsplit(start).path else '/v1'}/chat/completions"


def tokens_of(answer: Mapping[str, Any]) -> tuple[int, int] | None:
    """Tokens of prompt and answer, as the server counts them; None where it does not."""
    usage = answer.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    found = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
    if not all(isinstance(number, int) and 0 <= number < 2**40 for number in found):
        return None
    return int(found[0]), int(found[1])  # type: ignore[arg-type]

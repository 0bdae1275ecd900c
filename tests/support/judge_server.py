"""A real local server of chat completions that compares two passages as a function says, and can play faults.

running_judge(answer)          answer(query, first, second): probability that the first is better; None: prose
uniform(*parts)                a number in (0, 1) that only these parts have
word_judge(noise, bias)        an answer by words that query and passage share, with noise and order bias
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from rerank_server import Fault, JsonHandler, LocalServer, running

# Written out by hand, not taken from rankwright.
ASKED = re.compile(
    r"Query: (?P<query>.*?)\n\n<passage_A>\n(?P<a>.*?)\n</passage_A>\n\n<passage_B>\n(?P<b>.*?)\n</passage_B>",
    re.DOTALL,
)
ASKED_ACROSS = re.compile(
    r"Query A: (?P<query>.*?)\n\n<passage_A>\n(?P<a>.*?)\n</passage_A>\n\n"
    r"Query B: (?P<other>.*?)\n\n<passage_B>\n(?P<b>.*?)\n</passage_B>",
    re.DOTALL,
)
PROSE = "Both passages have their merits."
Answer = Callable[[str, str, str], float | None]


def uniform(*parts: object) -> float:
    """A number in (0, 1) that only these parts have."""
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    return (int.from_bytes(digest[:6], "big") + 0.5) / 2**48


def word_judge(noise: float = 0.0, bias: float = 0.0) -> Answer:
    """A probability by the words that a query shares with each passage; the noise is logistic."""

    def relevance(query: str, passage: str) -> float:
        return 2.0 * len(set(query.split()) & set(passage.split())) + uniform("own", query, passage)

    def answer(query: str, first: str, second: str) -> float:
        u = uniform("noise", query, first, second)
        z = relevance(query, first) - relevance(query, second) + bias + noise * math.log(u / (1 - u))
        return 1 / (1 + math.exp(-z))

    return answer


class JudgeServer(LocalServer):
    """faults: played first, one for each request. failing: share of the requests that get 500; which ones depends on
    the prompt and on how often it came. logprobs, usage: whether answers have them. asked: (prompt, body, headers) of
    every request, as they arrived. across: (query, its passage, another query, that of the other) -> probability.
    """

    across: Callable[[str, str, str, str], float] | None = None

    def __init__(self, answer: Answer) -> None:
        super().__init__(_Handler)
        self.answer = answer
        self.failing = self.pause_seconds = 0.0
        self.faults: list[Fault] = []
        self.logprobs = self.usage = True
        self.asked: list[tuple[str, dict[str, Any], dict[str, str]]] = []
        self.times: Counter[str] = Counter()
        self.lock = threading.Lock()
        self.at_once = self.most_at_once = 0

    def reset(self, answer: Answer) -> None:
        self.__dict__.update(answer=answer, failing=0.0, pause_seconds=0.0, faults=[], logprobs=True, usage=True)
        self.__dict__.update(asked=[], times=Counter(), most_at_once=0)


class _Handler(JsonHandler):
    server: JudgeServer

    def do_POST(self) -> None:
        server, body = self.server, self.read_json()
        prompt = body["messages"][-1]["content"]
        with server.lock:
            fault = server.faults.pop(0) if server.faults else Fault()
            server.asked.append((prompt, body, dict(self.headers)))
            server.times[prompt] += 1
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
            count = server.times[prompt]
        try:
            time.sleep(fault.sleep_seconds + server.pause_seconds)
            if fault.hang_up:
                self.close_connection = True
                return
            if uniform("failing", prompt, count) < server.failing:
                fault = Fault(status=500, body=b"overloaded")
            content = fault.body if fault.body is not None else json.dumps(_completion(server, body, prompt)).encode()
            self.send(fault.status if self.path == "/v1/chat/completions" else 404, content, fault.headers)
        finally:
            with server.lock:
                server.at_once -= 1


def _completion(server: JudgeServer, body: dict[str, Any], prompt: str) -> dict[str, Any]:
    if (found := ASKED_ACROSS.search(prompt)) is not None and server.across is not None:
        p: float | None = server.across(found["query"], found["a"], found["other"], found["b"])
    else:
        found = ASKED.search(prompt)
        assert found is not None, prompt
        p = server.answer(found["query"], found["a"], found["b"])
    word = PROSE if p is None else "tie" if p == 0.5 else "A" if p > 0.5 else "B"
    choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": word}, "finish_reason": "length"}
    if body.get("logprobs") and server.logprobs:
        # As tokenizers have them: letters with and without a space before them, and tokens that are neither.
        shares = (
            {"Both": 0.98, "A": 0.01} if p is None else {"A": 0.9 * p, " A": 0.05 * p, "B": 0.95 * (1 - p), "I": 0.05}
        )
        rows = [{"token": t, "logprob": math.log(max(share, 1e-300))} for t, share in shares.items()]
        rows.sort(key=lambda row: -float(str(row["logprob"])))
        choice["logprobs"] = {"content": [{**rows[0], "top_logprobs": rows[: body["top_logprobs"]]}]}
    made: dict[str, Any] = {"id": "x", "object": "chat.completion", "model": body["model"], "choices": [choice]}
    if server.usage:
        prompt_tokens = len(prompt) // 4
        made["usage"] = {"prompt_tokens": prompt_tokens, "completion_tokens": 1, "total_tokens": prompt_tokens + 1}
    return made


def running_judge(answer: Answer) -> AbstractContextManager[JudgeServer]:
    return running(JudgeServer(answer))

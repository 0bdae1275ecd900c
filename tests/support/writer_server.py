"""A real local server of chat completions that writes queries for passages, with a planted fault for some of them.

running_writer(shares)     shares: fault -> share of the passages that get it; see WriterServer.fault_of
documents(count)           texts with words of their own, so that a good query finds its passage
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from judge_server import uniform
from rerank_server import JsonHandler, LocalServer, running

# Written out by hand, not taken from rankwright.
PASSAGE = re.compile(r"<passage>\n(?P<text>.*?)\n</passage>", re.DOTALL)
WANTED = re.compile(r"^\d+\. One that ", re.MULTILINE)
FAULTS = ("copies", "leaks", "duplicates", "malformed", "unanswerable", "mentions")
SAME = "what happens to the goods on the ship after the storm"
TOPICS = (
    "harbour ship cargo storm insurer premium notice period agent buyer judge permit water bridge winter paper".split()
)


def asked(number: int) -> str:
    """What a person asked about the document with a number: a leak where a writer asks it too."""
    return f"when does master kel{number}a close the gates of dock kel{number}b"


def documents(count: int) -> list[dict[str, str]]:
    """Rows of documents: the first word and three others are of the document alone."""
    rows = []
    for n in range(count):
        own = [f"zor{n}{letter}" for letter in "abcd"]
        some = [TOPICS[int(uniform("topic", n, k) * len(TOPICS))] for k in range(30)]
        text = f"{own[0]} and the {' '.join(some[:10])} of {own[1]}. "
        text += f"The {own[2]} of {own[0]} has {' '.join(some[10:])} for {own[3]}."
        rows.append({"_id": f"d{n}", "text": text, "case": f"case{n // 3}"})
    return rows


class WriterServer(LocalServer):
    """shares: fault -> share of the passages that get it. asked: every prompt, as it arrived."""

    def __init__(self, shares: Mapping[str, float]) -> None:
        super().__init__(_Handler)
        self.shares = dict(shares)
        self.asked: list[str] = []
        self.pause_seconds = 0.0
        self.lock = threading.Lock()

    def fault_of(self, passage: str) -> str:
        """The fault of a passage, "" for a good query."""
        left = uniform("fault", passage.split()[0])
        for fault in FAULTS:
            left -= self.shares.get(fault, 0.0)
            if left < 0:
                return fault
        return ""


class _Handler(JsonHandler):
    server: WriterServer

    def do_POST(self) -> None:
        server, body = self.server, self.read_json()
        prompt = body["messages"][-1]["content"]
        with server.lock:
            server.asked.append(prompt)
        time.sleep(server.pause_seconds)
        found = PASSAGE.search(prompt)
        assert found is not None, prompt
        content = answer(server, found["text"], len(WANTED.findall(prompt)))
        message = {"role": "assistant", "content": content}
        made: dict[str, Any] = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
        made["usage"] = {"prompt_tokens": len(prompt) // 4, "completion_tokens": len(content) // 4}
        self.send(200, json.dumps(made).encode(), {})


def answer(server: WriterServer, passage: str, count: int) -> str:
    """What the server writes for a passage."""
    words = re.findall(r"\w+", passage)
    own = [word for word in words if word.startswith("zor")]
    fault = server.fault_of(passage)
    if fault == "malformed":
        return "I would ask what this is about."
    queries = []
    number = int(own[0][3:-1])
    others = [f"zor{number - 1 if number else 1}{letter}" for letter in "abcd"]
    for n in range(count):
        good = f"which {own[n % 4]} needs {words[4 + n]} from {own[(n + 1) % 4]} now"
        queries.append(
            {
                "": good,
                "copies": " ".join(words[3 + n : 12 + n]),
                "leaks": asked(number),
                "duplicates": SAME,
                # Another document has the word.
                "unanswerable": f"how many lions eat grass near {others[n]} in summer",
                "mentions": f"what does the passage tell about {own[n % 4]}",
            }[fault]
        )
    return "Here you are:\n```json\n" + json.dumps({"queries": queries}) + "\n```"


def running_writer(shares: Mapping[str, float]) -> AbstractContextManager[WriterServer]:
    return running(WriterServer(shares))

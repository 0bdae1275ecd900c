"""Judges against a real local server: every kind of answer, every fault, budgets, threads, a half row."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from judge_server import PROSE, JudgeServer, running_judge, uniform, word_judge
from rerank_server import Fault

from rankwright.common.errors import UserError
from rankwright.recipe import teacher
from rankwright.rerankers.client import Limits
from rankwright.supervision.chat import endpoint
from rankwright.supervision.preferences.answers import AnswerFile, judged_reply
from rankwright.supervision.preferences.asking import Asker, Call
from rankwright.supervision.preferences.judges import Judge

KEY = "sk-very-secret-0123456789"
FAST = Limits(timeout_seconds=5.0, retries=2, backoff_seconds=0.01, longest_wait_seconds=2.0)
DOCUMENTS = ["a bond is a loan", "the river floods", "a loan pays interest", "bond of a company", "a cat", "interest"]
QUERY = "what is a bond loan"


@pytest.fixture(scope="module")
def one_server() -> Iterator[JudgeServer]:
    with running_judge(word_judge()) as server:
        yield server


@pytest.fixture
def server(one_server: JudgeServer, monkeypatch: pytest.MonkeyPatch) -> JudgeServer:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    one_server.reset(word_judge())
    return one_server


def judge_of(server: JudgeServer, limits: Limits = FAST, **entry: Any) -> Judge:
    return Judge(teacher.Judge(**{"name": "j", "url": server.url, "model": "m", **entry}), limits)


def calls_of(judge: Judge, count: int | None = None) -> list[Call]:
    """Calls about every two of the documents, in both orders."""
    orders = list(itertools.permutations(range(len(DOCUMENTS)), 2))[:count]
    prompts = [judge.prompt(QUERY, DOCUMENTS[a], DOCUMENTS[b], "find it") for a, b in orders]
    return [
        Call(0, "q", (f"d{a}", f"d{b}"), prompt, judge.key(prompt))
        for (a, b), prompt in zip(orders, prompts, strict=True)
    ]


def asked(
    folder: Path, judge: Judge, calls: Sequence[Call], budget: dict[str, Any] | None = None, parallel: int = 4
) -> tuple[Asker, list[float | None]]:
    asker = Asker(
        [judge], AnswerFile(folder / "answers.jsonl", judged_reply), teacher.Budget(**(budget or {})), parallel
    )
    return asker, [value for _, value in asker.ask(calls)]


def test_the_probability_is_that_of_the_letters(server: JudgeServer) -> None:
    judge = judge_of(server, key_variable=None, extra={"seed": 7, "temperature": None})
    prompt = judge.prompt(QUERY, DOCUMENTS[0], DOCUMENTS[1], "Find the rule")
    reply = judge.ask(prompt)
    expected = word_judge()(QUERY, DOCUMENTS[0], DOCUMENTS[1])
    assert expected is not None and 0.9 < expected < 1
    assert reply.first_wins == pytest.approx(expected, abs=1e-12) and reply.tokens == (len(prompt) // 4, 1)
    ((sent, body, headers),) = server.asked
    assert "Find the rule" in sent and "Authorization" not in headers
    wanted = {"model": "m", "max_tokens": 1, "logprobs": True, "top_logprobs": 20, "seed": 7}
    assert {name: value for name, value in body.items() if name != "messages"} == wanted


@pytest.mark.parametrize(
    ("said", "value"),
    [
        *[("A", 1.0), ("B", 0.0), ("tie", 0.5), (" **A**.", 1.0), ("Answer: B", 0.0), ("Passage A", 1.0), ("Tie", 0.5)],
        *[("", None), (PROSE, None), ("A or B", None), ("C", None), ("Ab", None)],
    ],
)
def test_words_without_log_probabilities(server: JudgeServer, said: str, value: float | None) -> None:
    body = {"choices": [{"message": {"content": said}}], "usage": {"prompt_tokens": 9, "completion_tokens": 2}}
    server.faults = [Fault(body=json.dumps(body).encode())]
    reply = judge_of(server, logprobs=False).ask("x")
    assert (reply.first_wins, reply.tokens, reply.said) == (value, (9, 2), said if value is None else "")
    assert "logprobs" not in server.asked[0][1] and server.asked[0][1]["max_tokens"] == 8


def test_words_of_the_server_itself(server: JudgeServer) -> None:
    server.answer = lambda query, first, second: 0.5 if first == "a cat" else 0.3
    judge = judge_of(server, logprobs=False)
    assert judge.ask(judge.prompt(QUERY, "a cat", "x", "find")).first_wins == 0.5
    assert judge.ask(judge.prompt(QUERY, "x", "a cat", "find")).first_wins == 0.0


@pytest.mark.parametrize(
    "url", ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/", "http://h:1/v1/chat/completions"]
)
def test_the_address(url: str) -> None:
    assert endpoint(url) == "http://h:1/v1/chat/completions"
    assert endpoint("https://h/openai/deployments/x") == "https://h/openai/deployments/x/chat/completions"
    with pytest.raises(UserError, match="url: must hold no user"):
        endpoint("http://me:secret@h/v1")


def test_a_server_without_log_probabilities_is_one_line(server: JudgeServer) -> None:
    server.logprobs = False
    with pytest.raises(UserError, match=r"^judge j: http.* without log-probabilities: write logprobs: false"):
        judge_of(server).ask(judge_of(server).prompt(QUERY, "a", "b", "find"))
    server.faults = [Fault(status=400, body=b"logprobs is not supported with this model")]
    with pytest.raises(
        UserError, match=r"^judge j: .*answered 400.* gives no log-probabilities: write logprobs: false"
    ):
        judge_of(server).ask("x")


@pytest.mark.parametrize("status", [401, 403])
def test_a_wrong_key_stops_at_once_and_names_its_variable(
    server: JudgeServer, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    server.faults = [Fault(status=status, body=f"bad key {KEY}".encode())]
    with pytest.raises(
        UserError, match=rf"answered {status}.*\*\*\*.*check the key in JUDGE_KEY \(key_variable\)"
    ) as found:
        judge_of(server, key_variable="JUDGE_KEY").ask("x")
    assert KEY not in str(found.value) and len(server.asked) == 1
    assert server.asked[0][2]["Authorization"] == f"Bearer {KEY}"
    server.faults = [Fault(status=status, body=b"who?")]
    with pytest.raises(UserError, match="give key_variable"):
        judge_of(server).ask("x")


def test_what_passes_is_asked_again_and_what_stays_is_an_error(server: JudgeServer, tmp_path: Path) -> None:
    judge = judge_of(server, Limits(retries=5, backoff_seconds=0.01))
    calls = calls_of(judge, 6)
    passing = [
        Fault(status=500, body=b"x"),
        Fault(hang_up=True),
        Fault(status=429, headers={"Retry-After": "0.2"}, body=b""),
    ]
    server.faults = [*passing, Fault(body=b"not json"), Fault(body=b'{"choices": []}')]
    start = time.monotonic()
    asker, values = asked(tmp_path, judge, calls, parallel=1)
    assert None not in values and time.monotonic() - start > 0.2
    assert asker.sent == 6 and judge.client.requests_sent == len(server.asked) == 6 + 5
    for fault, said in ((Fault(status=503, body=b"down"), "answered 503"), (Fault(hang_up=True), "no connection")):
        server.faults = [fault] * 9
        with pytest.raises(
            UserError, match=rf"judge j: .*{said}.*gave up after 3 requests.*6 answers kept in .*answers"
        ):
            asked(tmp_path, judge_of(server), [*calls, *calls_of(judge, 8)[6:]], parallel=1)
    server.faults = [Fault(status=429, headers={"Retry-After": "3600"}, body=b"")]
    with pytest.raises(UserError, match="asks to wait 3600 s"):
        asked(tmp_path, judge_of(server), calls_of(judge, 8), parallel=1)
    assert len(AnswerFile(tmp_path / "answers.jsonl", judged_reply)) == 6


def test_a_redirect_and_a_huge_answer_are_refused(server: JudgeServer) -> None:
    server.faults = [Fault(status=302, headers={"Location": f"{server.url}/elsewhere"}, body=b"")]
    with pytest.raises(UserError, match="answered 302"):
        judge_of(server).ask("x")
    assert len(server.asked) == 1
    server.faults = [Fault(body=b" " * (17 * 2**20))]
    with pytest.raises(UserError, match="answered more than 16 MiB for one pair"):
        judge_of(server).ask("x")


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    entry = teacher.Judge(name="j", url="http://127.0.0.1:9", model="m")
    judge = Judge(entry, FAST)
    with pytest.raises(
        UserError, match=r"judge j: http://127.0.0.1:9/v1/chat/completions: no connection.*0 answers kept"
    ):
        asked(tmp_path, judge, calls_of(judge))


def test_malformed_answers_are_no_votes_and_too_many_stop(server: JudgeServer, tmp_path: Path) -> None:
    words = word_judge()

    def rarely(query: str, first: str, second: str) -> float | None:
        return None if uniform("prose", first, second) < 0.15 else words(query, first, second)

    server.answer = rarely
    judge = judge_of(server)
    calls = calls_of(judge)
    asker, values = asked(tmp_path / "few", judge, calls)
    expected = [rarely(QUERY, DOCUMENTS[int(a[1:])], DOCUMENTS[int(b[1:])]) for a, b in (call.order for call in calls)]
    assert values == [pytest.approx(e, abs=1e-12) if e is not None else None for e in expected]
    tally = asker.tallies[0]
    missing = values.count(None)
    assert 0 < missing == tally.malformed and tally.answers == len(calls) - missing and tally.examples[0] == PROSE
    # Nothing is asked again, neither what has an answer nor what has none.
    before = len(server.asked)
    again, same = asked(tmp_path / "few", judge_of(server), calls)
    assert len(server.asked) == before and same == values and again.sent == 0 and again.tallies == asker.tallies

    server.answer = lambda query, first, second: None
    with pytest.raises(
        UserError, match=rf"^judge j: 20 of 20 calls gave no A or B, such as ('{PROSE}'(; )?){{3}}: take "
    ):
        asked(tmp_path / "all", judge_of(server), calls)
    with pytest.raises(UserError, match=r"^judge j: 2 of 2 calls gave no A or B"):
        asked(tmp_path / "two", judge_of(server), calls[:2])


def test_refusals_of_one_text_are_counted_and_not_kept(server: JudgeServer, tmp_path: Path) -> None:
    judge = judge_of(server)
    calls = calls_of(judge)
    server.faults = [Fault(status=400, body=b"maximum context length is 10 tokens")]
    asker, values = asked(tmp_path, judge, calls, parallel=1)
    assert values[0] is None and None not in values[1:] and asker.tallies[0].refused == 1
    assert "maximum context length" in asker.tallies[0].examples[0]
    assert len(AnswerFile(tmp_path / "answers.jsonl", judged_reply)) == len(calls) - 1
    again, values = asked(tmp_path, judge_of(server), calls, parallel=1)
    assert again.sent == 1 and None not in values


@pytest.mark.parametrize("usage", [True, False])
def test_budgets_end_before_they_are_exceeded_whatever_the_threads(
    server: JudgeServer, tmp_path: Path, usage: bool
) -> None:
    server.usage = usage
    prices = {"input": 2.0, "output": 10.0}
    judge = judge_of(server, price_per_million=teacher.Prices(**prices))
    calls = calls_of(judge)
    whole, _ = asked(tmp_path / "whole", judge, calls)
    tally = whole.tallies[0]
    assert tally.uncounted == (0 if usage else len(calls)) and tally.money == pytest.approx(
        (2 * tally.prompt_tokens + 10 * tally.answer_tokens) / 1e6
    )
    tokens = tally.prompt_tokens + tally.answer_tokens
    for budget in ({"calls": 7}, {"tokens": tokens // 2}, {"money": tally.money / 3}):
        ends = []
        for parallel in (1, 5):
            asker, values = asked(
                tmp_path / f"{budget}{parallel}",
                judge_of(server, price_per_million=judge.entry.price_per_million),
                calls,
                budget,
                parallel,
            )
            (name, most), spent = *budget.items(), asker.tallies[0]
            used = {"calls": spent.calls, "tokens": spent.prompt_tokens + spent.answer_tokens, "money": spent.money}
            assert 0 < len(values) < len(calls) and used[name] <= most
            assert asker.over is not None and asker.over.startswith(f"teacher.pairs.budget.{name}: ")
            # No call more is asked than is counted, and what is left of the budget would not have paid for another.
            assert asker.sent == len(values)
            if usage and name != "calls":
                least = (len(calls[0].prompt) * 1.2 + 300) * (1 if name == "tokens" else 1e-5)
                assert most - used[name] < least
            ends.append(len(values))
        assert ends[0] == ends[1]


def test_eight_threads_leave_the_bytes_of_one(server: JudgeServer, tmp_path: Path) -> None:
    server.failing = 0.2
    found = []
    for parallel in (1, 8):
        server.pause_seconds = 0.01 if parallel > 1 else 0.0
        _, values = asked(
            tmp_path / str(parallel),
            judge_of(server, Limits(retries=9, backoff_seconds=0.01)),
            calls_of(judge_of(server)),
            parallel=parallel,
        )
        found.append((values, (tmp_path / str(parallel) / "answers.jsonl").read_bytes()))
    assert found[0] == found[1] and len(found[0][0]) == 30 and server.most_at_once > 2


def test_a_half_row_is_asked_again_and_a_changed_one_too(server: JudgeServer, tmp_path: Path) -> None:
    judge = judge_of(server)
    calls = calls_of(judge)
    asked(tmp_path, judge, calls)
    path = tmp_path / "answers.jsonl"
    whole = path.read_bytes()
    rows = whole.splitlines(keepends=True)
    assert [json.loads(row)["hash"] for row in rows] == [call.key for call in calls]
    path.write_bytes(b"".join(rows[:9]) + rows[9][:40])
    asker, _ = asked(tmp_path, judge_of(server), calls)
    assert path.read_bytes() == whole and asker.sent == len(calls) - 9
    changed = json.loads(rows[3])
    path.write_bytes(b"".join([*rows[:3], json.dumps({**changed, "t": 0.123}).encode() + b"\n", *rows[4:]]))
    assert AnswerFile(path, judged_reply).damaged == 1
    asker, values = asked(tmp_path, judge_of(server), calls)
    assert asker.sent == 1 and values[3] == changed["t"] and path.read_bytes().endswith(rows[3])
    path.write_text("my notes\n")
    with pytest.raises(UserError, match=r"answers\.jsonl:1: not a kept answer: move the file away"):
        AnswerFile(path, judged_reply)


def test_the_key_is_that_of_the_question_alone(server: JudgeServer) -> None:
    same = [judge_of(server), judge_of(server, name="other", url="http://127.0.0.1:9", weight=2.0)]
    prompt = same[0].prompt("q", "a", "b", "find")
    assert len({judge.key(prompt) for judge in same}) == 1
    others = [judge_of(server, model="n"), judge_of(server, logprobs=False), judge_of(server, extra={"seed": 1})]
    keys = {judge.key(prompt) for judge in [*same, *others]}
    texts = [("q", "b", "a", "find"), ("q2", "a", "b", "find"), ("q", "a", "b", "x"), ("q", "a", "b", "find", "q")]
    keys |= {same[0].key(same[0].prompt(*text)) for text in texts}
    assert len(keys) == 1 + 3 + 4


def test_the_pace_is_that_of_all_threads_together(server: JudgeServer, tmp_path: Path) -> None:
    judge = judge_of(server, Limits(requests_per_minute=1200, backoff_seconds=0.01))
    start = time.monotonic()
    asked(tmp_path, judge, calls_of(judge, 12), parallel=6)
    assert time.monotonic() - start >= 11 * 60 / 1200

"""ServedReranker against a real local server: every shape, every fault, a kill, the key, the rate."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from email.utils import format_datetime
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rerank_server import PATHS, TOO_LONG, Fault, RerankServer, running_server, true_score

from rankwright.common.errors import UserError
from rankwright.data.collection import Collection
from rankwright.recipe.schema import Baseline, Evaluate, Model, Prompt, Recipe
from rankwright.recipe.sources import Data
from rankwright.rerankers import transport
from rankwright.rerankers.client import Limits, retry_after
from rankwright.rerankers.endpoints import SHAPES
from rankwright.rerankers.kinds import TEACHER, baseline_inputs, check_baselines, load_baseline
from rankwright.rerankers.pair_scores import ScoreCache, score_key
from rankwright.rerankers.score_blocks import BlockScores
from rankwright.rerankers.scorer import rerank
from rankwright.rerankers.served import ServedReranker
from rankwright.retrieval.candidates import Candidate

KEY = "sk-very-secret-0123456789"
DOCUMENTS = [f"document {i}" for i in range(7)]


@pytest.fixture(scope="module")
def one_server() -> Iterator[RerankServer]:
    with running_server() as server:
        yield server


@pytest.fixture
def server(one_server: RerankServer, monkeypatch: pytest.MonkeyPatch) -> RerankServer:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    one_server.reset("cohere")
    return one_server


def served(server: RerankServer, **options: Any) -> ServedReranker:
    fast = {"shape": server.shape, "model": "m", "backoff_seconds": 0.01, "retries": 3, "timeout_seconds": 5.0}
    return reranker_of(options.pop("url", server.url), **{**fast, **options})


def reranker_of(url: str, **options: Any) -> ServedReranker:
    names = {field.name for field in dataclasses.fields(Limits)}
    limits = Limits(**{k: v for k, v in options.items() if k in names})
    return ServedReranker(url, **{k: v for k, v in options.items() if k not in names}, limits=limits)


def truth(query: str, documents: list[str]) -> list[float]:
    return [true_score(query, document) for document in documents]


def said(error: pytest.ExceptionInfo[UserError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert error.value.__suppress_context__ or error.value.__context__ is None
    return text


def test_every_shape_has_its_server() -> None:
    assert sorted(SHAPES) == sorted(PATHS)


@pytest.mark.parametrize("shape", sorted(PATHS))
def test_every_shape_is_asked_as_its_server_wants(server: RerankServer, shape: str) -> None:
    server.reset(shape)
    assert served(server).score("q", DOCUMENTS) == truth("q", DOCUMENTS)
    [asked] = server.asked
    common = {"model": "m", "query": "q", "documents": DOCUMENTS}
    assert (
        asked.body
        == {
            "cohere": {**common, "top_n": 7},
            "jina": {**common, "top_n": 7, "return_documents": False},
            "voyage": {**common, "top_k": 7, "return_documents": False},
            "tei": {"model": "m", "query": "q", "texts": DOCUMENTS, "raw_scores": True, "truncate": True},
            "vllm": {**common, "top_n": 7},
            "infinity": {**common, "top_n": 7, "return_documents": False},
            "llama_cpp": {**common, "top_n": 7},
        }[shape]
    )
    assert "Authorization" not in asked.headers
    assert asked.headers["Content-Type"] == "application/json"


def test_further_fields_are_sent_and_make_another_score(server: RerankServer, tmp_path: Path) -> None:
    cache = tmp_path / "scores"
    for extra in ({}, {"use_activation": False}, {"use_activation": False}):
        served(server, cache=cache, extra=extra).score("q", ["a"])
    assert [asked.body.get("use_activation") for asked in server.asked] == [None, False]


def test_a_server_with_one_model_needs_no_name(server: RerankServer) -> None:
    served(server, model="").score("q", ["a"])
    assert "model" not in server.asked[0].body


@pytest.mark.parametrize(
    ("shape", "url", "endpoint"),
    [
        ("vllm", "http://h:1", "http://h:1/v1/rerank"),
        ("vllm", "http://h:1/", "http://h:1/v1/rerank"),
        ("vllm", "http://h:1/v1", "http://h:1/v1/rerank"),
        ("vllm", "http://h:1/rerank", "http://h:1/rerank"),
        ("tei", "https://h/models/a/", "https://h/models/a/rerank"),
        ("cohere", "https://h/v2/rerank", "https://h/v2/rerank"),
    ],
)
def test_addresses(shape: str, url: str, endpoint: str) -> None:
    assert ServedReranker(url, shape=shape).endpoint == endpoint


@pytest.mark.parametrize(
    "url", ["", "h:1", "ftp://h", "http://", "http://h:x", "http://u:secret@h", "http://h/?key=secret"]
)
def test_wrong_addresses_are_refused_without_repeating_them(url: str) -> None:
    with pytest.raises(UserError) as error:
        ServedReranker(url, shape="vllm")
    assert said(error).startswith("url: ")
    assert "secret" not in said(error)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"shape": "llama.cpp"}, "did you mean 'llama_cpp'?"),
        ({"shape": "coher"}, "unknown rerank endpoint 'coher', did you mean 'cohere'?"),
        ({"batch": 0}, "batch: must be at least 1"),
        ({"retries": -1}, "retries: "),
        ({"requests_per_minute": 0}, "requests_per_minute: "),
        ({"timeout_seconds": float("nan")}, "timeout_seconds: "),
    ],
)
def test_wrong_options(options: dict[str, Any], part: str) -> None:
    with pytest.raises(UserError) as error:
        reranker_of("http://h", **{"shape": "tei", **options})
    assert part in said(error)


REPAIRED = {
    "429": Fault(status=429, body=b"slow down"),
    "500": Fault(status=500, body=b"oops"),
    "503": Fault(status=503),
    "599": Fault(status=599),
    "slow": Fault(sleep_seconds=0.5),
    "hang up": Fault(hang_up=True),
    "no JSON": Fault(body=b'{"results": [{"ind'),
    "empty": Fault(body=b""),
    "no UTF-8": Fault(body=b"\xff\xfe\x00"),
    "deep": Fault(body=b"[" * 200_000),
    "half an answer": Fault(headers={"Content-Encoding": "gzip"}),
    "no list": Fault(body=b'{"error": "model is loading"}'),
    "other list": Fault(body=b"[1, 2]"),
    "rows are no objects": Fault(body=b'{"results": [0.5]}'),
    "missing": Fault(order=[6, 0, 1, 2, 4, 5]),
    "none": Fault(order=[]),
    "doubled": Fault(order=[0, 1, 2, 3, 4, 5, 6, 3]),
    "foreign": Fault(order=[0, 1, 2, 3, 4, 5, 7]),
    "negative": Fault(order=[0, 1, 2, 3, 4, 5, -1]),
    "NaN": Fault(score=float("nan")),
    "infinite": Fault(score=float("inf")),
    "text": Fault(score="0.5"),
    "true": Fault(score=True),
    "huge": Fault(score=10**400),
}
WRONG = {
    "slow": "no answer within 0.2 s",
    "hang up": "no connection: ",
    "429": "answered 429: 'slow down'",
    "500": "answered 500: 'oops'",
    "no JSON": 'answered no JSON: \'{"results": [{"ind\'',
    "empty": "answered no JSON: ''",
    "no list": "answered without a list under 'results': '{\"error\": \"model is loading\"}'",
    "other list": "answered without a list under 'results': '[1, 2]'",
    "rows are no objects": "answered index None for 7 documents",
    "missing": "answered 6 results for 7 documents, index 3 is missing",
    "none": "answered 0 results for 7 documents, index 0 is missing",
    "doubled": "answered index 3 twice",
    "foreign": "answered index 7 for 7 documents",
    "negative": "answered index -1 for 7 documents",
    "NaN": "answered no finite number as 'relevance_score' of index ",
    "text": "answered no finite number as 'relevance_score' of index ",
}


@pytest.mark.parametrize("name", sorted(REPAIRED))
def test_what_may_pass_is_asked_again(server: RerankServer, name: str) -> None:
    server.reset("cohere", REPAIRED[name], REPAIRED[name])
    reranker = served(server, timeout_seconds=0.2)
    assert reranker.score("q", DOCUMENTS) == truth("q", DOCUMENTS)
    assert [one.documents for one in server.asked] == [DOCUMENTS] * 3
    assert (reranker.requests_sent, reranker.documents_asked) == (3, 7)


@pytest.mark.parametrize("name", sorted(WRONG))
def test_what_does_not_pass_is_named(server: RerankServer, tmp_path: Path, name: str) -> None:
    server.reset("cohere", *[REPAIRED[name]] * 3)
    with pytest.raises(UserError) as error:
        served(server, retries=1, timeout_seconds=0.2, cache=tmp_path / "scores.jsonl").score("q", DOCUMENTS)
    assert said(error).startswith(f"{server.url}/v2/rerank: {WRONG[name]}")
    assert "gave up after 2 requests: check url and shape 'cohere'" in said(error)
    assert len(server.asked) == 2
    assert not (tmp_path / "scores.jsonl").exists()


def test_the_order_of_an_answer_does_not_matter(server: RerankServer) -> None:
    server.reset("tei", Fault(order=[3, 1, 0, 2, 6, 5, 4]))
    assert served(server).score("q", DOCUMENTS) == truth("q", DOCUMENTS)
    assert len(server.asked) == 1


@pytest.mark.parametrize("status", [400, 401, 404, 408, 413, 422, 308])
def test_a_refusal_is_not_asked_again(server: RerankServer, status: int) -> None:
    body = b"line one\nline two \x1b[31m" + b"x" * 500
    server.reset("cohere", Fault(status=status, body=body, headers={"Location": "/v2/rerank"}))
    with pytest.raises(UserError) as error:
        served(server).score("q", DOCUMENTS)
    assert f"/v2/rerank: answered {status}: 'line one line two [31mxxx" in said(error)
    assert "x" * 150 in said(error) and "x" * 200 not in said(error)
    assert len(server.asked) == 1


def test_no_server_at_all() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(UserError) as error:
        reranker_of(url, shape="tei", retries=2, backoff_seconds=0.001).score("q", ["a"])
    assert "no connection: " in said(error) and "gave up after 3 requests" in said(error)


def test_retry_after_is_waited_for(server: RerankServer) -> None:
    server.reset("cohere", Fault(status=429, headers={"Retry-After": "1"}))
    assert served(server, backoff_seconds=0.0).score("q", ["a"]) == truth("q", ["a"])
    first, second = (one.at for one in server.asked)
    assert 1.0 <= second - first < 3.0


def test_a_very_long_retry_after_is_an_error(server: RerankServer) -> None:
    server.reset("cohere", Fault(status=429, headers={"Retry-After": "86400"}, body=b"quota"))
    with pytest.raises(UserError) as error:
        served(server).score("q", ["a"])
    assert "answered 429: 'quota': asks to wait 86400 s" in said(error)
    assert len(server.asked) == 1


def test_retry_after_as_a_date() -> None:
    later = datetime.now(UTC) + timedelta(seconds=90)
    assert retry_after(format_datetime(later, usegmt=True)) == pytest.approx(90, abs=3)
    assert retry_after(format_datetime(later.replace(tzinfo=None))) == pytest.approx(90, abs=3)
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0


@given(st.text(max_size=40) | st.sampled_from(["nan", "inf", "-5", "1e999", "Mon, 99 Foo 0000 99:99:99 GMT"]))
def test_a_senseless_retry_after_is_ignored(value: str) -> None:
    assert 0.0 <= retry_after(value) < float("inf")


def test_backoff_doubles_with_jitter() -> None:
    reranker = reranker_of("http://h", shape="tei", backoff_seconds=1.0, longest_wait_seconds=20.0)
    for attempt, most in enumerate([1.0, 2.0, 4.0, 8.0, 16.0, 20.0, 20.0]):
        waits = [reranker._client._wait_seconds(attempt, 0.0) for _ in range(50)]
        assert most / 2 <= min(waits) < max(waits) <= most
    assert reranker._client._wait_seconds(5000, 0.0) <= 20.0
    assert 7.0 <= reranker._client._wait_seconds(0, 7.0) <= 8.0


def test_batches_and_equal_documents(server: RerankServer) -> None:
    documents = ["b", "a", "b", "c", "", "a", "d"]
    reranker = served(server, batch=2)
    assert reranker.score("q", documents) == truth("q", documents)
    assert [one.documents for one in server.asked] == [["b", "a"], ["c", ""], ["d"]]
    assert [one.body["top_n"] for one in server.asked] == [2, 2, 1]
    assert reranker.score("q", []) == []
    assert len(server.asked) == 3
    with pytest.raises(UserError, match="must be a list of texts"):
        reranker.score("q", "a text")


def test_the_default_batch_is_the_shape_s(server: RerankServer) -> None:
    server.reset("tei")
    served(server).score("q", [str(i) for i in range(70)])
    assert [len(one.documents) for one in server.asked] == [32, 32, 6]


TEXT = st.text(alphabet=st.characters(codec=None), max_size=6)  # lone surrogates, too


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(st.sampled_from(sorted(PATHS)), TEXT, st.lists(TEXT | st.sampled_from("ab"), max_size=9), st.integers(1, 4))
def test_scores_stand_in_the_order_of_the_input(
    server: RerankServer, tmp_path: Path, shape: str, query: str, documents: list[str], batch: int
) -> None:
    server.reset(shape)
    cache = tmp_path / "scores.jsonl"
    assert served(server, batch=batch).score(query, documents) == truth(query, documents)
    assert served(server, batch=batch, cache=cache).score(query, documents) == truth(query, documents)
    server.reset(shape)
    assert served(server, cache=cache).score(query, documents[::-1]) == truth(query, documents[::-1])
    assert server.asked == []


def test_evaluation_takes_it_like_a_reranker(server: RerankServer) -> None:
    corpus = {"d0": "a", "d1": "b", "d2": "a"}
    collection = Collection("set", corpus, {"q0": "x", "q1": "y", "q2": "z"}, {})
    lists = {"q0": [Candidate("d1", 2.0, 1), Candidate("d0", 1.0, 2), Candidate("d2", 0.5, 3)], "q1": []}
    done: list[int] = []
    run = rerank(served(server), collection, lists, ["q1", "q0", "q2"], done.append)
    a, b = truth("x", ["a", "b"])
    assert run == {"q1": {}, "q0": {"d1": b, "d0": a, "d2": a}, "q2": {}}
    assert done == [1, 1, 1]


def test_groups_are_streamed(server: RerankServer) -> None:
    groups = served(server).score_groups((q, ["a", "b"]) for q in ["x", "y", "z"])
    assert next(groups) == truth("x", ["a", "b"])
    assert len(server.asked) == 1
    assert list(groups) == [truth("y", ["a", "b"]), truth("z", ["a", "b"])]


def test_a_second_object_asks_only_what_is_missing(server: RerankServer, tmp_path: Path) -> None:
    cache = tmp_path / "folder" / "scores.jsonl"
    server.reset("cohere", Fault(), Fault(), Fault(status=400))
    with pytest.raises(UserError):
        served(server, batch=2, cache=cache).score("q", DOCUMENTS)
    server.reset("cohere")
    again = served(server, batch=2, cache=cache)
    assert again.score("q", DOCUMENTS) == truth("q", DOCUMENTS)
    assert server.documents == DOCUMENTS[4:]
    assert (again.documents_cached, again.documents_asked) == (4, 3)
    # Another model, query, shape or address is another score.
    for other in ({"model": "n"}, {"query": "r"}, {"shape": "vllm", "url": f"{server.url}/v2/rerank"}):
        server.reset("cohere")
        query = other.pop("query", "q")
        assert served(server, cache=cache, **other).score(query, ["document 0"]) == truth(query, ["document 0"])
        assert len(server.asked) == 1


def test_a_changed_answer_is_asked_for_again_and_one_of_before_seals_is_kept(
    server: RerankServer, tmp_path: Path
) -> None:
    cache = tmp_path / "cache.jsonl"
    served(server, cache=cache).score("q", DOCUMENTS)
    rows = [json.loads(line) for line in cache.read_text().splitlines()]
    rows[1]["score"] += 1
    # As earlier versions kept it.
    del rows[2]["seal"]
    cache.write_text("".join(json.dumps(row) + "\n" for row in rows))
    server.reset("cohere")
    again = served(server, cache=cache)
    assert ScoreCache(cache).damaged_lines == 1
    assert again.score("q", DOCUMENTS) == truth("q", DOCUMENTS)
    assert server.documents == DOCUMENTS[1:2]


def test_a_cache_cut_at_any_byte_is_continued(server: RerankServer, tmp_path: Path) -> None:
    whole, cache = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    documents = DOCUMENTS[:3]
    served(server, cache=whole).score("q", documents)
    content = whole.read_bytes()
    ends = [i + 1 for i, byte in enumerate(content) if byte == ord("\n")]
    # A line of which only the end of line is missing is whole.
    for cut in range(len(content) + 1):
        cache.write_bytes(content[:cut])
        kept = sum(cut >= end - 1 for end in ends)
        server.reset("cohere")
        assert served(server, cache=cache).score("q", documents) == truth("q", documents)
        assert server.documents == documents[kept:]
        third = ScoreCache(cache)
        assert third.damaged_lines == (cut not in (0, *ends) and cut + 1 not in ends)
        keys = [score_key(f"{server.url}/v2/rerank", "cohere", "m", "q", d) for d in documents]
        assert [third.find(key) for key in keys] == truth("q", documents)


@pytest.mark.parametrize("content", [b'{"query": "q"}\n', b"id,text\n1,a\n", b"\x00\x01", b"[]\n", b'{"key": 1}'])
def test_a_file_that_is_no_cache_is_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        ServedReranker("http://h", shape="tei", cache=path)
    assert said(error) == f"{path}:1: not a line of a cache of scores: name another file"
    assert path.read_bytes() == content
    with pytest.raises(UserError, match="cannot be used as the cache"):
        ScoreCache(tmp_path)


CHILD = """
import sys
from pathlib import Path
from rankwright.rerankers.served import ServedReranker
reranker = ServedReranker(sys.argv[1], shape="cohere", model="m", batch=1, cache=Path(sys.argv[2]))
for query in ("x", "y", "z"):
    reranker.score(query, [f"document {i}" for i in range(20)])
"""


def test_a_killed_process_is_continued(server: RerankServer, tmp_path: Path) -> None:
    cache = tmp_path / "scores.jsonl"
    server.pause_seconds = 0.01
    child = subprocess.Popen([sys.executable, "-c", CHILD, server.url, str(cache)], env=dict(os.environ))
    try:
        until = time.monotonic() + 60
        while len(server.asked) < 25 and time.monotonic() < until:
            assert child.poll() is None
            time.sleep(0.002)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    time.sleep(0.1)
    before = [(one.body["query"], one.documents[0]) for one in server.asked]
    assert 25 <= len(before) < 60
    server.reset("cohere")
    documents = [f"document {i}" for i in range(20)]
    again = served(server, batch=1, cache=cache)
    assert list(again.score_groups((q, documents) for q in "xyz")) == [truth(q, documents) for q in "xyz"]
    after = [(one.body["query"], one.documents[0]) for one in server.asked]
    # Only the request that was under way may be asked twice: its answer was lost.
    assert len(set(before) & set(after)) <= 1 and set(before) & set(after) <= {before[-1]}
    assert len(set(before) | set(after)) == 60


def test_the_key_is_in_the_header_and_nowhere_else(
    server: RerankServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    monkeypatch.setenv("SOME_KEY", f"{KEY}\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    # requests would otherwise send this one.
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login other password other\n")
    (tmp_path / ".netrc").chmod(0o600)
    # Repeated by the server, and so that the limit of a message falls into the key.
    echo = [Fault(status=401, body=b"x" * n + f" wrong key {KEY}!".encode()) for n in (0, 175)]
    echo += [Fault(status=500, body=KEY.encode()), Fault(body=b"x" * 185 + KEY.encode())]
    server.reset("cohere", Fault(), *echo)
    reranker = served(server, key_variable="SOME_KEY", cache=tmp_path / "scores.jsonl", retries=0)
    assert reranker.score("q", DOCUMENTS) == truth("q", DOCUMENTS)
    messages = [repr(reranker), repr(vars(reranker))]
    for _ in echo:
        with pytest.raises(UserError) as error:
            reranker.score("q", ["new"])
        messages.append(said(error))
    assert "wrong key ***!" in messages[2]
    assert "401" in messages[3] and "check the key" in messages[3]
    assert all(KEY[:5] not in text for text in [*messages, caplog.text])
    assert [one.headers["Authorization"] for one in server.asked] == [f"Bearer {KEY}"] * 5
    assert all(KEY not in json.dumps(one.body) + one.path for one in server.asked)
    assert all(KEY.encode() not in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    served(server).score("q", ["a"])
    assert "Authorization" not in server.asked[-1].headers


@pytest.mark.parametrize("value", [None, "", "  ", "two words-secret", "secret\nX-Other: 1", "sécret"])
def test_a_key_that_is_none(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOME_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("SOME_KEY", value)
    with pytest.raises(UserError) as error:
        ServedReranker("http://h", shape="tei", key_variable="SOME_KEY")
    assert said(error).startswith("key_variable: SOME_KEY ")
    assert "cret" not in said(error)


def test_the_rate_holds_for_retries_too(server: RerankServer) -> None:
    server.reset("cohere", Fault(status=500))
    served(server, batch=2, requests_per_minute=1200, backoff_seconds=0.0).score("q", DOCUMENTS)
    times = [one.at for one in server.asked]
    assert len(times) == 5
    # A request may take a little longer to arrive than the next one; over all of them the pace holds.
    assert times[-1] - times[0] >= 4 * 0.05 - 0.02


# Texts that a server refuses as too long.


@pytest.mark.parametrize("name", sorted(TOO_LONG))
def test_a_document_refused_as_too_long_goes_last_and_is_counted(
    server: RerankServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    documents = ["a", "b" * 50, "c", "d", "e" * 60, "f", "g"]
    good = [d for d in documents if len(d) < 10]
    for cache in (None, tmp_path / "scores.jsonl", tmp_path / "scores.jsonl"):
        server.reset("vllm")
        server.refuses = (10, *TOO_LONG[name])
        reranker = served(server, cache=cache, retries=0)
        reranker.refused_last = True
        scores = dict(zip(documents, reranker.score("q", documents), strict=True))
        assert [scores[d] for d in good] == truth("q", good)
        assert max(scores["b" * 50], scores["e" * 60]) < min(scores[d] for d in good)
        assert reranker.cut == {"documents_refused": 2} and reranker.score("q", ["a"]) == truth("q", ["a"])
        assert capsys.readouterr().out.count("WARNING") == 1
    # Nobody paid for the others again, and what was made up is not kept.
    assert set(server.documents) == {"b" * 50, "e" * 60}
    # Without the attribute, as for a teacher, it stops, and names the option to set.
    server.reset("vllm")
    server.refuses = (10, *TOO_LONG[name])
    with pytest.raises(UserError) as error:
        served(server, batch=1).score("q", documents)
    assert f"answered {TOO_LONG[name][0]}: " in said(error) and "truncate_prompt_tokens" in said(error)
    assert len(server.asked) == 2, "asking again would not make it shorter"


def test_a_query_whose_documents_are_all_refused_ends_the_evaluation(server: RerankServer) -> None:
    server.refuses = (10, *TOO_LONG["vllm"])
    reranker = served(server)
    reranker.refused_last = True
    with pytest.raises(UserError, match="it refuses every document of this query: let the server cut texts"):
        reranker.score("q", ["b" * 50, "e" * 60])
    # Another refusal is about the request, not about a text.
    server.refuses = (10, 400, "model 'm' does not exist")
    with pytest.raises(UserError, match="does not exist"):
        reranker.score("q", ["a", "b" * 50])


def test_refused_documents_are_counted_in_the_facts_of_an_evaluation(server: RerankServer, tmp_path: Path) -> None:
    server.refuses = (10, *TOO_LONG["tei"])
    corpus = {"d0": "a", "d1": "b" * 50, "d2": "c"}
    collection = Collection("set", corpus, {"q0": "x", "q1": "y"}, {})
    lists = {q: [Candidate(d, 1.0, i) for i, d in enumerate(corpus, start=1)] for q in collection.queries}
    options = {"url": server.url, "shape": "cohere"}
    row = Baseline(name="mine", kind="served", model="m", options=options)
    scorer = load_baseline(row, Prompt(), cache=tmp_path / "cache")
    scores = BlockScores(tmp_path / "eval", "inputs", lists, tuple(collection.queries))
    scores.score([0], scorer, collection, rank=0, advance=lambda *_: None, look=lambda: None)
    run, facts = scores.gather()
    assert facts["documents_refused"] == 2
    assert all(min(found, key=found.__getitem__) == "d1" for found in run.values())
    # A teacher's scores are learned from.
    with pytest.raises(UserError, match="answered 413"):
        load_baseline(row, Prompt(), cache=tmp_path / "other", key=TEACHER).score("x", ["b" * 50])


def test_extra_of_a_recipe_is_sent_and_checked(server: RerankServer, tmp_path: Path) -> None:
    def baseline(extra: Any, shape: str = "vllm") -> Baseline:
        options = {"url": server.url, "shape": shape, "extra": extra}
        return Baseline(name="mine", kind="served", model="m", options=options)

    server.reset("vllm")
    extra = {"truncate_prompt_tokens": 224, "nested": {"a": [1, None, "b"]}}
    load_baseline(baseline(extra), Prompt(), cache=tmp_path).score("q", ["a"])
    assert server.asked[0].body == {"model": "m", "query": "q", "documents": ["a"], "top_n": 1, **extra}
    assert baseline_inputs(baseline(extra), Prompt()) != baseline_inputs(baseline({}), Prompt())
    recipe = Recipe(name="r", model=Model(base="b"), data=Data(), evaluate=Evaluate())
    for shape, wrong, part in [
        *(("vllm", {name: "x"}, f"{name!r} is a field that each request has") for name in ("model", "query", "top_n")),
        ("tei", {"texts": []}, "'texts' is a field that each request has"),
        ("voyage", {"top_k": 1}, "'top_k' is a field that each request has"),
        ("vllm", {"day": date(2026, 1, 1)}, "must hold texts, numbers"),
        ("vllm", {"nan": float("nan")}, "must hold texts, numbers"),
        ("vllm", ["a"], "extra: Input should be an object"),
    ]:
        row = baseline(wrong, shape)
        (fault,) = check_baselines(recipe.model_copy(update={"evaluate": Evaluate(baselines=(row,))}))
        assert fault.startswith("evaluate.baselines.0.options: ") and part in fault, fault


# Answers without an end.

GOOD = json.dumps({"results": [{"index": 0, "relevance_score": 0.5}]}).encode()
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


def slowly(content: bytes) -> Iterator[bytes]:
    for place in range(len(content)):
        yield content[place : place + 1]
        time.sleep(0.1)


def endless(length: bool) -> Iterator[bytes]:
    yield HEAD + (b"Content-Length: 1000000000000\r\n\r\n" if length else b"Transfer-Encoding: chunked\r\n\r\n")
    piece = b" " * 2**16
    while True:
        yield piece if length else b"10000\r\n" + piece + b"\r\n"


def gzip_bomb() -> Iterator[bytes]:
    """256 MiB of blanks in 256 KiB."""
    content = zlib.compressobj(9, wbits=31)
    blanks = content.compress(b" " * 2**26)
    packed = blanks + b"".join(content.compress(b" " * 2**26) for _ in range(3)) + content.flush()
    yield HEAD + f"Content-Encoding: gzip\r\nContent-Length: {len(packed)}\r\n\r\n".encode() + packed


ENDLESS: dict[str, tuple[Any, str]] = {
    "slow body": (lambda: chain([HEAD + b"Content-Length: 600\r\n\r\n"], slowly(b" " * 600)), "no answer within 0.5 s"),
    "slow chunks": (
        lambda: chain([HEAD + b"Transfer-Encoding: chunked\r\n\r\n"], slowly(b"1\r\n \r\n" * 100)),
        "no answer within 0.5 s",
    ),
    "slow head": (lambda: slowly(HEAD * 10), "no answer within 0.5 s"),
    "slow error": (
        lambda: chain([b"HTTP/1.1 400 Bad\r\nContent-Length: 600\r\n\r\n"], slowly(b" " * 600)),
        "no answer within 0.5 s",
    ),
    "endless body": (lambda: endless(True), "answered more than 1 MiB for 1 document"),
    "endless chunks": (lambda: endless(False), "answered more than 1 MiB for 1 document"),
    "gzip bomb": (gzip_bomb, "answered more than 1 MiB for 1 document"),
    "endless error": (
        lambda: chain([b"HTTP/1.1 400 Bad\r\nContent-Length: 1000000000000\r\n\r\n"], repeat(b"no " * 2**14)),
        "answered 400: 'no no",
    ),
}


@pytest.mark.parametrize("name", sorted(ENDLESS))
def test_an_answer_is_bounded_in_time_and_size(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(transport, "LEAST_ANSWER_BYTES", 2**20)
    pieces, wanted = ENDLESS[name]
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection, contextlib.suppress(OSError):
                connection.recv(2**16)
                for piece in pieces():
                    connection.sendall(piece)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        started = time.monotonic()
        with pytest.raises(UserError) as error:
            url = f"http://127.0.0.1:{listening.getsockname()[1]}"
            seconds = 0.5 if name.startswith("slow") else 30.0
            reranker_of(url, shape="cohere", retries=0, timeout_seconds=seconds).score("q", ["a"])
        assert wanted in said(error)
        # Its bodies would take a minute, or forever.
        assert time.monotonic() - started < 20
        thread.join(10)
        assert not thread.is_alive(), "the connection was given up"


def test_a_slow_answer_that_ends_in_time_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(2**16)
                connection.sendall(HEAD + f"Content-Length: {len(GOOD)}\r\n\r\n".encode() + GOOD[:20])
                time.sleep(0.3)
                connection.sendall(GOOD[20:])

        threading.Thread(target=serve, daemon=True).start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        assert reranker_of(url, shape="cohere", retries=0, timeout_seconds=30.0).score("q", ["a"]) == [0.5]

"""The judge stage through the whole: what is asked, what is made of it, kills, threads, training, the report."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jobs
import pytest
from judge_server import JudgeServer, running_judge, uniform, word_judge
from rerank_server import Fault
from typer.testing import CliRunner

from rankwright.cli.main import app
from rankwright.common.errors import UserError, UserErrors
from rankwright.common.lineage import lineage
from rankwright.common.run_folder import RunFolder
from rankwright.data.formats.read import read_collection
from rankwright.data.split_files import read_split
from rankwright.evaluation.teacher_gate import recorded_verdict
from rankwright.pipeline.checks import check_names
from rankwright.pipeline.judge import bill
from rankwright.pipeline.overview import preview
from rankwright.pipeline.stages import Pipeline
from rankwright.recipe.loading import load_recipe
from rankwright.rerankers.pair_scores import read_teacher_scores

FILES = ("judge/answers.jsonl", "judge/pairs.jsonl", "judge/scores.jsonl", "judge/report.json", "teacher.jsonl")
NOISE, BIAS = 0.3, 0.8


@pytest.fixture(scope="module")
def one_server() -> Iterator[JudgeServer]:
    with running_judge(word_judge(NOISE, BIAS)) as server:
        yield server


@pytest.fixture
def server(one_server: JudgeServer, monkeypatch: pytest.MonkeyPatch) -> JudgeServer:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    one_server.reset(word_judge(NOISE, BIAS))
    return one_server


def recipe(folder: Path, base: Path, server: JudgeServer, loss: str = "kl_distil", **pairs: Any) -> Path:
    judge = {"name": "local", "url": server.url, "model": "m"}
    section = {"judges": [judge], "queries": 12, "depth": 8, **pairs}
    return jobs.job(folder, base, teacher={"pairs": section}, loss={"name": loss})


def judged(path: Path, *overrides: str) -> Pipeline:
    pipeline = Pipeline(load_recipe(str(path), overrides), progress=False)
    pipeline.judge()
    return pipeline


def files(run: Path) -> dict[str, bytes]:
    return {name: (run / name).read_bytes() for name in FILES}


def different(run: Path, whole: dict[str, bytes]) -> list[str]:
    """The files that have other bytes; a comparison of the bytes themselves would be explained for minutes."""
    found = files(run)
    return [name for name in FILES if found[name] != whole[name]]


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_scores_are_made_of_what_the_judge_prefers(server: JudgeServer, tmp_path: Path, tiny_qwen3: Path) -> None:
    path = recipe(tmp_path, tiny_qwen3, server, queries=30)
    run = judged(path).folder
    report = json.loads(run.judge_report.read_text())
    asked = len(server.asked)
    (judge,) = report["judges"]
    assert judge["calls"] == judge["answers"] == report["calls"] == asked == sum(report["rounds"])
    # Two calls for each candidate: one cycle, then half of the candidates at a time.
    assert report["rounds"][0] == report["documents"] and asked == 2 * report["documents"]
    assert abs(judge["bias"] - BIAS) <= 0.25 and judge["bias_sd"] < 0.2
    # The truth: the words that query and document share.
    train = {f"one/{q}": (c, q) for c in read_split(run.data, "train") for q in c.queries}
    scores = read_teacher_scores(run.teacher_scores)
    made = rows(run.judge_scores)
    assert {(row["query_id"], row["document_id"]) for row in made} <= {(q, d) for q in scores for d in scores[q]}
    right = pairs = 0
    for query_id, own in scores.items():
        collection, plain = train[query_id]
        words = set(collection.queries[plain].split())
        shared = {d: len(words & set(collection.corpus[d.removeprefix("one/")].split())) for d in own}
        for a in own:
            for b in own:
                if shared[a] > shared[b]:
                    pairs += 1
                    right += own[a] > own[b]
    assert pairs > 100 and right > 0.97 * pairs
    assert report["against_people"]["queries"] == 27 and report["against_people"]["scores"] > 0.85
    assert report["triples"]["share"] < 0.1
    assert all(row["sd"] > 0 and row["calls"] >= 2 for row in made)
    # No text of dev or test was shown as a query.
    held = {text for split in ("dev", "test") for c in read_split(run.data, split) for text in c.queries.values()}
    assert not held & {prompt.split("Query: ")[1].split("\n")[0] for prompt, _, _ in server.asked}
    # Asked in both orders: of half of the pairs the better document came first.
    observed = rows(run.judge_pairs)
    assert len(observed) == asked and 0.4 < sum(row["t"] > 0.5 for row in observed) / asked < 0.8

    assert judged(path).folder.facts("judge")["calls"] == asked and len(server.asked) == asked, "skipped"
    before = files(run.path)
    for name in ("scores.jsonl", "pairs.jsonl"):
        (run.path / "judge" / name).unlink()
    judged(path)
    assert len(server.asked) == asked and different(run.path, before) == [], "made again of what is kept"


def test_threads_failures_and_kills_leave_the_same_bytes(server: JudgeServer, tmp_path: Path, tiny_qwen3: Path) -> None:
    path = recipe(tmp_path, tiny_qwen3, server, queries=6, parallel=1)
    whole = files(judged(path).folder.path)
    calls = len(server.asked)
    server.reset(word_judge(NOISE, BIAS))
    server.faults = [Fault(status=500, body=b"x"), Fault(hang_up=True)]
    server.pause_seconds = 0.02
    eight = judged(path, f"run_dir={tmp_path / 'eight'}", "teacher.pairs.parallel=8")
    assert different(eight.folder.path, whole) == [] and server.most_at_once > 2 and len(server.asked) == calls + 2
    # Killed while it asks, twice, and continued.
    server.pause_seconds = 0.05
    run = tmp_path / "killed"
    command = [sys.executable, "-m", "rankwright", "judge", str(path), f"run_dir={run}"]
    answers = run / "judge" / "answers.jsonl"
    for least in (5, 25):
        child = subprocess.Popen(
            command, env=jobs.environment(NO_PROXY="127.0.0.1"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while child.poll() is None and not (answers.exists() and answers.read_bytes().count(b"\n") >= least):
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
    left = answers.read_bytes()
    assert 25 <= left.count(b"\n") < calls and whole["judge/answers.jsonl"].startswith(left)
    # What a kill in the middle of a row would leave.
    answers.write_bytes(left + whole["judge/answers.jsonl"][len(left) :][:30])
    server.reset(word_judge(NOISE, BIAS))
    judged(path, f"run_dir={run}")
    assert different(run, whole) == [] and len(server.asked) == calls - left.count(b"\n")


def test_two_judges_a_budget_and_a_text_that_stands_twice(
    server: JudgeServer, tmp_path: Path, tiny_qwen3: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prices = {"input": 1.0, "output": 2.0}
    both = [
        {"name": "local", "url": server.url, "model": "m", "price_per_million": dict(prices)},
        {
            "name": "words",
            "url": f"{server.url}/v1",
            "model": "n",
            "logprobs": False,
            "price_per_million": dict(prices),
            "weight": 0.5,
        },
    ]
    path = recipe(tmp_path, tiny_qwen3, server, queries=6, judges=both)
    corpus = tmp_path / "sets" / "one" / "corpus.jsonl"
    twins = [{**row, "_id": f"again-{row['_id']}"} for row in rows(corpus)]
    corpus.write_text(corpus.read_text() + "".join(json.dumps(row) + "\n" for row in twins))
    queries = corpus.with_name("queries.jsonl")
    first = rows(queries)[0]
    run = Pipeline(load_recipe(str(path), [])).run_to("judge").folder
    said = capsys.readouterr().out
    assert "documents with the text of another one of the list: judged once" in said
    report = json.loads(run.judge_report.read_text())
    assert [judge["name"] for judge in report["judges"]] == ["local", "words"] and report["equal_texts"] > 0
    (agreement,) = report["agreement"]
    assert agreement["pairs"] > 20 and agreement["share"] > 0.8
    # Every pair went to both, shown in the other order.
    seen = rows(run.judge_pairs)
    orders = [
        {(row["query_id"], row["first"], row["second"], row["round"]) for row in seen if row["judge"] == name}
        for name in ("local", "words")
    ]
    assert {(q, b, a, n) for q, a, b, n in orders[0]} == orders[1]
    scores = read_teacher_scores(run.teacher_scores)
    texts = {row["_id"]: row["text"] for row in rows(corpus)}
    for own in scores.values():
        by_text: dict[str, set[float]] = {}
        for document, score in own.items():
            by_text.setdefault(texts[document.removeprefix("one/")], set()).add(score)
        assert all(len(values) == 1 for values in by_text.values()) and len(by_text) < len(own)
    assert report["money"] == pytest.approx(
        sum((j["prompt_tokens"] + 2 * j["answer_tokens"]) / 1e6 for j in report["judges"])
    )
    estimate = bill(load_recipe(str(path), []).recipe, run)
    assert estimate.money is not None and estimate.tokens is not None and estimate.calls >= report["calls"]
    assert 0.5 < estimate.money / estimate.calls * report["calls"] / report["money"] < 2
    assert first["text"]

    # A budget that ends in the second round: the scores of the first one stand, and this is said.
    money = 0.6 * report["money"]
    short = judged(path, f"run_dir={tmp_path / 'short'}", f"teacher.pairs.budget.money={money}").folder
    cut = json.loads(short.judge_report.read_text())
    assert cut["money"] <= money and cut["ended_by"].startswith("teacher.pairs.budget.money: ")
    assert cut["queries"] == report["queries"] and cut["calls"] < report["calls"]
    with pytest.raises(UserError, match=r"budget\.tokens: .* no query has had its first round: raise it"):
        judged(path, f"run_dir={tmp_path / 'none'}", "teacher.pairs.budget.tokens=1000")


def test_scores_are_trained_on_and_reported(server: JudgeServer, tmp_path: Path, tiny_qwen3: Path) -> None:
    path = recipe(tmp_path, tiny_qwen3, server, queries=10)
    dry = CliRunner().invoke(app, ["judge", str(path), "--dry-run"]).output
    # Ten queries, and fifty of dev if it has so many.
    assert "judge: at most 960 calls, tokens unknown before the data is read" in dry
    checked = CliRunner().invoke(app, ["check", str(path)]).output
    assert "judge: at most 160 calls, about " in checked and not server.asked
    assert "judge" in checked.split("licences")[1], "the ledger lists the judge"
    done = jobs.rankwright("run", path, "export.targets=[]", NO_PROXY="127.0.0.1")
    assert done.returncode == 0, done.stderr
    run = RunFolder(tmp_path / "run")
    mix = json.loads(run.mix.read_text())
    assert mix["sets"][0]["queries"] == 10, "only queries with scores teach"
    page = run.report.read_text()
    for text in ('id="judging"', "wins shown first", "of the ten best documents", "longer by a factor from", ">local<"):
        assert text in page, text
    losses = [row["loss"] for row in jobs.metrics(run.path) if "loss" in row]
    assert losses and all(loss > 0 for loss in losses)
    ledger = {row["input"]: row for row in json.loads(run.licences.read_text())["inputs"]}
    assert (
        ledger["m"]["kind"] == "judge" and ledger["m"]["use"] == ["distil"] and ledger["m"]["commercial"] == "unknown"
    )
    assert "state the terms of its outputs as licence of the judge local" in ledger["m"]["stated_by"]
    # The scores are what training depends on.
    assert lineage(run).stale == {}
    judged(path, "export.targets=[]", "teacher.pairs.fit.ridge=1.0")
    (line,) = lineage(run).lines
    assert line.startswith("Pairs were judged again (20") and "training" in line and line in run.report.read_text()
    judged(path, "export.targets=[]")
    assert lineage(run).stale == {}, "the same scores again"
    again = Pipeline(load_recipe(str(path), ["export.targets=[]"]), progress=False)
    other = Pipeline(load_recipe(str(path), ["export.targets=[]", "teacher.pairs.fit.ridge=1.0"]), progress=False)
    assert again.inputs.train != other.inputs.train and again.inputs.mine == other.inputs.mine
    same = Pipeline(load_recipe(str(path), ["teacher.pairs.parallel=3"]), progress=False)
    assert again.inputs.judge == same.inputs.judge
    states = {one.name: one.state for one in preview(again)}
    assert states["judge"] == "done" == states["train"]


WRONG = {
    "money without a price": (
        ["teacher.pairs.budget.money=5"],
        r"judges\.0\.price_per_million: missing, and budget\.money",
    ),
    "less than a cycle": (
        ["teacher.pairs.budget.calls_per_query=7"],
        r"calls_per_query: 7 are less .* at least 8 \(depth 8 x 1",
    ),
    "fewer calls than cycles": (
        ["teacher.pairs.budget.calls=95"],
        r"budget\.calls: 95 are less .* at least 96 .* fewer queries",
    ),
    "a loss that does not learn": (
        ["loss.name=bce"],
        r"teacher\.pairs: no loss learns from the scores: take one of .*kl_distil",
    ),
    "an address": (["teacher.pairs.judges.0.url=ftp://x"], r"teacher\.pairs\.judges\.0\.url: not an address"),
    "no key": (["teacher.pairs.judges.0.key_variable=NO_SUCH"], r"judges\.0\.key_variable: NO_SUCH is not set"),
    "own fields": (["teacher.pairs.judges.0.extra={messages: []}"], r"judges\.0\.extra: 'messages' is a field"),
    "no such baseline": (
        ["teacher.pairs.fit.prior=baseline:big"],
        r"teacher\.pairs\.fit\.prior: unknown baseline 'big' \(known: none\): add it to evaluate\.baselines",
    ),
    "a design": (
        ["teacher.pairs.design={top_haevy: {}}"],
        r"teacher\.pairs\.design: unknown design 'top_haevy', did you",
    ),
    "an option": (
        ["teacher.pairs.design={cycles: {count: 0}}"],
        r"teacher\.pairs\.design: count: must be from 1 to 100",
    ),
    "two teachers": (
        ["mine.teacher={name: t, kind: served, model: m, options: {url: 'http://h', shape: jina}}"],
        r"teacher\.pairs: mine\.teacher gives scores too",
    ),
    "one judge twice": (
        ["teacher.pairs.judges=[{name: a, url: 'http://h', model: m}, {name: a, url: 'http://i', model: m}]"],
        r"judges\.1\.name: 'a' is also that of judges\.0(.|\n)*judges\.1\.model: 'm' is also",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_mistakes_are_found_by_check(server: JudgeServer, tmp_path: Path, name: str) -> None:
    overrides, expected = WRONG[name]
    path = recipe(tmp_path, Path("fixtures/tiny-base"), server)
    assert check_names(load_recipe(str(path), []).recipe) == []
    with pytest.raises(UserErrors, match=expected):
        raise UserErrors(check_names(load_recipe(str(path), overrides).recipe))
    assert not server.asked


def unlabelled(folder: Path, split: str) -> Path:
    """Take the judgements away from a set: its queries stand in a file of their own split."""
    (folder / "queries.jsonl").rename(folder / f"queries_{split}.jsonl")
    (folder / "qrels" / f"{split}.tsv").unlink()
    (folder / "qrels").rmdir()
    (folder / f"qrels_{split}.tsv").write_text("query-id\tcorpus-id\tscore\n")
    return folder


def test_queries_without_any_label_are_judged(server: JudgeServer, tmp_path: Path, tiny_qwen3: Path) -> None:
    dev = jobs.write_set(tmp_path / "asked", "dev", first=80, queries=8)
    path = recipe(tmp_path / "job", tiny_qwen3, server, queries=6)
    unlabelled(path.parent / "sets" / "one", "train")
    bare = unlabelled(jobs.write_set(tmp_path / "bare", "test", first=90, queries=5), "test")
    overrides = [f"data.dev=[{{path: {dev}, split: dev}}]"]
    run = judged(path, *overrides).folder
    said: list[str] = []
    read_collection(path.parent / "sets" / "one", name="one", split="train", say=said.append)
    assert any("no judgements: only a teacher or judges can train with its 30 queries" in line for line in said)
    judged_queries = {row["query_id"] for row in rows(run.judge_scores)}
    assert len(judged_queries) == 6 and judged_queries <= {f"one/q{n}" for n in range(30)}
    # Labels are needed without judges, by losses of labels, and to measure.
    for others, words in (
        (["teacher.pairs=null", "loss.name=listwise_softmax"], "data.train: no query has a relevant document"),
        ([f"data.test=[{{path: {bare}, split: test}}]"], "data.test: bare: no judgements"),
    ):
        with pytest.raises(UserError, match=words):
            Pipeline(
                load_recipe(str(path), [*overrides, *others, f"run_dir={tmp_path / 'other'}"]), progress=False
            ).run_to("data")


def test_without_the_section_there_is_no_such_stage(tmp_path: Path, tiny_qwen3: Path) -> None:
    path = jobs.job(tmp_path, tiny_qwen3)
    done = jobs.rankwright("judge", path)
    assert done.returncode == 2 and "error: teacher.pairs: the recipe has no judges" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_judge_that_fails_keeps_what_was_answered(server: JudgeServer, tmp_path: Path, tiny_qwen3: Path) -> None:
    path = recipe(tmp_path, tiny_qwen3, server, queries=5, parallel=2)
    server.answer = lambda query, first, second: None
    done = jobs.rankwright("judge", path, NO_PROXY="127.0.0.1")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert (
        "error: judge local: 20 of 20 calls gave no A or B, such as 'Both passages have their merits.'" in done.stderr
    )
    server.reset(word_judge(NOISE, BIAS))
    server.faults = [*[Fault()] * 10, Fault(status=401, body=b"no")]
    shutil.rmtree(tmp_path / "run" / "judge")
    done = jobs.rankwright("judge", path, NO_PROXY="127.0.0.1")
    assert done.returncode == 2 and "answered 401: 'no': give key_variable" in done.stderr
    kept = (tmp_path / "run" / "judge" / "answers.jsonl").read_text().count("\n")
    assert 6 <= kept <= 12 and f"{kept} answers kept in" in done.stderr
    before = len(server.asked)
    assert judged(path).folder.facts("judge")["calls"] - kept == len(server.asked) - before


def test_failures_shift_no_vote(server: JudgeServer, tmp_path: Path, tiny_qwen3: Path) -> None:
    path = recipe(tmp_path, tiny_qwen3, server, queries=10)
    whole = read_teacher_scores(judged(path).folder.teacher_scores)
    words = word_judge(NOISE, BIAS)
    server.answer = lambda q, a, b: None if uniform("fails", q, a, b) < 0.1 else words(q, a, b)
    run = judged(path, f"run_dir={tmp_path / 'failing'}").folder
    scores, report = read_teacher_scores(run.teacher_scores), json.loads(run.judge_report.read_text())
    (judge,) = report["judges"]
    assert 0.04 < judge["malformed"] / judge["calls"] < 0.2
    differences = [scores[q][d] - whole[q][d] for q in whole for d in whole[q]]
    spread = [whole[q][d] for q in whole for d in whole[q]]
    sd = (sum(x * x for x in spread) / len(spread)) ** 0.5
    assert abs(sum(differences) / len(differences)) < 0.05 * sd
    assert all(row["t"] is None or 0 <= row["t"] <= 1 for row in rows(run.judge_pairs))


def test_judges_that_order_dev_no_better_than_the_base_are_refused_before_the_bill(
    server: JudgeServer, tmp_path: Path, tiny_qwen3: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANKWRIGHT_CACHE", str(tmp_path / "cache"))
    path = jobs.job(
        tmp_path,
        tiny_qwen3,
        data={"dev": [{"path": "dev", "split": "dev"}]},
        teacher={"pairs": {"judges": [{"name": "local", "url": server.url, "model": "m"}], "queries": 12, "depth": 8}},
        loss={"name": "kl_distil"},
    )
    jobs.write_set(tmp_path / "sets" / "dev", "dev", first=200, queries=60, numbered=True)
    # The documents with the fewest words of the query win.
    good = word_judge(NOISE, BIAS)
    server.answer = lambda query, first, second: 1 - (good(query, first, second) or 0)
    with pytest.raises(UserError, match=r"teacher\.pairs: The teacher local orders dev worse .*--override 'why'"):
        judged(path)
    run = RunFolder(tmp_path / "run")
    dev = {text for c in read_split(run.data, "dev") for text in c.queries.values()}

    def shown() -> list[str]:
        return [prompt.split("Query: ")[1].split("\n")[0] for prompt, _, _ in server.asked]

    # Fifty queries of dev, and no training query.
    assert len(set(shown())) == 50 and set(shown()) <= dev and not run.judge_scores.exists()
    refused = recorded_verdict(run)
    assert refused is not None and (refused["verdict"], refused["queries"]) == ("refused", 50)
    first = len(server.asked)
    pipeline = Pipeline(load_recipe(str(path)), override="only a test", progress=False)
    pipeline.judge()
    assert not set(shown()[first:]) & dev and len(rows(run.judge_pairs)) == len(server.asked) - first
    overridden = recorded_verdict(run)
    assert overridden is not None and overridden["override"] == "only a test"
    # The reason stays; nothing is asked again.
    run.judge_scores.unlink()
    asked = len(server.asked)
    judged(path)
    assert len(server.asked) == asked and (recorded_verdict(run) or {})["override"] == "only a test"
    # Another judge is another verdict.
    server.answer = good
    accepted = judged(path, "teacher.pairs.judges.0.model=better")
    assert accepted.folder.facts("judge")["verdict"] == "accepted"
    assert (recorded_verdict(run) or {})["override"] is None

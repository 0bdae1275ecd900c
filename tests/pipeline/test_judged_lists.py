"""What is judged: which training queries, which documents, and the reranker that the fit starts from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from judge_server import Answer, JudgeServer, running_judge, word_judge
from rerank_server import running_server
from scipy.special import expit
from test_judge_stage import BIAS, NOISE, different, files, judged, recipe, rows

from rankwright.common.errors import UserError
from rankwright.common.run_folder import RunFolder
from rankwright.data.split_files import read_split
from rankwright.pipeline.judged_lists import Chosen, chosen_queries
from rankwright.pipeline.stages import Pipeline
from rankwright.recipe.loading import load_recipe
from rankwright.rerankers.reranker import Reranker
from rankwright.supervision.preferences.fit import standardised
from rankwright.training.setup import base_reranker


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[JudgeServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with running_judge(word_judge(NOISE, BIAS)) as one:
        yield one


def test_a_test_query_is_refused_and_one_of_dev_left_out(
    server: JudgeServer, tmp_path: Path, tiny_qwen3: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe(tmp_path, tiny_qwen3, server, queries=100)
    pipeline = Pipeline(load_recipe(str(path), []))
    pipeline.mine()
    train, dev, test = (pipeline.folder.split(name) for name in ("train", "dev", "test"))
    row = rows(train)[0]
    whole = train.read_text()

    def with_query(text: str) -> None:
        """As a file would be that somebody has changed, which keeps its time and size to the stages before."""
        train.write_text(whole + json.dumps({**row, "query_id": "planted", "query": text}) + "\n")

    def chosen_now() -> Chosen:
        assert pipeline.recipe.pairs is not None
        return chosen_queries(pipeline.recipe, pipeline.recipe.pairs, pipeline.folder)

    with_query(f"  {rows(dev)[0]['query'].upper()} ")
    chosen = chosen_now()
    assert "1 training query left out: they are dev queries too" in capsys.readouterr().out
    count = sum(len(c.queries) for c in chosen.collections)
    assert "one/planted" not in {q for c in chosen.collections for q in c.queries}
    with_query(row["query"])
    again = chosen_now()
    assert sum(len(c.queries) for c in again.collections) == count
    assert (chosen.left_out, again.left_out) == (
        {"equal": 0, "near": 0, "in_dev": 1},
        {"equal": 1, "near": 0, "in_dev": 0},
    )
    assert "have the text of another one" in capsys.readouterr().out
    with_query(rows(test)[0]["query"])
    with pytest.raises(
        UserError, match=r"teacher\.pairs: training query one/planted is a test query too: judges must not"
    ):
        chosen_now()


def test_one_of_several_nearly_equal_queries_is_judged(
    server: JudgeServer, tmp_path: Path, tiny_qwen3: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe(tmp_path, tiny_qwen3, server)
    pipeline = Pipeline(load_recipe(str(path), []), progress=False)
    pipeline.data()
    split = pipeline.folder.split("train")
    plain = rows(split)
    # Without articles and marks they are the same questions.
    copies = [{**row, "query_id": f"again-{row['query_id']}", "query": f"The {row['query']}?"} for row in plain]
    split.write_text("".join(json.dumps(row) + "\n" for row in [*plain, *copies]))

    def ids(*overrides: str) -> tuple[list[str], Chosen]:
        loaded = load_recipe(str(path), overrides).recipe
        assert loaded.pairs is not None
        chosen = chosen_queries(loaded, loaded.pairs, pipeline.folder)
        return [q.removeprefix("one/").removeprefix("again-") for c in chosen.collections for q in c.queries], chosen

    asked, chosen = ids("teacher.pairs.queries=10")
    near = chosen.left_out["near"]
    assert len(asked) == len(set(asked)) == 10 and near > 0
    assert f"{near} training quer" in (said := capsys.readouterr().out) and "left out: they are nearly equal" in said
    assert ids("teacher.pairs.queries=10")[0] == asked, "by seed alone"
    # All of them, whichever of the two comes first; without the key each query counts.
    every, chosen = ids("teacher.pairs.queries=1000")
    assert sorted(every) == sorted(row["query_id"] for row in plain) and chosen.left_out["near"] == len(plain)
    both, chosen = ids("teacher.pairs.queries=1000", "teacher.pairs.skip_near_duplicates=false")
    assert len(both) == 2 * len(plain) and chosen.left_out["near"] == 0
    # A query more changes none of those before it.
    assert set(ids("teacher.pairs.queries=9")[0]) < set(asked)


def agreeing(base: Reranker, run: RunFolder) -> Answer:
    """A judge that prefers what a reranker scores higher, by its standardised scores of the training set."""
    (train,) = read_split(run.data, "train")
    texts = list(train.corpus.values())
    known: dict[tuple[str, str], float] = {}
    for query in train.queries.values():
        known |= {(query, text): z for text, z in zip(texts, standardised(base.score(query, texts)), strict=True)}
    return lambda query, first, second: float(expit(3 * (known[query, first] - known[query, second]) + BIAS))


def test_the_fit_starts_from_a_reranker_where_it_knows_something(
    server: JudgeServer,
    tmp_path: Path,
    tiny_qwen3: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("RANKWRIGHT_CACHE", str(tmp_path / "cache"))
    path = recipe(tmp_path, tiny_qwen3, server, queries=30, fit={"prior": "base"})
    run = Pipeline(load_recipe(str(path))).run_to("judge").folder
    report = json.loads(run.judge_report.read_text())
    # The base is random.
    assert (report["prior"], report["prior_weight"]) == ("base", 0.0)
    assert capsys.readouterr().out.count("base: loading ") == 1
    whole, asked = files(run.path), len(server.asked)
    # What it scored is kept: another folder gives the same bytes without its weights.
    again = tmp_path / "again"
    shutil.copytree(run.path / "judge", again / "judge")
    Pipeline(load_recipe(str(path), [f"run_dir={again}"])).run_to("judge")
    assert "base: loading" not in capsys.readouterr().out
    assert different(again, whole) == [] and len(server.asked) == asked
    # A base that the judge agrees with counts.
    server.answer = agreeing(base_reranker(load_recipe(str(path)).recipe), run)
    agreed = judged(path, f"run_dir={tmp_path / 'agreed'}", "teacher.pairs.judges.0.model=other").folder
    found = json.loads(agreed.judge_report.read_text())
    assert found["prior_weight"] >= 0.5 and found["prior_evidence"]["1"] > found["prior_evidence"]["0"] + 10
    # So does a row of the table.
    server.answer = word_judge(NOISE, BIAS)
    with running_server() as reranker:
        reranker.reset("tei")
        reranker.score = lambda query, document: float(len({*query.split()} & {*document.split()}))
        row = {"name": "words", "kind": "served", "model": "w", "options": {"url": reranker.url, "shape": "tei"}}
        baseline = [f"evaluate.baselines=[{json.dumps(row)}]", "teacher.pairs.fit.prior=baseline:words"]
        useful = judged(path, f"run_dir={tmp_path / 'useful'}", *baseline).folder
        scored = reranker.asked
        found = json.loads(useful.judge_report.read_text())
        assert found["prior"] == "baseline:words" and found["prior_weight"] >= 0.5 and scored
        assert found["prior_evidence"]["1"] > found["prior_evidence"]["0"] + 10
        ledger = {one["input"]: one for one in json.loads(useful.licences.read_text())["inputs"]}
        assert ledger["w"]["use"] == ["distil", "evaluate"]

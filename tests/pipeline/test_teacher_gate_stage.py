"""The teacher stage on real runs: accepted, refused, overridden, not judged; continued, and stale after a change."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jobs
import pytest
import torch
import yaml
from rerank_server import RerankServer, running_server
from tiny_encoder import make_tiny_cross_encoder

from rankwright.common.errors import UserError
from rankwright.common.lineage import lineage
from rankwright.common.run_folder import RunFolder
from rankwright.data.split_files import qualified, read_split
from rankwright.evaluation.gate import GateRefused
from rankwright.evaluation.teacher_gate import TeacherRefused, recorded_verdict
from rankwright.pipeline.overview import summary
from rankwright.pipeline.stages import Pipeline
from rankwright.pipeline.train import base_scores, dev_queries
from rankwright.recipe.loading import load_recipe
from rankwright.report.page import write_report
from rankwright.rerankers.reranker import Reranker
from rankwright.rerankers.scorer import rerank
from rankwright.retrieval.candidates import read_candidates
from rankwright.training.setup import BaseScorer, build_trainable, recipe_prompt

TWO = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def shared_words(query: str, document: str) -> float:
    """What a good teacher knows here: a query's words are those of its document."""
    return float(len({*query.split()} & {*document.split()}))


def no_shared_words(query: str, document: str) -> float:
    return -shared_words(query, document)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RerankServer]:
    """A teacher of known quality; kept scores are in a folder of the test."""
    monkeypatch.setenv("RANKWRIGHT_CACHE", str(tmp_path / "cache"))
    with running_server() as found:
        found.reset("tei")
        found.score = shared_words
        yield found


def job(folder: Path, base: Path, teacher: dict[str, Any], *, queries: int = 60, **sections: Any) -> Path:
    """A job with so many dev queries; its teacher is trained from."""
    mine = {"teacher": {"name": "big", **teacher}}
    loss = {"plus": [{"name": "kl_distil", "weight": 0.5}]}
    recipe = jobs.job(folder, base, mine=mine, loss=loss, data={"dev": [{"path": "dev", "split": "dev"}]}, **sections)
    jobs.write_set(folder / "sets" / "dev", "dev", first=200, queries=queries, numbered=True)
    return recipe


def served(server: RerankServer) -> dict[str, Any]:
    return {"kind": "served", "model": "m", "options": {"url": server.url, "shape": "tei"}}


def pipeline(recipe: Path, *changes: str, override: str | None = None) -> Pipeline:
    return Pipeline(load_recipe(str(recipe), changes), override=override)


def verdict(run: Path) -> dict[str, Any]:
    found = recorded_verdict(RunFolder(run))
    assert found is not None
    return found


def test_a_good_teacher_passes_and_the_base_is_scored_once(
    server: RerankServer, tmp_path: Path, tiny_qwen3: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = job(tmp_path / "job", tiny_qwen3, served(server))
    run = pipeline(recipe)
    run.run_to("teacher")
    folder, shown = run.folder, capsys.readouterr().out
    found = verdict(folder.path)
    assert found["verdict"] == "accepted" and found["queries"] == 60 and found["override"] is None
    teacher, prior, base = found["rows"]
    assert (teacher["system"], prior["system"], base["system"]) == ("big", "BM25", "base")
    assert teacher["value"] > 0.9 > base["value"] and teacher["difference"]["low"] > 0
    assert "orders dev better than the base" in shown and f"{teacher['value']:.3f} [" in shown
    # Only dev was asked for: before anything is mined or paid for.
    assert not folder.negatives.exists() and 60 < len(server.documents) <= 60 * 8
    # Mining goes on from the lists of dev, and training takes the scores of the base that are there.
    asked = len(server.documents)
    facts = run.train()
    shown = capsys.readouterr().out
    assert shown.count("base: loading") == 0 and len(server.documents) > asked
    assert facts["base_value"] == pytest.approx(base["value"], abs=1e-9)
    assert lineage(folder).stale == {}
    page = write_report(folder.path).read_text(encoding="utf-8")
    assert 'id="teacher-table"' in page and found["sentence"] in page and "REFUSED" not in page


def test_what_training_takes_of_the_base_is_what_it_would_score(
    server: RerankServer, tmp_path: Path, tiny_qwen3: Path
) -> None:
    recipe_file = job(tmp_path / "job", tiny_qwen3, served(server))
    run = pipeline(recipe_file)
    run.run_to("mine")
    recipe, folder = run.recipe, run.folder
    base, tokenizer, contract = recipe_prompt(recipe)
    reranker = Reranker(build_trainable(recipe, base, tokenizer, contract).eval(), tokenizer, contract)
    known = base_scores(recipe, folder, reranker, run.inputs.base)
    assert known is not None
    ((collection, query_ids),) = dev_queries(recipe, [qualified(c) for c in read_split(folder.data, "dev")])
    with torch.no_grad():
        scored = rerank(reranker, collection, read_candidates(folder.dev_candidates), query_ids, lambda *_: None)
    assert known.keys() == scored.keys() and len(scored) == 60
    for query_id, scores in scored.items():
        assert known[query_id] == pytest.approx(scores, abs=1e-5)
    # Another prompt than the base's own gives other scores.
    other = contract.replace(prefix=contract.prefix + " ")
    assert base_scores(recipe, folder, Reranker(reranker.model, tokenizer, other), run.inputs.base) is None
    # What is not known of a base is scored with the model that is loaded, and kept for other runs from that base.
    again = base_scores(recipe, folder, reranker, "another")
    assert again is not None and again.keys() == known.keys()
    for query_id, scores in again.items():
        assert scores == pytest.approx(known[query_id], abs=1e-6)
    wanted = {q: list(known[q]) for q in query_ids}
    assert BaseScorer(recipe, "another").knows(collection, wanted)
    assert not BaseScorer(recipe, "a third").knows(collection, wanted)


def test_a_bad_teacher_is_refused_before_anything_is_mined_and_an_override_is_kept(
    server: RerankServer, tmp_path: Path, tiny_qwen3: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.score = no_shared_words
    recipe = job(tmp_path / "job", tiny_qwen3, served(server))
    run = tmp_path / "job" / "run"
    with pytest.raises(UserError, match="teacher: The teacher big orders dev worse than the base") as refused:
        pipeline(recipe).run_to("mine")
    message = str(refused.value)
    assert (
        message.startswith("mine.teacher: ")
        and message.endswith(f"or go on with: rankwright run {recipe} --override 'why'")
        and "\n" not in message
    )
    assert verdict(run)["verdict"] == "refused" and verdict(run)["override"] is None
    assert not (run / "negatives.jsonl").exists() and not (run / "stages" / "teacher.json").exists()
    page = write_report(run).read_text(encoding="utf-8")
    assert "Teacher: REFUSED." in page and verdict(run)["sentence"] in page
    # A whole run ends in the same way, with its page; the verdict is among the results for programs.
    (run / "report.html").unlink()
    with pytest.raises(TeacherRefused, match="orders dev worse"):
        pipeline(recipe).run()
    assert "Teacher: REFUSED." in (run / "report.html").read_text(encoding="utf-8")
    assert summary(pipeline(recipe))["teacher"]["verdict"] == "refused"
    # The same command again: refused by the same scores, of which none is made again.
    asked, before = len(server.asked), verdict(run)
    capsys.readouterr()
    with pytest.raises(UserError, match="orders dev worse"):
        pipeline(recipe).run_to("mine")
    assert len(server.asked) == asked and "loading" not in capsys.readouterr().out and verdict(run) == before
    pipeline(recipe, override=" a control\n run ").run_to("teacher")
    shown = capsys.readouterr().out
    assert len(server.asked) == asked and "used although it is refused: a control run" in shown
    assert "--override: counts for the teacher" in shown and verdict(run)["override"] == "a control run"
    pipeline(recipe, override="another").run_to("teacher")
    assert "--override: not recorded, because the teacher's reason is on record" in capsys.readouterr().out
    assert verdict(run)["override"] == "a control run"
    # On record: the command goes on without it.
    pipeline(recipe).run_to("mine")
    assert "mine" in capsys.readouterr().out and (run / "teacher.jsonl").is_file()
    page = write_report(run).read_text(encoding="utf-8")
    assert "Teacher: REFUSED, but used all the same: a control run." in page
    # A kill between the verdict and the record keeps the reason; another dev is another verdict.
    (run / "stages" / "teacher.json").unlink()
    pipeline(recipe).run_to("teacher")
    assert verdict(run)["override"] == "a control run"
    with pytest.raises(UserError, match="orders dev worse"):
        pipeline(recipe, "seed=7").run_to("teacher")
    assert verdict(run)["override"] is None


def test_too_few_dev_queries_are_said_once_and_nothing_is_asked(
    server: RerankServer, tmp_path: Path, tiny_qwen3: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.score = no_shared_words
    recipe = job(tmp_path / "job", tiny_qwen3, served(server), queries=49)
    run = pipeline(recipe)
    run.run_to("teacher")
    line = "The teacher big is not compared with the base: dev has 49 queries with a relevant document"
    assert line in capsys.readouterr().out.replace("\n", " ") and server.asked == []
    pipeline(recipe, override="not needed").run_to("teacher")
    shown = capsys.readouterr().out
    assert line not in shown and "--override: not recorded, because the teacher is not refused" in shown
    found = verdict(run.folder.path)
    assert (found["verdict"], found["queries"], found["rows"]) == ("not judged", 49, [])
    assert found["sentence"] in write_report(run.folder.path).read_text(encoding="utf-8")


def test_training_may_look_at_fewer_dev_queries_than_the_verdict(
    server: RerankServer, tmp_path: Path, tiny_qwen3: Path
) -> None:
    run = pipeline(job(tmp_path / "job", tiny_qwen3, served(server)), "train.dev_queries=5")
    run.run_to("teacher")
    assert verdict(run.folder.path)["queries"] == 50 and verdict(run.folder.path)["verdict"] == "accepted"


def test_another_teacher_or_dev_makes_the_verdict_stale_until_the_stage_runs(
    server: RerankServer, tmp_path: Path, tiny_qwen3: Path
) -> None:
    recipe = job(tmp_path / "job", tiny_qwen3, served(server))
    run = pipeline(recipe).run_to("mine").folder
    assert lineage(run).stale == {}
    before = verdict(run.path)
    pipeline(recipe, "mine.teacher.model=other").data()
    assert lineage(run).stale == {"teacher": "recipe"}
    assert lineage(run).lines[0].endswith("; teacher gate is still from before")
    server.score = lambda query, document: shared_words(query, document) + document.startswith("bond")
    pipeline(recipe, "mine.teacher.model=other").run_to("teacher")
    assert lineage(run).stale == {} and verdict(run.path)["inputs"] != before["inputs"]
    # A setting that decides nothing about it leaves it as it is.
    pipeline(recipe, "mine.teacher.model=other", "train.learning_rate=0.1").data()
    assert lineage(run).stale == {}
    # The labels of dev are other ones.
    qrels = tmp_path / "job" / "sets" / "dev" / "qrels" / "dev.tsv"
    qrels.write_text(qrels.read_text().replace("\t2\n", "\t1\n"))
    pipeline(recipe, "mine.teacher.model=other").data()
    assert lineage(run).stale["teacher"] == "data"
    # A recipe without a teacher asks for no verdict.
    pipeline(recipe, "mine.teacher=null", "loss.plus=[]").data()
    assert "teacher" not in lineage(run).stale
    # One that somebody changed is made again, from the scores that are kept.
    pipeline(recipe).run_to("teacher")
    asked = len(server.asked)
    run.teacher_gate.write_text(run.teacher_gate.read_text().replace('"accepted"', '"refused"'))
    assert lineage(run).stale["teacher"] == "teacher"
    pipeline(recipe).run_to("teacher")
    assert verdict(run.path)["verdict"] == "accepted" and len(server.asked) == asked


def test_a_random_teacher_ends_the_command_with_exit_code_2(tmp_path: Path, tiny_qwen3: Path) -> None:
    teacher = make_tiny_cross_encoder(tmp_path / "tiny-bert")
    recipe = job(tmp_path / "job", tiny_qwen3, {"kind": "cross-encoder", "model": str(teacher)})
    cache = str(tmp_path / "cache")
    done = jobs.rankwright("train", recipe, RANKWRIGHT_CACHE=cache)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    (line,) = [text for text in done.stderr.splitlines() if text.startswith("error: ")]
    assert line.startswith("error: mine.teacher: The teacher big ") and "harm. Choose another teacher" in line
    assert line.endswith(f"or go on with: rankwright train {recipe} --override 'why'")
    assert "BM25" in done.stdout and "base" in done.stdout
    found = verdict(tmp_path / "job" / "run")
    # Two processes come to the same verdict, here each with scores of its own.
    shutil.rmtree(tmp_path / "cache")
    two = tmp_path / "two"
    done = jobs.rankwright("mine", recipe, f"run_dir={two}", launcher=TWO, RANKWRIGHT_CACHE=cache)
    assert done.returncode != 0 and "mine.teacher: The teacher big" in done.stderr
    again = verdict(two)
    assert again["sentence"] == found["sentence"] and again["rows"] == found["rows"]


@pytest.mark.slow
def test_the_reason_for_a_teacher_is_none_for_the_model(
    server: RerankServer, tmp_path: Path, tiny_qwen3: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.score = no_shared_words
    recipe = job(tmp_path / "job", tiny_qwen3, served(server), gate={"min_gain": 0.99}, export={"targets": ["adapter"]})
    values = yaml.safe_load(recipe.read_text())
    assert values["gate"]
    with pytest.raises(GateRefused):
        pipeline(recipe, override="a control run").run()
    assert "the gate of the trained model needs a reason of its own" in capsys.readouterr().out
    run = tmp_path / "job" / "run"
    assert json.loads((run / "gate.json").read_text())["override"] is None
    # Another reason is for the model, and the card has both.
    pipeline(recipe, override="to compare with").run()
    assert "--override: left for the gate of the trained model" in capsys.readouterr().out
    assert json.loads((run / "gate.json").read_text())["override"] == "to compare with"
    assert verdict(run)["override"] == "a control run"
    card = (run / "export" / "adapter" / "README.md").read_text()
    assert "It was used all the same, for this reason: a control run" in card and "to compare with" in card

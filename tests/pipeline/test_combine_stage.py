"""The row `combined` of a real run: its files, what makes it again, and what removes it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jobs
import numpy as np
import pytest

from rankwright.common.errors import UserError
from rankwright.data.split_files import read_split
from rankwright.evaluation.combine import WEIGHTS
from rankwright.pipeline.combine import read_combination
from rankwright.pipeline.data import dev_share
from rankwright.pipeline.stages import Pipeline
from rankwright.recipe.loading import load_recipe
from rankwright.rerankers.combination import Combination
from rankwright.retrieval.candidates import read_candidates, tie_order
from rankwright.retrieval.run_file import read_trec_run, write_trec_run

# 24 of the 30 training queries.
DEV = {"dev": {"from": "train", "fraction": 0.8}}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny_qwen3: Path) -> Path:
    return jobs.job(tmp_path_factory.mktemp("job"), tiny_qwen3, data=DEV, evaluate={"combine": {"depths": [3, 50]}})


def evaluated(recipe: Path, *overrides: str, only: list[str] | None = None) -> tuple[Pipeline, list[dict[str, Any]]]:
    pipeline = Pipeline(load_recipe(str(recipe), list(overrides)), progress=False)
    return pipeline, pipeline.evaluate(only)


def contents(pipeline: Pipeline) -> dict[str, bytes]:
    run = pipeline.folder
    folder = run.eval_folder("held-out", "combined")
    return {p.name: p.read_bytes() for p in [run.combine, *sorted(folder.iterdir())]}


def z(values: list[float]) -> np.ndarray:
    return (np.array(values) - np.mean(values)) / np.std(values) if len(set(values)) > 1 else np.zeros(len(values))


def test_the_row_is_the_two_others_together_and_follows_its_settings(recipe: Path) -> None:
    pipeline, rows = evaluated(recipe)
    run = pipeline.folder
    found = json.loads(run.combine.read_text())
    assert (found["note"], found["dev_queries"], found["prefer"]) == (None, 24, "first_stage")
    assert [row["weight"] for row in found["weights"]] == list(WEIGHTS) and found["by_set"] == {}
    # Lists have 8 documents.
    assert [row["depth"] for row in found["depths"]] == [3, 8]
    assert read_combination(run) == Combination(found["weight"], "zscore", found["depth"])
    row = next(row for row in rows if row["system"] == "combined")
    assert row["weight"] == found["weight"] and row["first_stage"] == "bm25" and row["to_first"] is not None
    runs = {s: read_trec_run(run.eval_folder("held-out", s) / "run.trec") for s in ("bm25", "tuned", "combined")}
    for query_id, combined in runs["combined"].items():
        first = runs["bm25"][query_id]
        order = sorted(first, key=lambda d: (-first[d], tie_order(query_id, d)))
        head = order[: found["depth"]]
        ours = z([runs["tuned"][query_id][d] for d in head])
        expected = found["weight"] * ours + (1 - found["weight"]) * z([first[d] for d in head])
        assert [combined[d] for d in head] == pytest.approx(expected, abs=1e-9)
        tail = [combined[d] for d in order[found["depth"] :]]
        assert tail == sorted(tail, reverse=True) and all(score < min(expected) for score in tail)

    before, scores = contents(pipeline), run.eval_folder("held-out", "tuned") / "scores.jsonl"
    untouched = {path: path.stat().st_mtime_ns for path in (scores, run.dev_scores)}
    # Other settings change this row alone.
    _, rows = evaluated(recipe, "evaluate.combine.prefer=reranker")
    other = json.loads(run.combine.read_text())
    assert other["prefer"] == "reranker" and other["weight"] >= found["weight"]
    assert {path: path.stat().st_mtime_ns for path in untouched} == untouched
    # As a kill leaves it, and with --only: it needs tuned, which is kept.
    run.combine.unlink()
    _, rows = evaluated(recipe, only=["combined"])
    assert {row["system"] for row in rows} >= {"tuned", "combined"} and contents(pipeline) == before
    # A damaged file of tuned's scores is made again.
    scores.write_text(scores.read_text()[:-30])
    (run.eval_folder("held-out", "combined") / "metrics.json").unlink()
    evaluated(recipe, only=["combined"])
    assert contents(pipeline) == before
    # Calibration takes the same scores of dev.
    seconds = run.dev_scores.stat().st_mtime_ns
    pipeline.calibrate()
    assert run.dev_scores.stat().st_mtime_ns == seconds

    _, rows = evaluated(recipe, "evaluate.combine=null")
    assert "combined" not in {row["system"] for row in rows} and not run.combine.exists()
    assert not (run.eval_folder("held-out", "combined") / "metrics.json").exists()
    with pytest.raises(UserError, match=r"unknown system 'combined'.*evaluate.combine, which is switched off"):
        evaluated(recipe, "evaluate.combine=false", only=["combined"])


@pytest.mark.slow
def test_several_processes_choose_and_combine_as_one_does(recipe: Path, tmp_path: Path) -> None:
    two = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    alone, _ = evaluated(recipe, f"run_dir={tmp_path / 'one'}")
    # The same training, so that nothing but the evaluation differs.
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    together = Pipeline(load_recipe(str(recipe), [f"run_dir={tmp_path / 'two'}"]), progress=False)
    for path in (together.folder.combine, together.folder.dev_scores):
        path.unlink()
    shutil.rmtree(together.folder.path / "eval")
    done = jobs.rankwright("evaluate", recipe, f"run_dir={tmp_path / 'two'}", launcher=two)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("combined: w = ") == 1
    systems = ("bm25", "base", "tuned", "combined")
    assert jobs.evaluation_files(tmp_path / "two", systems) == jobs.evaluation_files(tmp_path / "one", systems)
    found, expected = (json.loads(pipeline.folder.combine.read_text()) for pipeline in (together, alone))
    assert found == expected


def test_a_gate_of_combined_needs_the_row(recipe: Path) -> None:
    gate = ["gate={system: combined, at_least: [base, first_stage]}", "evaluate.combine=null"]
    with pytest.raises(UserError, match=r"gate.system: combined needs evaluate.combine, which is switched off"):
        Pipeline(load_recipe(str(recipe), gate), progress=False).check(data=False)


def test_without_dev_lists_of_the_first_stage_nothing_is_chosen(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline, _ = evaluated(recipe, only=["bm25"])
    path = pipeline.folder.eval_folder("held-out", "bm25") / "run.trec"
    settings = [f"run_dir={tmp_path / 'run'}", f"data.test.0.run={path}", "evaluate.first_stage=run"]
    pipeline = Pipeline(load_recipe(str(recipe), settings))
    rows = {row["system"]: row for row in pipeline.evaluate(["run", "combined"])}
    assert (
        "WARNING: combined: dev has no run files (add run: FILE to the sets that it comes from): weight"
        in capsys.readouterr().out
    )
    assert rows["combined"]["weight"] == 1 and rows["combined"]["value"] == rows["tuned"]["value"]
    assert not pipeline.folder.dev_scores.exists()


def test_run_files_of_train_give_dev_the_lists_of_the_first_stage(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another search engine's lists, for test queries and for those that dev is taken out of."""
    pipeline, _ = evaluated(recipe, only=["bm25"])
    test = pipeline.folder.eval_folder("held-out", "bm25") / "run.trec"
    found = {}
    for split in ("train", "dev"):
        for one in read_split(pipeline.folder.data, split):
            ids = sorted(one.corpus)
            found |= {q: {d: float(len(q) + len(d) + n) for n, d in enumerate(ids[:6])} for q in one.queries}
    write_trec_run(tmp_path / "own.run", found, "own")
    settings = [
        f"run_dir={tmp_path / 'run'}",
        f"data.test.0.run={test}",
        f"data.train.0.run={tmp_path / 'own.run'}",
        "evaluate.first_stage=run",
    ]
    pipeline = Pipeline(load_recipe(str(recipe), settings))
    rows = {row["system"]: row for row in pipeline.evaluate(["run", "combined"])}
    assert "no lists of run" not in capsys.readouterr().out
    lists = read_candidates(pipeline.folder.dev_candidates)
    dev = [q for one in read_split(pipeline.folder.data, "dev") for q in one.queries]
    assert len(lists) == len(dev) == 24
    for query_id, candidates in lists.items():
        own = found[query_id.split("/", 1)[1]]
        assert {c.document_id.split("/", 1)[1]: c.score for c in candidates} == own
    chosen = json.loads(pipeline.folder.combine.read_text())
    assert (chosen["note"], chosen["dev_queries"]) == (None, 24)
    assert rows["combined"]["weight"] == chosen["weight"]


@pytest.mark.parametrize(("overrides", "key"), [([], None), (["data.dev={fraction: 0.5}"], "data.dev.fraction")])
def test_few_dev_queries_are_named_before_training(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], key: str | None
) -> None:
    Pipeline(load_recipe(str(recipe), [f"run_dir={tmp_path / 'run'}", *overrides])).data()
    out = " ".join(capsys.readouterr().out.split())
    assert ("WARNING: dev has 15 queries with a relevant document, and evaluate.combine needs 20" in out) == bool(key)
    assert key is None or f"raise {key}" in out


def test_init_takes_enough_dev_queries_where_it_can() -> None:
    assert [dev_share(queries) for queries in (10_000, 240, 96, 30, 0)] == [0.1, 0.1, 0.25, 0.3, 0.3]

"""`run --dry-run` and `run --json`: what would run, and what has run, for programs and for people."""

from __future__ import annotations

import json
from pathlib import Path

import jobs
import pytest

from rankwright.common.errors import UserErrors
from rankwright.pipeline.overview import preview, summary
from rankwright.pipeline.stages import Pipeline
from rankwright.recipe.loading import load_recipe

STAGES = ["data", "mine", "train", "evaluate", "calibrate", "gate", "export", "report"]


@pytest.mark.slow
def test_a_run_before_and_after_it(tmp_path: Path, tiny_qwen3: Path) -> None:
    path = jobs.job(
        tmp_path, tiny_qwen3, train={"max_steps": 2}, export={"targets": ["adapter"]}, gate={"min_gain": -2}
    )
    before = jobs.rankwright("run", path, "--dry-run", "--json")
    assert before.returncode == 0, before.stderr
    states = json.loads(before.stdout)
    assert [one["name"] for one in states] == STAGES and {one["state"] for one in states} == {"would run"}
    train = states[2]
    assert "at most 2 steps" in train["why"] and 0 < train["hours"] < 1
    assert not (tmp_path / "run").exists()

    done = jobs.rankwright("run", path, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert "tuned - base [95 %]" in done.stderr and found == json.loads(
        json.dumps(summary(Pipeline(load_recipe(str(path)))))
    )
    assert {(row["test_set"], row["system"]) for row in found["results"]} >= {
        ("held-out", "bm25"),
        ("held-out", "tuned"),
    }
    assert found["gate"]["accepted"] is True and list(found["exports"]) == ["adapter"]
    assert found["report"] == str(tmp_path / "run" / "report.html") and found["verdict"]["sentences"]

    after = {one.name: one for one in preview(Pipeline(load_recipe(str(path))))}
    assert {name for name, one in after.items() if one.state == "done"} == {*STAGES} - {"gate", "report"}
    assert after["train"].seconds == found["stages"]["train"]
    other = {one.name: one for one in preview(Pipeline(load_recipe(str(path), ["train.learning_rate=0.001"])))}
    assert {name for name, one in other.items() if one.state == "done"} == {"data", "mine"}
    assert "changed" in other["train"].why
    (tmp_path / "run" / "negatives.jsonl").unlink()
    lost = {one.name: one for one in preview(Pipeline(load_recipe(str(path))))}
    assert lost["mine"].why == "negatives.jsonl is gone" and lost["data"].state == "done"


def test_a_dry_run_finds_mistakes(tmp_path: Path, tiny_qwen3: Path) -> None:
    path = jobs.job(tmp_path, tiny_qwen3, loss={"name": "bec"})
    with pytest.raises(UserErrors, match="did you mean 'bce'"):
        preview(Pipeline(load_recipe(str(path))))

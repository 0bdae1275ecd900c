"""`data.test: {from: train}`: the same queries for every seed, groups on one side, and a whole run."""

from __future__ import annotations

import json
from pathlib import Path

import jobs
import pytest
import yaml

from rankwright.common.errors import UserErrors
from rankwright.common.run_folder import RunFolder
from rankwright.data.split_files import read_split
from rankwright.pipeline.stages import Pipeline
from rankwright.recipe.loading import load_recipe


def recipe(folder: Path, base: Path, fraction: float = 0.2) -> Path:
    path = jobs.job(folder, base, train={"max_steps": 2}, export={"targets": []})
    rows = []
    for number in range(60):
        # Three questions of each case.
        words = " ".join(jobs.TOPICS[(number * 7 + k * (number % 5 + 1)) % len(jobs.TOPICS)] for k in range(7))
        rows.append({"query": f"{words[:30]} {number}", "positives": [f"{words} {number}"], "case": f"c{number // 3}"})
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    whole = yaml.safe_load(path.read_text())
    whole["data"] = {
        "train": [{"path": str(folder / "rows.jsonl"), "name": "one", "group_key": "case"}],
        "test": {"from": "train", "fraction": fraction},
    }
    path.write_text(yaml.safe_dump(whole))
    return path


def queries(run: Path, split: str) -> set[str]:
    return {q for c in read_split(RunFolder(run).data, split) for q in c.queries}


def test_test_is_taken_out_of_train(tmp_path: Path, tiny_qwen3: Path) -> None:
    path = recipe(tmp_path, tiny_qwen3)
    taken = {}
    for seed in (0, 1):
        run = tmp_path / f"run-{seed}"
        Pipeline(load_recipe(str(path), [f"seed={seed}"]), RunFolder(run), progress=False).data()
        taken[seed] = {split: queries(run, split) for split in ("train", "dev", "test")}
    assert taken[0]["test"] == taken[1]["test"] and len(taken[0]["test"]) == 12
    assert taken[0]["dev"] != taken[1]["dev"]
    for split in taken.values():
        assert not split["train"] & split["test"] and not split["dev"] & split["test"]
        assert len(split["train"] | split["dev"] | split["test"]) == 60
    # All questions of a case are on one side.
    sides: dict[str, set[str]] = {}
    for split in ("train", "dev", "test"):
        for collection in read_split(RunFolder(tmp_path / "run-0").data, split):
            for query, group in collection.query_groups.items():
                sides.setdefault(group, set()).add(split)
                assert query in collection.queries
    assert len(sides) == 20 and all(len(one) == 1 for one in sides.values())

    pipeline = Pipeline(load_recipe(str(path)), RunFolder(tmp_path / "run-0"), progress=False)
    rows = {row["system"]: row for row in pipeline.evaluate()}
    assert rows["tuned"]["test_set"] == "one" and rows["tuned"]["queries"] == 12
    before = pipeline.inputs.scores
    other = Pipeline(load_recipe(str(path), ["data.test.fraction=0.3"]), RunFolder(tmp_path / "run-0"))
    assert other.inputs.scores != before and other.inputs.data != pipeline.inputs.data
    checked = jobs.rankwright("check", path, f"run_dir={tmp_path / 'checked'}")
    assert checked.returncode == 0 and "test: 20% of the training queries" in checked.stdout, checked.stderr
    assert jobs.rankwright("data", "check", path).returncode == 0


@pytest.mark.parametrize("value", ["{from: dev}", "{from: train, fraction: 1.5}", "{fraktion: 0.1}", "train"])
def test_a_share_that_cannot_be_taken(value: str) -> None:
    with pytest.raises(UserErrors, match=r"data\.test"):
        load_recipe("quickstart", [f"data.test={value}"])

"""What the report stage shows in trackers is what the files of the run say."""

from __future__ import annotations

import json
from pathlib import Path

import jobs
import pytest
import wandb_file
from report_runs import make_report_run

from rankwright.common.files import read_json_object
from rankwright.common.run_folder import RunFolder
from rankwright.evaluation.results import result_rows
from rankwright.pipeline.report import outcome_of
from rankwright.report.gather import read_recipe


def test_the_outcome_has_every_result_with_its_interval(tmp_path: Path) -> None:
    folder = make_report_run(tmp_path / "run", "base", gate={"min_gain": 0.0})
    run, recipe = RunFolder(folder), read_recipe(folder)
    inputs = {s: m["inputs"] for s in ("bm25", "base", "tuned", "other") if (m := metrics(run, "one", s))}
    outcome = outcome_of(recipe, run, ["one", "two"], inputs)
    rows = result_rows(run, recipe, inputs, ["one", "two"])
    assert {(row["test_set"], row["system"]) for row in rows} >= {("one", "tuned"), ("all", "base"), ("two", "bm25")}
    for row in rows:
        name = f"test/{row['test_set']}/{row['system']}"
        assert outcome.values[f"{name}/nDCG@10"] == row["value"]
        for key, field in (("minus_base", "difference"), ("minus_base_low", "low"), ("minus_base_high", "high")):
            assert outcome.values.get(f"{name}/{key}") == row[field]
        for key, field in (("minus_first_stage", "to_first"), ("minus_first_stage_low", "to_first_low")):
            assert outcome.values.get(f"{name}/{key}") == row[field]
    assert outcome.values["test/one/tuned/RR"] == metrics(run, "one", "tuned")["RR"]
    assert [(r["test_set"], r["system"], r["low"]) for r in outcome.rows] == [
        (r["test_set"], r["system"], r["low"]) for r in rows
    ]
    assert outcome.values["gate/accepted"] == 0.0
    gate = json.loads(run.gate.read_text())
    assert outcome.sentences[-1].endswith(gate["rules"][-1]["sentence"])
    assert outcome.sentences[0].startswith("Tuned is better than")
    assert (outcome.step, outcome.page) == (40, run.report)


def metrics(run: RunFolder, test_set: str, system: str) -> dict[str, float]:
    return read_json_object(run.eval_folder(test_set, system) / "metrics.json") or {}


def test_without_a_gate_or_a_page_the_outcome_has_none(tmp_path: Path) -> None:
    folder = make_report_run(tmp_path / "run", "base", train={"track_report": False})
    outcome = outcome_of(read_recipe(folder), RunFolder(folder), ["one"], {})
    assert outcome.page is None and "gate/accepted" not in outcome.values
    assert (outcome.values, list(outcome.sentences)) == ({}, ["Nothing is evaluated yet."])


@pytest.mark.slow
def test_a_run_with_wandb_is_whole_in_one_offline_folder(
    tmp_path: Path, tiny_qwen3: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = jobs.job(tmp_path / "job", tiny_qwen3, train={"trackers": ["wandb"]}, export={"targets": {}})
    monkeypatch.setenv("WANDB_MODE", "offline")
    done = jobs.rankwright("run", str(recipe))
    assert done.returncode == 0, done.stderr
    run = RunFolder(tmp_path / "job" / "run")
    [folder] = (run.path / "wandb").glob("offline-run-*")
    found = wandb_file.read(folder)
    rows = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert [found.history[row["step"]].get("loss") for row in rows] == [row.get("loss") for row in rows]
    assert found.summary["test/held-out/tuned/nDCG@10"] == metrics(run, "held-out", "tuned")["nDCG@10"]
    [page] = (folder / "files" / "media" / "html").iterdir()
    assert run.report.read_text() in page.read_text()
    # Nothing changed: nothing is sent again.
    again = jobs.rankwright("run", str(recipe))
    assert again.returncode == 0 and "tracker" not in again.stdout
    assert [*(run.path / "wandb").glob("offline-run-*")] == [folder]

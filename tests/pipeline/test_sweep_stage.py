"""A sweep end to end on a tiny base: shared stages, continuing after a kill, failing runs, workers."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import jobs
import pytest
import yaml
from sweeps import run_two_workers, sweep_file

from rankwright.common.run_folder import RunFolder
from rankwright.evaluation.dev_values import read_dev_values
from rankwright.evaluation.sweep_table import SweepTable
from rankwright.pipeline.sweep import SweepRunner, shared_stages
from rankwright.pipeline.sweep_rows import read_table, read_tests
from rankwright.recipe.loading import load_recipe
from rankwright.recipe.sweep_runs import LoadedSweep, load_sweep, named_runs

# Kills itself when a path with that text is opened first.
KILLED = """
import os, sys
from rankwright.cli.main import main
point = sys.argv.pop(1)
def hook(event, arguments):
    if event == "open" and point in str(arguments[0]):
        os.kill(os.getpid(), 9)
sys.addaudithook(hook)
main()
"""


def load(path: Path) -> LoadedSweep:
    return load_sweep(path, [f"run_dir={path.parent / 'sweep'}"])


@pytest.fixture(scope="module")
def done(tiny_qwen3: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[LoadedSweep, SweepTable]:
    """A finished sweep; do not write into it."""
    loaded = load(sweep_file(tmp_path_factory.mktemp("sweep"), tiny_qwen3))
    return loaded, SweepRunner(loaded)()


def values(table: SweepTable) -> dict[str, float | None]:
    return {row.name: row.dev for row in table.runs}


def test_every_run_is_an_ordinary_run_folder(done: tuple[LoadedSweep, SweepTable]) -> None:
    loaded, table = done
    assert len(table.runs) == 8 and {row.state for row in table.runs} == {"done"}
    for run in loaded.runs:
        folder = RunFolder(run.folder)
        assert load_recipe(folder.recipe_json).recipe == run.loaded.recipe
        kept = read_dev_values(folder.dev_values)
        assert kept is not None
        mean = sum(kept.best.values()) / len(kept.best)
        assert mean == pytest.approx(folder.facts("train")["best_value"], abs=1e-12)
        assert sum(kept.base.values()) / len(kept.base) == pytest.approx(folder.facts("train")["base_value"], abs=1e-12)


def test_what_runs_share_is_computed_once(done: tuple[LoadedSweep, SweepTable]) -> None:
    loaded, _ = done
    folders = [RunFolder(run.folder) for run in loaded.runs]
    assert len({folder.negatives.stat().st_ino for folder in folders}) == 1
    assert len({folder.split("train").stat().st_ino for folder in folders}) == 1
    assert len({folder.facts("mine")["finished"] for folder in folders}) == 1
    assert shared_stages(loaded, lambda line: None) == {"data": 1, "mine": 1, "train": 4}
    assert len({folder.facts("train")["inputs"] for folder in folders}) == 8, "a seed is another training"


def test_a_seed_has_a_pre_training_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text("extends: pretrain\nname: try\nover: {model.rank: [8]}\nseeds: [0, 1, 2]\n")
    computed = shared_stages(load(path), lambda line: None)
    assert computed == {"data": 1, "mine": 1, "pretrain": 3, "train": 2}


def test_only_chosen_and_default_see_the_test_sets(done: tuple[LoadedSweep, SweepTable]) -> None:
    loaded, table = done
    opened = {run.configuration.name for run in loaded.runs if (run.folder / "eval").exists()}
    assert opened == {"default", table.chosen}
    rows = read_tests(loaded, table)
    assert rows and all(row.seeds_known for row in rows)
    assert {row.other for row in rows} <= {"base", "default"}


def test_a_finished_sweep_does_nothing_again(done: tuple[LoadedSweep, SweepTable]) -> None:
    loaded, table = done
    before = {path: path.stat().st_mtime_ns for path in loaded.folder.glob("*/stages/*.json")}
    assert values(SweepRunner(loaded)(named_runs(loaded, "default"))) == values(table)
    assert before == {path: path.stat().st_mtime_ns for path in loaded.folder.glob("*/stages/*.json")}


@pytest.mark.slow
def test_a_killed_sweep_continues_with_the_same_values(
    done: tuple[LoadedSweep, SweepTable], tiny_qwen3: Path, tmp_path: Path
) -> None:
    path = sweep_file(tmp_path / "job", tiny_qwen3)
    command = ["sweep", str(path), f"run_dir={path.parent / 'sweep'}"]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, "loss-bce_rank-2-s0/metrics.jsonl", *command],
        env=jobs.environment(),
        check=False,
    )
    assert killed.returncode == -9
    states = [row.state for row in read_table(load(path)).runs]
    assert states.count("done") == 2 and states.count("not run") == 6
    ended = jobs.rankwright(*command)
    assert ended.returncode == 0, ended.stderr
    assert values(read_table(load(path))) == values(done[1])
    rows = list(csv.DictReader((path.parent / "sweep" / "table.csv").read_text().splitlines()))
    assert {row["run"]: float(row["dev"]) for row in rows} == values(done[1])
    assert (path.parent / "sweep" / "report.html").is_file() and "report:" in ended.stdout
    preview = jobs.rankwright(*command, "--dry-run")
    assert "2 of 2" in preview.stdout and "mine 1x" in preview.stdout and "will not show" in preview.stdout


def test_a_failing_run_is_a_row_and_the_others_go_on(tiny_qwen3: Path, tmp_path: Path) -> None:
    path = sweep_file(tmp_path / "job", tiny_qwen3, {"model.targets": [["q_proj"], ["no_such_layer"]]}, seeds=[0])
    loaded = load(path)
    table = SweepRunner(loaded)()
    states = {row.configuration: (row.state, row.error) for row in table.runs}
    assert states["default"] == states["targets-q_proj"] == ("done", None)
    state, error = states["targets-no_such_layer"]
    assert state == "failed" and error is not None and "no_such_layer" in error and "\n" not in error
    assert any("seed variance unknown" in note for note in table.notes)
    # Mended, the same command does it.
    text = yaml.safe_load(path.read_text())
    text["over"]["model.targets"][1] = ["v_proj"]
    path.write_text(yaml.safe_dump(text))
    assert {row.state for row in SweepRunner(load(path))(load(path).runs).runs} == {"done"}


@pytest.mark.slow
def test_a_learning_curve_shares_data_and_mining(tiny_qwen3: Path, tmp_path: Path) -> None:
    loaded = load(sweep_file(tmp_path / "job", tiny_qwen3, {}, design={"learning_curve": [0.25, 1]}))
    table = SweepRunner(loaded)(loaded.runs)
    folders = {run.name: RunFolder(run.folder) for run in loaded.runs}
    assert len({folder.negatives.stat().st_ino for folder in folders.values()}) == 1
    assert len({folder.facts("mine")["finished"] for folder in folders.values()}) == 1
    queries = {row.name: row.train_queries for row in table.runs}
    # 27 queries beside 3 of dev.
    assert queries == {
        f"{name}-s{seed}": n for name, n in (("default", 27), ("queries_share-0.25", 7)) for seed in (0, 1)
    }
    steps = {row.name: row.steps for row in table.runs}
    assert steps["default-s0"] == 2 and steps["queries_share-0.25-s0"] == 1, "max_steps shrinks with the share"
    assert table.learning_curve is not None and [one.queries for one in table.learning_curve.sizes] == [7, 27]


def test_a_budget_of_hours_ends_the_sweep(tiny_qwen3: Path, tmp_path: Path) -> None:
    loaded = load(sweep_file(tmp_path / "job", tiny_qwen3, budget={"hours": 1e-9}))
    table = SweepRunner(loaded)()
    assert [row.state for row in table.runs].count("done") == 1, "the budget is looked at before each run"
    assert any("7 runs not done" in note for note in table.notes)


@pytest.mark.slow
def test_two_workers_share_the_runs(done: tuple[LoadedSweep, SweepTable], tiny_qwen3: Path, tmp_path: Path) -> None:
    path = sweep_file(tmp_path / "job", tiny_qwen3)
    run_two_workers(path)
    table = read_table(load(path))
    assert values(table) == values(done[1])
    mined = {json.loads(one.read_text())["finished"] for one in path.parent.glob("sweep/*/stages/mine.json")}
    assert len(mined) == 1, "what is shared is made by one worker"

"""Successive halving end to end on a tiny base: what is pruned, continuing bit for bit, kills, workers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import jobs
import pytest
import yaml
from sweeps import run_two_workers, sweep_file

from rankwright.common.run_folder import RunFolder
from rankwright.evaluation.dev_values import read_evaluations
from rankwright.evaluation.halving import promoted
from rankwright.evaluation.sweep_table import SweepTable
from rankwright.pipeline.sweep import SweepRunner
from rankwright.pipeline.sweep_rows import read_progress, read_table
from rankwright.recipe.sweep import Asha
from rankwright.recipe.sweep_runs import LoadedSweep, load_sweep, named_runs

# Trained by nothing, so that they are as bad as the base at each rung.
OVER = {"train.learning_rate": [0.02, 1e-9, 2e-9, 3e-9]}
EARLY: dict[str, Any] = {"early": {"asha": {"eta": 2, "first": 1, "keep_within_se": 0}}, "seeds": [0]}
# Kills itself while it writes the n-th checkpoint.
KILLED = """
import os, sys
from rankwright.cli.main import main
count = int(sys.argv.pop(1))
def hook(event, arguments):
    global count
    if event == "open" and str(arguments[0]).endswith("state.json") and arguments[1] == "w":
        count -= 1
        if count == 0:
            os.kill(os.getpid(), 9)
sys.addaudithook(hook)
main()
"""


def early_file(folder: Path, base: Path, **keys: Any) -> Path:
    path = sweep_file(folder, base, OVER, **{**EARLY, **keys})
    recipe = path.with_name("recipe.yaml")
    values = yaml.safe_load(recipe.read_text())
    values["train"] |= {"max_steps": 5, "schedule": "wsd"}
    recipe.write_text(yaml.safe_dump(values))
    return path


def load(path: Path) -> LoadedSweep:
    return load_sweep(path, [f"run_dir={path.parent / 'sweep'}"])


def states(table: SweepTable) -> dict[str, tuple[str, int | None, float | None]]:
    return {row.name: (row.state, row.steps, row.dev) for row in table.runs}


@pytest.fixture(scope="module")
def done(tiny_qwen3: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[LoadedSweep, SweepTable]:
    """A finished sweep; do not write into it."""
    loaded = load(early_file(tmp_path_factory.mktemp("early"), tiny_qwen3))
    return loaded, SweepRunner(loaded)()


def test_what_is_worse_is_pruned_and_chooses_nothing(done: tuple[LoadedSweep, SweepTable]) -> None:
    loaded, table = done
    ended = [row for row in table.runs if row.state == "done"]
    pruned = [row for row in table.runs if row.state == "pruned"]
    assert len(ended) + len(pruned) == 5 and len(pruned) >= 2
    assert "default" in {row.configuration for row in ended}
    # By hand, from the values that the first rung kept.
    first = {run.configuration.name: [read_progress(run).values[0]] for run in loaded.runs}
    kept = promoted(Asha(eta=2, keep_within_se=0), first)
    assert {row.configuration for row in ended} <= {*kept, "default"}
    stopped = {row.configuration for row in pruned if row.steps == 1}
    assert stopped == set(first) - {*kept, "default"} and stopped
    for row in pruned:
        assert row.values is None and row.dev is not None and table.of(row.configuration).pruned == 1
        assert table.of(row.configuration).contrast is None and table.of(row.configuration).dev is None
    assert table.chosen in {row.configuration for row in ended}
    assert any("pruned at a rung" in note for note in table.notes)
    opened = {run.configuration.name for run in loaded.runs if (run.folder / "eval").exists()}
    assert opened == {"default", table.chosen}


def test_a_finished_sweep_with_pruned_runs_trains_nothing_again(done: tuple[LoadedSweep, SweepTable]) -> None:
    loaded, table = done
    before = {path: path.stat().st_mtime_ns for path in loaded.folder.glob("*/checkpoints/*/state.json")}
    assert states(SweepRunner(loaded)()) == states(table)
    assert before == {path: path.stat().st_mtime_ns for path in loaded.folder.glob("*/checkpoints/*/state.json")}


def test_the_page_shows_pruned_configurations_greyed(done: tuple[LoadedSweep, SweepTable], tmp_path: Path) -> None:
    from rankwright.report.sweep import tidy, write_sweep

    _, table = done
    page = write_sweep(tmp_path, table, [], {}).read_text()
    name = next(row.name for row in table.configurations if row.pruned)
    assert f'<tr class="soft"><td>{name}' in page and "(1 pruned)" in page
    assert sum(",pruned," in line for line in tidy(table).splitlines()) == sum(
        row.pruned for row in table.configurations
    )


def test_a_pruned_run_continues_as_if_it_had_never_paused(
    done: tuple[LoadedSweep, SweepTable], tiny_qwen3: Path, tmp_path: Path
) -> None:
    path = early_file(tmp_path / "job", tiny_qwen3)
    loaded = load(path)
    name = next(row.configuration for row in done[1].runs if row.state == "done" and row.configuration != "default")
    # All at once, where the other sweep paused at each rung.
    (run,) = named_runs(loaded, name)
    SweepRunner(loaded)([run])
    other = next(one for one in done[0].runs if one.name == run.name)
    folders = [RunFolder(one.folder) for one in (run, other)]
    facts = [folder.facts("train") for folder in folders]
    assert facts[0]["best_value"] == facts[1]["best_value"] and facts[0]["step"] == facts[1]["step"] == 5
    kept = [folder.checkpoint(5) / "model.safetensors" for folder in folders]
    assert kept[0].read_bytes() == kept[1].read_bytes()
    evaluations = [read_evaluations(folder.dev_values) for folder in folders]
    assert evaluations[0] == evaluations[1] and [one.step for one in evaluations[0]] == list(range(6))


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 7])
def test_a_killed_sweep_comes_to_the_same_table(
    done: tuple[LoadedSweep, SweepTable], tiny_qwen3: Path, tmp_path: Path, count: int
) -> None:
    path = early_file(tmp_path / "job", tiny_qwen3)
    command = ["sweep", str(path), f"run_dir={path.parent / 'sweep'}"]
    killed = subprocess.run([sys.executable, "-c", KILLED, str(count), *command], env=jobs.environment(), check=False)
    assert killed.returncode == -9
    assert {row.state for row in read_table(load(path)).runs} != {"done", "pruned"}
    ended = jobs.rankwright(*command)
    assert ended.returncode == 0, ended.stderr
    assert states(read_table(load(path))) == states(done[1])
    assert "pruned" in ended.stdout


@pytest.mark.slow
def test_two_workers_prune_the_same(done: tuple[LoadedSweep, SweepTable], tiny_qwen3: Path, tmp_path: Path) -> None:
    path = early_file(tmp_path / "job", tiny_qwen3)
    run_two_workers(path)
    assert states(read_table(load(path))) == states(done[1])


def test_a_budget_that_ends_within_a_rung_prunes_nothing(tiny_qwen3: Path, tmp_path: Path) -> None:
    loaded = load(early_file(tmp_path / "job", tiny_qwen3, budget={"cost": 1e-9, "per_hour": 1.0}))
    table = SweepRunner(loaded)()
    assert {row.state for row in table.runs} == {"not run"}
    assert [len(read_progress(run).values) for run in loaded.runs] == [1, 0, 0, 0, 0]

"""Optuna's design: proposals depend on results and seed alone, and a sweep with them is continued from its folders."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from sweeps import loaded_sweep, sweep_file

from rankwright.evaluation.sweep_table import RunRow, SweepTable, build_table
from rankwright.pipeline.sweep import SweepRunner, shared_stages
from rankwright.pipeline.sweep_rows import read_table
from rankwright.recipe.sweep_runs import Configuration, LoadedSweep, load_sweep
from rankwright.recipe.sweep_trials import TRIALS_FILE, proposal_of, proposed, write_proposals

pytest.importorskip("optuna")
from rankwright.pipeline.trials import propose

OVER = {"train.learning_rate": {"log": [1e-5, 1e-3]}, "loss.name": ["bce", "ranknet"]}


def scripted(configuration: Configuration) -> float:
    """Best at a learning rate of 3e-4 with ranknet."""
    settings = configuration.settings
    away = math.log10(settings["train.learning_rate"]) + 3.5
    return 0.5 - 0.1 * away**2 + (0.05 if settings.get("loss.name") == "ranknet" else 0.0)


def table_of(loaded: LoadedSweep, failed: str = "") -> SweepTable:
    rows = [
        RunRow(run.name, run.configuration.name, run.seed, "failed", "an error")
        if run.configuration.name == failed
        else RunRow(
            run.name, run.configuration.name, run.seed, "done", dev=scripted(run.configuration), values={"q": 0.5}
        )
        for run in loaded.runs
    ]
    return build_table(loaded, rows)


def train_all(loaded: LoadedSweep, runs: int, failed: str = "") -> LoadedSweep:
    assert loaded.trials is not None
    while len(loaded.trials.proposals) < runs:
        loaded = loaded.with_proposals([*loaded.trials.proposals, propose(loaded, table_of(loaded, failed))])
        assert loaded.trials is not None
    return loaded


def test_proposals_follow_results_and_seed_alone(tmp_path: Path) -> None:
    first, again = (train_all(loaded_sweep(tmp_path, OVER, design={"optuna": {"runs": 12}}), 12) for _ in range(2))
    other = train_all(loaded_sweep(tmp_path, OVER, design={"optuna": {"runs": 12, "seed": 1}}), 12)
    assert first.trials is not None and again.trials is not None and other.trials is not None
    assert first.trials.proposals == again.trials.proposals != other.trials.proposals
    assert first.configurations[1].name == "trial-1" and len(first.configurations) == 13
    assert [run.name for run in first.runs][:4] == ["default-s0", "default-s1", "default-s2", "trial-1-s0"]
    rates = [one.settings["train.learning_rate"] for one in first.configurations[1:]]
    assert all(1e-5 <= rate <= 1e-3 for rate in rates)


def test_what_follows_from_results_is_better_than_what_was_drawn(tmp_path: Path) -> None:
    over = {"train.learning_rate": OVER["train.learning_rate"]}
    drawn, later = [], []
    for seed in range(3):
        design = {"optuna": {"runs": 24, "seed": seed}}
        loaded = train_all(loaded_sweep(tmp_path, over, design=design, seeds=[0]), 24)
        values = [scripted(one) for one in loaded.configurations[1:]]
        drawn, later = drawn + values[:8], later + values[-8:]
    assert sum(later) / len(later) > sum(drawn) / len(drawn) + 0.01


def test_a_failed_or_repeated_proposal(tmp_path: Path) -> None:
    loaded = loaded_sweep(tmp_path, {"model.rank": [16, 8]}, design={"optuna": {"runs": 5}}, seeds=[0])
    assert loaded.default.settings == {"model.rank": 16}
    loaded = train_all(loaded_sweep(tmp_path, OVER, design={"optuna": {"runs": 3}}, seeds=[0]), 3, failed="trial-1")
    assert len(loaded.configurations) == 4, "a failed one is told, and the next one is proposed"
    loaded = loaded_sweep(tmp_path, {"model.rank": [16, 8]}, design={"optuna": {"runs": 5}}, seeds=[0])
    loaded = loaded.with_proposals([{"model.rank": 1}, {"model.rank": 0}, {"model.rank": 1}])
    assert loaded.trials is not None and loaded.trials.names == ("trial-1", "default", "trial-1")
    assert [run.name for run in loaded.runs] == ["default-s0", "trial-1-s0"], "each is trained once"


def test_a_proposal_and_its_values_are_one(tmp_path: Path) -> None:
    over = {**OVER, "model.rank": {"linear": [4, 64], "points": 4}}
    loaded = loaded_sweep(tmp_path, over, design={"optuna": {"runs": 5}})
    assert loaded.trials is not None
    factors = loaded.trials.factors
    proposal = {"train.learning_rate": 0.25, "loss.name": 1, "model.rank": 2}
    values = {factor.key: value for factor, value in proposed(factors, proposal).items()}
    assert values == {"train.learning_rate": 3.16e-5, "loss.name": "ranknet", "model.rank": 44}
    back = proposal_of(factors, values)
    assert back is not None and back == pytest.approx(proposal, abs=1e-3)
    assert proposal_of(factors, {**values, "loss.name": "mse"}) is None
    assert proposal_of(factors, {**values, "train.learning_rate": 0.1}) is None


def test_proposals_are_made_anew_for_another_range(tmp_path: Path) -> None:
    """The shares of a range mean other values on another scale."""
    over = {"train.learning_rate": {"log": [1e-5, 1e-3]}}
    loaded = loaded_sweep(tmp_path, over, f"run_dir={tmp_path}", design={"optuna": {"runs": 5}})
    assert loaded.trials is not None
    write_proposals(loaded.folder, loaded.trials.of, [{"train.learning_rate": 0.5}])
    for kind, count in (("log", 2), ("linear", 1)):
        over = {"train.learning_rate": {kind: [1e-5, 1e-3]}}
        again = loaded_sweep(tmp_path, over, f"run_dir={tmp_path}", design={"optuna": {"runs": 5}})
        assert len(again.configurations) == count


@pytest.mark.slow
def test_a_sweep_is_continued_with_its_proposals(tiny_qwen3: Path, tmp_path: Path) -> None:
    over = {"train.learning_rate": {"log": [1e-4, 1e-2]}}
    folder = tmp_path / "job" / "sweep"

    path = sweep_file(tmp_path / "job", tiny_qwen3, over, seeds=[0], design={"optuna": {"runs": 1}})

    def load(*overrides: str) -> LoadedSweep:
        return load_sweep(path, [f"run_dir={folder}", *overrides])

    runner = SweepRunner(load())
    table = runner()
    assert {row.name: row.state for row in table.runs} == {"default-s0": "done", "trial-1-s0": "done"}
    kept = json.loads((folder / TRIALS_FILE).read_text())["proposals"]
    assert len(kept) == 1
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/stages/train.json")}
    # One more, told of those that are done.
    path.write_text(path.read_text().replace("runs: 1", "runs: 2"))
    more = load()
    assert [one.name for one in more.configurations] == ["default", "trial-1"]
    lines: list[str] = []
    shared_stages(more, lines.append)
    assert "and 1 configuration that optuna is still to propose" in lines[0]
    runner = SweepRunner(more)
    table = runner()
    assert [row.state for row in table.runs] == ["done"] * 3 and table == read_table(runner.loaded)
    assert json.loads((folder / TRIALS_FILE).read_text())["proposals"][0] == kept[0]
    assert {path: path.stat().st_mtime_ns for path in before} == before, "nothing is trained twice"
    # For another recipe they are proposed anew.
    assert len(load("model.rank=8").configurations) == 1

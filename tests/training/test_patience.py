"""Early stopping: counted from the base, the same when killed and continued, on one process and on two."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jobs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load

from rankwright.training.checkpoint import TrainState, read_state
from rankwright.training.optim import SCHEDULES, learning_rate_factor

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
# So small that no score of fp32 weights moves: every evaluation is the base's, and none is a new best.
STILL = {"learning_rate": 1e-12, "max_steps": 20, "evaluate_every": 2, "save_every": 3}
# Steps long enough that a kill can be aimed.
PATIENT = {**STILL, "patience": 2, "groups_per_step": 24}
LINE = "train.patience: 2 evaluations on dev without a new best: ended after step 4 of 20"


def facts(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "stages" / "train.json").read_text())
    return found


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load((run / "checkpoints" / f"step-{step}" / "model.safetensors").read_bytes())


@given(st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.4, 0.5]), max_size=12), st.sampled_from([0.1, 0.3, 0.5]))
def test_the_state_counts_as_a_plain_reading_of_the_values_does(values: list[float], base: float) -> None:
    state = TrainState(step=0, inputs="", base_value=base)
    assert not state.out_of_patience(1)
    for step, value in enumerate(values, start=1):
        state = TrainState(step, "", base, state.best_step, state.best_value, state.since_best).evaluated(value)
        seen = [base, *values[:step]]
        # The evaluations behind the first place of the highest value so far; the base is at place 0.
        assert state.since_best == step - seen.index(max(seen))
        assert state.best_value == max(values[:step]) and state.best_step == 1 + values.index(max(values[:step]))
        assert state.out_of_patience(2) == (state.since_best >= 2) and not state.out_of_patience(None)


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory, tiny_qwen3: Path) -> tuple[Path, str]:
    """(folder, output) of a training that ended early, without a kill."""
    folder = tmp_path_factory.mktemp("ended")
    done = jobs.rankwright("train", jobs.job(folder, tiny_qwen3, train=PATIENT))
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_patience_counts_from_the_base_and_the_record_says_so(ended: tuple[Path, str]) -> None:
    run, output = ended[0] / "run", ended[1]
    assert LINE in output
    assert [row["step"] for row in jobs.metrics(run)] == list(range(5))
    assert "dev_nDCG@10" in jobs.metrics(run)[-1]
    found = facts(run)
    assert (found["step"], found["planned_steps"], found["ended_early"], found["since_best"]) == (4, 20, True, 2)
    state = read_state(run / "checkpoints" / "step-4")
    assert state is not None and state.step == 4 and state.best_step == 2
    # The schedule is that of the planned steps, not of those that were made.
    for row in jobs.metrics(run)[1:]:
        factor = learning_rate_factor(row["step"], 20, warmup_fraction=0.1, schedule=SCHEDULES["cosine"])
        assert row["learning_rate"] == pytest.approx(STILL["learning_rate"] * factor, rel=1e-9)


def test_without_its_record_it_ends_at_once_and_adds_nothing(ended: tuple[Path, str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(ended[0] / "run", run)
    (run / "stages" / "train.json").unlink()
    before = (run / "metrics.jsonl").read_text()
    again = jobs.rankwright("train", ended[0] / "recipe.yaml", f"run_dir={run}")
    assert again.returncode == 0 and LINE in again.stdout and "continuing after step 4" in again.stdout
    assert (run / "metrics.jsonl").read_text() == before and facts(run)["ended_early"]


def killed_at(recipe: Path, run: Path, lines: int, delay: float) -> None:
    """kill -9 `delay` seconds after metrics.jsonl has this many lines; the process may have ended by then."""
    command = [sys.executable, "-m", "rankwright", "train", str(recipe)]
    process = subprocess.Popen(command, env=jobs.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline, log = time.monotonic() + 100, run / "metrics.jsonl"
    while time.monotonic() < deadline and process.poll() is None:
        if log.exists() and len(log.read_text().splitlines()) >= lines:
            time.sleep(delay)
            break
        time.sleep(0.002)
    if process.poll() is None:
        os.kill(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.slow
@pytest.mark.parametrize(("lines", "delay"), [pytest.param(4, 0.0, marks=pytest.mark.slow), (5, 0.0)])
def test_killed_around_the_stopping_point_ends_at_the_same_step(
    ended: tuple[Path, str], tmp_path: Path, tiny_qwen3: Path, lines: int, delay: float
) -> None:
    killed = jobs.job(tmp_path, tiny_qwen3, train=PATIENT)
    # Line 5 of the log is the step that ends it; its checkpoint is written after that.
    killed_at(killed, tmp_path / "run", lines, delay)
    done = jobs.rankwright("train", killed)
    assert done.returncode == 0, done.stderr
    names = ("step", "loss", "dev_nDCG@10", "learning_rate")
    ours, theirs = ([[row.get(n) for n in names] for row in jobs.metrics(f / "run")] for f in (tmp_path, ended[0]))
    assert ours == theirs and len(ours) == 5
    ours_4, theirs_4 = (weights(f / "run", 4) for f in (tmp_path, ended[0]))
    assert all(torch.equal(ours_4[name], theirs_4[name]) for name in theirs_4)


@pytest.mark.slow
def test_two_processes_end_at_the_same_step(tmp_path: Path, tiny_qwen3: Path) -> None:
    recipe = jobs.job(tmp_path, tiny_qwen3, train={**STILL, "patience": 1})
    done = jobs.rankwright("train", recipe, launcher=TORCHRUN, ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stderr
    assert "1 evaluation on dev without a new best: ended after step 2 of 20" in done.stdout
    assert facts(tmp_path / "run")["processes"] == 2 and facts(tmp_path / "run")["step"] == 2
    assert [row["step"] for row in jobs.metrics(tmp_path / "run")] == [0, 1, 2]

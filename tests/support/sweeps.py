"""A small sweep for tests: two losses, two ranks and two seeds on the job of jobs.py; and simulated dev values."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import jobs
import numpy as np
import yaml

from rankwright.evaluation.sweep_table import RunRow
from rankwright.recipe.sweep_runs import LoadedSweep, load_sweep

OVER = {"loss.name": ["listwise_softmax", "bce"], "model.rank": [2, 4]}
SIMULATED = {"loss.name": ["listwise_softmax", "bce"], "model.rank": [16, 8]}


def sweep_file(folder: Path, base: Path | str, over: dict[str, Any] | None = None, **keys: Any) -> Path:
    """Write the job's recipe and sweep.yaml into `folder`; returns the sweep's path. Runs lie in folder/sweep."""
    train = {"max_steps": 2, "evaluate_every": 1, "save_every": 1}
    jobs.job(folder, base, train=train, export={"targets": []})
    swept = OVER if over is None else over
    values = {"extends": "./recipe.yaml", "name": "try", "over": swept, "seeds": [0, 1], **keys}
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def run_two_workers(path: Path) -> None:
    """Two workers on one sweep of sweep_file() at the same time, both of which must end well."""
    command = [sys.executable, "-m", "rankwright", "sweep", str(path), f"run_dir={path.parent / 'sweep'}", "--worker"]
    workers = [
        subprocess.Popen(command, env=jobs.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for worker in workers:
        _, errors = worker.communicate(timeout=600)
        assert worker.returncode == 0, errors


def loaded_sweep(folder: Path, over: dict[str, Any] | None = None, *overrides: str, **keys: Any) -> LoadedSweep:
    path = folder / "s.yaml"
    path.write_text(
        yaml.safe_dump({"extends": "quickstart", "name": "try", "over": SIMULATED if over is None else over, **keys})
    )
    return load_sweep(path, overrides)


def simulated(
    loaded: LoadedSweep,
    rng: np.random.Generator,
    effects: dict[str, float],
    *,
    queries: int = 250,
    seed_sd: float = 0.01,
    train_queries: int = 100,
) -> list[RunRow]:
    """Values with the spreads of a small base: queries .25, query x configuration .08, seeds seed_sd, the rest .10.

    train_queries: of a run that trains on all.
    """
    query_Q = rng.normal(0.5, 0.25, queries)
    own = {one.name: rng.normal(effects.get(one.name, 0.0), 0.08, queries) for one in loaded.configurations}
    rows = []
    for run in loaded.runs:
        values = query_Q + own[run.configuration.name] + rng.normal(0, seed_sd) + rng.normal(0, 0.10, queries)
        named = {f"q{n}": float(value) for n, value in enumerate(values)}
        name = run.configuration.name
        measured = {"dev": float(values.mean()), "seconds": 1.0 + len(rows), "values": named}
        trained_on = round(train_queries * run.loaded.recipe.train.queries_share)
        rows.append(RunRow(run.name, name, run.seed, "done", train_queries=trained_on, **measured))
    return rows

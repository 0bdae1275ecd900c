"""dev_values.jsonl: nDCG@10 of each dev query at each evaluation of a training, the untrained model's first."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwright.common.files import append_lines, write_lines_atomic
from rankwright.evaluation.evaluate import is_number


@dataclass(frozen=True, slots=True)
class DevValues:
    """Query id -> value, before training and at the best checkpoint. A query id is unique over all dev sets."""

    base: Mapping[str, float]
    best: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Evaluated:
    """One evaluation of a training: step (0: the untrained model), mean, query id -> value."""

    step: int
    mean: float
    values: Mapping[str, float]


def add_evaluation(path: Path, inputs: str, step: int, values: Mapping[str, float]) -> None:
    """Keep the values of one evaluation, after those of earlier ones. inputs: of the training, see TrainState."""
    mean = sum(values.values()) / len(values)
    append_lines(path, [json.dumps({"step": step, "inputs": inputs, "mean": mean, "values": dict(values)})])


def settle(path: Path, inputs: str, best_step: int) -> None:
    """Keep the evaluations of a finished training alone, one row a step, and mark the untrained model and the best."""
    names = {0: "base", best_step: "best"}
    kept = [
        ({"model": names[row["step"]]} if row["step"] in names else {}) | row for row in _latest(_rows(path), inputs)
    ]
    write_lines_atomic(path, [json.dumps(row) for row in kept])


def read_dev_values(path: Path) -> DevValues | None:
    """The values of a finished training; None where they are missing or not as settle() writes them."""
    found = {row.get("model"): row["values"] for row in _rows(path)}
    return DevValues(found["base"], found["best"]) if {"base", "best"} <= found.keys() else None


def read_evaluations(path: Path, inputs: str | None = None) -> list[Evaluated]:
    """The evaluations of a training by their steps, also of one that is not finished; an evaluation counts once.

    inputs: of the training; None: of the one that wrote last. A kill may lie between an evaluation and its checkpoint:
    what comes after the newest checkpoint comes again.
    """
    return [Evaluated(row["step"], row["mean"], row["values"]) for row in _latest(_rows(path), inputs)]


def _latest(rows: list[dict[str, Any]], inputs: str | None) -> list[dict[str, Any]]:
    """The last row of each step, by steps, of the training with these inputs or of the last one."""
    rows = [row for row in rows if isinstance(row.get("step"), int)]
    wanted = inputs if inputs is not None or not rows else rows[-1].get("inputs")
    by_step = {row["step"]: row for row in rows if row.get("inputs") == wanted}
    return [by_step[step] for step in sorted(by_step)]


def _rows(path: Path) -> list[dict[str, Any]]:
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
        except ValueError:
            # A kill cut it off: the evaluation comes again.
            continue
        if isinstance(row, dict) and is_number(row.get("mean")) and isinstance(row.get("values"), dict):
            found.append(row)
    return found

"""dev_values.jsonl: nDCG@10 of each dev query, of the untrained model and of the best checkpoint."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
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


def add_evaluation(path: Path, values: Mapping[str, float]) -> None:
    """Keep the values of one evaluation, after those of earlier ones."""
    append_lines(path, [json.dumps({"mean": sum(values.values()) / len(values), "values": dict(values)})])


def settle(path: Path, base_value: float, best_value: float) -> None:
    """Keep the rows of these two means alone, the untrained model's first. A mean that has no row gets none."""
    rows = list(_rows(path))
    base = next((row for row in rows if row["mean"] == base_value), None)
    best = next((row for row in reversed(rows) if row["mean"] == best_value), None)
    kept = [{"model": name, **row} for name, row in (("base", base), ("best", best)) if row is not None]
    write_lines_atomic(path, [json.dumps(row) for row in kept])


def read_dev_values(path: Path) -> DevValues | None:
    """The values of a finished training; None where they are missing or not as settle() writes them."""
    found = {row.get("model"): row["values"] for row in _rows(path)}
    return DevValues(found["base"], found["best"]) if {"base", "best"} <= found.keys() else None


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
        except ValueError:
            # A kill cut it off: the evaluation comes again.
            continue
        if isinstance(row, dict) and is_number(row.get("mean")) and isinstance(row.get("values"), dict):
            yield row

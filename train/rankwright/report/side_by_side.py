"""Several runs on one page: tables of the comparison, recipe keys that differ, curves, slices."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rankwright.common.plurals import counted
from rankwright.common.run_folder import RunFolder
from rankwright.evaluation.compare import Comparison, compare
from rankwright.evaluation.metrics import HEADLINE
from rankwright.evaluation.runs import EvaluatedRun
from rankwright.evaluation.slices import FILE, SMALL, Slice, read_attributes, slice_table
from rankwright.recipe.schema import Recipe, result_values
from rankwright.report import plots
from rankwright.report.page import CURVES, write_page
from rankwright.training.tracking import read_metrics

CURVES_SHOWN = ("loss", f"dev_{HEADLINE}", "score_margin", "gradient_norm")


def write_comparison(folders: Sequence[Path], output: Path) -> Path:
    """Write one page about several evaluated runs. Raises UserError as compare does."""
    comparison = compare(folders)
    metrics = {run.name: read_metrics(RunFolder(run.folder).metrics) for run in comparison.runs}
    slices, slice_notes = shared_slices(comparison)
    curves = [plots.overlaid(metrics, key, CURVES[key], f"curve-{key.split('@')[0]}") for key in CURVES_SHOWN]
    write_page(
        output,
        "compare.html.j2",
        comparison=comparison,
        headline=comparison.measure,
        small=SMALL,
        differing=differing_keys(comparison.runs),
        curves=list(filter(None, curves)),
        scales={name: _scale(comparison, name) for name in (*comparison.sets, None)},
        slices=slices,
        slice_notes=slice_notes,
    )
    return output


def _scale(comparison: Comparison, test_set: str | None) -> tuple[float, float]:
    """The smallest and the largest of all ends of intervals in a table, and of zero."""
    found = [row.difference for _, row in comparison.rows(test_set).values() if row is not None]
    return min([0.0, *(d.low for d in found)]), max([0.0, *(d.high for d in found)])


def differing_keys(runs: Sequence[EvaluatedRun]) -> list[tuple[str, list[str]]]:
    """(dotted key, its value in each run) of every key that is not the same in all; `–` where a run lacks it."""
    # The name of a run is not a part of its experiment; its seed is.
    flat = [_flat(result_values(_whole(run))) for run in runs]
    keys = dict.fromkeys(key for values in flat for key in values)
    rows = [(key, [values.get(key, "\N{EN DASH}") for values in flat]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def _whole(run: EvaluatedRun) -> Mapping[str, Any]:
    """The recipe with defaults for all keys that it lacks, where this version can read it."""
    try:
        recipe = Recipe.model_validate_json(json.dumps(run.recipe))
    except ValidationError:
        return run.recipe
    values: dict[str, Any] = recipe.model_dump(mode="json", by_alias=True)
    return values


def _flat(value: Any, prefix: str = "") -> dict[str, str]:
    """Dotted key -> JSON of its value. An empty list or section is a value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if inner is None or not value:
        return {prefix: json.dumps(value, ensure_ascii=False)}
    found: dict[str, str] = {}
    for key, item in inner:
        found |= _flat(item, f"{prefix}.{key}" if prefix else str(key))
    return found


def shared_slices(comparison: Comparison) -> tuple[dict[str, tuple[Slice, ...]], list[str]]:
    """Test set -> its slices by the attributes of the first run, with every system's mean; and notes."""
    found: dict[str, tuple[Slice, ...]] = {}
    notes = []
    first = comparison.runs[0]
    for name, shared in comparison.sets.items():
        path = RunFolder(first.folder).eval_folder(name) / FILE
        if not path.is_file():
            notes.append(f"{name}: {first.name} has no queries.jsonl; `rankwright run` writes it")
            continue
        rows = [row for row in read_attributes(path) if row.query_id in set(shared.queries)]
        values = {s.name: shared.of(s.values(name)) for s in comparison.systems}
        found[name] = slice_table(rows, values).slices
        for run in comparison.runs[1:]:
            other = RunFolder(run.folder).eval_folder(name) / FILE
            if not other.is_file():
                continue
            theirs = {row.query_id: row for row in read_attributes(other)}
            differ = sum(theirs.get(row.query_id, row) != row for row in rows)
            if differ:
                notes.append(
                    f"{name}: {counted(differ, 'query has', 'queries have')} other attributes in "
                    f"{run.name}, because its prompt, lists or "
                    f"training data differ; the slices are those of {first.name}"
                )
    return found, notes

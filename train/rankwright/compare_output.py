"""What `rankwright compare` prints and writes of a comparison."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from rankwright import console
from rankwright.atomic import write_text_atomic
from rankwright.compare import Compared, Comparison
from rankwright.evaluate import HEADLINE


def show(comparison: Comparison) -> None:
    """A table a test set, one of all of them and one over seeds where there are several, and what the numbers mean."""
    systems = comparison.systems
    for note in comparison.notes:
        console.say(note)
    for name, shared in comparison.sets.items():
        rows = {s.name: (shared.means(s.values(name)), comparison.compared.get((name, s.name))) for s in systems}
        console.show(_table(comparison, f"{name}: {len(shared.queries):,} queries", rows))
        for note in shared.notes:
            console.say(f"{name}: {note}")
    if comparison.pooled:
        rows = {s.name: (comparison.pooled_means(s), comparison.pooled.get(s.name)) for s in systems}
        console.show(_table(comparison, f"all test sets together: {comparison.pooled_queries:,} queries", rows))
    if comparison.over_seeds:
        console.show(_seed_table(comparison))
    count = len(comparison.compared) + len(comparison.pooled)
    if count:
        console.say(
            f"difference: from {comparison.reference.name} by {HEADLINE}, BCa over queries. p: two-sided paired "
            f"randomisation test; Holm: adjusted for all {count} comparisons shown"
        )


def _table(
    comparison: Comparison, title: str, rows: Mapping[str, tuple[Mapping[str, float], Compared | None]]
) -> Table:
    """rows: system -> its means by measure, and its difference from the reference, which has none."""
    measures = list(rows[comparison.reference.name][0])
    table = Table(title=escape(title), title_justify="left")
    for column in ("system", *measures, "difference [95 % interval]", "p", "Holm"):
        table.add_column(escape(column), justify="left" if column == "system" else "right", no_wrap=True)
    for system in comparison.systems:
        means, row = rows[system.name]
        cells = [f"{mean:.3f}" for mean in means.values()]
        if row is None:
            cells += ["reference", "-", "-"]
        else:
            d = row.difference
            cells += [f"{d.mean:+.3f} [{d.low:+.3f}, {d.high:+.3f}]", f"{row.p:.4f}", f"{row.p_holm:.4f}"]
        also = [run.name for run in system.runs[1:]] if "/" in system.name else []
        label = system.name + (f" (= {', '.join(also)})" if also else "")
        table.add_row(escape(label), *cells, style="bold" if row is None else None)
    return table


def _seed_table(comparison: Comparison) -> Table:
    table = Table(title=f"tuned {HEADLINE} over seeds", title_justify="left")
    for column in ("runs", "test set", "seeds", "mean", "deviation", "min", "max"):
        table.add_column(column, justify="left" if column in ("runs", "test set") else "right", no_wrap=True)
    for names, spreads in comparison.over_seeds.items():
        for name, s in spreads.items():
            numbers = [f"{value:.3f}" for value in (s.mean, s.deviation or 0.0, s.low, s.high)]
            table.add_row(escape(", ".join(names)), escape(name), str(s.count), *numbers)
    return table


def as_json(comparison: Comparison) -> dict[str, Any]:
    """All numbers, unrounded: what `--json` writes."""
    return {
        "measure": HEADLINE,
        "against": comparison.reference.name,
        "confidence": 0.95,
        "comparisons": len(comparison.compared) + len(comparison.pooled),
        "runs": {run.name: {"folder": str(run.folder), "seed": run.seed} for run in comparison.runs},
        "systems": {s.name: {"kind": s.kind, "runs": [run.name for run in s.runs]} for s in comparison.systems},
        "test_sets": {
            name: {
                "queries": len(shared.queries),
                "notes": list(shared.notes),
                "systems": {
                    s.name: {"measures": shared.means(s.values(name)), **_row(comparison.compared.get((name, s.name)))}
                    for s in comparison.systems
                },
            }
            for name, shared in comparison.sets.items()
        },
        "pooled": {
            s.name: {"measures": comparison.pooled_means(s), **_row(comparison.pooled.get(s.name))}
            for s in comparison.systems
            if comparison.pooled
        },
        "over_seeds": [
            {"runs": list(names), "test_sets": {name: dataclasses.asdict(s) for name, s in spreads.items()}}
            for names, spreads in comparison.over_seeds.items()
        ],
        "notes": list(comparison.notes),
    }


def write_json(comparison: Comparison, path: Path) -> None:
    """The comparison as a file, which appears whole or not at all."""
    text = json.dumps(as_json(comparison), indent=2, ensure_ascii=False, allow_nan=False)
    write_text_atomic(path, text + "\n")


def _row(row: Compared | None) -> dict[str, Any]:
    return {} if row is None else {"difference": dataclasses.asdict(row.difference), "p": row.p, "p_holm": row.p_holm}

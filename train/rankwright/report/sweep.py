"""The page and the tables of a sweep: report.html, table.json, table.csv, table.md, table.tex."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rankwright.common.files import write_text_atomic
from rankwright.common.plurals import counted
from rankwright.common.templates import cell
from rankwright.evaluation.metrics import HEADLINE
from rankwright.evaluation.sweep_table import DIFFERENCES, SEED_UNKNOWN, ConfigurationRow, OnTest, SweepTable
from rankwright.report import plots, sweep_plots
from rankwright.report.page import interval, p_text, write_page

# Rows of the forest plot; the table has all.
MOST_DRAWN = 30
Curves = Mapping[str, Sequence[Mapping[str, Any]]]
LATEX = {c: f"\\{c}" for c in "&%$#_{}"} | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\^{}"}


def write_sweep(
    folder: Path, table: SweepTable, tests: Sequence[OnTest], curves: Curves, *, pruned: Curves | None = None
) -> Path:
    """Write all files of the results into the folder of a sweep; returns the page. Equal numbers give equal bytes.

    curves: configuration -> rows with the dev value by step; pruned: the same of runs that were stopped early.
    """
    values = {**dataclasses.asdict(table), "test": [dataclasses.asdict(row) for row in tests]}
    for row in values["runs"]:
        # They stand in dev_values.jsonl of each run.
        del row["values"]
    write_text_atomic(folder / "table.json", json.dumps(values, indent=2, ensure_ascii=False) + "\n")
    write_text_atomic(folder / "table.csv", tidy(table))
    write_text_atomic(folder / "table.md", markdown(table))
    write_text_atomic(folder / "table.tex", latex(table))
    drawn = ranked(table)[:MOST_DRAWN]
    forest = [(row.name, [("vs default", row.contrast.difference)]) for row in drawn if row.contrast is not None]
    page = folder / "report.html"
    write_page(
        page,
        "sweep.html.j2",
        table=table,
        verdict=verdict(table),
        rows=ranked(table),
        chosen=table.of(table.chosen) if table.chosen else None,
        tests=tests,
        seed_unknown=SEED_UNKNOWN,
        headline=HEADLINE,
        failed=[row for row in table.runs if row.error],
        forest=plots.differences(forest, "forest", f"{HEADLINE} on dev minus the default, 95 % interval"),
        drawn=len(forest),
        effects=[(effect, sweep_plots.levels(effect, f"effect-{n}")) for n, effect in enumerate(table.effects)],
        heat=(heat := sweep_plots.heat_map(table)),
        parallel="" if heat else sweep_plots.parallel(table, "parallel"),
        data_curve=sweep_plots.data_curve(table.learning_curve, "data-curve") if table.learning_curve else "",
        needed=[row for row in ranked(table) if row.contrast is not None and row.contrast.needed],
        differences=DIFFERENCES,
        pruned=sum(run.state == "pruned" for run in table.runs),
        pareto=sweep_plots.pareto(table, "pareto"),
        curves=plots.overlaid(
            curves,
            f"dev_{HEADLINE}",
            f"{HEADLINE} on dev, mean of the seeds",
            "curves",
            grey=(pruned or {}).values(),
        ),
    )
    return page


def ranked(table: SweepTable) -> list[ConfigurationRow]:
    """The configurations, best first; those without a finished run last."""
    return sorted(table.configurations, key=lambda row: (row.dev is None, -(row.dev or 0.0)))


def tidy(table: SweepTable) -> str:
    """CSV with one row a run: its factors, what became of it, its values."""
    fields = ("state", "error", "dev", "base", "best_step", "steps", "seconds", "tokens", "train_queries")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", "configuration", "seed", *table.factors, *fields])
    settings = {row.name: row.settings for row in table.configurations}
    for run in table.runs:
        levels = [settings[run.configuration][factor] for factor in table.factors]
        found = [getattr(run, field) for field in fields]
        writer.writerow([run.name, run.configuration, run.seed, *levels, *("" if v is None else v for v in found)])
    return text.getvalue()


def markdown(table: SweepTable) -> str:
    """The table of configurations in Markdown."""
    head, *rows = _cells(table, plots.signed)
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cell(text) for text in line) + " |\n" for line in lines)


def latex(table: SweepTable) -> str:
    """The table of configurations in LaTeX, with booktabs."""

    def escaped(text: str) -> str:
        return "".join(LATEX.get(c, c) for c in text)

    head, *rows = _cells(table, lambda value: f"{value:+.3f}")
    columns = "l" * (1 + len(table.factors)) + "r" * (len(head) - 1 - len(table.factors))
    body = "".join(" & ".join(map(escaped, row)) + r" \\" + "\n" for row in rows)
    names = " & ".join(map(escaped, head)) + r" \\"
    return (
        f"% {table.name}: {HEADLINE} on dev, differences from {table.default}, 95 % intervals\n"
        f"\\begin{{tabular}}{{{columns}}}\n\\toprule\n{names}\n\\midrule\n{body}\\bottomrule\n\\end{{tabular}}\n"
    )


def _cells(table: SweepTable, signed: Any) -> list[list[str]]:
    rows = [["configuration", *table.factors, "seeds", HEADLINE, "sd of seeds", "difference", "95 %", "p (Holm)"]]
    for row in ranked(table):
        d = row.contrast.difference if row.contrast is not None else None
        rows.append(
            [
                row.name,
                *(row.settings[factor] for factor in table.factors),
                str(len(row.seeds)) + (f" ({row.pruned} pruned)" if row.pruned else ""),
                "" if row.dev is None else f"{row.dev:.3f}",
                "" if row.deviation is None else f"{row.deviation:.3f}",
                "" if d is None else signed(d.mean),
                "" if d is None else f"[{signed(d.low)}, {signed(d.high)}]",
                "" if row.p_holm is None else f"{row.p_holm:.3f}",
            ]
        )
    return rows


def verdict(table: SweepTable) -> str:
    """One sentence: which configuration is chosen, and whether its difference from the default is more than chance."""
    if table.chosen is None:
        return "No run is finished."
    row = table.of(table.chosen)
    if table.chosen == table.default:
        return f"The default is the best on dev ({row.dev:.3f}): nothing that was changed is better."
    if row.contrast is None or row.p_holm is None:
        return f"{row.name} is the best on dev ({row.dev:.3f}); it cannot be compared with the default."
    shown = f"{row.name} is the best on dev: {interval(row.contrast.difference)} against the default"
    if not row.contrast.seeds_known:
        return f"{shown}, for other queries only: {SEED_UNKNOWN}."
    sure = "more than chance" if row.p_holm < 0.05 else "not more than chance"
    others = counted(len(table.configurations) - 1, "difference")
    return f"{shown}, {sure} (p {p_text(row.p_holm)} by Holm for {others})."


def would_show(table: SweepTable) -> str | None:
    """One line for the terminal: what would show differences of the best compared one; None where nothing is known."""
    row = next((row for row in ranked(table) if row.contrast is not None and row.contrast.needed), None)
    if row is None or row.contrast is None:
        return None
    found = []
    for one in row.contrast.needed:
        seeds = [] if one.seeds is None else [counted(one.seeds, "seed")]
        queries = [] if one.queries is None else [counted(one.queries, "dev query", "dev queries")]
        found.append(f"{one.difference:g}: {' or '.join([*seeds, *queries]) or 'more of both'}")
    return f"to show a difference of {row.name} from {table.default} of {', '.join(found)}"

"""report.html: one self-contained page of a run (Jinja2, inline SVG from matplotlib, no network)."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from rankwright.atomic import write_text_atomic
from rankwright.data_files import read_split
from rankwright.evaluate import HEADLINE, read_metrics_json, read_per_query
from rankwright.evaluate_stage import SYSTEMS, ResultRow, results, verdict
from rankwright.recipe import Recipe
from rankwright.run_folder import STAGES, RunFolder
from rankwright.tracking import read_metrics

SHOWN_CHANGES = 5
BLUE, ORANGE, GREY = "#1f5fa8", "#c8641b", "#777777"


def write_report(recipe: Recipe, run: RunFolder, system_inputs: Mapping[str, str]) -> Path:
    """Write runs/NAME/report.html from the files of the finished stages."""
    rows = results(run, recipe.seed, system_inputs)
    metrics = read_metrics(run.path / "metrics.jsonl")
    environment = Environment(
        loader=PackageLoader("rankwright", "templates"),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.j2").render(
        recipe=recipe.model_dump(mode="json"),
        provenance=_read_json(run.path / "provenance.json"),
        data=_read_json(run.path / "data_report.json"),
        stages=[(name, run.facts(name)) for name in STAGES if run.facts(name)],
        headline=HEADLINE,
        rows=rows,
        verdict=verdict(rows[-1]) if rows else "",
        measures=_measures(run, recipe),
        curves=curves_svg(metrics) if metrics else "",
        differences=differences_svg(rows),
        changes=_changes(run),
        parity=_parity(run, recipe),
    )
    path = run.path / "report.html"
    write_text_atomic(path, page)
    return path


def _read_json(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


def _sets(run: RunFolder) -> list[str]:
    return [row["set"] for row in _read_json(run.path / "data_report.json")["splits"]["test"]]


def _measures(run: RunFolder, recipe: Recipe) -> list[dict[str, Any]]:
    """A row a test set and system with every measure, the lists' ceiling, speed and cut documents."""
    found = []
    for name in _sets(run):
        for system in SYSTEMS:
            values = read_metrics_json(run.path / "eval" / name / system)
            if values is not None:
                shown = [values[m] for m in recipe.evaluate.measures]
                found.append({"set": name, "system": system, "shown": shown, **values})
    return found


def _changes(run: RunFolder) -> list[dict[str, Any]]:
    """The queries that gained and lost most between base and tuned."""
    rows: list[dict[str, Any]] = []
    for collection in read_split(run.path / "data", "test"):
        folder = run.path / "eval" / collection.name
        if not all((folder / s / "metrics.json").is_file() for s in ("base", "tuned")):
            continue
        base, tuned = (read_per_query(folder / s, HEADLINE) for s in ("base", "tuned"))
        rows += [
            {"set": collection.name, "query": collection.queries[q], "base": base[q], "tuned": tuned[q]} for q in base
        ]
    rows.sort(key=lambda r: r["base"] - r["tuned"])
    gained = [r for r in rows[:SHOWN_CHANGES] if r["tuned"] > r["base"]]
    lost = [r for r in reversed(rows[-SHOWN_CHANGES:]) if r["tuned"] < r["base"]]
    return [*gained, *lost]


def _parity(run: RunFolder, recipe: Recipe) -> dict[str, Any]:
    """Target -> parity.json of its folder, where it has one."""
    files = [run.path / "export" / target / "parity.json" for target in recipe.export_targets]
    return {path.parent.name: _read_json(path) for path in files if path.is_file()}


def _svg(figure: Any) -> str:
    """A figure as inline SVG without the XML header, and the same text for the same numbers."""
    import matplotlib.pyplot as plt

    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None}, bbox_inches="tight", transparent=True)
    plt.close(figure)
    svg = text.getvalue()
    return svg[svg.index("<svg") :]


def _pyplot() -> Any:
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update(
        {"svg.hashsalt": "rankwright", "font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
    )
    import matplotlib.pyplot as plt

    return plt


def curves_svg(metrics: Sequence[dict[str, Any]]) -> str:
    """Training loss and nDCG@10 on dev by step."""
    plt = _pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3))
    steps = [row["step"] for row in metrics if "loss" in row]
    left.plot(steps, [row["loss"] for row in metrics if "loss" in row], color=BLUE, linewidth=1.2)
    left.set(xlabel="step", title="training loss", xlim=(0, None), ylim=(0, None))
    dev = [row for row in metrics if f"dev_{HEADLINE}" in row]
    right.plot([r["step"] for r in dev], [r[f"dev_{HEADLINE}"] for r in dev], color=ORANGE, marker="o", markersize=4)
    right.set(xlabel="step", title=f"{HEADLINE} on dev (step 0 is the base)", xlim=(0, None))
    return _svg(figure)


def differences_svg(rows: Sequence[ResultRow]) -> str:
    """tuned - base with its 95 % interval, a line a test set."""
    shown = [(row.name, row.difference) for row in rows if row.difference is not None]
    if not shown:
        return ""
    plt = _pyplot()
    figure, axis = plt.subplots(figsize=(9, 0.9 + 0.45 * len(shown)))
    for place, (_, d) in enumerate(shown):
        axis.plot([d.low, d.high], [place, place], color=BLUE, linewidth=3, solid_capstyle="butt")
        axis.plot(d.mean, place, "o", color=ORANGE, markersize=7)
    axis.axvline(0, color=GREY, linewidth=1)
    axis.set_yticks(range(len(shown)), [name for name, _ in shown])
    axis.set(xlabel=f"{HEADLINE}: tuned - base, 95 % interval", ylim=(len(shown) - 0.5, -0.5))
    return _svg(figure)

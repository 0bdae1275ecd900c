"""Plots of a sweep: levels of a factor, two factors in cells, many as parallel axes, quality against cost, data.

What was stopped early is grey in each of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rankwright.evaluation.learning_curve import LearningCurve
from rankwright.evaluation.metrics import HEADLINE
from rankwright.evaluation.sweep_table import MOST_LEVELS, ConfigurationRow, Effect, SweepTable
from rankwright.report.plots import BLUE, INK, LINE, ORANGE, PAGE, SOFT, pyplot, short, svg

# Points with a name beside them; more names would cover each other.
MOST_NAMES = 8
# Lines of parallel axes; more would be one area.
MOST_LINES = 200
# With a ratio of the ends beyond this, values stand at their logarithms.
LOG_RATIO = 20.0


@dataclass(frozen=True, slots=True)
class HeatMap:
    """A grid of two factors. cells: value of the rows' factor -> of the columns' -> configuration.

    shades: configuration -> how dark its cell is, from 0 for the lowest mean on dev to 1 for the highest.
    """

    rows: str
    columns: str
    cells: Mapping[str, Mapping[str, ConfigurationRow]]
    shades: Mapping[str, float]


def heat_map(table: SweepTable) -> HeatMap | None:
    """The cells of two factors; None for other numbers of factors, and where no grid was planned."""
    if len(table.factors) != 2:
        return None
    rows, columns = table.factors
    others = [row for row in table.configurations if row.name != table.default]
    # The default may lie beside the grid.
    for taken in (table.configurations, others):
        cells: dict[str, dict[str, ConfigurationRow]] = {}
        for one in taken:
            cells.setdefault(one.settings[rows], {})[one.settings[columns]] = one
        first = next(iter(cells.values()), {})
        if min(len(cells), len(first)) > 1 and all(set(row) == set(first) for row in cells.values()):
            means = [one.dev for one in taken if one.dev is not None]
            low, span = min(means, default=0.0), (max(means, default=0.0) - min(means, default=0.0)) or 1.0
            shades = {one.name: (one.dev - low) / span for one in taken if one.dev is not None}
            order = _order(list(first))
            # The factor with fewer values in the columns: a narrow page holds it.
            made = {r: {c: cells[r][c] for c in order} for r in _order(list(cells))}
            if len(order) <= len(made):
                return HeatMap(rows, columns, made, shades)
            turned = {c: {r: made[r][c] for r in made} for c in order}
            return HeatMap(columns, rows, turned, shades)
    return None


def _order(values: Sequence[str]) -> list[str]:
    """Numbers by size, other values as they come."""
    numbers = {value: _number(value) for value in values}
    return sorted(values, key=lambda v: numbers[v] or 0.0) if None not in numbers.values() else list(values)


def _number(text: str) -> float | None:
    try:
        found = float(text)
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def parallel(table: SweepTable, name: str) -> str:
    """One axis a factor, below each other, and nDCG@10 on dev at the foot: each configuration is a line through them.

    An empty text for fewer than two factors.
    """
    drawn = sorted(table.configurations, key=lambda row: (row.dev is not None, row.dev or 0.0))[-MOST_LINES:]
    values = [row.dev for row in drawn if row.dev is not None]
    if len(table.factors) < 2 or not values:
        return ""
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    count = len(table.factors)
    figure, axis = pyplot().subplots(figsize=(3.9, 0.9 + 0.72 * (count + 1)))
    axis.set_axis_off()
    axis.set(xlim=(-0.04, 1.04), ylim=(count + 0.45, -0.45))
    places = []
    for number, factor in enumerate(table.factors):
        at, ticks = _axis([row.settings[factor] for row in drawn])
        places.append(at)
        _draw_axis(axis, number, factor, ticks)
    _draw_axis(axis, count, f"{HEADLINE} on dev", [(0.0, f"{low:.3f}"), (1.0, f"{high:.3f}")])
    for rank, row in enumerate(drawn):
        # Lines through one value lie side by side, the best at the right.
        aside = 0.05 * (rank / max(1, len(drawn) - 1) - 0.5)
        xs = [at[row.settings[factor]] + aside for at, factor in zip(places, table.factors, strict=True)]
        xs += [] if row.dev is None else [(row.dev - low) / span]
        share = 0.0 if row.dev is None else (row.dev - low) / span
        look: dict[str, object] = {"color": BLUE, "alpha": 0.15 + 0.75 * share**2, "linewidth": 1.2, "zorder": 1}
        if row.dev is None:
            look = {"color": SOFT, "alpha": 0.5, "linewidth": 1, "linestyle": ":", "zorder": 0}
        if row.name == table.default:
            look = {"color": INK, "linewidth": 1.8, "linestyle": "--", "zorder": 2}
        if row.name == table.chosen:
            look = {"color": ORANGE, "linewidth": 2.4, "zorder": 3}
        axis.plot(xs, range(len(xs)), **look)
    best = drawn[-1]
    words = ", ".join(f"{factor} {best.settings[factor]}" for factor in table.factors)
    return svg(figure, name, f"Settings of {len(drawn)} configurations; the best, {best.dev:.3f} on dev: {words}")


def _axis(values: Sequence[str]) -> tuple[dict[str, float], list[tuple[float, str]]]:
    """(value -> place from 0 to 1, ticks). Few values stand at equal distances, many numbers at their size."""
    order = _order(list(dict.fromkeys(values)))
    numbers = [_number(value) for value in order]
    known = [number for number in numbers if number is not None]
    if len(order) > MOST_LEVELS and len(known) == len(order):
        log = known[0] > 0 and known[-1] / known[0] > LOG_RATIO
        sizes = [math.log(number) if log else number for number in known]
        at = {v: (size - sizes[0]) / (sizes[-1] - sizes[0]) for v, size in zip(order, sizes, strict=True)}
        return at, [(0.0, order[0]), (1.0, order[-1])]
    at = {value: (n + 0.5) / len(order) for n, value in enumerate(order)}
    return at, [(place, value) for value, place in at.items()] if len(order) <= MOST_LEVELS else []


def _draw_axis(axis: Any, number: int, title: str, ticks: Sequence[tuple[float, str]]) -> None:
    # Above the lines, on a ground of their own.
    look: dict[str, Any] = {"zorder": 4, "bbox": {"facecolor": PAGE, "edgecolor": "none", "pad": 0.6, "alpha": 0.8}}
    axis.plot([0, 1], [number, number], color=LINE, linewidth=1, zorder=0)
    axis.text(0, number - 0.12, short(title), color=INK, ha="left", va="bottom", **look)
    most = max(3, 34 // max(1, len(ticks)))
    for place, text in ticks:
        cut = text if len(text) <= most else f"{text[: most - 1]}…"
        side = "left" if place == 0 else "right" if place == 1 else "center"
        axis.text(place, number + 0.1, cut, color=SOFT, ha=side, va="top", **look)


def data_curve(curve: LearningCurve, name: str) -> str:
    """nDCG@10 on dev by the number of training queries: runs, means, the fit up to twice the queries, and its band."""
    figure, axis = pyplot().subplots(figsize=(4.2, 2.8))
    most = curve.sizes[-1].queries
    sizes = [size for size, _, _, _ in curve.drawn]
    axis.fill_between(
        sizes, [p[2] for p in curve.drawn], [p[3] for p in curve.drawn], color=LINE, linewidth=0, zorder=0
    )
    for beyond, style in ((False, "-"), (True, "--")):
        part = [(p[0], p[1]) for p in curve.drawn if (p[0] >= most if beyond else p[0] <= most)]
        axis.plot([x for x, _ in part], [y for _, y in part], style, color=BLUE, linewidth=1.7)
    for size in curve.sizes:
        axis.plot([size.queries] * len(size.values), size.values, "o", color=SOFT, markersize=3, alpha=0.7)
        axis.plot(size.queries, size.mean, "o", color=BLUE, markersize=6.5)
    end = curve.drawn[-1]
    axis.annotate(
        f"{curve.gain:+.3f}".replace("-", "\N{MINUS SIGN}"),
        (end[0], end[1]),
        xytext=(5, 0),
        textcoords="offset points",
        va="center",
        annotation_clip=False,
    )
    axis.set_xscale("log")
    marks = list(dict.fromkeys([*(size.queries for size in curve.sizes), 2 * most]))
    shown = [mark for mark, after in zip(marks, [*marks[1:], math.inf], strict=True) if after / mark > 1.35]
    axis.set_xticks(shown, [f"{mark:,}" for mark in shown])
    axis.set_xticks([], minor=True)
    axis.locator_params(axis="y", nbins=5)
    axis.set(title=f"{HEADLINE} on dev", xlabel="training queries")
    means = "; ".join(f"{size.queries} {size.mean:.3f}" for size in curve.sizes)
    return svg(figure, name, f"{HEADLINE} on dev by training queries: {means}. {curve.sentence}")


def levels(effect: Effect, name: str) -> str:
    """The mean on dev of each level with its interval, the first one's mean as a line."""
    figure, axis = pyplot().subplots(figsize=(3.5, 0.8 + 0.3 * len(effect.levels)))
    for place, level in enumerate(effect.levels):
        axis.plot([level.low, level.high], [place, place], color=BLUE, linewidth=2.5, solid_capstyle="butt")
        axis.plot(level.mean, place, "o", color=BLUE, markersize=6.5)
    axis.axvline(effect.levels[0].mean, color=SOFT, linewidth=1, zorder=0)
    axis.set_yticks(range(len(effect.levels)), [short(level.value) for level in effect.levels])
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
    axis.set(title=short(effect.factor), xlabel="nDCG@10 on dev, 95 % interval", ylim=(len(effect.levels) - 0.4, -0.6))
    axis.locator_params(axis="x", nbins=5)
    words = "; ".join(f"{one.value} {one.mean:.3f} [{one.low:.3f}, {one.high:.3f}]" for one in effect.levels)
    return svg(figure, name, f"nDCG@10 on dev by {effect.factor}: {words}")


def pareto(table: SweepTable, name: str) -> str:
    """Quality on dev against seconds of training; the configurations that no other beats in both are joined."""
    rows = table.configurations
    points = [(row.seconds, row.dev, row) for row in rows if row.dev is not None and row.seconds is not None]
    if len(points) < 2:
        return ""
    figure, axis = pyplot().subplots(figsize=(4.2, 2.8))
    front = sorted((x, y) for x, y, row in points if row.pareto)
    axis.plot([x for x, _ in front], [y for _, y in front], color=LINE, linewidth=1.6, zorder=0)
    for run in table.runs:
        if run.state == "pruned" and run.dev is not None and run.seconds is not None:
            axis.plot(run.seconds, run.dev, "x", color=SOFT, alpha=0.5, markersize=6, zorder=0)
    named = sorted((point for point in points if point[2].pareto), key=lambda p: -p[1])[:MOST_NAMES]
    for x, y, row in points:
        axis.plot(x, y, "o" if row.pareto else "s", color=ORANGE if row.pareto else SOFT, markersize=6)
    for x, y, row in named:
        axis.annotate(short(row.name), (x, y), xytext=(5, 5), textcoords="offset points", annotation_clip=False)
    axis.set(title="nDCG@10 on dev", xlabel="seconds of training, mean of the seeds")
    axis.margins(0.12)
    axis.locator_params(nbins=5)
    words = "; ".join(f"{row.name} {y:.3f} in {x:.0f} s" for x, y, row in points)
    return svg(figure, name, f"Quality on dev against seconds of training: {words}")

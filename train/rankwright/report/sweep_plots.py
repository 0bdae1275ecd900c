"""Plots of a sweep: levels of a factor, quality against cost."""

from __future__ import annotations

from collections.abc import Sequence

from rankwright.evaluation.sweep_table import ConfigurationRow, Effect
from rankwright.report.plots import BLUE, LINE, ORANGE, SOFT, pyplot, short, svg

# Points with a name beside them; more names would cover each other.
MOST_NAMES = 8


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


def pareto(rows: Sequence[ConfigurationRow], name: str) -> str:
    """Quality on dev against seconds of training; the configurations that no other beats in both are joined."""
    points = [(row.seconds, row.dev, row) for row in rows if row.dev is not None and row.seconds is not None]
    if len(points) < 2:
        return ""
    figure, axis = pyplot().subplots(figsize=(4.2, 2.8))
    front = sorted((x, y) for x, y, row in points if row.pareto)
    axis.plot([x for x, _ in front], [y for _, y in front], color=LINE, linewidth=1.6, zorder=0)
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

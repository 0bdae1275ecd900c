"""Plots of the report as inline SVG. Text stays text, colours follow the page, equal numbers give equal bytes."""

from __future__ import annotations

import html
import io
import itertools
import math
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rankwright.common.components import SeedDifference
from rankwright.common.console import visible
from rankwright.common.stats import Difference

# Plots are drawn in these colours. The page's variables replace them, so one picture serves light, dark and print.
COLOURS = {
    "#010101": "var(--ink)",
    "#020202": "var(--soft)",
    "#030303": "var(--line)",
    "#040404": "var(--page)",
    "#050505": "var(--blue)",
    "#060606": "var(--orange)",
    "#070707": "var(--green)",
    "#080808": "var(--pink)",
    "#090909": "var(--sky)",
}
INK, SOFT, LINE, PAGE, BLUE, ORANGE, GREEN, PINK, SKY = COLOURS
# Lines differ in their dashes and labels too.
SERIES = ((BLUE, "-"), (ORANGE, "--"), (GREEN, "-."), (PINK, ":"), (SKY, "-"), (INK, "--"))
# The most points of a curve. More would make the page large and the line no clearer.
MOST_POINTS = 400
LONGEST_NAME = 22
PANEL = (4.5, 2.35)
FONT = 10.5


def pyplot() -> Any:
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update(
        {
            "svg.hashsalt": "rankwright",
            "svg.fonttype": "none",
            "font.family": "DejaVu Sans",
            "font.size": FONT,
            "text.parse_math": False,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": SOFT,
            "axes.labelcolor": SOFT,
            "text.color": INK,
            "xtick.color": SOFT,
            "ytick.color": SOFT,
            "axes.titlesize": FONT + 0.5,
            "axes.titlelocation": "left",
            "axes.titlecolor": INK,
            "axes.formatter.useoffset": False,
            "axes.formatter.limits": (-3, 5),
        }
    )
    import matplotlib.pyplot as plt

    return plt


def svg(figure: Any, name: str, alternative: str, *, tight: bool = True) -> str:
    """A figure as inline SVG. name: unique on the page; alternative: the text for readers who cannot see the figure.

    tight: the figure is as large as what is drawn. Without it, it has the same size as its neighbours.
    """
    import matplotlib.pyplot as plt

    text = io.StringIO()
    with warnings.catch_warnings():
        # The reader's own font draws glyphs that matplotlib's font lacks.
        warnings.simplefilter("ignore")
        options: dict[str, Any] = {"bbox_inches": "tight", "pad_inches": 0.04} if tight else {}
        figure.savefig(text, format="svg", metadata={"Date": None}, transparent=True, **options)
    plt.close(figure)
    found = text.getvalue()
    found = found[found.index("<svg") :]
    found = re.sub(r"\s*<metadata>.*?</metadata>", "", found, flags=re.DOTALL)
    # Several plots share a page, and their ids must differ.
    found = re.sub(r'\bid="', f'id="{name}-', found)
    found = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", found)
    found = re.sub(r"font: ([^;\"]*?)([\d.]+)px [^;\"]+", r"font: \g<1>\g<2>px system-ui, sans-serif", found)
    for drawn, shown in COLOURS.items():
        found = found.replace(drawn, shown)
    return found.replace("<svg ", f'<svg role="img" aria-label="{html.escape(visible(alternative), quote=True)}" ', 1)


def signed(value: float) -> str:
    """`+0.103`, with a real minus sign, as matplotlib writes it at the axes."""
    return f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")


def short(name: str) -> str:
    """The start and the end of a name that would leave no room for the plot."""
    name = visible(name)
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 11]}…{name[-10:]}"


def thinned(xs: Sequence[float], ys: Sequence[float]) -> tuple[list[float], list[float]]:
    """At most MOST_POINTS points, each the mean over the same number of neighbours."""
    size = -(-len(xs) // MOST_POINTS) or 1

    def means(values: Sequence[float]) -> list[float]:
        pieces = (values[n : n + size] for n in range(0, len(values), size))
        return [sum(piece) / len(piece) for piece in pieces]

    return means(xs), means(ys)


def points_of(metrics: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    """(step, value) of the rows that have a finite one."""
    rows = [row for row in metrics if isinstance(row.get(key), int | float) and math.isfinite(row[key])]
    return [(float(row["step"]), float(row[key])) for row in rows]


def curve(
    metrics: Sequence[Mapping[str, Any]], key: str, title: str, *, best: int | None = None, of: str = "curve"
) -> str:
    """One value of metrics.jsonl by step; an empty text where no row has it. best: the step that is exported.

    of: begins the ids in the drawing, which must differ on a page.
    """
    points = points_of(metrics, key)
    if not points:
        return ""
    figure, axis = pyplot().subplots(figsize=PANEL)
    on_dev = key.startswith("dev_")
    xs, ys = [x for x, _ in points], [y for _, y in points]
    if on_dev:
        axis.plot(xs, ys, color=BLUE, marker="o", markersize=4, linewidth=1.6)
        _label_dev(axis, points, best)
    elif key == "learning_rate":
        axis.plot(*thinned(xs, ys), color=BLUE, linewidth=1.7)
        peak = max(range(len(ys)), key=lambda n: ys[n])
        _mark(axis, xs[peak], ys[peak], f"{ys[peak]:.3g}", offset=(4, 8))
    else:
        # Single steps are noisy, so the curve is their running mean.
        smooth = running_mean(ys)
        axis.plot(*thinned(xs, ys), color=LINE, linewidth=1)
        axis.plot(*thinned(xs, smooth), color=BLUE, linewidth=1.7)
        _mark(axis, xs[-1], smooth[-1], f"{smooth[-1]:.3g}")
    axis.set(title=title, xlabel="step", xlim=(0, max(xs) * 1.02 or 1))
    axis.margins(y=0.2)
    if min(ys) >= 0 and not on_dev:
        axis.set_ylim(0, max(ys) * 1.15 or 1)
    axis.locator_params(axis="y", nbins=5)
    # The power of ten of small numbers is above the axis.
    figure.subplots_adjust(left=0.11, right=0.87, top=0.8 if key == "learning_rate" else 0.86, bottom=0.19)
    return svg(
        figure, f"{of}-{re.sub(r'[^A-Za-z]', '', key)}", f"{title} by step: {ys[0]:.4g} to {ys[-1]:.4g}", tight=False
    )


def running_mean(values: Sequence[float]) -> list[float]:
    """Mean over a window of about a tenth of all steps around each step; the values themselves for fewer than 20."""
    half = len(values) // 20
    sums = list(itertools.accumulate(values, initial=0.0))
    starts = [max(0, n - half) for n in range(len(values))]
    ends = [min(len(values), n + half + 1) for n in range(len(values))]
    return [(sums[b] - sums[a]) / (b - a) for a, b in zip(starts, ends, strict=True)]


def _label_dev(axis: Any, points: Sequence[tuple[float, float]], best: int | None) -> None:
    """Mark the base at step 0 and the checkpoint that was kept."""
    if points[0][0] == 0:
        axis.axhline(points[0][1], color=LINE, linewidth=1, zorder=0)
        rising = len(points) > 1 and points[1][1] >= points[0][1]
        _mark(axis, *points[0], f"base {points[0][1]:.3f}", offset=(7, -11 if rising else 11))
    kept = [p for p in points if p[0] == best and best]
    if kept:
        axis.plot(*kept[0], "o", color=ORANGE, markersize=8, zorder=3)
        _mark(axis, *kept[0], f"kept {kept[0][1]:.3f}", offset=(0, 12), ha="right")


def _mark(axis: Any, x: float, y: float, text: str, *, offset: tuple[float, float] = (6, 0), **options: str) -> None:
    """Write a value beside its point."""
    look = {"ha": "left", "va": "center", "color": INK, **options}
    axis.annotate(text, (x, y), xytext=offset, textcoords="offset points", annotation_clip=False, **look)


def differences(
    rows: Sequence[tuple[str, Sequence[tuple[str, Difference | SeedDifference]]]], name: str, xlabel: str
) -> str:
    """Intervals in groups: (label of the group, [(series, difference)]). A series has one colour in all groups."""
    rows = [(text, list(found)) for text, found in rows if found]
    if not rows:
        return ""
    series = list(dict.fromkeys(kind for _, found in rows for kind, _ in found))
    count = sum(len(found) for _, found in rows)
    figure, axis = pyplot().subplots(figsize=(3.5, 0.7 + 0.27 * count + 0.15 * len(rows)))
    place, ticks = 0.0, []
    highest = max(d.high for _, found in rows for _, d in found)
    lowest = min(d.low for _, found in rows for _, d in found)
    span = max(highest, 0.0) - min(lowest, 0.0) or 0.1
    for text, found in rows:
        ticks.append((place + (len(found) - 1) / 2, text))
        for kind, d in found:
            number = series.index(kind)
            colour, marker = SERIES[number % len(SERIES)][0], "oDs^vP"[number % 6]
            axis.plot([d.low, d.high], [place, place], color=colour, linewidth=2.5, solid_capstyle="butt")
            axis.plot(d.mean, place, marker, color=colour, markersize=6.5)
            words = signed(d.mean) + (f" {kind}" if len(series) > 1 else "")
            axis.text(max(highest, 0.0) + 0.04 * span, place, words, va="center", color=colour)
            place += 1
        place += 0.6
    axis.axvline(0, color=SOFT, linewidth=1, zorder=0)
    axis.set_yticks([y for y, _ in ticks], [short(text) for _, text in ticks])
    axis.tick_params(axis="y", length=0, labelcolor=INK)
    axis.spines["left"].set_visible(False)
    axis.set(xlabel=xlabel, ylim=(place - 1.0, -0.7))
    axis.set_xlim(min(lowest, 0.0) - 0.03 * span, max(highest, 0.0) + 0.03 * span)
    axis.locator_params(axis="x", nbins=5)
    words = "; ".join(f"{t}: {k} {d.mean:+.3f} [{d.low:+.3f}, {d.high:+.3f}]" for t, f in rows for k, d in f)
    return svg(figure, name, f"{xlabel}. {words}")


def reliability(name: str, title: str, before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> str:
    """Share of relevant pairs by mean probability of bins, raw and with the temperature; an empty text without bins."""
    if not before and not after:
        return ""
    figure, axis = pyplot().subplots(figsize=(3.4, 3.1))
    axis.plot([0, 1], [0, 1], color=LINE, linewidth=1.2, zorder=0)
    axis.text(1.0, 0.78, "perfect", color=SOFT, ha="right", va="top")
    for bins, colour, style, marker, words in (
        (before, ORANGE, "--", "s", "raw"),
        (after, BLUE, "-", "o", "with temperature"),
    ):
        points = [(b["mean_probability"], b["relevant_share"]) for b in bins if b.get("pairs")]
        if points:
            xs, ys = zip(*points, strict=True)
            axis.plot(xs, ys, style, color=colour, marker=marker, markersize=4.5, linewidth=1.6, label=words)
    axis.legend(frameon=False, loc="upper left", handlelength=1.8, borderaxespad=0, labelcolor="linecolor")
    axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), title=title, xlabel="probability", ylabel="share relevant")
    axis.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", ".25", ".5", ".75", "1"])
    axis.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", ".25", ".5", ".75", "1"])
    return svg(figure, name, f"Reliability on {title}")


def combine_curve(combine: Mapping[str, Any] | None) -> str:
    """The mean on dev by the weight of the reranker, with the chosen one; an empty text where none was fitted.

    The band is one paired standard error below and above the best weight's mean.
    """
    rows = (combine or {}).get("weights") or []
    if not rows or combine is None:
        return ""
    figure, axis = pyplot().subplots(figsize=PANEL)
    xs, ys = [row["weight"] for row in rows], [row["mean"] for row in rows]
    best = max(ys)
    axis.fill_between(xs, [best - r["standard_error"] for r in rows], best, color=LINE, linewidth=0, zorder=0)
    axis.plot(xs, ys, color=BLUE, marker="o", markersize=4, linewidth=1.6)
    chosen = next((y for x, y in zip(xs, ys, strict=True) if x == combine["weight"]), best)
    axis.plot(combine["weight"], chosen, "o", color=ORANGE, markersize=8, zorder=3)
    _mark(axis, combine["weight"], chosen, f"chosen {combine['weight']:g}", offset=(0, -13), ha="center")
    axis.set(title=f"{combine['measure']} on dev", xlabel="weight of the reranker", xlim=(-0.03, 1.03))
    axis.margins(y=0.2)
    axis.locator_params(axis="y", nbins=5)
    figure.subplots_adjust(left=0.13, right=0.95, top=0.86, bottom=0.19)
    words = f"{combine['measure']} on dev by the weight of the reranker, from {ys[0]:.4f} at 0 to {ys[-1]:.4f} at 1"
    return svg(figure, "combine-curve", words, tight=False)


def overlaid(
    runs: Mapping[str, Sequence[Mapping[str, Any]]],
    key: str,
    title: str,
    name: str,
    *,
    grey: Iterable[Sequence[Mapping[str, Any]]] = (),
) -> str:
    """One value of several runs by step, each line named at its end; an empty text where no run has it.

    grey: other runs, which lie behind them without names.
    """
    curves = {run: points for run, rows in runs.items() if (points := points_of(rows, key))}
    if not curves:
        return ""
    figure, axis = pyplot().subplots(figsize=(3.6, 2.5))
    ends: list[tuple[float, float, str, str]] = []
    for rows in grey:
        if points := points_of(rows, key):
            axis.plot([x for x, _ in points], [y for _, y in points], color=LINE, linewidth=1.2, zorder=0)
    for number, (run, points) in enumerate(curves.items()):
        colour, style = SERIES[list(runs).index(run) % len(SERIES)]
        values = [y for _, y in points]
        xs, ys = thinned([x for x, _ in points], values if key.startswith("dev_") else running_mean(values))
        marker = "o" if key.startswith("dev_") else ""
        axis.plot(xs, ys, style, color=colour, marker=marker, markersize=3.5, linewidth=1.6, zorder=3 + number)
        ends.append((xs[-1], ys[-1], run, colour))
    axis.set(title=title, xlabel="step", xlim=(0, None))
    if min(y for points in curves.values() for _, y in points) >= 0 and not key.startswith("dev_"):
        axis.set_ylim(0, None)
    _end_labels(axis, ends)
    return svg(figure, name, f"{title} by step of {', '.join(curves)}")


def _end_labels(axis: Any, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Names at the right edge, in the order in which the lines end, moved apart where they would overlap."""
    low, high = axis.get_ylim()
    right = axis.get_xlim()[1]
    step, last = (high - low) * 0.085, float("inf")
    for _, y, run, colour in sorted(ends, key=lambda end: (-end[1], end[2])):
        last = min(y, last - step)
        _mark(axis, right, last, f"{short(run)} {y:.3f}", offset=(5, 0), color=colour)

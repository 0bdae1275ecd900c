"""The results of a sweep: each configuration against the default, main effects, cost against quality; on dev.

Shapes: S seeds, Q dev queries.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rankwright.common.components import Needed, SeedDifference, by_seed, detectable, difference_over_seeds, needed
from rankwright.common.plurals import counted
from rankwright.common.stats import (
    Difference,
    benjamini_hochberg,
    holm,
    mean_interval,
    paired_difference,
    randomisation_test,
)
from rankwright.evaluation.learning_curve import LearningCurve, learning_curve
from rankwright.recipe.sweep import QUERIES_SHARE
from rankwright.recipe.sweep_runs import Configuration, LoadedSweep, shown_value

# A factor with more levels has no table of its own: they were drawn from a range.
MOST_LEVELS = 12
# Differences of which a sweep tells how many seeds or queries would show them.
DIFFERENCES = (0.01, 0.02, 0.05)
SEED_UNKNOWN = "seed variance unknown"
# Standard deviations of nDCG@10 that promise() takes before a run is finished: what a configuration does to a query,
# what a seed does to it beside that, and the means of seeds. Usual on small bases; finished runs replace them.
USUAL_QUERY, USUAL_REST, USUAL_SEED = 0.08, 0.10, 0.01


@dataclass(frozen=True, slots=True)
class RunRow:
    """One run as its folder has it. seconds: of training and its evaluations on dev.

    pruned: stopped at a rung after `steps` steps; its dev is the best until then, which nothing is compared with
    dev, base: mean nDCG@10 on dev of the best checkpoint and of the untrained model; values: of each dev query
    train_queries: how many queries were trained on
    """

    name: str
    configuration: str
    seed: int
    state: Literal["done", "failed", "pruned", "not run"]
    error: str | None = None
    base: float | None = None
    dev: float | None = None
    best_step: int | None = None
    steps: int | None = None
    seconds: float | None = None
    tokens: int | None = None
    train_queries: int | None = None
    values: Mapping[str, float] | None = None


@dataclass(frozen=True, slots=True)
class Contrast:
    """A difference on dev. seeds_known: its interval holds for other seeds too, not for other queries alone.

    needed: what would show each of DIFFERENCES; empty for one seed
    """

    difference: SeedDifference | Difference
    p: float
    seeds_known: bool
    needed: tuple[Needed, ...] = ()


@dataclass(frozen=True, slots=True)
class ConfigurationRow:
    """One configuration. contrast: from the default; p_holm, p_bh: adjusted for all configurations of the sweep.

    deviation: of the means of its seeds, None for a single one; pareto: no other is as good at no more cost
    failed, pruned: so many of its runs
    """

    name: str
    settings: Mapping[str, str]
    seeds: tuple[int, ...]
    dev: float | None
    deviation: float | None
    seconds: float | None
    contrast: Contrast | None
    p_holm: float | None
    p_bh: float | None
    pareto: bool
    failed: int
    pruned: int


@dataclass(frozen=True, slots=True)
class Level:
    """One value of a factor: mean on dev over the other factors, its interval, the difference from the first level."""

    value: str
    mean: float
    low: float
    high: float
    contrast: Contrast | None


@dataclass(frozen=True, slots=True)
class Effect:
    """The levels of a factor, that of the default first. combinations: of the other factors, which all levels have."""

    factor: str
    levels: tuple[Level, ...]
    combinations: int


@dataclass(frozen=True, slots=True)
class OnTest:
    """tuned of a configuration less another's, or less a system that is not trained, by nDCG@10 on a test set.

    test_set: None for all together; seeds_known: as in Contrast
    """

    test_set: str | None
    configuration: str
    other: str
    difference: SeedDifference | Difference
    p: float
    seeds_known: bool


@dataclass(frozen=True, slots=True)
class SweepTable:
    """All numbers of a sweep on dev. chosen: the best by the mean over seeds, among those with the most seeds."""

    name: str
    factors: tuple[str, ...]
    runs: tuple[RunRow, ...]
    configurations: tuple[ConfigurationRow, ...]
    effects: tuple[Effect, ...]
    default: str
    chosen: str | None
    queries: int | None
    learning_curve: LearningCurve | None
    detectable: float | None
    notes: tuple[str, ...]

    def of(self, configuration: str) -> ConfigurationRow:
        return next(row for row in self.configurations if row.name == configuration)


def build_table(loaded: LoadedSweep, runs: Sequence[RunRow]) -> SweepTable:
    """The table of these runs, one row for each planned one. A pure function of its arguments."""
    done: dict[str, list[RunRow]] = {one.name: [] for one in loaded.configurations}
    for row in runs:
        if row.state == "done":
            done[row.configuration].append(row)
    notes = _notes(loaded, runs)
    found = {name: contrast(done[loaded.default.name], rows) for name, rows in done.items()}
    contrasts = {name: one for name, one in found.items() if one is not None and name != loaded.default.name}
    p_values = {name: one.p for name, one in contrasts.items()}
    p_holm, p_bh = holm(p_values), benjamini_hochberg(p_values)
    points = {name: (_mean(rows, "dev"), _mean(rows, "seconds")) for name, rows in done.items() if rows}
    rows = []
    for one in loaded.configurations:
        of = done[one.name]
        means = [row.dev for row in of if row.dev is not None]
        rows.append(
            ConfigurationRow(
                one.name,
                {key: shown_value(value) for key, value in one.settings.items()},
                tuple(row.seed for row in of),
                _mean(of, "dev"),
                float(np.std(means, ddof=1)) if len(means) > 1 else None,
                _mean(of, "seconds"),
                contrasts.get(one.name),
                p_holm.get(one.name),
                p_bh.get(one.name),
                one.name in points and not any(_beats(other, points[one.name]) for other in points.values()),
                *(sum(r.state == state for r in runs if r.configuration == one.name) for state in ("failed", "pruned")),
            )
        )
    queries = next((len(row.values) for row in runs if row.values), None)
    shows = [c.difference.detectable for c in contrasts.values() if isinstance(c.difference, SeedDifference)]
    return SweepTable(
        loaded.sweep.name,
        loaded.factors,
        tuple(runs),
        tuple(rows),
        tuple(filter(None, (_effect(loaded, key, done) for key in loaded.factors))),
        loaded.default.name,
        _chosen(rows),
        queries,
        _learning_curve(loaded, done),
        float(np.median(shows)) if shows else None,
        tuple(notes),
    )


def contrast(base: Sequence[RunRow], other: Sequence[RunRow]) -> Contrast | None:
    """other - base by nDCG@10 on the same dev queries; None where one has no finished run, or other queries.

    With two seeds or more of both: variance components of queries and seeds. Else the first seed of each alone, whose
    interval is that of other queries.
    """
    sides = [[row.values for row in rows if row.values] for rows in (base, other)]
    if not all(sides) or len({frozenset(values) for side in sides for values in side}) > 1:
        return None
    return _contrast(*sides)


def _contrast(base: Sequence[Mapping[str, float]], other: Sequence[Mapping[str, float]]) -> Contrast:
    if min(len(base), len(other)) > 1 and len(base[0]) > 1:
        sides = by_seed(base), by_seed(other)
        found = difference_over_seeds(*sides)
        return Contrast(found, found.p, True, tuple(needed(*sides, size) for size in DIFFERENCES))
    return Contrast(paired_difference(base[0], other[0]), randomisation_test(base[0], other[0]), False)


def _mean(rows: Sequence[RunRow], key: Literal["dev", "seconds"]) -> float | None:
    values = [value for row in rows if (value := getattr(row, key)) is not None]
    return sum(values) / len(values) if values else None


def _beats(one: tuple[float | None, float | None], other: tuple[float | None, float | None]) -> bool:
    """Whether `one`, (quality, cost), is at least as good and as cheap, and better in one of them."""
    if None in one or None in other:
        return False
    (quality, cost), (q, c) = one, other
    assert quality is not None and cost is not None and q is not None and c is not None
    return quality >= q and cost <= c and (quality > q or cost < c)


def _chosen(rows: Sequence[ConfigurationRow]) -> str | None:
    """The best mean among the configurations with the most finished seeds; of equal ones the first, so the default."""
    most = max((len(row.seeds) for row in rows), default=0)
    able = [row for row in rows if row.dev is not None and len(row.seeds) == most]
    return max(able, key=lambda row: row.dev or 0.0).name if able else None


def _effect(loaded: LoadedSweep, key: str, done: Mapping[str, Sequence[RunRow]]) -> Effect | None:
    """A factor's levels over the combinations of the others that all of its levels have finished; None without such."""
    inside = [one for one in loaded.configurations if loaded.in_design or one is not loaded.default]
    cells: dict[str, dict[str, Configuration]] = {}
    for one in inside:
        rest = json.dumps([value for name, value in one.settings.items() if name != key], sort_keys=True)
        if done[one.name]:
            cells.setdefault(json.dumps(one.settings[key], sort_keys=True), {})[rest] = one
    if not 1 < len(cells) <= MOST_LEVELS:
        return None
    shared = [rest for rest in next(iter(cells.values())) if all(rest in level for level in cells.values())]
    rows = {
        value: [[row for row in done[level[rest].name] if row.values] for rest in shared]
        for value, level in cells.items()
    }
    taken = [one for level in rows.values() for one in level]
    seeds = set.intersection(*({row.seed for row in one} for one in taken)) if taken else set()
    if not shared or not seeds or len({frozenset(row.values or ()) for one in taken for row in one}) > 1:
        return None
    means = {value: [_pooled(level, seed) for seed in sorted(seeds)] for value, level in rows.items()}
    own = json.dumps(loaded.default.settings[key], sort_keys=True)
    order = sorted(means, key=lambda value: value != own)
    levels = []
    for value in order:
        low, high = _interval(means[value])
        mean = float(np.mean([list(values.values()) for values in means[value]]))
        other = None if value == order[0] else _contrast(means[order[0]], means[value])
        levels.append(Level(shown_value(json.loads(value)), mean, low, high, other))
    return Effect(key, tuple(levels), len(shared))


def _learning_curve(loaded: LoadedSweep, done: Mapping[str, Sequence[RunRow]]) -> LearningCurve | None:
    """Through the configurations that differ from the default in the number of training queries alone."""
    if QUERIES_SHARE not in loaded.factors:
        return None
    of_size: dict[int, list[Mapping[str, float]]] = {}
    for one in loaded.configurations:
        for row in done[one.name] if set(one.changed) <= {QUERIES_SHARE} else ():
            if row.values and row.train_queries:
                of_size.setdefault(row.train_queries, []).append(row.values)
    if len({frozenset(values) for found in of_size.values() for values in found}) > 1:
        return None
    return learning_curve(of_size)


def _pooled(level: Sequence[Sequence[RunRow]], seed: int) -> dict[str, float]:
    """Query -> mean over the combinations, of the runs with one seed."""
    values = [row.values for rows in level for row in rows if row.seed == seed and row.values]
    return {query: sum(one[query] for one in values) / len(values) for query in values[0]}


def _interval(means: Sequence[Mapping[str, float]]) -> tuple[float, float]:
    """The interval of a mean, for other queries and, with two seeds, other seeds: as a difference from nothing."""
    means_SQ = by_seed(means)
    if min(means_SQ.shape) > 1:
        found = difference_over_seeds(np.zeros((1, means_SQ.shape[1])), means_SQ)
        return found.low, found.high
    return mean_interval(means_SQ[0])


def _notes(loaded: LoadedSweep, runs: Sequence[RunRow]) -> list[str]:
    notes = []
    if len(loaded.sweep.seeds) < 2:
        notes.append(f"{SEED_UNKNOWN}: one seed; intervals hold for other queries only, give seeds: [0, 1, 2]")
    failed = sum(row.state == "failed" for row in runs)
    pruned = sum(row.state == "pruned" for row in runs)
    left = sum(row.state == "not run" for row in runs)
    if failed:
        notes.append(f"{counted(failed, 'run')} failed: the same command tries again")
    if pruned:
        notes.append(
            f"{counted(pruned, 'run')} pruned at a rung: clearly worse until then, and compared with nothing; `--only "
            "RUN` trains one to its end"
        )
    if left:
        notes.append(f"{counted(left, 'run')} not done: within the budget, the same command continues")
    planned = len(loaded.configurations) * len(loaded.sweep.seeds)
    if len(runs) < planned:
        notes.append(f"budget.runs leaves out {counted(planned - len(runs), 'run')} of {planned:,}")
    if len({frozenset(row.values) for row in runs if row.values}) > 1:
        notes.append("runs have different dev queries, and are not compared with each other")
    if loaded.trials is not None and loaded.sweep.design.optuna is not None:
        later = loaded.sweep.design.optuna.runs - len(loaded.trials.names)
        if later:
            notes.append(
                f"{counted(later, 'configuration')} not proposed: within the budget, the same command continues"
            )
        if invalid := loaded.trials.names.count(None):
            notes.append(f"{counted(invalid, 'proposal')} made no recipe, and had no runs")
    if loaded.sweep.design.random is not None or loaded.trials is not None:
        notes.append("drawn configurations: main effects only where all levels share the other settings")
    return notes


def promise(queries: int, seeds: int, table: SweepTable | None = None) -> str:
    """One sentence: which difference will not show, by finished runs where there are any, else by usual deviations."""
    if queries < 2:
        return "with fewer than two dev queries no difference can be told from chance"
    if seeds < 2:
        return (
            f"{SEED_UNKNOWN} with one seed: no difference can be told from that of another seed: give seeds: [0, 1, 2]"
        )
    known = [row.contrast.difference for row in table.configurations if row.contrast is not None] if table else []
    over = [one for one in known if isinstance(one, SeedDifference)]
    if over:
        query, seed = (float(np.median([getattr(o, f"{k}_deviation") for o in over])) for k in ("query", "seed"))
        source = "by the finished runs"
        figures = {n: detectable(queries, n, query_deviation=query, seed_deviation=seed) for n in _more(seeds)}
    else:
        source = f"with a usual standard deviation of seeds, {USUAL_SEED:g}"
        of_query = {n: (2 * (USUAL_QUERY**2 + USUAL_REST**2 / n)) ** 0.5 for n in _more(seeds)}
        figures = {
            n: detectable(queries, n, query_deviation=of_query[n], seed_deviation=USUAL_SEED) for n in _more(seeds)
        }
    more = ", ".join(f"{n} seeds .{round(value * 1000):03d}" for n, value in figures.items() if n != seeds)
    return (
        f"with {seeds} seeds and {counted(queries, 'query')} a difference below .{round(figures[seeds] * 1000):03d} "
        f"will not show ({source}); with {more}"
    )


def _more(seeds: int) -> list[int]:
    return [seeds, *(n for n in (3, 5, 8) if n > seeds)] if seeds < 8 else [seeds, 2 * seeds]

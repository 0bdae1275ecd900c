"""The final table: what each system reached on every test set, the differences that matter, and one honest sentence."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.markup import escape
from rich.table import Table

from rankwright.evaluate import HEADLINE, read_metrics_json, read_per_query
from rankwright.first_stages import FIRST_STAGES
from rankwright.pooling import Repeated, count_repeated, pool, repeated_queries
from rankwright.run_folder import RunFolder
from rankwright.stats import Difference, paired_difference

SHOWN_NAME = {"bm25": "BM25"}
Column = tuple[str, list[str]]


@dataclass(frozen=True, slots=True)
class ResultRow:
    """One line of the final table. values: system -> mean nDCG@10 over `queries` queries.

    difference: tuned - base; over_first: tuned - first_stage, the one whose lists were reranked; None where one of
    the two is missing. ceiling: what the best order of these lists would reach; None where nothing was reranked.
    """

    name: str
    values: Mapping[str, float]
    queries: int
    difference: Difference | None
    over_first: Difference | None = None
    first_stage: str = "bm25"
    ceiling: float | None = None
    # Queries of the row `all` that several sets have, and that count once.
    repeated: int = 0


@dataclass(frozen=True, slots=True)
class _Set:
    """A test set's finished systems. values: system -> query id -> nDCG@10."""

    values: dict[str, dict[str, float]]
    first_stage: str | None
    ceiling: float | None


def results(run: RunFolder, seed: int, inputs: Mapping[str, str]) -> list[ResultRow]:
    """A row a test set, and `all` over all queries where there are several sets.

    inputs: system -> hash of what its numbers depend on, in the table's order; numbers of other settings are left
    out.
    """
    report = json.loads((run.path / "data_report.json").read_text(encoding="utf-8"))
    sets = {row["set"]: _read_set(run, row["set"], inputs) for row in report["splits"]["test"]}
    sets = {name: found for name, found in sets.items() if found.values}
    rows = [_row(name, found, seed) for name, found in sets.items()]
    if len(rows) > 1:
        repeated = repeated_queries(run.path, {name: set[str]().union(*s.values.values()) for name, s in sets.items()})
        pooled = _pool(sets, inputs, repeated)
        if pooled.values:
            rows.append(dataclasses.replace(_row("all", pooled, seed), repeated=count_repeated(repeated)))
    return rows


def _read_set(run: RunFolder, name: str, inputs: Mapping[str, str]) -> _Set:
    folder = run.path / "eval" / name
    metrics = {system: read_metrics_json(folder / system) for system in inputs}
    done = {s: m for s, m in metrics.items() if m is not None and m.get("inputs") == inputs[s]}
    values = {system: read_per_query(folder / system, HEADLINE) for system in done}
    reranked = next((m for s, m in done.items() if s not in FIRST_STAGES), None)
    if reranked is None:
        return _Set(values, None, None)
    return _Set(values, reranked.get("first_stage"), reranked.get("ceiling"))


def _pool(sets: Mapping[str, _Set], inputs: Mapping[str, str], repeated: Repeated) -> _Set:
    """All queries of all sets, each once, for the systems that every set has."""
    shared = [s for s in inputs if all(s in found.values for found in sets.values())]
    values = {s: pool({name: found.values[s] for name, found in sets.items()}, repeated) for s in shared}
    ceilings = [(found.ceiling, max(map(len, found.values.values()))) for found in sets.values()]
    weight = sum(queries for _, queries in ceilings)
    # A set's ceiling is that of all its queries, the repeated ones too.
    whole = not repeated and all(ceiling is not None for ceiling, _ in ceilings)
    ceiling = sum((c or 0.0) * queries for c, queries in ceilings) / weight if whole else None
    stages = {found.first_stage for found in sets.values()}
    return _Set(values, stages.pop() if len(stages) == 1 else None, ceiling)


def _row(name: str, found: _Set, seed: int) -> ResultRow:
    values = found.values
    means = {s: sum(rows.values()) / len(rows) for s, rows in values.items()}
    queries = max(map(len, values.values()))

    def less(system: str) -> Difference | None:
        both = system in values and "tuned" in values
        return paired_difference(values[system], values["tuned"], seed=seed) if both else None

    first = found.first_stage or "bm25"
    return ResultRow(name, means, queries, less("base"), less(first), first, found.ceiling)


def results_tables(rows: Sequence[ResultRow], width: int) -> list[Table]:
    """The table that every run ends with; its columns go on in a second one where `width` characters are too few."""
    tables: list[Table] = []
    names: Column = ("test set", [escape(row.name) for row in rows])
    left: list[Column] = []
    used = 0
    for column in _columns(rows):
        need = _width(column)
        if left and used + need > width:
            tables.append(_table([names, *left], rows, first=not tables))
            left, used = [], 0
        left.append(column)
        used = (used or _width(names) + 1) + need
    return [*tables, _table([names, *left], rows, first=not tables)] if left else tables


def _width(column: Column) -> int:
    title, cells = column
    return max(len(text) for text in (title, *cells)) + 3


def _columns(rows: Sequence[ResultRow]) -> list[Column]:
    columns: list[Column] = [("queries", [f"{row.queries:,}" for row in rows])]
    systems = list(dict.fromkeys(s for row in rows for s in row.values))
    # A set may lack a system that another one has, in the middle of the order.
    order = max(rows, key=lambda row: len(row.values)).values if rows else {}
    systems.sort(key=lambda s: (s not in order, list(order).index(s) if s in order else 0))
    for place, system in enumerate(systems):
        if system not in FIRST_STAGES and (not place or systems[place - 1] in FIRST_STAGES):
            columns += _ceiling_column(rows)
        columns.append((SHOWN_NAME.get(system, system), [_number(row.values.get(system)) for row in rows]))
    if any(row.difference is not None for row in rows):
        columns.append(("tuned - base [95 % interval]", [_interval(row.difference) for row in rows]))
    if any(row.over_first is not None for row in rows):
        first = rows[-1].first_stage
        title = f"tuned - {SHOWN_NAME.get(first, first)} [95 % interval]"
        columns.append((title, [_interval(row.over_first) for row in rows]))
    return columns


def _ceiling_column(rows: Sequence[ResultRow]) -> list[Column]:
    """What the best order of the reranked lists would reach."""
    if not any(row.ceiling is not None for row in rows):
        return []
    return [("best possible", [_number(row.ceiling) for row in rows])]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _interval(d: Difference | None) -> str:
    return "-" if d is None else f"{d.mean:+.3f} [{d.low:+.3f}, {d.high:+.3f}]"


def _table(columns: Sequence[Column], rows: Sequence[ResultRow], *, first: bool) -> Table:
    table = Table(title=f"{HEADLINE} on the test queries" if first else None, title_justify="left")
    for title, _ in columns:
        table.add_column(escape(title), justify="left" if title == "test set" else "right", no_wrap=True)
    for number, row in enumerate(rows):
        cells = [escape(cells[number]) if place else cells[number] for place, (_, cells) in enumerate(columns)]
        table.add_row(*cells, style="bold" if row.name == "all" else None)
    return table


def verdict(row: ResultRow) -> str:
    """One honest sentence about the last row."""
    d = row.difference
    if d is None:
        return ""
    once = f" ({row.repeated:,} queries that several sets have count once)" if row.repeated else ""
    if d.low > 0:
        text = "tuned is better than the base: the interval is above zero"
    elif d.high < 0:
        text = "tuned is WORSE than the base: the interval is below zero"
    else:
        text = "tuned and base cannot be told apart: the interval includes zero"
    return text + once + _against_first_stage(row) + _better_first_stage(row)


def _against_first_stage(row: ResultRow) -> str:
    """Whether reranking was worth it at all."""
    d, first = row.over_first, row.first_stage
    if d is None:
        return ""
    name = f"{SHOWN_NAME.get(first, first)} ({row.values[first]:.3f}), whose lists it reranks"
    if d.low > 0:
        return f"; it is better than {name}"
    if d.high >= 0:
        return f"; it cannot be told apart from {name}"
    both = row.values["base"] < row.values[first]
    return f"; it is WORSE than {name}" + (", and the base is below it too" if both else "")


def _better_first_stage(row: ResultRow) -> str:
    """The best other first stage, where its mean is above tuned's."""
    others = {s: v for s, v in row.values.items() if s in FIRST_STAGES and s != row.first_stage}
    best = max(others, key=lambda s: others[s], default=None)
    if best is None or others[best] <= row.values["tuned"]:
        return ""
    return f"; {SHOWN_NAME.get(best, best)} alone has more ({others[best]:.3f})"

"""Results of a run from its files: systems by test set, differences with intervals, and an honest verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwright.evaluate import HEADLINE, read_metrics_json, read_per_query
from rankwright.instructions import EXPORTED
from rankwright.pooling import Repeated, count_repeated, pool, repeated_queries
from rankwright.recipe import Recipe
from rankwright.stats import Difference, paired_difference

FIRST_STAGES = ("bm25", "dense", "fusion", "run")
LABELS = {"bm25": "BM25", "run": "run file"}
ALL = "all"


@dataclass(frozen=True, slots=True)
class SetResults:
    """One test set, or all pooled. values: system -> query id -> nDCG@10; metrics: system -> its metrics.json.

    first_stage: whose lists were reranked. to_base, to_first: tuned less base, and less that first stage, over the
    same queries; None where one of the two is missing. queries: as many as the fullest system has.
    """

    name: str
    first_stage: str
    values: Mapping[str, Mapping[str, float]]
    metrics: Mapping[str, Mapping[str, Any]]
    means: Mapping[str, float]
    queries: int
    to_base: Difference | None
    to_first: Difference | None


def label(system: str) -> str:
    """A system's name as people know it."""
    return LABELS.get(system, system)


def system_order(names: Sequence[str], recipe: Recipe) -> list[str]:
    """First stages, base, tuned, exported, the recipe's baselines in its order, then any others by name."""
    known = [*FIRST_STAGES, "base", "tuned", EXPORTED, *(b.name for b in recipe.evaluate.baselines)]
    return [n for n in known if n in names] + sorted(n for n in names if n not in known)


def read_results(
    folder: Path, recipe: Recipe, sets: Sequence[str], inputs: Mapping[str, str] | None
) -> tuple[list[SetResults], list[str]]:
    """A SetResults a test set that is evaluated, `all` last where there are several; and what was left out.

    inputs: system -> hash of what its numbers must come from; None takes what is there.
    """
    rows, notes = [], []
    for name in sets:
        place = folder / "eval" / name
        found = {path.name: read_metrics_json(path) for path in sorted(place.glob("*")) if path.is_dir()}
        whole = [s for s in found if (place / s / "per_query.jsonl").is_file()]
        metrics = {s: m for s, m in found.items() if s in whole and isinstance(m, dict) and HEADLINE in m}
        if unfinished := [s for s in found if s not in metrics]:
            notes.append(f"{name}: not evaluated to the end, left out: {', '.join(unfinished)}")
        stale = [s for s in metrics if inputs is not None and metrics[s].get("inputs") != inputs.get(s)]
        if stale:
            notes.append(f"{name}: evaluated with other settings than the recipe's now, left out: {', '.join(stale)}")
        order = system_order([s for s in metrics if s not in stale], recipe)
        if order:
            values = {s: read_per_query(place / s, HEADLINE) for s in order}
            rows.append(_set_results(name, values, {s: metrics[s] for s in order}, recipe.seed))
            notes += _differing(rows[-1])
        else:
            notes.append(f"{name}: not evaluated")
    if len(rows) > 1:
        repeated = repeated_queries(folder, {r.name: set[str]().union(*r.values.values()) for r in rows})
        if twice := count_repeated(repeated):
            notes.append(f"{ALL}: {twice:,} queries that an earlier set has count once")
        rows.append(_pooled(rows, recipe, repeated))
    return rows, notes


def _set_results(
    name: str, values: Mapping[str, Mapping[str, float]], metrics: Mapping[str, Mapping[str, Any]], seed: int
) -> SetResults:
    reranked = metrics.get("tuned") or metrics.get("base") or {}
    first = str(reranked.get("first_stage", "bm25"))
    # The mean as the file has it; of pooled queries as stats has it.
    means = {
        s: float(metrics[s][HEADLINE]) if s in metrics else sum(v.values()) / len(v) for s, v in values.items() if v
    }
    return SetResults(
        name=name,
        first_stage=first,
        values=values,
        metrics=metrics,
        means=means,
        queries=max(len(v) for v in values.values()),
        to_base=_difference(values, "base", seed),
        to_first=_difference(values, first, seed),
    )


def _difference(values: Mapping[str, Mapping[str, float]], other: str, seed: int) -> Difference | None:
    if "tuned" not in values or other not in values or set(values["tuned"]) != set(values[other]):
        return None
    return paired_difference(values[other], values["tuned"], seed=seed)


def _differing(row: SetResults) -> list[str]:
    """What keeps the systems of one set from being compared."""
    notes = []
    depths = {s: m["depth"] for s, m in row.metrics.items() if "depth" in m}
    if len(set(depths.values())) > 1:
        notes.append(f"{row.name}: depths differ: " + ", ".join(f"{s} {d}" for s, d in depths.items()))
    firsts = {s: m["first_stage"] for s, m in row.metrics.items() if "first_stage" in m and s not in FIRST_STAGES}
    if len(set(firsts.values())) > 1:
        notes.append(
            f"{row.name}: lists of different first stages: " + ", ".join(f"{s} {f}" for s, f in firsts.items())
        )
    most = max(row.values, key=lambda s: len(row.values[s]))
    fewer = [s for s in row.values if set(row.values[s]) != set(row.values[most])]
    if fewer:
        notes.append(f"{row.name}: measured on other queries than {most}: {', '.join(fewer)}")
    return notes


def _pooled(rows: Sequence[SetResults], recipe: Recipe, repeated: Repeated) -> SetResults:
    """All queries of all sets, each once, of systems that all have; the sets' own first stages where they differ."""
    shared = [s for s in rows[0].values if all(s in row.values for row in rows)]
    values = {s: pool({row.name: row.values[s] for row in rows}, repeated) for s in shared}
    firsts = {row.first_stage for row in rows}
    if len(firsts) > 1 and all(row.first_stage in row.values for row in rows):
        values["first stage"] = pool({row.name: row.values[row.first_stage] for row in rows}, repeated)
    first = firsts.pop() if len(firsts) == 1 else "first stage"
    means = {s: sum(v.values()) / len(v) for s, v in values.items()}
    return SetResults(
        name=ALL,
        first_stage=first,
        values=values,
        metrics={},
        means=means,
        queries=max((len(v) for v in values.values()), default=0),
        to_base=_difference(values, "base", recipe.seed),
        to_first=_difference(values, first, recipe.seed),
    )


@dataclass(frozen=True, slots=True)
class Verdict:
    """The first screen. tone: `better`, `worse`, `open` or `none` (nothing to compare); sentences in order."""

    tone: str
    sentences: tuple[str, ...]


def direction(difference: Difference) -> str:
    """`better` or `worse` where the interval lies wholly on one side of zero, else `open`."""
    return "better" if difference.low > 0 else "worse" if difference.high < 0 else "open"


def verdict(rows: Sequence[SetResults]) -> Verdict:
    """What the numbers say about tuned: against the base, against the first stage, and where sets disagree."""
    if not rows:
        return Verdict("none", ("Nothing is evaluated yet.",))
    row = rows[-1]
    if row.to_base is None:
        missing = [s for s in ("base", "tuned") if s not in row.values]
        what = f"{' and '.join(missing)} not evaluated" if missing else "base and tuned have different queries"
        return Verdict("none", (f"Base and tuned cannot be compared: {what}.",))
    tone = direction(row.to_base)
    sentences = [
        {
            "better": "Tuned is better than its base: the interval lies above zero.",
            "worse": "Tuned is WORSE than its base: the interval lies below zero.",
            "open": "Tuned and its base cannot be told apart: the interval includes zero.",
        }[tone]
    ]
    if row.to_first is not None:
        first = label(row.first_stage)
        against = "The first stages, whose lists" if row.first_stage == "first stage" else f"{first}, whose lists"
        sentences.append(
            {
                "better": f"{against} it reranks, it beats as well.",
                "worse": f"{against} it reranks, {'are' if against.startswith('The') else 'is'} BETTER than tuned.",
                "open": f"From {first}, whose lists it reranks, it cannot be told apart.",
            }[direction(row.to_first)]
        )
    parts = [r for r in rows if r.name != ALL and r.to_base is not None]
    for other, said in (("worse", "worse than its base"), ("open", "not told apart from its base")):
        names = [r.name for r in parts if r.to_base is not None and direction(r.to_base) == other]
        if names and len(parts) > 1 and tone != other:
            sentences.append(f"By itself {', '.join(names)}: {said}.")
    return Verdict(tone, tuple(sentences))

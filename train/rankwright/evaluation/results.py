"""Results of a finished evaluation: systems by test set, pooled queries, differences with intervals, the verdict.

Everything that shows results reads them here: the table of the command line, the report, model cards, notebooks.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwright.common.files import read_json_object, read_jsonl
from rankwright.common.plurals import counted
from rankwright.common.run_folder import RunFolder
from rankwright.common.stats import Difference, paired_difference, randomisation_test
from rankwright.data.normalisation import normalised
from rankwright.evaluation.evaluate import read_per_query
from rankwright.evaluation.metrics import HEADLINE, Scale
from rankwright.recipe.pretrain import CONTROL, PRETRAINED
from rankwright.recipe.schema import COMBINED, EXPORTED, Recipe
from rankwright.retrieval.first_stages import stage_label, stage_names
from rankwright.retrieval.retriever import retrievers

# From this share of queries without candidates on, a test set's results come with a warning.
FEW_LISTS = 0.5
# The pooled queries of all test sets.
ALL = "all"
# Stands for each set's own first stage, where the pooled sets have different ones.
OWN_FIRST = "first stage"


def system_order(names: Iterable[str], baselines: Sequence[str] = ()) -> list[str]:
    """First stages, our systems, the baselines in the recipe's order, then all others by name."""
    known = [*stage_names(), "base", PRETRAINED, "tuned", EXPORTED, COMBINED, CONTROL, *baselines]
    return sorted(names, key=lambda n: (known.index(n) if n in known else len(known), n))


def find_finished(place: Path) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """System -> its metrics.json, for all systems in eval/TESTSET evaluated to the end; and the other systems."""
    found = {path.name: read_json_object(path / "metrics.json") for path in sorted(place.glob("*")) if path.is_dir()}
    done = {
        system: metrics
        for system, metrics in found.items()
        if metrics is not None and HEADLINE in metrics and (place / system / "per_query.jsonl").is_file()
    }
    return done, [system for system in found if system not in done]


# Queries that several test sets have.

# Test set -> query id -> SET/ID of an earlier set's query with the same text.
Repeated = Mapping[str, Mapping[str, str]]


def repeated_queries(run: Path, evaluated: Mapping[str, Iterable[str]]) -> dict[str, dict[str, str]]:
    """The queries of each set whose text an earlier set has. Sets without such queries are left out.

    When a part of a test set is reported as a set of its own, its queries occur twice. Counted twice, they would
    narrow every interval, because intervals take queries to be independent.
    run: the run folder; without its data/test.jsonl no query is known to be repeated.
    evaluated: test set -> the ids of its evaluated queries, in the order in which the sets count.
    """
    path = RunFolder(run).split("test")
    rows = read_jsonl(path, _query_text, "a query of the test sets: give `rankwright run` again")
    texts = dict(row for row in rows if row is not None) if path.is_file() else {}
    first: dict[str, str] = {}
    repeated = {}
    for name, query_ids in evaluated.items():
        own = {q: texts[name, q] for q in sorted(query_ids) if (name, q) in texts}
        if found := {q: first[text] for q, text in own.items() if text in first}:
            repeated[name] = found
        for q, text in own.items():
            first.setdefault(text, f"{name}/{q}")
    return repeated


def _query_text(row: Mapping[str, Any]) -> tuple[tuple[str, str], str] | None:
    """((test set, query id), normalised text); None for a row that is not a query."""
    return ((row["set"], row["query_id"]), normalised(row["query"])) if "query_id" in row else None


def pool(values: Mapping[str, Mapping[str, float]], repeated: Repeated) -> dict[str, float]:
    """SET/ID -> value for the queries of all sets. A repeated query counts once, with the mean of its values."""
    found: dict[str, list[float]] = {}
    for name, of_set in values.items():
        first = repeated.get(name, {})
        for q, value in of_set.items():
            found.setdefault(first.get(q, f"{name}/{q}"), []).append(value)
    return {key: sum(several) / len(several) for key, several in found.items()}


def count_repeated(repeated: Repeated) -> int:
    """How many queries an earlier set has too."""
    return sum(map(len, repeated.values()))


# The results of one run.


@dataclass(frozen=True, slots=True)
class SetResults:
    """The results on one test set, or on the pooled queries of all of them (`all`).

    values: system -> query id -> nDCG@10; means: system -> mean nDCG@10; metrics: system -> its metrics.json
    queries: the number of queries of the system that has most
    first_stage: whose lists were reranked; ceiling: the mean nDCG@10 of the best possible order of these lists
    to_base: system - base, over the same queries, for every other system measured on the same queries as the base
    to_first: tuned - first_stage, or None where one of the two is missing or was measured on other queries
    combined_to_first: the same of combined; weight: that of the reranker in it
    repeated: how many queries are left out of `all` because an earlier set has them
    measure: nDCG@10 with its gains, where a label is not its own gain
    to_control: tuned - control, which was trained without the stage pretrain at the same cost
    """

    name: str
    values: Mapping[str, Mapping[str, float]]
    metrics: Mapping[str, Mapping[str, Any]]
    means: Mapping[str, float]
    queries: int
    first_stage: str
    ceiling: float | None
    to_base: Mapping[str, Difference]
    to_first: Difference | None
    combined_to_first: Difference | None = None
    weight: float | None = None
    repeated: int = 0
    measure: str = HEADLINE
    to_control: Difference | None = None


def read_results(
    folder: Path, recipe: Recipe, sets: Sequence[str], inputs: Mapping[str, str] | None
) -> tuple[list[SetResults], list[str]]:
    """The results on each evaluated test set, then on `all` where there are several; and notes on what was left out.

    inputs: system -> hash of everything its numbers must come from; None takes whatever is there.
    """
    results, notes = [], []
    for name in sets:
        place = RunFolder(folder).eval_folder(name)
        metrics, unfinished = find_finished(place)
        stale = [s for s in metrics if inputs is not None and metrics[s].get("inputs") != inputs.get(s)]
        if unfinished:
            notes.append(f"{name}: not evaluated to the end, left out: {', '.join(unfinished)}")
        if stale:
            notes.append(f"{name}: evaluated with other settings than the recipe's now, left out: {', '.join(stale)}")
        order = system_order([s for s in metrics if s not in stale], [b.name for b in recipe.evaluate.baselines])
        if order:
            values = {s: read_per_query(place / s, HEADLINE) for s in order}
            results.append(_set_results(name, values, {s: metrics[s] for s in order}, recipe.seed))
            notes += _differing(results[-1])
        else:
            notes.append(f"{name}: not evaluated")
    if len(results) > 1:
        repeated = repeated_queries(folder, {r.name: set[str]().union(*r.values.values()) for r in results})
        results.append(_pooled(results, recipe.seed, repeated))
    return results, notes


def _set_results(
    name: str, values: Mapping[str, Mapping[str, float]], metrics: Mapping[str, Mapping[str, Any]], seed: int
) -> SetResults:
    # All rerankers of a set get the same lists.
    rerankers = [s for s in ("tuned", "base", *metrics) if s in metrics and s not in retrievers()]
    reranked = metrics[rerankers[0]] if rerankers else {}
    first = str(reranked.get("first_stage", "bm25"))
    measure = Scale.read(next(iter(metrics.values()), {})).name(HEADLINE)
    found = _compared(name, values, metrics, first, reranked.get("ceiling"), seed)
    return dataclasses.replace(found, measure=measure)


def _pooled(sets: Sequence[SetResults], seed: int, repeated: Repeated) -> SetResults:
    """The queries of all sets, each once, for the systems that all sets have."""
    shared = [s for s in sets[0].values if all(s in one.values for one in sets)]
    values = {s: pool({one.name: one.values[s] for one in sets}, repeated) for s in shared}
    firsts = {one.first_stage for one in sets}
    first = firsts.pop() if len(firsts) == 1 else OWN_FIRST
    if first == OWN_FIRST and all(one.first_stage in one.values for one in sets):
        values[OWN_FIRST] = pool({one.name: one.values[one.first_stage] for one in sets}, repeated)
    # The ceiling of a set covers all its queries, the repeated ones too.
    whole = not repeated and all(one.ceiling is not None for one in sets)
    weight = sum(one.queries for one in sets)
    ceiling = sum((one.ceiling or 0.0) * one.queries for one in sets) / weight if whole else None
    pooled = _compared(ALL, values, {}, first, ceiling, seed, count_repeated(repeated))
    # One for all sets, unless they are of several evaluations.
    weights = {one.weight for one in sets}
    weight_of_all = weights.pop() if len(weights) == 1 else None
    return dataclasses.replace(pooled, measure=sets[0].measure, weight=weight_of_all)


def _compared(
    name: str,
    values: Mapping[str, Mapping[str, float]],
    metrics: Mapping[str, Mapping[str, Any]],
    first: str,
    ceiling: float | None,
    seed: int,
    repeated: int = 0,
) -> SetResults:
    def less(system: str, other: str) -> Difference | None:
        one, two = values.get(system, {}), values.get(other, {})
        return paired_difference(two, one, seed=seed) if one and set(one) == set(two) else None

    to_base = {s: less(s, "base") for s in values if s != "base"}
    return SetResults(
        name=name,
        values=values,
        metrics=metrics,
        means={s: sum(v.values()) / len(v) for s, v in values.items() if v},
        queries=max((len(v) for v in values.values()), default=0),
        first_stage=first,
        ceiling=ceiling,
        to_base={s: difference for s, difference in to_base.items() if difference is not None},
        to_first=less("tuned", first),
        combined_to_first=less(COMBINED, first),
        weight=metrics.get(COMBINED, {}).get("combined", {}).get("weight"),
        repeated=repeated,
        to_control=less("tuned", CONTROL),
    )


def few_lists(name: str, missing: int, queries: int) -> str | None:
    """A warning where half of a test set's queries or more have no candidates."""
    if not queries or missing < queries * FEW_LISTS:
        return None
    return (
        f"WARNING: {name}: {missing:,} of {counted(queries, 'query')} {'has' if missing == 1 else 'have'} "
        f"no candidates and {'counts' if missing == 1 else 'count'} 0 whatever reranks them: "
        "the first stage finds none of their words (bm25.language), or the corpus is that of other queries"
    )


def _differing(found: SetResults) -> list[str]:
    """What keeps the systems of one test set from being compared, and the set from telling anything."""
    notes = []
    of_first = found.metrics.get(found.first_stage, next(iter(found.metrics.values())))
    if warning := few_lists(found.name, of_first.get("queries_missing", 0), found.queries):
        notes.append(warning)
    depths = {s: m["depth"] for s, m in found.metrics.items() if "depth" in m}
    if len(set(depths.values())) > 1:
        notes.append(f"{found.name}: depths differ: " + ", ".join(f"{s} {d}" for s, d in depths.items()))
    firsts = {s: m["first_stage"] for s, m in found.metrics.items() if "first_stage" in m and s not in retrievers()}
    if len(set(firsts.values())) > 1:
        lists = ", ".join(f"{s} {first}" for s, first in firsts.items())
        notes.append(f"{found.name}: lists of different first stages: {lists}")
    scales = {s: Scale.read(m) for s, m in found.metrics.items()}
    if len(set(map(Scale.words, scales.values()))) > 1:
        meanings = "; ".join(f"{s} {scale.words()}" for s, scale in scales.items())
        notes.append(f"{found.name}: labels mean different things: {meanings}")
    most = max(found.values, key=lambda s: len(found.values[s]))
    if fewer := [s for s in found.values if set(found.values[s]) != set(found.values[most])]:
        notes.append(f"{found.name}: measured on other queries than {most}: {', '.join(fewer)}")
    return notes


@dataclass(frozen=True, slots=True)
class ResultRow:
    """One system on one test set, or on `all`: what tables, the verdict and data frames are made of.

    value: mean of the measure over `queries` queries; best_possible: of the best order of the reranked lists
    difference, low, high: system - base with its 95 % interval; p: two-sided paired randomisation test, where asked for
    to_first, to_first_low, to_first_high: tuned or combined - first_stage, whose lists are reranked; None for all
    other systems
    weight: of the reranker in combined; None for all other systems
    to_control, to_control_low, to_control_high: of tuned: tuned - control, see SetResults
    repeated: how many queries are left out of `all` because an earlier set has them
    """

    test_set: str
    system: str
    measure: str
    value: float
    difference: float | None
    low: float | None
    high: float | None
    p: float | None
    queries: int
    first_stage: str
    to_first: float | None
    to_first_low: float | None
    to_first_high: float | None
    best_possible: float | None
    repeated: int
    weight: float | None = None
    to_control: float | None = None
    to_control_low: float | None = None
    to_control_high: float | None = None


def rows_of(results: Sequence[SetResults], *, p_values: bool = False, seed: int = 0) -> list[ResultRow]:
    """One row for each test set and system, in the order of every table. p_values takes seconds for many queries."""
    found = []
    for one in results:
        for system, mean in one.means.items():
            p = None
            if p_values and system in one.to_base:
                p = randomisation_test(one.values["base"], one.values[system], seed=seed)
            to_base = _numbers(one.to_base.get(system))
            to_first = _numbers({"tuned": one.to_first, COMBINED: one.combined_to_first}.get(system))
            weight = one.weight if system == COMBINED else None
            to_control = _numbers(one.to_control if system == "tuned" else None)
            measured = (one.name, system, one.measure, mean, *to_base, p, len(one.values[system]))
            of_lists = (one.first_stage, *to_first, one.ceiling, one.repeated, weight)
            found.append(ResultRow(*measured, *of_lists, *to_control))
    return found


def result_rows(run: RunFolder, recipe: Recipe, inputs: Mapping[str, str], sets: Sequence[str]) -> list[dict[str, Any]]:
    """The results of a run as flat rows with p values, for a data frame: `pandas.DataFrame(rows)`. See ResultRow."""
    results, _ = read_results(run.path, recipe, sets, inputs)
    return [dataclasses.asdict(row) for row in rows_of(results, p_values=True, seed=recipe.seed)]


def _numbers(difference: Difference | None) -> tuple[float | None, float | None, float | None]:
    return (None, None, None) if difference is None else (difference.mean, difference.low, difference.high)


def by_test_set(found: Iterable[ResultRow]) -> dict[str, dict[str, ResultRow]]:
    """Test set -> system -> its row."""
    return {name: {r.system: r for r in group} for name, group in itertools.groupby(found, key=lambda r: r.test_set)}


# What they mean.


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the numbers mean for tuned. The first sentence is the one that decides.

    tone: `better` than base and first stage, `worse` than one of them, `open`, or `none` (nothing to compare).
    """

    tone: str
    sentences: tuple[str, ...]


TO_BASE = {
    "better": "Tuned is better than the base: the interval is above zero.",
    "worse": "Tuned is WORSE than the base: the interval is below zero.",
    "open": "It is not clear whether tuned is better than the base: the interval includes zero.",
}
TO_FIRST = {
    "better": "Tuned is better than {}, whose lists it reranks.",
    "open": "It is not clear whether tuned is better than {}, whose lists it reranks.",
}

# Why to deploy combined, or not, by its difference from the first stage.
TOGETHER = {
    "better": "deploy the combination",
    "worse": "this is worse too, so deploy neither",
    "open": "it is not clear whether this is better, so there is no reason to deploy it yet",
    "none": "",
}


def verdict(found: Sequence[ResultRow]) -> Verdict:
    """The sentences under every table: tuned against the base, against first stages, and where test sets disagree."""
    sets = by_test_set(found)
    if not sets:
        return Verdict("none", ("Nothing is evaluated yet.",))
    name, last = list(sets.items())[-1]
    if len(sets) > 1 and name != ALL:
        return Verdict("none", ("Base and tuned cannot be compared: no system is evaluated on all test sets.",))
    if "tuned" not in last or last["tuned"].difference is None:
        missing = [s for s in ("base", "tuned") if s not in last]
        why = f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not evaluated"
        why = why if missing else "they were measured on different queries"
        return Verdict("none", (f"Base and tuned cannot be compared: {why}.",))
    tone, sentences = _judged(last)
    tones = {n: _direction(s["tuned"].low, s["tuned"].high) for n, s in sets.items() if n != ALL and "tuned" in s}
    of_all = _direction(last["tuned"].low, last["tuned"].high)
    if len(sets) > 1:
        if (names := [n for n, of_set in tones.items() if of_set == "worse"]) and of_all != "worse":
            sentences.append(f"Tuned is worse than the base on {_listed(names)}.")
        if (names := [n for n, of_set in tones.items() if of_set == "open"]) and of_all != "open":
            sentences.append(f"On {_listed(names)} alone the difference from the base could be chance.")
    if last["tuned"].repeated:
        sentences.append(f"Queries that are in several test sets and count once: {last['tuned'].repeated:,}.")
    return Verdict(tone, tuple(sentences))


def _judged(systems: Mapping[str, ResultRow]) -> tuple[str, list[str]]:
    """(tone, sentences) for one set of queries; first what decides whether tuned should be used at all."""
    tuned, base, first = systems["tuned"], systems["base"], systems.get(systems["tuned"].first_stage)
    to_base, to_first = _direction(tuned.low, tuned.high), _direction(tuned.to_first_low, tuned.to_first_high)
    sentences = []
    combined, together = systems.get(COMBINED), ""
    # With the weight 1 it may be tuned alone.
    is_more = combined is not None and (combined.weight, combined.value) != (1, tuned.value)
    if first is not None and combined is not None and tuned.value < first.value and is_more:
        together = _direction(combined.to_first_low, combined.to_first_high) if combined.weight != 0 else "none"
    if first is not None and to_first == "worse":
        sentences.append(
            f"Do not deploy{' tuned alone' * (together == 'better')}: {_stage(first)} alone ranks better "
            f"({first.value:.3f} against {tuned.value:.3f})."
        )
    elif to_base == "worse":
        sentences.append(f"Do not deploy: the base ranks better ({base.value:.3f} against {tuned.value:.3f}).")
    tone = "worse" if sentences else to_base
    if first is not None and combined is not None and together in TOGETHER:
        sentences.append(_together(combined, first, together))
        tone = "open" if together == "better" else tone
    if first is not None and to_first in TO_FIRST:
        sentences.append(TO_FIRST[to_first].format(f"{_stage(first)} ({first.value:.3f})"))
        tone = tone if to_first == "better" else "open"
    if to_base != "worse" or to_first == "worse":
        sentences.append(TO_BASE[to_base])
    if to_first == "worse" and first is not None and base.value < first.value:
        sentences.append(f"The base is below {_stage(first)} too.")
    others = [row for s, row in systems.items() if s in retrievers() and s != tuned.first_stage]
    best = max(others, key=lambda row: row.value, default=None)
    if best is not None and best.value > tuned.value:
        sentences.append(f"{stage_label(best.system)} alone scores higher ({best.value:.3f}).")
        tone = "worse" if tone == "worse" else "open"
    return tone, sentences


def _together(combined: ResultRow, first: ResultRow, direction: str) -> str:
    """What the combination gives where tuned alone is below the first stage."""
    stage, weight = _stage(first), "" if combined.weight is None else f" (w = {combined.weight:g})"
    if direction == "none":
        return f"Combined with {stage}, tuned adds nothing: dev gives it the weight 0."
    measured = (combined.to_first or 0.0, combined.to_first_low or 0.0, combined.to_first_high or 0.0)
    numbers = "{:+.3f} [{:+.3f}, {:+.3f}]".format(*measured)
    return f"Combined with {stage}{weight}: {combined.value:.3f}, {numbers} against {stage}: {TOGETHER[direction]}."


def _stage(row: ResultRow) -> str:
    return "each set's first stage" if row.system == OWN_FIRST else stage_label(row.system)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def _direction(low: float | None, high: float | None) -> str:
    """`better` or `worse` where the interval lies wholly on one side of zero, else `open`; `` without an interval."""
    if low is None or high is None:
        return ""
    return "better" if low > 0 else "worse" if high < 0 else "open"

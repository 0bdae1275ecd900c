"""Results of finished evaluations, read from run folders: systems by test set, differences with intervals, verdict."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwright.common.errors import UserError
from rankwright.common.hashing import content_hash
from rankwright.common.run_folder import RunFolder
from rankwright.common.stats import Difference, paired_difference
from rankwright.data.splits import normalised
from rankwright.evaluation.evaluate import is_number, read_metrics_json, read_per_query, read_values
from rankwright.evaluation.metrics import HEADLINE
from rankwright.recipe.schema import EXPORTED, Recipe, result_values
from rankwright.retrieval.candidates import read_candidates
from rankwright.retrieval.first_stages import stage_label, stage_names
from rankwright.retrieval.retriever import retrievers


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
    sets = {row["set"]: _read_result_set(run, row["set"], inputs) for row in report["splits"]["test"]}
    sets = {name: found for name, found in sets.items() if found.values}
    rows = [_row(name, found, seed) for name, found in sets.items()]
    if len(rows) > 1:
        repeated = repeated_queries(run.path, {name: set[str]().union(*s.values.values()) for name, s in sets.items()})
        pooled = _pool(sets, inputs, repeated)
        if pooled.values:
            rows.append(dataclasses.replace(_row("all", pooled, seed), repeated=count_repeated(repeated)))
    return rows


def _read_result_set(run: RunFolder, name: str, inputs: Mapping[str, str]) -> _Set:
    folder = run.path / "eval" / name
    metrics = {system: read_metrics_json(folder / system) for system in inputs}
    done = {s: m for s, m in metrics.items() if m is not None and m.get("inputs") == inputs[s]}
    values = {system: read_per_query(folder / system, HEADLINE) for system in done}
    reranked = next((m for s, m in done.items() if s not in retrievers()), None)
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
    name = f"{stage_label(first)} ({row.values[first]:.3f}), whose lists it reranks"
    if d.low > 0:
        return f"; it is better than {name}"
    if d.high >= 0:
        return f"; it cannot be told apart from {name}"
    both = row.values["base"] < row.values[first]
    return f"; it is WORSE than {name}" + (", and the base is below it too" if both else "")


def _better_first_stage(row: ResultRow) -> str:
    """The best other first stage, where its mean is above tuned's."""
    others = {s: v for s, v in row.values.items() if s in retrievers() and s != row.first_stage}
    best = max(others, key=lambda s: others[s], default=None)
    if best is None or others[best] <= row.values["tuned"]:
        return ""
    return f"; {stage_label(best)} alone has more ({others[best]:.3f})"


# Set -> query id -> SET/ID of an earlier set's query of the same text.
Repeated = Mapping[str, Mapping[str, str]]


def repeated_queries(run: Path, evaluated: Mapping[str, Iterable[str]]) -> dict[str, dict[str, str]]:
    """Of each set (in this order, with its evaluated queries) those whose text an earlier set has, where there are any.

    A part of a set that is also reported apart repeats queries of the whole: counted twice, they would narrow every
    interval, which takes queries for independent. run: its folder; without a data/test.jsonl nothing is known.
    """
    texts = _texts(run / "data" / "test.jsonl")
    first: dict[str, str] = {}
    repeated = {}
    for name, query_ids in evaluated.items():
        own = {q: texts[name, q] for q in sorted(query_ids) if (name, q) in texts}
        if found := {q: first[text] for q, text in own.items() if text in first}:
            repeated[name] = found
        for q, text in own.items():
            first.setdefault(text, f"{name}/{q}")
    return repeated


def _texts(path: Path) -> dict[tuple[str, str], str]:
    """(set, query id) -> normalised text."""
    try:
        with path.open(encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        return {(row["set"], row["query_id"]): normalised(row["query"]) for row in rows if "query_id" in row}
    except (OSError, ValueError, LookupError, TypeError):
        return {}


def pool(values: Mapping[str, Mapping[str, float]], repeated: Repeated) -> dict[str, float]:
    """SET/ID -> value for the queries of all sets; a repeated one counts as the mean of its values, under its first."""
    found: dict[str, list[float]] = {}
    for name, of_set in values.items():
        first = repeated.get(name, {})
        for q, value in of_set.items():
            found.setdefault(first.get(q, f"{name}/{q}"), []).append(value)
    return {key: sum(several) / len(several) for key, several in found.items()}


def count_repeated(repeated: Repeated) -> int:
    """How many queries an earlier set has too."""
    return sum(map(len, repeated.values()))


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
    return stage_label(system)


def system_order(names: Sequence[str], recipe: Recipe) -> list[str]:
    """First stages, base, tuned, exported, the recipe's baselines in its order, then any others by name."""
    known = [*stage_names(), "base", "tuned", EXPORTED, *(b.name for b in recipe.evaluate.baselines)]
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
    firsts = {s: m["first_stage"] for s, m in row.metrics.items() if "first_stage" in m and s not in retrievers()}
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


def result_rows(run: RunFolder, recipe: Recipe, inputs: Mapping[str, str], sets: Sequence[str]) -> list[dict[str, Any]]:
    """One flat row per test set (and `all`) and system, for a data frame.

    value: mean nDCG@10 over `queries`; difference: to the base, over the same queries, with its interval low to high;
    these three are None for the base and where the base has other queries.
    """
    found, _ = read_results(run.path, recipe, sets, inputs)
    rows: list[dict[str, Any]] = []
    for one in found:
        base = one.values.get("base")
        for system, values in one.values.items():
            same = system != "base" and base is not None and set(base) == set(values)
            d = paired_difference(base, values, seed=recipe.seed) if same and base is not None else None
            mean, low, high = (None, None, None) if d is None else (d.mean, d.low, d.high)
            row = {"test_set": one.name, "system": system, "measure": HEADLINE, "value": one.means[system]}
            rows.append({**row, "difference": mean, "low": low, "high": high, "queries": len(values)})
    return rows


@dataclass(frozen=True, slots=True)
class Verdict:
    """The first screen. tone: `better`, `worse`, `open` or `none` (nothing to compare); sentences in order."""

    tone: str
    sentences: tuple[str, ...]


def direction(difference: Difference) -> str:
    """`better` or `worse` where the interval lies wholly on one side of zero, else `open`."""
    return "better" if difference.low > 0 else "worse" if difference.high < 0 else "open"


def run_verdict(rows: Sequence[SetResults]) -> Verdict:
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


# Measure -> query id -> value.
Values = Mapping[str, Mapping[str, float]]
# A mean in metrics.json agrees with per_query.jsonl to this, or they are of two evaluations.
SAME_MEAN = 1e-9


@dataclass(frozen=True, slots=True)
class EvaluatedSet:
    """One test set of a run. systems: system -> values; depth: candidates a query, where it is recorded.

    first_stage: whose lists were reranked; lists: query id -> hash of its candidates (ids in order), None without
    candidates.jsonl.
    """

    systems: Mapping[str, Values]
    depth: int | None
    first_stage: str | None
    lists: Mapping[str, str] | None


@dataclass(frozen=True, slots=True)
class EvaluatedRun:
    """A run folder with a finished evaluation. name: short, and no other run of the call has it.

    recipe: as it stands in the folder; experiment, seed: of the recipe that the evaluation was made with.
    """

    name: str
    folder: Path
    recipe: Mapping[str, Any]
    sets: Mapping[str, EvaluatedSet]
    experiment: str
    seed: int


def read_runs(folders: Sequence[Path]) -> list[EvaluatedRun]:
    """Read the evaluations of run folders; no model, no torch.

    Raises UserError for a folder that is given twice or is no run, and for an evaluation that is missing, not
    finished or mixed of several settings: it names the folder and the command to run.
    """
    return [read_run(folder, name) for folder, name in zip(folders, run_names(folders), strict=True)]


def run_names(folders: Sequence[Path]) -> list[str]:
    """The shortest endings of the paths that tell them apart, as long for one as for the other: `a`, `x/a`."""
    parts = [folder.resolve().parts for folder in folders]
    twice = next((f for n, f in enumerate(folders) if parts[n] in parts[:n]), None)
    if twice is not None:
        raise UserError(f"{twice}: given twice: name each run once")
    length = 1
    while len({p[-length:] for p in parts}) < len(parts):
        length += 1
    return ["/".join(p[-length:]) for p in parts]


def read_run(folder: Path, name: str) -> EvaluatedRun:
    """One run; raises as read_runs does."""
    try:
        recipe: Any = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        recipe = None
    if not isinstance(recipe, dict):
        near = Path("runs") / folder
        hint = f"did you mean {near}?" if (near / "recipe.json").is_file() else "give folders such as runs/quickstart"
        raise UserError(f"{folder}: no folder of a run (it has no readable recipe.json): {hint}")
    facts = {"experiment": experiment_of(recipe), "seed": recipe.get("seed"), **RunFolder(folder).facts("evaluate")}
    experiment, seed = facts["experiment"], facts["seed"]
    if not isinstance(seed, int) or isinstance(seed, bool):
        place = folder / ("stages/evaluate.json" if seed != recipe.get("seed") else "recipe.json")
        raise UserError(f"{place}: seed: must be a whole number, found {seed!r}: run `{evaluate_command(folder)}`")
    names = _test_sets(folder)
    if not names:
        raise UserError(f"{folder}: no test set is evaluated: run `{evaluate_command(folder)}`")
    return EvaluatedRun(name, folder, recipe, {n: _read_set(folder, n) for n in names}, str(experiment), seed)


def experiment_of(recipe: Mapping[str, Any]) -> str:
    """Hash of all in a recipe that can change a number, but for the seed; recorded when it is evaluated.

    By it runs of one experiment are known: recipe.json is that of the last command, which may have come later.
    """
    # Their order decides what is mined, and a mapping's hash does not keep it.
    mine = recipe.get("mine")
    filters = list(mine.get("filters") or ()) if isinstance(mine, dict) else []
    order = [filters] if len(filters) > 1 else []
    return content_hash({k: v for k, v in result_values(recipe).items() if k != "seed"}, *order)


def evaluate_command(folder: Path) -> str:
    """The command that evaluates this run: the recipe and the settings that it was last started with."""
    try:
        command = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))["command"][2:]
    except (OSError, ValueError, LookupError):
        command = []
    words = [
        word
        for before, word in zip(["", *command], command, strict=False)
        if not word.startswith("-") and before not in ("--only", "--override")
    ]
    return shlex.join(["rankwright", "evaluate", *(words or ["RECIPE", f"run_dir={folder}"])])


def same_but_for_seed(runs: Sequence[EvaluatedRun]) -> list[list[EvaluatedRun]]:
    """Groups of runs evaluated with recipes that differ in `seed` (and in how they are called) only."""
    groups: dict[str, list[EvaluatedRun]] = {}
    for run in runs:
        groups.setdefault(run.experiment, []).append(run)
    return [group for group in groups.values() if len({run.seed for run in group}) > 1]


def _test_sets(folder: Path) -> list[str]:
    """The sets of the run's data; folders that an earlier recipe left in eval/ are not among them."""
    try:
        report = json.loads((folder / "data_report.json").read_text(encoding="utf-8"))
        return [str(row["set"]) for row in report["splits"]["test"]]
    except (OSError, ValueError, LookupError, TypeError):
        return sorted(path.name for path in (folder / "eval").glob("*") if path.is_dir())


def _read_set(folder: Path, name: str) -> EvaluatedSet:
    place = folder / "eval" / name
    metrics = {path.name: read_metrics_json(path) for path in sorted(place.glob("*")) if path.is_dir()}
    done = {system: values for system, values in metrics.items() if values is not None}
    if "tuned" not in done:
        raise UserError(
            f"{folder}: tuned is not evaluated on test set {name!r}, or not to the end: "
            f"run `{evaluate_command(folder)}`"
        )
    _check_one_evaluation(folder, name, done)
    recorded = RunFolder(folder).facts("evaluate").get("system_inputs")
    if recorded is not None:
        # A baseline that the recipe named once.
        done = {system: values for system, values in done.items() if system in recorded}
    systems = {}
    for system, means in done.items():
        _check_types(folder, place / system / "metrics.json", means)
        values = read_values(place / system / "per_query.jsonl")
        query_values = list(values.get(HEADLINE, {}).values())
        mean = sum(query_values) / len(query_values) if query_values else None
        recorded = means.get(HEADLINE)
        # A NaN agrees with nothing.
        if mean is None or recorded is None or not abs(mean - recorded) <= SAME_MEAN:
            raise UserError(
                f"{place / system}: metrics.json and per_query.jsonl do not agree on {HEADLINE}: delete this folder, "
                f"then run `{evaluate_command(folder)}`"
            )
        systems[system] = values
    lists = None
    if (place / "candidates.jsonl").is_file():
        found = read_candidates(place / "candidates.jsonl")
        lists = {q: content_hash([c.document_id for c in candidates]) for q, candidates in found.items()}
    return EvaluatedSet(systems, done["tuned"].get("depth"), done["tuned"].get("first_stage"), lists)


def _check_types(folder: Path, path: Path, values: Mapping[str, Any]) -> None:
    """Of what is used of a metrics.json."""
    for key, number in ((HEADLINE, "a number"), ("depth", "a whole number")):
        value = values.get(key)
        if value is not None and not (is_number(value) and (number == "a number" or isinstance(value, int))):
            raise UserError(
                f"{path}: {key}: must be {number}, found {value!r}: delete this file, then run "
                f"`{evaluate_command(folder)}`"
            )


def _check_one_evaluation(folder: Path, name: str, done: Mapping[str, Mapping[str, Any]]) -> None:
    """The record of the last evaluation names the inputs of its systems; others are left from before it."""
    recorded = RunFolder(folder).facts("evaluate").get("system_inputs", {})
    if any(done[system].get("inputs") != inputs for system, inputs in recorded.items() if system in done):
        raise UserError(
            f"{folder}: test set {name!r}: the systems were evaluated with different settings, or the last "
            f"evaluation is not finished: run `{evaluate_command(folder)}`"
        )

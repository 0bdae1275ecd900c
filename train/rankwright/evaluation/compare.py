"""Several evaluated runs side by side: measures, paired differences from one system, p values, spread over seeds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rankwright.common.components import SeedDifference, by_seed, difference_over_seeds
from rankwright.common.errors import UserError, no_such
from rankwright.common.lineage import lineage
from rankwright.common.plurals import counted
from rankwright.common.run_folder import RunFolder
from rankwright.common.stats import RESAMPLES, Difference, Spread, holm, paired_difference, randomisation_test, spread
from rankwright.common.values import list_of_paths, path_text, whole_number
from rankwright.evaluation.metrics import HEADLINE, Scale, summarise
from rankwright.evaluation.results import Repeated, count_repeated, pool, repeated_queries, system_order
from rankwright.evaluation.runs import EvaluatedRun, Values, experiment_of, read_runs, same_but_for_seed

# The seed of all resamples: the same files always give the same numbers.
SEED = 0


@dataclass(frozen=True, slots=True)
class System:
    """A row of the tables: one system, of one run or of several in which it has the same numbers."""

    name: str
    kind: str
    runs: tuple[EvaluatedRun, ...]

    def values(self, test_set: str) -> Values:
        return self.runs[0].sets[test_set].systems[self.kind]

    @property
    def same_in(self) -> list[str]:
        """The other runs with the same numbers, where the name is that of one run."""
        return [run.name for run in self.runs[1:]] if "/" in self.name else []


@dataclass(frozen=True, slots=True)
class Shared:
    """What can be compared on a test set: queries and measures of all systems; notes name what was left out."""

    queries: tuple[str, ...]
    measures: tuple[str, ...]
    notes: tuple[str, ...]

    def of(self, values: Values, measure: str = HEADLINE) -> dict[str, float]:
        """Query id -> value of one measure, for the shared queries."""
        return {q: values[measure][q] for q in self.queries}

    def means(self, values: Values) -> dict[str, float]:
        return {m: summarise(m, self.of(values, m).values()) for m in self.measures}


@dataclass(frozen=True, slots=True)
class Compared:
    """One system - the reference on one test set, by nDCG@10."""

    difference: Difference
    p: float
    p_holm: float


@dataclass(frozen=True, slots=True)
class OverSeeds:
    """tuned of runs that differ only in their seed, less another system, on one test set or, as None, on all together.

    other: names of the runs of another recipe whose tuned it is, or the name of a system that is not trained
    """

    runs: tuple[str, ...]
    other: tuple[str, ...]
    test_set: str | None
    found: SeedDifference
    p_holm: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """All numbers of a call.

    compared: (test set, name of the system) -> its difference from the reference
    pooled: name of the system -> its difference over the queries of all test sets together, each query once (see
        results.repeated_queries); empty for a single set
    scale: what labels mean to the measures, the same for all runs
    over_seeds: names of runs that differ only in their seed -> test set -> spread of tuned's nDCG@10
    seed_differences: those of each such group from the reference's group, or from a reference that is not trained, and
        from the group's own base: for other queries and other seeds
    """

    runs: tuple[EvaluatedRun, ...]
    reference: System
    systems: tuple[System, ...]
    sets: Mapping[str, Shared]
    compared: Mapping[tuple[str, str], Compared]
    pooled: Mapping[str, Compared]
    repeated: Repeated
    over_seeds: Mapping[tuple[str, ...], Mapping[str, Spread]]
    seed_differences: tuple[OverSeeds, ...]
    notes: tuple[str, ...]
    scale: Scale

    @property
    def measure(self) -> str:
        """nDCG@10 with its gains, where a label is not its own gain."""
        return self.scale.name(HEADLINE)

    @property
    def pooled_queries(self) -> int:
        return sum(len(shared.queries) for shared in self.sets.values()) - count_repeated(self.repeated)

    def rows(self, test_set: str | None) -> dict[str, tuple[dict[str, float], Compared | None]]:
        """System -> its mean by measure and its difference, on a test set, or on all together where it is None.

        The reference has no difference.
        """
        if test_set is None:
            return {s.name: (self.pooled_means(s), self.pooled.get(s.name)) for s in self.systems}
        shared, found = self.sets[test_set], self.compared
        return {s.name: (shared.means(s.values(test_set)), found.get((test_set, s.name))) for s in self.systems}

    def pooled_means(self, system: System) -> dict[str, float]:
        """Measure -> mean over the queries of all test sets together, for the measures that all sets have."""
        first, *others = self.sets.values()
        measures = [m for m in first.measures if all(m in shared.measures for shared in others)]
        values = {
            m: pool({n: shared.of(system.values(n), m) for n, shared in self.sets.items()}, self.repeated)
            for m in measures
        }
        return {m: summarise(m, found.values()) for m, found in values.items()}


def compare(
    folders: Iterable[str | Path], against: str | Path | None = None, *, resamples: int = RESAMPLES
) -> Comparison:
    """Compare every system of the runs with one of them, on every test set that all runs have.

    folders: run folders with a finished evaluation, such as runs/a.
    against: the name of a system, or of a run, which stands for its tuned; by default the first run's tuned.
    Differences are system - reference by nDCG@10 over the queries that all runs share, with a 95 % BCa interval and
    the p value of a two-sided paired randomisation test, adjusted by Holm's method over all comparisons of the call.
    They tell what other queries would change, for these trained models. `over_seeds` tells what other seeds change,
    for runs of one recipe, and `seed_differences` what both would change (components.difference_over_seeds).
    Raises UserError as read_runs does, when no test set or no query is shared, when labels mean different things to the
    measures of two runs (metrics.Scale), and for an unknown `against`.
    """
    paths = list_of_paths("runs", folders)
    if not paths:
        raise UserError("runs: must name at least one run folder")
    resamples = whole_number("resamples", resamples)
    runs = read_runs(paths)
    names = [name for name in runs[0].sets if all(name in run.sets for run in runs)]
    if not names:
        have = "; ".join(f"{run.name} has {', '.join(run.sets)}" for run in runs)
        raise UserError(f"no test set that all runs have ({have}): evaluate the runs on the same sets")
    scale = _one_scale(runs, names)
    sets = {name: _share(runs, name) for name in names}
    # All runs have these queries.
    repeated = repeated_queries(runs[0].folder, {name: shared.queries for name, shared in sets.items()})
    systems = _systems(runs, sets)
    reference = _find(systems, runs, against)
    found: dict[tuple[str | None, str], tuple[Difference, float]] = {}
    # None: all sets together, where there are several.
    for name in (*sets, None) if len(sets) > 1 else (*sets,):
        base = _headline(sets, repeated, reference, name)
        for system in systems:
            if system is not reference:
                tuned = _headline(sets, repeated, system, name)
                difference = paired_difference(base, tuned, resamples=resamples, seed=SEED)
                found[name, system.name] = difference, randomisation_test(base, tuned, resamples=resamples, seed=SEED)
    adjusted = holm({key: p for key, (_, p) in found.items()})
    compared = {key: Compared(difference, p, adjusted[key]) for key, (difference, p) in found.items()}
    return Comparison(
        runs=tuple(runs),
        reference=reference,
        systems=tuple(systems),
        sets=sets,
        compared={(name, system): row for (name, system), row in compared.items() if name is not None},
        pooled={system: row for (name, system), row in compared.items() if name is None},
        over_seeds=_over_seeds(runs, sets),
        seed_differences=_seed_differences(runs, systems, reference, sets, repeated),
        repeated=repeated,
        notes=tuple(_notes(runs, names, repeated)),
        scale=scale,
    )


def _one_scale(runs: Sequence[EvaluatedRun], names: Sequence[str]) -> Scale:
    """The scale of all runs. Raises UserError where two of them take labels differently."""
    scale = runs[0].sets[names[0]].scale
    for run in runs:
        for name in names:
            if (other := run.sets[name].scale) != scale:
                raise UserError(
                    f"{runs[0].name} and {run.name} cannot be compared: labels mean different things to their measures "
                    f"({scale.words()}; {other.words()}): evaluate both with the same evaluate.relevance_level and "
                    "evaluate.gains"
                )
    return scale


def _headline(sets: Mapping[str, Shared], repeated: Repeated, system: System, name: str | None) -> dict[str, float]:
    """Query id -> nDCG@10 of a system on one test set; SET/ID -> nDCG@10 on all of them where `name` is None."""
    if name is not None:
        return sets[name].of(system.values(name))
    return pool({n: shared.of(system.values(n)) for n, shared in sets.items()}, repeated)


def _share(runs: Sequence[EvaluatedRun], name: str) -> Shared:
    """Queries and measures of all systems of all runs on a test set."""
    found = [(run, values) for run in runs for values in run.sets[name].systems.values()]
    common = set.intersection(*(set(values[HEADLINE]) for _, values in found))
    if not common:
        raise UserError(
            f"test set {name!r}: no query is in all of {', '.join(run.name for run in runs)}: evaluate the runs on the "
            "same queries (evaluate.limit_queries takes them by seed)"
        )
    queries = tuple(sorted(common))
    measures = list(dict.fromkeys([HEADLINE, *(m for _, values in found for m in values)]))
    shared = [m for m in measures if all(common <= set(values.get(m, ())) for _, values in found)]
    notes = []
    left = {run.name: max(len(v[HEADLINE]) for v in run.sets[name].systems.values()) - len(common) for run in runs}
    if any(left.values()):
        counts = ", ".join(f"{run} {count:,}" for run, count in left.items())
        notes.append(f"compared on the {counted(len(common), 'query')} that all have; left out: {counts}")
    if len(shared) < len(measures):
        notes.append(f"measures that not all have, left out: {', '.join(m for m in measures if m not in shared)}")
    return Shared(queries, tuple(shared), (*notes, *_candidate_notes(runs, name, queries)))


def _candidate_notes(runs: Sequence[EvaluatedRun], name: str, queries: Sequence[str]) -> Iterator[str]:
    """Whether the runs reranked the same lists, and were judged by the same judgements."""
    depths = {run.name: run.sets[name].depth for run in runs}
    if len(set(depths.values())) > 1:
        yield "depths differ: " + ", ".join(f"{run} {depth or 'not recorded'}" for run, depth in depths.items())
    first, first_name = runs[0].sets[name], runs[0].name
    for run in runs[1:]:
        other = run.sets[name]
        if first.lists is None or other.lists is None:
            yield f"{first_name} and {run.name}: candidates.jsonl is missing, the lists may differ"
            continue
        differ = {q for q in queries if first.lists.get(q) != other.lists.get(q)}
        if differ:
            yield f"candidate lists of {run.name} differ from {first_name}'s for {counted(len(differ), 'query')}"
        one, two = (found.systems.get(found.first_stage or "bm25") for found in (first, other))
        if one and two:
            odd = sum(one[HEADLINE][q] != two[HEADLINE][q] for q in queries if q not in differ)
            if odd:
                yield f"judgements of {run.name} differ from {first_name}'s: {odd:,} equal lists have other values"


def _systems(runs: Sequence[EvaluatedRun], sets: Mapping[str, Shared]) -> list[System]:
    """First stages, base, tuned of every run, then the rest; what is the same in several runs is one system."""
    kinds = {kind for run in runs for name in sets for kind in run.sets[name].systems}
    systems: list[System] = []
    for kind in system_order(kinds):
        having = [run for run in runs if all(kind in run.sets[name].systems for name in sets)]
        groups: list[list[EvaluatedRun]] = []
        for run in having:
            group = next((g for g in groups if kind != "tuned" and _equal(g[0], run, kind, sets)), None)
            groups.append([run]) if group is None else group.append(run)
        one = len(groups) == 1 and kind != "tuned" and len(having) == len(runs)
        systems += [System(kind if one else f"{g[0].name}/{kind}", kind, tuple(g)) for g in groups]
    return systems


def _equal(one: EvaluatedRun, two: EvaluatedRun, kind: str, sets: Mapping[str, Shared]) -> bool:
    return all(
        shared.of(one.sets[name].systems[kind], m) == shared.of(two.sets[name].systems[kind], m)
        for name, shared in sets.items()
        for m in shared.measures
    )


def _find(systems: Sequence[System], runs: Sequence[EvaluatedRun], against: str | Path | None) -> System:
    """The system of a name; a run's name or folder stands for its tuned."""
    known = {f"{run.name}/{system.kind}": system for system in systems for run in system.runs}
    known |= {system.name: system for system in systems}
    for run in runs:
        for name in (run.name, str(run.folder)):
            known.setdefault(name, known[f"{run.name}/tuned"])
    wanted = f"{runs[0].name}/tuned" if against is None else path_text("against", against).rstrip("/")
    if wanted not in known:
        raise UserError(f"--against: {no_such('system', wanted, [system.name for system in systems])}")
    return known[wanted]


def _over_seeds(runs: Sequence[EvaluatedRun], sets: Mapping[str, Shared]) -> dict[tuple[str, ...], dict[str, Spread]]:
    return {
        tuple(run.name for run in group): {
            name: spread([shared.means(run.sets[name].systems["tuned"])[HEADLINE] for run in group])
            for name, shared in sets.items()
        }
        for group in same_but_for_seed(runs)
    }


def _seed_differences(
    runs: Sequence[EvaluatedRun],
    systems: Sequence[System],
    reference: System,
    sets: Mapping[str, Shared],
    repeated: Repeated,
) -> tuple[OverSeeds, ...]:
    groups = same_but_for_seed(runs)
    tuned = {id(run): s for s in systems if s.kind == "tuned" for run in s.runs}
    of = next((group for group in groups if reference.kind == "tuned" and reference.runs[0] in group), None)
    pairs: list[tuple[list[EvaluatedRun], tuple[str, ...], list[System]]] = []
    for group in groups:
        if of is not None and group is not of:
            pairs.append((group, tuple(run.name for run in of), [tuned[id(run)] for run in of]))
        elif reference.kind != "tuned":
            pairs.append((group, (reference.name,), [reference]))
        own = next((s for s in systems if s.kind == "base" and all(run in s.runs for run in group)), None)
        if own is not None and own is not reference:
            pairs.append((group, (own.name,), [own]))
    names = (*sets, None) if len(sets) > 1 else (*sets,)
    found = []
    for group, other, others in pairs:
        for name in names:
            sides = [
                [_headline(sets, repeated, system, name) for system in side]
                for side in (others, [tuned[id(run)] for run in group])
            ]
            if len(sides[0][0]) > 1:
                found.append((group, other, name, difference_over_seeds(*map(by_seed, sides))))
    adjusted = holm({number: difference.p for number, (*_, difference) in enumerate(found)})
    return tuple(
        OverSeeds(tuple(run.name for run in group), other, name, difference, adjusted[number])
        for number, (group, other, name, difference) in enumerate(found)
    )


def _notes(runs: Sequence[EvaluatedRun], names: Sequence[str], repeated: Repeated) -> Iterator[str]:
    if repeated:
        one, many = "query that an earlier set has counts", "queries that an earlier set has count"
        yield f"all test sets together: {counted(count_repeated(repeated), one, many)} once"
    lacking = dict.fromkeys(name for run in runs for name in run.sets if name not in names)
    if lacking:
        yield f"test sets that not all runs have, left out: {', '.join(lacking)}"
    for run in runs:
        for name in names:
            if unfinished := run.sets[name].unfinished:
                yield f"{run.name}: not evaluated to the end on {name}, left out: {', '.join(unfinished)}"
        found = [set(run.sets[name].systems) for name in names]
        if partly := found[0].union(*found) - found[0].intersection(*found):
            yield f"{run.name}: not evaluated on all of these test sets, left out: {', '.join(sorted(partly))}"
    for run in runs:
        if experiment_of(run.recipe) != run.experiment:
            yield f"{run.name}: recipe.json changed after the evaluation: it counts as it was evaluated"
        if line := lineage(RunFolder(run.folder)).line_of("evaluate", "calibrate"):
            yield f"WARNING: {run.name} is stale: {line}"
    for group in same_but_for_seed(runs):
        seeds = [run.seed for run in group]
        if len(set(seeds)) < len(seeds):
            yield f"{', '.join(run.name for run in group)}: a seed occurs twice, and counts twice in the spread"

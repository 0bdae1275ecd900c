"""The accept gate: what a model must reach on the test sets before it is exported, and the record of the decision."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rankwright.common import console
from rankwright.common.errors import Refused, did_you_mean, no_such
from rankwright.common.hashing import content_hash, file_sha256
from rankwright.common.outputs import read_sealed, sealed
from rankwright.common.plurals import counted
from rankwright.common.run_folder import RunFolder
from rankwright.common.stats import paired_difference, randomisation_test
from rankwright.evaluation.evaluate import read_per_query
from rankwright.evaluation.metrics import HEADLINE, is_count
from rankwright.evaluation.results import Repeated, count_repeated, pool, repeated_queries
from rankwright.recipe.export import Gate
from rankwright.recipe.schema import COMBINED, Recipe
from rankwright.retrieval.first_stages import stage_label

# What the mean of a guard may lose. A few queries of a usual set move it by about as much by chance.
GUARD_MARGIN = 0.01

# (the other, the system that must pass), each: query id -> value of the gate's metric.
Pair = tuple[Mapping[str, float], Mapping[str, float]]


class GateRefused(Refused):
    """A rule of the gate failed: nothing is exported, but all other stages are done and kept."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule and its result. value: the mean difference; low: the lower end of its interval."""

    rule: str
    value: float
    low: float
    wanted: str
    passed: bool
    sentence: str


@dataclass(frozen=True, slots=True)
class Decision:
    """The results of all rules of a gate. override: why the model is exported although a rule failed, or None."""

    rules: tuple[Rule, ...]
    override: str | None = None

    @property
    def accepted(self) -> bool:
        return all(rule.passed for rule in self.rules)

    @property
    def may_export(self) -> bool:
        return self.accepted or self.override is not None

    def as_json(self) -> dict[str, Any]:
        """What gate.json holds besides its inputs, and the files with the numbers that were judged."""
        rules = [dataclasses.asdict(rule) for rule in self.rules]
        return {"accepted": self.accepted, "rules": rules, "override": self.override}


def check_gate(gate: Gate, measures: Sequence[str], test_sets: Sequence[str] | None) -> list[str]:
    """Faults of the section, each `gate.KEY: what, how to fix it`. test_sets: their names, or None while unknown."""
    faults = []
    measured = list(dict.fromkeys([HEADLINE, *measures]))
    if gate.metric not in measured:
        faults.append(
            f"gate.metric: {gate.metric!r} is not measured{did_you_mean(gate.metric, measured)}: choose from "
            f"{', '.join(measured)}, or add it to evaluate.measures"
        )
    if gate.min_gain >= 1 and gate.metric in measured and not is_count(gate.metric):
        faults.append(f"gate.min_gain: {gate.min_gain:g}, must be below 1: {gate.metric} is from 0 to 1")
    faults += [
        f"gate.guard: {name!r} is named twice" for name in dict.fromkeys(gate.guard) if gate.guard.count(name) > 1
    ]
    if not test_sets:
        return faults
    unknown = [name for name in dict.fromkeys(gate.guard) if name not in test_sets]
    faults += [f"gate.guard: {no_such('test set', name, test_sets)}" for name in unknown]
    if set(test_sets) <= set(gate.guard):
        faults.append(f"gate.guard: all test sets are guards: leave at least one on which {gate.system} must gain")
    return faults


def check_override(override: str | None, recipe: Recipe) -> list[str]:
    """Faults of `--override TEXT`: it needs something that can be refused, and a reason."""
    if override is None:
        return []
    if recipe.gate is None and not recipe.has_teacher:
        return ["--override: the recipe has neither `gate` nor a teacher, nothing to override: leave it out"]
    if not override.strip():
        return ["--override: needs a reason, which is recorded: --override 'why'"]
    return []


def judge(
    gate: Gate,
    values: Mapping[str, Pair],
    *,
    seed: int,
    repeated: Repeated | None = None,
    first: Mapping[str, Pair] | None = None,
    first_stage: str = "first stage",
) -> tuple[Rule, ...]:
    """The results of a gate's rules. values: test set -> values of base and of gate.system, query by query.

    first: the same with those of the first stage, called `first_stage`, in place of the base's; for gate.against and
    gate.at_least.

    gain: the queries of all sets that are not guards are pooled; a query that several of them have (`repeated`, see
    results.repeated_queries) counts once. The lower end of the two-sided BCa interval of system - base must be above
    min_gain, so with min_gain 0 a model that changes nothing is refused. And the two-sided paired randomisation test of
    a mean of min_gain must give at most 1 - confidence: where few queries differ, a bootstrap is surer than it may be,
    since three of a thousand that gain keep nearly all its resamples above 0.
    gain over first stage: the same against the search whose lists are reranked.
    at least base, at least first stage: the mean over the same queries may be lower by one paired standard error.
    guard SET: the system must not be worse than the base. Its mean may lose at most GUARD_MARGIN, since the interval of
    a small set is so wide that it always reaches 0, and a real loss would pass. And the interval must not lie wholly
    below 0, since a smaller loss is still a loss once enough queries show it.

    There is no correction for several rules. The claim is one, that all rules hold together. Each further rule can only
    turn an accepted model into a refused one, so the chance of accepting a model without a gain is at most that of the
    first rule alone (an intersection-union test; Berger 1982).
    """
    repeated = repeated or {}
    rules = []
    if "base" in gate.against:
        rules.append(_gain(gate, "gain", "base", values, seed=seed, repeated=repeated))
    if "first_stage" in gate.against and first is not None:
        name = "gain over first stage"
        rules.append(_gain(gate, name, stage_label(first_stage), first, seed=seed, repeated=repeated))
    for other, label, pairs in (("base", "base", values), ("first_stage", stage_label(first_stage), first)):
        if other in gate.at_least and pairs is not None:
            name = f"at least {other.replace('_', ' ')}"
            rules.append(_not_worse(gate, name, label, pairs, repeated=repeated))
    level = f"{100 * gate.confidence:g} % interval"
    for name in gate.guard:
        d = paired_difference(*values[name], confidence=gate.confidence, seed=seed)
        wrong = []
        if d.mean < -GUARD_MARGIN:
            wrong.append(f"the mean loses more than {GUARD_MARGIN:g}")
        if d.high < 0:
            wrong.append(f"the {level} lies wholly below 0")
        result = " and ".join(wrong) or f"not worse (the mean loses at most {GUARD_MARGIN:g}, the interval reaches 0)"
        sentence = (
            f"guard {name}: {gate.metric} of {gate.system} - base {d.mean:+.4f} [{d.low:+.4f}, {d.high:+.4f}] over "
            f"{counted(d.queries, 'query')}: {result}"
        )
        wanted = f"mean >= {-GUARD_MARGIN:g}, interval not below 0"
        rules.append(Rule(f"guard {name}", d.mean, d.low, wanted, not wrong, sentence))
    return tuple(rules)


def _gain(gate: Gate, rule: str, other: str, values: Mapping[str, Pair], *, seed: int, repeated: Repeated) -> Rule:
    """Whether the system is better than `other` over the pooled queries; values: test set -> values of both."""
    names, before, tuned = _pooled(gate, values, repeated)
    d = paired_difference(before, tuned, confidence=gate.confidence, seed=seed)
    above = d.low > gate.min_gain
    p = randomisation_test({q: value + gate.min_gain for q, value in before.items()}, tuned, seed=seed)
    most = 1 - gate.confidence
    shown, level = p <= most, f"{100 * gate.confidence:g} % interval"
    twice = count_repeated(repeated)
    one, many = "query that is in several sets counts", "queries that are in several sets count"
    sentence = (
        f"{gate.metric} of {gate.system} - {other} {d.mean:+.4f} over {counted(d.queries, 'query')} of "
        f"{', '.join(names)}"
        + (f" ({counted(twice, one, many)} once)" if twice else "")
        + f", {d.differ:,} of which differ: "
    )
    if d.mean > gate.min_gain:
        sentence += (
            f"the lower end of the {level}, {d.low:+.4f}, is {'' if above else 'not '}above {gate.min_gain:g}, and the "
            f"randomisation test has p = {p:.3g}, {'at most' if shown else 'above'} {most:.3g}"
        )
    else:
        # The p value would speak of a difference in the wrong direction.
        sentence += f"the mean itself is not above {gate.min_gain:g} ({level} {d.low:+.4f} to {d.high:+.4f})"
    return Rule(rule, d.mean, d.low, f"lower end > {gate.min_gain:g}, p <= {most:.3g}", above and shown, sentence)


def _not_worse(gate: Gate, rule: str, other: str, values: Mapping[str, Pair], *, repeated: Repeated) -> Rule:
    """Whether the system is at most one paired standard error below `other` over the pooled queries."""
    names, before, after = _pooled(gate, values, repeated)
    differences = [after[q] - before[q] for q in sorted(before)]
    queries = len(differences)
    mean = statistics.fmean(differences)
    error = statistics.stdev(differences) / queries**0.5 if queries > 1 else 0.0
    passed = mean >= -error
    sentence = (
        f"{gate.metric} of {gate.system} - {other} {mean:+.4f} over {counted(queries, 'query')} of {', '.join(names)}: "
        f"{'at most' if passed else 'more than'} one standard error, {error:.4f}, below"
    )
    return Rule(rule, mean, mean - error, "mean >= - standard error", passed, sentence)


def _pooled(
    gate: Gate, values: Mapping[str, Pair], repeated: Repeated
) -> tuple[list[str], dict[str, float], dict[str, float]]:
    """(the sets that are not guards, the values of the other, those of the system), of their pooled queries."""
    names = [name for name in values if name not in gate.guard]
    before, after = (pool({name: values[name][side] for name in names}, repeated) for side in (0, 1))
    return names, before, after


def _dev_rule(gate: Gate, facts: Mapping[str, Any]) -> Rule:
    """Whether any step of training was better than the base on dev, which chose the checkpoint. facts: of the stage.

    With a min_gain below 0, so much worse is enough.
    """
    base, best, least = facts["base_value"], facts["best_value"], min(0.0, gate.min_gain)
    passed = best - base > least
    sentence = (
        f"on dev {HEADLINE} was {base:.4f} before training and {best:.4f} at its best step: the gain is "
        f"{'' if passed else 'not '}above {least:g}"
    )
    return Rule("dev", best - base, best - base, f"> {least:g}", passed, sentence)


def _weight_rule(gate: Gate, run: RunFolder) -> list[Rule]:
    """Whether combined uses the model at all: with the weight 0 it is the first stage, which needs no model."""
    found = read_sealed(run.combine) or {}
    weight = found.get("weight")
    if gate.system != COMBINED or weight is None:
        return []
    words = "it is used" if weight > 0 else "it is not used, so the first stage alone does the same"
    words = f"it alone is judged, because {found['note']}" if found.get("note") else words
    return [Rule("weight", weight, weight, "> 0", weight > 0, f"combined gives tuned the weight {weight:g}: {words}")]


def gate_inputs(gate: Gate, system_inputs: Mapping[str, str], first_stage: str, seed: int) -> str:
    """Hash of what a decision depends on: the section, the seed, and the inputs of the numbers that it compares."""
    numbers = (system_inputs[system] for system in _compared(gate, first_stage))
    return content_hash(gate.model_dump(mode="json"), *numbers, seed)


def _compared(gate: Gate, first_stage: str) -> list[str]:
    """The systems whose numbers decide."""
    return ["base", gate.system, *([first_stage] if _reads_first(gate) else [])]


def _reads_first(gate: Gate) -> bool:
    return "first_stage" in (*gate.against, *gate.at_least)


def decide(
    gate: Gate,
    run: RunFolder,
    test_sets: Sequence[str],
    *,
    system_inputs: Mapping[str, str],
    first_stage: str,
    seed: int,
    override: str | None,
) -> Decision:
    """Judge the finished evaluation of a run, log the results of the rules, and write gate.json.

    Besides the rules of judge(): the weight of combined; and dev, on which some step of training must have been better
    than the base.

    An override belongs to one model and one evaluation of it. It is kept when the same command comes again without
    it, and forgotten when anything changes that the decision depends on. It is not recorded when no rule failed.
    """
    inputs = gate_inputs(gate, system_inputs, first_stage, seed)

    def pairs(other: str) -> dict[str, Pair]:
        folders = {name: run.eval_folder(name) for name in test_sets}
        return {
            name: (read_per_query(folder / other, gate.metric), read_per_query(folder / gate.system, gate.metric))
            for name, folder in folders.items()
        }

    values, first = pairs("base"), pairs(first_stage) if _reads_first(gate) else None
    repeated = repeated_queries(run.path, {name: base for name, (base, _) in values.items() if name not in gate.guard})
    rules = judge(gate, values, seed=seed, repeated=repeated, first=first, first_stage=first_stage)
    decision = Decision((*rules, *_weight_rule(gate, run), _dev_rule(gate, run.facts("train"))))
    if not decision.accepted:
        # On one line, for the card and the console.
        reason = " ".join(override.split()) if override is not None else _recorded(run, inputs).get("override")
        decision = dataclasses.replace(decision, override=reason)
    judged = _compared(gate, first_stage)
    files = [run.eval_folder(name) / system / "per_query.jsonl" for name in test_sets for system in judged]
    numbers = {path.relative_to(run.path).as_posix(): file_sha256(path) for path in files}
    run.write_json(run.gate, sealed({**decision.as_json(), "inputs": inputs, "numbers": numbers}))
    for rule in decision.rules:
        console.say(f"{'passed' if rule.passed else 'FAILED'}: {rule.sentence}")
    if decision.override is not None:
        console.say(f"exported although a rule failed: {decision.override}")
    elif override is not None:
        console.say("--override: not needed and not recorded, because every rule passed")
    return decision


def forget_stale(
    run: RunFolder, gate: Gate | None, system_inputs: Mapping[str, str], first_stage: str, seed: int
) -> None:
    """Remove a gate.json of another model, another evaluation or another gate."""
    if gate is None or not _recorded(run, gate_inputs(gate, system_inputs, first_stage, seed)):
        run.gate.unlink(missing_ok=True)


def _recorded(run: RunFolder, inputs: str) -> dict[str, Any]:
    """gate.json if it has these inputs and nobody has changed it, else an empty record."""
    found = read_sealed(run.gate) or {}
    return found if found.get("inputs") == inputs else {}


def recorded_verdict(run: RunFolder) -> dict[str, Any] | None:
    """gate.json as Decision.as_json gives it; None without one, or where it was changed."""
    found = read_sealed(run.gate)
    return None if found is None else {key: found.get(key) for key in ("accepted", "rules", "override")}


def refusal(decision: Decision, command: str) -> GateRefused:
    """The one-line error of a refused export. command: exports this run."""
    failed = "; ".join(rule.sentence for rule in decision.rules if not rule.passed)
    return GateRefused(
        f"gate: refused, nothing is exported (evaluation, calibration and report are kept): {failed}. Train a better "
        f"model (the report's slices, wins and losses show where it fails), or export it anyway: {command} --override "
        "'why'"
    )

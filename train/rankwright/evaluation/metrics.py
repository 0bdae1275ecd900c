"""Measures of ranked lists through ir-measures, over all judgements, with one rule for ties."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ir_measures

from rankwright.common.errors import UserError, UserErrors, nearest
from rankwright.data.collection import Qrels
from rankwright.recipe.schema import Evaluate
from rankwright.retrieval.candidates import Run, ranked, tie_rate

# What every table compares systems by.
HEADLINE = "nDCG@10"
EXAMPLES = "nDCG@10, MRR@10, RR@10, R@100, AP, P@5, Success@1"
_NAME = re.compile(r"(?P<name>[^\W\d]\w*)(?:\((?P<parameters>.*)\))?(?:@(?P<at>\d+(?:\.\d+)?|\.\d+))?")
# What is computed here, each against a formula in the tests. Other measures of ir-measures need packages that few have,
# or judgements of subtopics.
_KNOWN = set(
    "nDCG ERR RR AP R P Success Rprec Bpref infAP IPrec SetP SetR SetF SetAP Accuracy Judged Compat "
    "NumQ NumRel NumRet".split()
)
# Numbers of things: a table shows their sum, as trec_eval does, not their mean.
_COUNTS = {"NumQ", "NumRel", "NumRet", "NumRelRet"}
# These ask for the size of a label; all others only whether it reaches a level.
_GRADED = {"nDCG", "ERR", "Compat"}
# The grade of a document that satisfies every reader, unless a set has higher ones: gdeval's and the TREC Web Track's.
_HIGHEST_GRADE = 4
_MOST = 1_000_000
# Exponential gains of more than this are beyond what a float holds exactly.
_MOST_EXPONENT = 50


@dataclass(frozen=True, slots=True)
class Scale:
    """What labels mean to measures.

    level: binary measures count labels from here on as relevant
    gains: label -> its gain in nDCG; empty: each label is its own gain. A label below 0 has no gain, as in trec_eval.
    """

    level: int = 1
    gains: Mapping[int, float] = field(default_factory=dict)

    @classmethod
    def of(cls, evaluation: Evaluate) -> Scale:
        return cls(evaluation.relevance_level, evaluation.gains)

    @classmethod
    def read(cls, facts: Mapping[str, Any]) -> Scale:
        """That of a metrics.json, see as_json."""
        gains = facts.get("gains") or {}
        return cls(int(facts.get("relevance_level", 1)), {int(label): float(gain) for label, gain in gains.items()})

    def as_json(self) -> dict[str, Any]:
        """What a metrics.json holds of it: nothing where it is the usual one."""
        level = {"relevance_level": self.level} if self.level != 1 else {}
        return level | (
            {"gains": {str(label): self.gains[label] for label in sorted(self.gains)}} if self.gains else {}
        )

    def words(self) -> str:
        """`relevant from label 2, gains {0: 0, 1: 0, 2: 1}`."""
        gains = ", ".join(f"{label}: {self.gains[label]:g}" for label in sorted(self.gains))
        return f"relevant from label {self.level}, " + (f"gains {{{gains}}}" if gains else "each label its own gain")

    def is_relevant(self, label: float) -> bool:
        # Fractions are rounded up: at level 1, any label above 0 is relevant.
        return label > self.level - 1

    def gain(self, label: int) -> float:
        if label < 0:
            return 0.0
        return float(self.gains[label]) if self.gains else float(label)

    def without_gain(self, labels: Iterable[float]) -> list[float]:
        """The labels, in order, that `gains` does not name. Those below 0 need none."""
        return sorted({x for x in labels if x >= 0 and x not in self.gains}) if self.gains else []

    def name(self, measure: str) -> str:
        """The measure with what it goes by beside the usual, in ir-measures notation: `nDCG(gains={1: 0, 2: 1})@10`."""
        match = _NAME.fullmatch(measure.strip())
        try:
            parsed = _parse(measure)
        except UserError:
            # A file of another version may hold it.
            return measure
        assert match is not None
        more = ""
        if _has_gains(parsed, self):
            changed = {label: gain for label, gain in sorted(self.gains.items()) if gain != label}
            more = f"gains={{{', '.join(f'{label}: {gain:g}' for label, gain in changed.items())}}}" if changed else ""
        elif self.level > 1 and _goes_by_level(measure, parsed) and _asks_for_relevant(match["name"], parsed):
            more = f"rel={self.level}"
        stated = ", ".join(filter(None, (match["parameters"], more)))
        at = "" if match["at"] is None else f"@{match['at']}"
        return f"{match['name']}({stated}){at}" if more else measure


@dataclass(frozen=True, slots=True)
class Measured:
    """The values of a run.

    per_query: measure (named as it was given) -> query id -> value
    mean: measure -> mean over `queries` queries; the sum for counts (NumQ, NumRel, NumRet)
    without_relevant: queries without a relevant document, left out of everything above
    missing: queries with relevant documents for which the run has nothing; they count as 0
    tie_rate: share of neighbours in the lists with equal scores
    """

    per_query: dict[str, dict[str, float]]
    mean: dict[str, float]
    queries: int
    without_relevant: tuple[str, ...]
    missing: tuple[str, ...]
    tie_rate: float


# As trec_eval has it by default.
LINEAR = Scale()
# Measures of what is found at all: deeper than the lists they are the same as at their depth.
_WITHIN = re.compile(r"((?:R|Recall|Success)(?:\(.*\))?@)(\d+)")


def measures_of(evaluation: Evaluate) -> list[str]:
    """The measures of an evaluation, nDCG@10 first; on lists of 20 `R@100` is named what it is, `R@20`."""

    def within(name: str) -> str:
        found = _WITHIN.fullmatch(name)
        return f"{found[1]}{min(int(found[2]), evaluation.depth)}" if found else name

    return list(dict.fromkeys(map(within, (HEADLINE, *evaluation.measures))))


def check_measures(measures: Sequence[str]) -> dict[str, Any]:
    """Name as given -> measure of ir-measures. Raises UserErrors that names every one that is not computed here."""
    if not measures:
        raise UserError(f"names no measure: choose some, such as {EXAMPLES}")
    parsed: dict[str, Any] = {}
    faults: list[str] = []
    for name in measures:
        try:
            parsed[name] = _parse(name)
        except UserError as error:
            faults.append(str(error))
    if faults:
        raise UserErrors(faults)
    return parsed


def _parse(given: str) -> Any:
    match = _NAME.fullmatch(given.strip())
    registry = ir_measures.measures.registry
    if match is None or match["name"] not in registry:
        raise UserError(f"unknown measure {given!r}{_meant(given)}. Examples: {EXAMPLES}")
    family = registry[match["name"]]
    if family.NAME not in _KNOWN:
        raise UserError(f"measure {given!r} is not computed here. Examples: {EXAMPLES}")
    try:
        # Not ir_measures.parse_measure: it needs parts of `ast` that Python 3.14 has removed.
        call = ast.parse(f"f({match['parameters'] or ''})", mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            raise ValueError("parameters are given by name, such as rel=2")
        options = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
        if match["at"] is not None:
            if family.AT_PARAM in options:
                raise ValueError(f"{family.AT_PARAM} is given twice")
            options[family.AT_PARAM] = ast.literal_eval(match["at"].lstrip("0") or "0")
        for name, value in options.items():
            if type(value) is int and getattr(family.SUPPORTED_PARAMS.get(name), "dtype", None) is float:
                options[name] = float(value)
        measure = family(**options)
        measure.validate_params()
        supported = _is_own(measure) or ir_measures.DefaultPipeline.supports(measure)
        _refuse_out_of_range(measure)
    except (SyntaxError, ValueError, TypeError, KeyError, AssertionError, RecursionError, MemoryError) as error:
        raise UserError(f"measure {given!r}: {error}. Examples: {EXAMPLES}") from None
    if not supported:
        raise UserError(f"measure {given!r} cannot be computed with these parameters. Examples: {EXAMPLES}")
    return measure


def _refuse_out_of_range(measure: Any) -> None:
    """Raises ValueError for a parameter that libraries take without a word and compute something else with."""
    given = measure.params
    for name in ("cutoff", "rel"):
        if name in given and (isinstance(given[name], bool) or not 1 <= given[name] <= _MOST):
            raise ValueError(f"{name}={given[name]!r}: cannot be computed, it must be from 1 to {_MOST:,}")
    if "p" in given and not 0 < given["p"] < 1:
        raise ValueError(f"p={given['p']!r}: must be above 0 and below 1")
    if "recall" in given and not (0 <= given["recall"] <= 1 and round(given["recall"], 2) == given["recall"]):
        raise ValueError(f"recall={given['recall']!r}: must be from 0 to 1, in hundredths")
    if given.get("beta", 1.0) != 1:
        raise ValueError("beta: only 1 is computed here, since trec_eval weighs recall by beta and not by its square")
    gains = given.get("gains", {})
    if not all(type(number) is int and -_MOST <= number <= _MOST for pair in gains.items() for number in pair):
        raise ValueError("gains: must be whole numbers by grade, such as {1: 1, 2: 3}")


def _meant(given: str) -> str:
    """`, did you mean X?` with the cut-off kept. The usual mistake is letter case."""
    name, at, cutoff = given.strip().partition("@")
    lower = {known.lower(): known for known in reversed(list(ir_measures.measures.registry))}
    near = nearest(name.lower(), lower)
    return f", did you mean '{lower[near[0]]}{at}{cutoff}'?" if near else ""


def measure_run(run: Run, qrels: Qrels, measures: Sequence[str], scale: Scale = LINEAR) -> Measured:
    """Measure a run (query id -> document id -> score) against ALL judgements of `qrels`.

    measures: names in ir-measures notation (`nDCG@10`, with linear gain as trec_eval has it; `MRR@10` = `RR@10`).
    scale: which labels are relevant, and their gains in nDCG. A measure with its own `rel`, `gains` or `dcg` goes by
    that instead; ERR and Compat go by the labels.
    Ties are broken by candidates.ranked before ir-measures sees the lists, so neither the order of the input nor
    the ids decide.
    Whatever a measure's implementation knows, each has exactly one value for each query with a relevant document.
    Raises UserError(s) for unknown measures, labels that a graded measure cannot take, labels without a gain, NaN
    scores, and when no query has a relevant document.
    """
    parsed = check_measures(measures)
    relevant = {q: judged for q, judged in qrels.items() if any(map(scale.is_relevant, judged.values()))}
    if not relevant:
        level = f" (a label of {scale.level} or more, evaluate.relevance_level)" if scale.level > 1 else ""
        raise UserError(f"no query has a relevant document{level}: nothing can be measured, check the judgements")
    _check_labels(relevant, parsed, scale)
    labels = {q: {d: math.ceil(label) for d, label in judged.items()} for q, judged in relevant.items()}
    lists = {q: [document_id for document_id, _ in ranked(q, run[q])] for q in relevant if run.get(q)}
    binary = labels
    if scale.level > 1:
        # Labels below 0 keep their meaning: to trec_eval such a document is not judged.
        binary = {q: {d: min(x, int(x >= scale.level)) for d, x in judged.items()} for q, judged in labels.items()}
    per_query: dict[str, dict[str, float]] = {}
    by_level = {name for name, measure in parsed.items() if _goes_by_level(name, measure)}
    for some, seen in ((by_level, binary), (set(parsed) - by_level, labels)):
        measured = {parsed[name] for name in some}
        own = {m for m in measured if _is_own(m) or _has_gains(m, scale)}
        values = {measure: _values(measure, seen, lists, scale) for measure in own}
        values |= _through_ir_measures(list(measured - own), seen, lists)
        per_query |= {name: {q: values[parsed[name]].get(q, 0.0) for q in sorted(relevant)} for name in some}
    per_query = {name: per_query[name] for name in parsed}
    return Measured(
        per_query=per_query,
        mean={name: summarise(name, found.values()) for name, found in per_query.items()},
        queries=len(relevant),
        without_relevant=tuple(sorted({*qrels, *run} - set(relevant))),
        missing=tuple(sorted(set(relevant) - set(lists))),
        tie_rate=tie_rate({q: run[q] for q in lists}),
    )


def is_count(measure: str) -> bool:
    """Whether a measure, by its name, counts things, so that a table shows its sum."""
    match = _NAME.fullmatch(measure.strip())
    return match is not None and match["name"] in _COUNTS


def summarise(measure: str, values: Collection[float]) -> float:
    """The mean of a measure's values over queries; their sum for a count."""
    return sum(values) if is_count(measure) else sum(values) / len(values)


Labels = Mapping[str, Mapping[str, int]]
Lists = Mapping[str, Sequence[str]]


def _through_ir_measures(measures: Sequence[Any], labels: Labels, lists: Lists) -> dict[Any, dict[str, float]]:
    """Measure -> query id -> value, for the queries that the library has a value for.

    Queries and documents go by numbers: some implementations take ids apart. Scores fall strictly, so that no rule for
    ties applies.
    """
    names = {str(number): q for number, q in enumerate(labels)}
    judged, run = {}, {}
    for number, q in names.items():
        places = {d: str(place) for place, d in enumerate(dict.fromkeys([*labels[q], *lists.get(q, ())]))}
        judged[number] = {places[d]: label for d, label in labels[q].items()}
        if q in lists:
            run[number] = {places[d]: float(len(lists[q]) - place) for place, d in enumerate(lists[q])}
    # Those with gains or for judged documents alone would change others that are computed with them.
    odd = [m for m in measures if m.params.get("gains") or m.params.get("judged_only")]
    together = [m for m in measures if m not in odd]
    found: dict[Any, dict[str, float]] = {measure: {} for measure in measures}
    for some in ([together] if together else []) + [[m] for m in odd]:
        for result in ir_measures.iter_calc(some, judged, run):
            if result.query_id in names:
                found[result.measure][names[result.query_id]] = float(result.value)
    return found


def _is_own(measure: Any) -> bool:
    """Whether it is computed here.

    ir-measures has ERR and exponential gains by a perl script that knows nothing but numbers as query ids, and Accuracy
    divides by 0 where a list holds no irrelevant document.
    """
    given = set(measure.params)
    if measure.NAME == "nDCG" and measure.params.get("dcg") == "exp-log2":
        return given <= {"dcg", "cutoff"}
    return measure.NAME in ("ERR", "Accuracy")


def _has_gains(measure: Any, scale: Scale) -> bool:
    """Whether it is an nDCG by the gains of the scale."""
    return measure.NAME == "nDCG" and bool(scale.gains) and set(measure.params) <= {"cutoff", "judged_only"}


def _asks_for_relevant(name: str, measure: Any) -> bool:
    """Whether the level changes it. NumRet without `rel` counts everything retrieved."""
    rel = measure.SUPPORTED_PARAMS.get("rel")
    return rel is not None and (measure.NAME != "NumRet" or name == "NumRelRet")


def _goes_by_level(name: str, measure: Any) -> bool:
    """Whether it asks only which labels are relevant, and does not state from which label on."""
    return measure.NAME not in _GRADED and not re.search(r"[(,]\s*rel\s*=", name)


def _values(measure: Any, labels: Labels, lists: Lists, scale: Scale) -> dict[str, float]:
    """Query id -> value of a measure that is computed here."""
    cutoff = measure.params.get("cutoff")
    highest = max(_HIGHEST_GRADE, *(label for judged in labels.values() for label in judged.values()))
    found = {}
    for query_id, order in lists.items():
        judged = labels[query_id]
        if measure.params.get("judged_only"):
            order = [document_id for document_id in order if document_id in judged]
        grades = [max(0, judged.get(document_id, 0)) for document_id in order[:cutoff]]
        if measure.NAME == "ERR":
            found[query_id] = _err(grades, highest)
        elif measure.NAME == "Accuracy":
            found[query_id] = _accuracy([grade >= measure.params.get("rel", 1) for grade in grades])
        else:
            # Burges et al. 2005: the gain of a label is 2^label - 1.
            gain = scale.gain if _has_gains(measure, scale) else lambda label: 2.0 ** max(0, label) - 1
            ideal = _dcg(sorted(map(gain, judged.values()), reverse=True)[:cutoff])
            gains = [gain(judged[d]) if d in judged else 0.0 for d in order[:cutoff]]
            # Where no judged document has a gain, every order is worth 0, as in trec_eval.
            found[query_id] = _dcg(gains) / ideal if ideal else 0.0
    return found


def _err(grades: Sequence[int], highest: int) -> float:
    """Expected reciprocal rank: a reader stops at a document with probability (2^grade - 1) / 2^highest.

    Source: Chapelle et al. 2009.
    """
    value, reads_on = 0.0, 1.0
    for place, grade in enumerate(grades, start=1):
        stops = 2.0 ** (grade - highest) - 2.0**-highest
        value += reads_on * stops / place
        reads_on *= 1 - stops
    return value


def _accuracy(hits: Sequence[bool]) -> float:
    """The share of pairs of a relevant and an irrelevant document of the list that are in the right order.

    1 where all are relevant, 0 where none is.
    """
    relevant, others = sum(hits), len(hits) - sum(hits)
    if not relevant or not others:
        return float(relevant > 0)
    # Irrelevant documents ahead of each relevant one.
    wrong = sum(sum(not hit for hit in hits[:place]) for place, hit in enumerate(hits) if hit)
    return 1 - wrong / (relevant * others)


def _dcg(gains: Sequence[float]) -> float:
    return sum(gain / math.log2(1 + place) for place, gain in enumerate(gains, start=1))


def _check_labels(qrels: Qrels, parsed: Mapping[str, Any], scale: Scale) -> None:
    if any(_has_gains(measure, scale) for measure in parsed.values()):
        for query_id, judged in qrels.items():
            if lacking := scale.without_gain(judged.values()):
                document_id = next(d for d, label in judged.items() if label == lacking[0])
                raise UserError(
                    f"query {query_id!r}, document {document_id!r}: the label {lacking[0]:g} has no gain in "
                    f"evaluate.gains: add `{lacking[0]:g}: GAIN`"
                )
    odd = next(
        ((q, d, label) for q, judged in qrels.items() for d, label in judged.items() if not float(label).is_integer()),
        None,
    )
    graded = [name for name, measure in parsed.items() if measure.NAME in _GRADED or measure.params.get("rel", 1) != 1]
    if odd is not None and graded:
        raise UserError(
            f"query {odd[0]!r}, document {odd[1]!r}: label {odd[2]:g} is not a whole number, as {graded[0]} needs: "
            "use whole grades (0, 1, 2), or measures that only ask whether a document is relevant (RR, R, AP, P)"
        )
    exponential = next((n for n, m in parsed.items() if m.params.get("dcg") == "exp-log2"), None)
    most = _MOST if exponential is None else _MOST_EXPONENT
    large = next(((q, d, x) for q, judged in qrels.items() for d, x in judged.items() if abs(x) > most), None)
    if large is not None:
        raise UserError(
            f"query {large[0]!r}, document {large[1]!r}: label {large[2]:g} is beyond the {most:,} that "
            f"{exponential or 'measures'} can take: use grades such as 0, 1, 2"
        )


def falling(documents: Iterable[str]) -> dict[str, float]:
    """Document id -> a score, each below the one before: what makes a measure see documents in this order."""
    return {document_id: float(-place) for place, document_id in enumerate(documents)}


def ceiling(run: Run, qrels: Qrels, measure: str, scale: Scale = LINEAR) -> float:
    """The best mean value that any order of the run's lists can reach: the limit that the first stage sets."""
    by_gain = _has_gains(check_measures([measure])[measure], scale)

    def worth(judged: Mapping[str, float], document_id: str) -> float:
        label = judged.get(document_id)
        if label is None:
            return 0.0
        return scale.gain(math.ceil(label)) if by_gain else max(0.0, float(label))

    best = {q: {d: worth(qrels.get(q, {}), d) for d in documents} for q, documents in run.items()}
    return measure_run(best, qrels, [measure], scale).mean[measure]

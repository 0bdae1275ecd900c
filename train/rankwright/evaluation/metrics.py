"""Measures of ranked lists through ir-measures, over all judgements, with one rule for ties."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
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


def measure_run(run: Run, qrels: Qrels, measures: Sequence[str]) -> Measured:
    """Measure a run (query id -> document id -> score) against ALL judgements of `qrels`.

    measures: names in ir-measures notation (`nDCG@10`, with linear gain as trec_eval has it; `MRR@10` = `RR@10`).
    Ties are broken by candidates.ranked before ir-measures sees the lists, so neither the order of the input nor
    the ids decide. Labels above 0 are relevant.
    Whatever a measure's implementation knows, each has exactly one value for each query with a relevant document.
    Raises UserError(s) for unknown measures, labels that a graded measure cannot take, NaN scores, and when no
    query has a relevant document.
    """
    parsed = check_measures(measures)
    relevant = {q: judged for q, judged in qrels.items() if any(label > 0 for label in judged.values())}
    if not relevant:
        raise UserError("no query has a relevant document: nothing can be measured, check the judgements")
    _check_labels(relevant, parsed)
    # Fractions are rounded up: binary measures ask for level 1, and any label above 0 is relevant.
    labels = {q: {d: math.ceil(label) for d, label in judged.items()} for q, judged in relevant.items()}
    lists = {q: [document_id for document_id, _ in ranked(q, run[q])] for q in relevant if run.get(q)}
    values = {measure: _values(measure, labels, lists) for measure in set(parsed.values()) if _is_own(measure)}
    values |= _through_ir_measures([m for m in set(parsed.values()) if not _is_own(m)], labels, lists)
    per_query = {name: {q: values[m].get(q, 0.0) for q in sorted(relevant)} for name, m in parsed.items()}
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


def _values(measure: Any, labels: Labels, lists: Lists) -> dict[str, float]:
    """Query id -> value of a measure that is computed here."""
    cutoff = measure.params.get("cutoff")
    highest = max(_HIGHEST_GRADE, *(label for judged in labels.values() for label in judged.values()))
    found = {}
    for query_id, order in lists.items():
        grades = [max(0, labels[query_id].get(document_id, 0)) for document_id in order[:cutoff]]
        if measure.NAME == "ERR":
            found[query_id] = _err(grades, highest)
        elif measure.NAME == "Accuracy":
            found[query_id] = _accuracy([grade >= measure.params.get("rel", 1) for grade in grades])
        else:
            ideal = sorted((max(0, label) for label in labels[query_id].values()), reverse=True)
            found[query_id] = _exponential_dcg(grades) / _exponential_dcg(ideal[:cutoff])
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


def _exponential_dcg(grades: Sequence[int]) -> float:
    """Burges et al. 2005: the gain of a grade is 2^grade - 1."""
    return sum((2.0**grade - 1) / math.log2(1 + place) for place, grade in enumerate(grades, start=1))


def _check_labels(qrels: Qrels, parsed: Mapping[str, Any]) -> None:
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


def ceiling(run: Run, qrels: Qrels, measure: str) -> float:
    """The best mean value that any order of the run's lists can reach: the limit that the first stage sets."""
    best = {q: {d: max(0.0, float(qrels.get(q, {}).get(d, 0.0))) for d in documents} for q, documents in run.items()}
    return measure_run(best, qrels, [measure]).mean[measure]

"""Measures of ranked lists through ir-measures, over all judgements, with one rule for ties."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ir_measures

from rankwright.common.errors import UserError, UserErrors, nearest
from rankwright.data.collection import Qrels
from rankwright.retrieval.candidates import Run, ranked, tie_rate

# What every table compares systems by.
HEADLINE = "nDCG@10"
EXAMPLES = "nDCG@10, MRR@10, RR@10, R@100, AP, P@5, Success@1"
_NAME = re.compile(r"(?P<name>[^\W\d]\w*)(?:\((?P<parameters>.*)\))?(?:@(?P<cutoff>\d+))?")
# These measures only ask whether a label reaches a level; all others use its size.
_BINARY = {"RR", "R", "AP", "P", "Success", "Rprec", "Bpref", "SetP", "SetR", "SetF", "SetAP", "IPrec", "Accuracy"}


@dataclass(frozen=True, slots=True)
class Measured:
    """The values of a run.

    per_query: measure (named as it was given) -> query id -> value; mean: measure -> mean over `queries` queries
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


def check_measures(measures: Sequence[str]) -> dict[str, Any]:
    """Name as given -> measure of ir-measures. Raises UserErrors that names every measure that does not exist."""
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
    try:
        # Not ir_measures.parse_measure: it needs parts of `ast` that Python 3.14 has removed.
        call = ast.parse(f"f({match['parameters'] or ''})", mode="eval").body
        assert isinstance(call, ast.Call)
        options = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
        family = registry[match["name"]]
        if match["cutoff"] is not None:
            options[family.AT_PARAM] = int(match["cutoff"])
        measure = family(**options)
        measure.validate_params()
        supported = ir_measures.DefaultPipeline.supports(measure)
    except (SyntaxError, ValueError, TypeError, KeyError, AssertionError) as error:
        raise UserError(f"measure {given!r}: {error}. Examples: {EXAMPLES}") from None
    if not supported or options.get("cutoff", 1) < 1:
        raise UserError(f"measure {given!r} cannot be computed with these parameters. Examples: {EXAMPLES}")
    return measure


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
    lists = {q: _as_ranks(q, run[q]) for q in relevant if run.get(q)}
    per_query = {name: dict.fromkeys(sorted(relevant), 0.0) for name in parsed}
    by_measure: dict[Any, list[str]] = {}
    for name, measure in parsed.items():
        by_measure.setdefault(measure, []).append(name)
    for result in ir_measures.iter_calc(list(by_measure), labels, lists):
        for name in by_measure[result.measure]:
            per_query[name][result.query_id] = float(result.value)
    return Measured(
        per_query=per_query,
        mean={name: sum(values.values()) / len(values) for name, values in per_query.items()},
        queries=len(relevant),
        without_relevant=tuple(sorted({*qrels, *run} - set(relevant))),
        missing=tuple(sorted(set(relevant) - set(lists))),
        tie_rate=tie_rate({q: run[q] for q in lists}),
    )


def _as_ranks(query_id: str, scores: Mapping[str, float]) -> dict[str, float]:
    """Document id -> strictly decreasing score, in the order of the tie rule."""
    order = ranked(query_id, scores)
    return {document_id: float(len(order) - place) for place, (document_id, _) in enumerate(order)}


def _check_labels(qrels: Qrels, parsed: Mapping[str, Any]) -> None:
    odd = next(
        ((q, d, label) for q, judged in qrels.items() for d, label in judged.items() if not float(label).is_integer()),
        None,
    )
    graded = [
        name for name, measure in parsed.items() if measure.NAME not in _BINARY or measure.params.get("rel", 1) != 1
    ]
    if odd is not None and graded:
        raise UserError(
            f"query {odd[0]!r}, document {odd[1]!r}: label {odd[2]:g} is not a whole number, as {graded[0]} needs: "
            "use whole grades (0, 1, 2), or measures that only ask whether a document is relevant (RR, R, AP, P)"
        )


def ceiling(run: Run, qrels: Qrels, measure: str) -> float:
    """The best mean value that any order of the run's lists can reach: the limit that the first stage sets."""
    best = {q: {d: max(0.0, float(qrels.get(q, {}).get(d, 0.0))) for d in documents} for q, documents in run.items()}
    return measure_run(best, qrels, [measure]).mean[measure]

"""Measures against hand-computed values and an independent implementation; ties, missing queries, odd labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import ir_measures
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rankwright.common.errors import UserError, UserErrors
from rankwright.evaluation.metrics import Scale, ceiling, check_measures, measure_run, measures_of
from rankwright.recipe.schema import Evaluate
from rankwright.retrieval.candidates import ranked, tie_order, tie_rate
from rankwright.retrieval.run_file import read_trec_run, write_trec_run


def mean(run: dict[str, dict[str, float]], qrels: dict[str, dict[str, float]], measure: str) -> float:
    return measure_run(run, qrels, [measure]).mean[measure]


def ndcg(order: list[str], judged: dict[str, float], cutoff: int) -> float:
    """Linear gain, log2 discount, ideal over ALL judgements: written from the definition, not from the code."""
    gains = [max(0.0, judged.get(d, 0.0)) for d in order][:cutoff]
    ideal = sorted((max(0.0, label) for label in judged.values()), reverse=True)[:cutoff]
    dcg, best = (sum(g / math.log2(i + 2) for i, g in enumerate(values)) for values in (gains, ideal))
    return dcg / best


DOCUMENTS = st.sampled_from("abcdefghijklmn")
RUNS = st.dictionaries(
    st.sampled_from(["q1", "q2", "q3"]),
    st.dictionaries(DOCUMENTS, st.integers(-3, 3).map(float), max_size=12),
    min_size=1,
)
QRELS = st.dictionaries(
    st.sampled_from(["q1", "q2", "q3", "q4"]), st.dictionaries(DOCUMENTS, st.integers(0, 3).map(float)), min_size=1
).filter(lambda qrels: any(label > 0 for judged in qrels.values() for label in judged.values()))


@given(RUNS, QRELS)
@settings(deadline=None)
def test_equal_to_an_independent_implementation(
    run: dict[str, dict[str, float]], qrels: dict[str, dict[str, float]]
) -> None:
    measured = measure_run(run, qrels, ["nDCG@5", "nDCG", "MRR@3", "R@4", "AP"])
    relevant = {q: {d for d, label in judged.items() if label > 0} for q, judged in qrels.items()}
    wanted = sorted(q for q in qrels if relevant[q])
    assert measured.queries == len(wanted)
    for query_id in wanted:
        order = [d for d, _ in ranked(query_id, run.get(query_id, {}))]
        hits = [d in relevant[query_id] for d in order]
        precisions = [sum(hits[: i + 1]) / (i + 1) for i, hit in enumerate(hits) if hit]
        expected = {
            "nDCG@5": ndcg(order, qrels[query_id], 5),
            "nDCG": ndcg(order, qrels[query_id], 100),
            "MRR@3": next((1 / (i + 1) for i, hit in enumerate(hits[:3]) if hit), 0.0),
            "R@4": sum(hits[:4]) / len(relevant[query_id]),
            "AP": sum(precisions) / len(relevant[query_id]),
        }
        for measure, value in expected.items():
            assert measured.per_query[measure][query_id] == pytest.approx(value, abs=1e-6)
    for measure, values in measured.per_query.items():
        assert sorted(values) == wanted
        assert measured.mean[measure] == pytest.approx(sum(values.values()) / len(values))


@given(RUNS, QRELS, st.randoms(use_true_random=False))
@settings(deadline=None)
def test_order_of_the_input_never_decides(
    run: dict[str, dict[str, float]], qrels: dict[str, dict[str, float]], random: object
) -> None:
    def shuffled(values: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
        outer = list(values)
        random.shuffle(outer)  # type: ignore[attr-defined]
        inner = {q: list(values[q]) for q in outer}
        for keys in inner.values():
            random.shuffle(keys)  # type: ignore[attr-defined]
        return {q: {d: values[q][d] for d in keys} for q, keys in inner.items()}

    measures = ["nDCG@3", "RR@10", "P@5"]
    assert measure_run(run, qrels, measures) == measure_run(shuffled(run), shuffled(qrels), measures)


# Each measure from its definition: of the labels of the list in order, the labels of all judged documents, and which
# documents of the list are judged. No code of ours or of a library.
Formula = Callable[[list[int], list[int], list[bool]], float]


def dcg(grades: Sequence[int], gain: Callable[[int], float], cutoff: int | None) -> float:
    return sum(gain(grade) / math.log2(2 + i) for i, grade in enumerate(list(grades)[:cutoff]))


def of_ndcg(gain: Callable[[int], float], cutoff: int | None) -> Formula:
    def value(order: list[int], judged: list[int], known: list[bool]) -> float:
        ideal = dcg(sorted((max(0, x) for x in judged), key=gain, reverse=True), gain, cutoff)
        return dcg([max(0, x) for x in order], gain, cutoff) / ideal if ideal else 0.0

    return value


def of_rr(rel: int, cutoff: int | None) -> Formula:
    return lambda order, judged, known: next((1 / (i + 1) for i, x in enumerate(order[:cutoff]) if x >= rel), 0.0)


def of_ap(rel: int, cutoff: int | None, *, whole: bool = False) -> Formula:
    def value(order: list[int], judged: list[int], known: list[bool]) -> float:
        hits = [x >= rel for x in order[:cutoff]]
        found = [sum(hits[: i + 1]) / (i + 1) for i, hit in enumerate(hits) if hit]
        return sum(found) / max(1, sum(x >= rel for x in judged))

    return value


def count_at(rel: int, cutoff: int | None, over: Callable[[list[int], list[int]], int]) -> Formula:
    return lambda order, judged, known: sum(x >= rel for x in order[:cutoff]) / max(1, over(order, judged))


def of_bpref(order: list[int], judged: list[int], known: list[bool]) -> float:
    """Buckley and Voorhees 2004: judged irrelevant documents ahead, at most R of them. Below 0: pooled, not judged."""
    relevant, others = sum(x > 0 for x in judged), sum(x == 0 for x in judged)
    total, ahead = 0.0, 0
    for x, is_known in zip(order, known, strict=True):
        if x > 0:
            total += 1 - min(ahead, relevant) / min(relevant, others) if ahead else 1
        ahead += is_known and x == 0
    return total / relevant


def of_inf_ap(order: list[int], judged: list[int], known: list[bool]) -> float:
    """Yilmaz and Aslam 2006: the precision at a relevant document is estimated from the judged ones of the pool."""
    total = 0.0
    for i, x in enumerate(order):
        if x > 0:
            ahead = [one for one, is_known in zip(order[:i], known, strict=False) if is_known]
            found, others = sum(one > 0 for one in ahead), sum(one == 0 for one in ahead)
            precision = (found + 1e-5) / (found + others + 2e-5)
            total += 1 / (i + 1) + (len(ahead) / (i + 1)) * precision
    return total / sum(x > 0 for x in judged)


def of_iprec(recall: float) -> Formula:
    def value(order: list[int], judged: list[int], known: list[bool]) -> float:
        # The precision at any place from which on the recall is reached; 0.9: trec_eval's rounding.
        wanted = int(recall * sum(x > 0 for x in judged) + 0.9)
        hits = [x > 0 for x in order]
        reached = [sum(hits[: i + 1]) / (i + 1) for i in range(len(hits)) if sum(hits[: i + 1]) >= wanted]
        return max(reached, default=0.0)

    return value


def of_err(cutoff: int | None) -> Formula:
    def value(order: list[int], judged: list[int], known: list[bool]) -> float:
        total = 0.0
        stops = [(2 ** max(0, x) - 1) / 16 for x in order[:cutoff]]
        for i in range(len(stops)):
            total += math.prod(1 - s for s in stops[:i]) * stops[i] / (i + 1)
        return total

    return value


def of_accuracy(rel: int, cutoff: int | None) -> Formula:
    def value(order: list[int], judged: list[int], known: list[bool]) -> float:
        hits = [x >= rel for x in order[:cutoff]]
        pairs = [(i, j) for i, one in enumerate(hits) for j, two in enumerate(hits) if one and not two]
        return sum(i < j for i, j in pairs) / len(pairs) if pairs else float(any(hits))

    return value


def of_compat(p: float) -> Formula:
    def value(order: list[int], judged: list[int], known: list[bool]) -> float:
        """Clarke et al. 2021: rank-biased overlap with an ideal list, divided by its best value."""
        # Documents by number: those of the list, then relevant ones that it lacks.
        rest = list(judged)
        for x, is_known in zip(order, known, strict=True):
            if is_known:
                rest.remove(x)
        grades = dict(enumerate([*order, *rest]))
        ideal = sorted((d for d, x in grades.items() if x > 0), key=lambda d: (-grades[d], d))
        depth = max(len(order), len(ideal))

        def overlap(one: list[int]) -> float:
            sums = [len(set(one[: i + 1]) & set(ideal[: i + 1])) / (i + 1) for i in range(depth)]
            return sum(p**i * s for i, s in enumerate(sums)) / sum(p**i for i in range(depth))

        return overlap(list(range(len(order)))) / overlap(ideal)

    return value


def only_judged(formula: Formula) -> Formula:
    def value(order: list[int], judged: list[int], known: list[bool]) -> float:
        left = [x for x, is_known in zip(order, known, strict=True) if is_known and x >= 0]
        return formula(left, judged, [True] * len(left))

    return value


FORMULAS: dict[str, Formula] = {
    "nDCG": of_ndcg(float, None),
    "nDCG@3": of_ndcg(float, 3),
    "nDCG(judged_only=True)@3": only_judged(of_ndcg(float, 3)),
    "nDCG(gains={1: 5, 2: 1})@4": of_ndcg(lambda grade: {1: 5.0, 2: 1.0}.get(grade, float(grade)), 4),
    "nDCG(dcg='exp-log2')@3": of_ndcg(lambda grade: 2.0**grade - 1, 3),
    "nDCG(dcg='exp-log2')": of_ndcg(lambda grade: 2.0**grade - 1, None),
    "ERR": of_err(None),
    "ERR@3": of_err(3),
    "RR": of_rr(1, None),
    "MRR@2": of_rr(1, 2),
    "RR(rel=2)@4": of_rr(2, 4),
    "RR(judged_only=True)": only_judged(of_rr(1, None)),
    "AP": of_ap(1, None),
    "MAP@3": of_ap(1, 3),
    "AP(rel=2)@3": of_ap(2, 3),
    "AP(judged_only=True)": only_judged(of_ap(1, None)),
    "R@3": count_at(1, 3, lambda order, judged: sum(x > 0 for x in judged)),
    "Recall@2": count_at(1, 2, lambda order, judged: sum(x > 0 for x in judged)),
    "P@4": count_at(1, 4, lambda order, judged: 4),
    "Precision(rel=2)@2": count_at(2, 2, lambda order, judged: 2),
    "P(judged_only=True)@2": only_judged(count_at(1, 2, lambda order, judged: 2)),
    "Success@2": lambda order, judged, known: float(any(x > 0 for x in order[:2])),
    "Success(rel=3)@4": lambda order, judged, known: float(any(x >= 3 for x in order[:4])),
    "Rprec": lambda order, judged, known: count_at(1, sum(x > 0 for x in judged), lambda o, j: sum(x > 0 for x in j))(
        order, judged, known
    ),
    "Bpref": of_bpref,
    "BPref": of_bpref,
    "infAP": of_inf_ap,
    "IPrec@0.1": of_iprec(0.1),
    "IPrec@0.5": of_iprec(0.5),
    "IPrec(recall=1)": of_iprec(1.0),
    "SetP": count_at(1, None, lambda order, judged: len(order)),
    "SetRelP": count_at(1, None, lambda order, judged: min(len(order), sum(x > 0 for x in judged))),
    "SetP(relative=True)": count_at(1, None, lambda order, judged: min(len(order), sum(x > 0 for x in judged))),
    "SetR": count_at(1, None, lambda order, judged: sum(x > 0 for x in judged)),
    # The harmonic mean of precision and recall: 2 found / (retrieved + relevant).
    "SetF": lambda order, judged, known: (
        2 * sum(x > 0 for x in order) / max(1, len(order) + sum(x > 0 for x in judged))
    ),
    "SetAP": lambda order, judged, known: (
        sum(x > 0 for x in order) ** 2 / max(1, len(order) * sum(x > 0 for x in judged))
    ),
    "Accuracy": of_accuracy(1, None),
    "Accuracy(rel=2)@4": of_accuracy(2, 4),
    "Judged@4": lambda order, judged, known: sum(known[:4]) / max(1, len(known[:4])),
    "Judged": lambda order, judged, known: sum(known) / max(1, len(known)),
    "Compat": of_compat(0.95),
    "Compat(p=0.8)": of_compat(0.8),
    "NumQ": lambda order, judged, known: 1.0,
    "NumRel": lambda order, judged, known: float(sum(x > 0 for x in judged)),
    "NumRet": lambda order, judged, known: float(len(order)),
    "NumRet(rel=2)": lambda order, judged, known: float(sum(x >= 2 for x in order)),
    "NumRelRet": lambda order, judged, known: float(sum(x > 0 for x in order)),
}


ORDERS = st.lists(st.integers(0, 11), max_size=9, unique=True)
GRADES = st.lists(st.integers(-1, 3), min_size=10, max_size=10)


@given(st.lists(st.tuples(ORDERS, GRADES), min_size=1, max_size=3), st.permutations(list(FORMULAS)))
@settings(max_examples=40, deadline=None)
def test_every_measure_is_its_definition(drawn: list[tuple[list[int], list[int]]], measures: list[str]) -> None:
    # Ids that a script could take apart: a dash, a colon, blanks, letters beyond ASCII.
    queries = dict(zip(("PLAIN-1", "PLAIN-2", "3: a é"), drawn, strict=False))
    run = {q: {f"d {d}": float(-i) for i, d in enumerate(order)} for q, (order, _) in queries.items()}
    # Documents 10 and 11 have no judgement.
    qrels = {q: {f"d {d}": float(x) for d, x in enumerate(labels)} for q, (_, labels) in queries.items()}
    relevant = sorted(q for q, judged in qrels.items() if max(judged.values()) > 0)
    assume(relevant)
    found = measure_run(run, qrels, measures)
    for name in measures:
        assert list(found.per_query[name]) == relevant, name
        for q in relevant:
            order, labels = queries[q]
            in_order = [labels[d] if d < 10 else 0 for d in order]
            expected = FORMULAS[name](in_order, labels, [d < 10 for d in order]) if order else 0.0
            assert found.per_query[name][q] == pytest.approx(expected, abs=2e-5), (name, q)
        values = found.per_query[name].values()
        counts = name.startswith("Num")
        assert found.mean[name] == pytest.approx(sum(values) if counts else sum(values) / len(relevant))


def test_every_measure_of_the_library_is_tested_or_refused() -> None:
    """With what a measure needs, so that nothing else is the reason; a new version may bring others."""
    needed = {"cutoff": 5, "recall": 0.5, "max_rel": 3, "rel": 1}
    tested = {name.partition("@")[0].partition("(")[0] for name in FORMULAS}
    for name, family in ir_measures.measures.registry.items():
        required = [key for key, info in family.SUPPORTED_PARAMS.items() if info.required]
        given = f"{name}({', '.join(f'{key}={needed[key]}' for key in required)})"
        try:
            check_measures([given])
        except UserError as error:
            assert f"measure {given!r} is not computed here" in str(error) and "\n" not in str(error)
            assert name not in tested
        else:
            assert any(ir_measures.measures.registry[known].NAME == family.NAME for known in tested), name


def test_expected_reciprocal_rank_of_ids_with_a_dash() -> None:
    """Two queries whose ids begin alike, a grade of 3 in second place: (2^3 - 1) / 2^4 / 2."""
    qrels = {"PLAIN-1": {"a": 3.0}, "PLAIN-2": {"a": 3.0}, "12": {"a": 3.0}}
    run = {q: {"b": 2.0, "a": 1.0} for q in qrels}
    assert measure_run(run, qrels, ["ERR@10"]).per_query["ERR@10"] == dict.fromkeys(sorted(qrels), 7 / 32)
    exponential = measure_run(run, qrels, ["nDCG(dcg='exp-log2')@10"])
    assert exponential.mean["nDCG(dcg='exp-log2')@10"] == pytest.approx(1 / math.log2(3))
    # A set with grades above 4 has its own highest one: a probability is never above 1.
    assert mean({"q": {"a": 1.0}}, {"q": {"a": 5.0}}, "ERR") == 31 / 32


def test_labels_that_no_gain_can_be_of() -> None:
    with pytest.raises(UserError, match=r"'q', document 'a': label 1e\+10 is beyond the 1,000,000 that measures can"):
        measure_run({"q": {"a": 1.0}}, {"q": {"a": 1e10}}, ["nDCG@10"])
    with pytest.raises(UserError, match=r"label 60 is beyond the 50 that nDCG\(dcg='exp-log2'\) can take"):
        measure_run({"q": {"a": 1.0}}, {"q": {"a": 60.0}}, ["nDCG(dcg='exp-log2')"])


def test_normalised_by_all_judgements_and_not_by_the_list() -> None:
    # Three relevant documents, one of them retrieved, at the top: a peer that normalises by the list says 1.000.
    run = {"q": {"a": 3.0, "x": 2.0, "y": 1.0}}
    qrels = {"q": {"a": 1.0, "b": 1.0, "c": 1.0}}
    assert mean(run, qrels, "nDCG@10") == pytest.approx(1 / (1 + 1 / math.log2(3) + 1 / 2), abs=1e-9)
    assert mean(run, qrels, "nDCG@10") == pytest.approx(0.469, abs=0.0005)


def test_gain_is_linear() -> None:
    qrels = {"q": {"a": 1.0, "b": 3.0}}
    found = mean({"q": {"a": 2.0, "b": 1.0}}, qrels, "nDCG@10")
    assert found == pytest.approx((1 + 3 / math.log2(3)) / (3 + 1 / math.log2(3)), abs=1e-9)


def test_ids_do_not_decide_ties() -> None:
    # Under trec_eval's rule the larger id wins each of these, for a mean of exactly 1.
    qrels = {f"q{i}": {"z": 1.0} for i in range(400)}
    run = {q: {"z": 18.0, "a": 18.0} for q in qrels}
    found = measure_run(run, qrels, ["RR@10"])
    assert found.tie_rate == 1.0
    assert found.mean["RR@10"] == pytest.approx(0.75, abs=0.04)


def test_the_tie_rule_is_pinned() -> None:
    # sha256("q\x1fa")[:8], computed with `printf 'q\037a' | sha256sum`.
    assert f"{tie_order('q', 'a'):016x}" == "9afc82aaa3c72acf"
    assert ranked("q", {"a": 1.0, "b": 2.0, "c": 1.0})[0] == ("b", 2.0)
    tied = [d for d, _ in ranked("q", dict.fromkeys("abcdef", 0.5))]
    assert tied == sorted("abcdef", key=lambda d: tie_order("q", d)) != list("abcdef")


def test_tie_rate_counts_neighbours() -> None:
    assert tie_rate({"q": {"a": 1.0, "b": 1.0, "c": 0.0}, "p": {"a": 2.0, "b": 2.0, "c": 2.0}}) == 0.75
    assert tie_rate({"q": {"a": 1.0}, "p": {}}) == 0.0


def test_queries_without_relevant_and_missing_are_kept_apart() -> None:
    qrels = {"good": {"a": 1.0}, "none": {"a": 0.0}, "lost": {"a": 2.0}, "empty": {"a": 1.0}}
    run = {"good": {"a": 1.0}, "none": {"a": 1.0}, "empty": {}, "unjudged": {"a": 1.0}}
    found = measure_run(run, qrels, ["nDCG@10"])
    assert found.without_relevant == ("none", "unjudged")
    assert found.missing == ("empty", "lost")
    assert found.per_query["nDCG@10"] == {"empty": 0.0, "good": 1.0, "lost": 0.0}
    assert found.queries == 3
    assert found.mean["nDCG@10"] == pytest.approx(1 / 3)


def test_names_are_shown_as_given() -> None:
    found = measure_run({"q": {"a": 1.0, "b": 0.0}}, {"q": {"b": 1.0}}, ["MRR@10", "RR@10", "NDCG@10", "nDCG@10"])
    assert list(found.mean) == ["MRR@10", "RR@10", "NDCG@10", "nDCG@10"]
    assert found.mean["MRR@10"] == found.mean["RR@10"] == 0.5
    assert found.mean["NDCG@10"] == found.mean["nDCG@10"] == pytest.approx(1 / math.log2(3))


def test_parameters_of_measures() -> None:
    run, qrels = {"q": {"a": 2.0, "b": 1.0}}, {"q": {"a": 1.0, "b": 2.0}}
    assert mean(run, qrels, "RR(rel=2)@10") == 0.5
    assert mean(run, qrels, "Success(rel=2)@1") == 0.0


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ndcg@10", r"did you mean 'nDCG@10'\?"),
        ("recall@100", r"did you mean 'Recall@100'\?"),
        ("nDGC@10", r"did you mean 'nDCG@10'\?"),
        ("banana", "unknown measure 'banana'. Examples: nDCG@10"),
        ("nDCG@ten", "unknown measure"),
        ("nDCG@0", "cannot be computed"),
        ("R", "cutoff"),
        ("nDCG(gain=3)@10", "gain"),
        ("RR(rel=)@10", "measure 'RR"),
        ("RR(rel=exit())@10", "measure 'RR"),
        ("", "unknown measure ''"),
        ("nDCG(5)", "parameters are given by name"),
        ("nDCG(cutoff=5)@10", "cutoff is given twice"),
        ("nDCG@10.5", "cutoff"),
        ("nDCG@99999999999999999999", "must be from 1 to 1,000,000"),
        ("RR(rel=0)@10", "rel=0: cannot be computed, it must be from 1"),
        ("P(rel=True)@10", "rel=True"),
        ("IPrec@0.125", r"recall=0\.125: must be from 0 to 1, in hundredths"),
        ("IPrec@2", "recall"),
        ("IPrec", "recall"),
        ("SetF(beta=2.0)", "beta: only 1 is computed here"),
        ("Compat(p=1.0)", "p=1.0: must be above 0 and below 1"),
        ("nDCG(gains={1: 0.5})@10", "gains: must be whole numbers"),
        ("nDCG(dcg='exp-log2', judged_only=True)@10", "cannot be computed"),
        ("RR(judged_only=True)@10", "cannot be computed"),
        ("NumRel(rel=2)", "cannot be computed"),
        ("BPM(max_rel=3)@10", "is not computed here"),
        ("alpha_nDCG@10", "is not computed here"),
        ("RBP(rel=1)", "is not computed here"),
        ("RR(" + "(" * 500 + ")@10", "measure 'RR"),
    ],
)
def test_bad_names(name: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_measures([name])


def test_all_bad_names_at_once() -> None:
    with pytest.raises(UserError, match="names no measure"):
        check_measures([])
    with pytest.raises(UserErrors) as caught:
        check_measures(["mrr@10", "AP", "banana"])
    assert len(caught.value.messages) == 2


def test_labels_that_are_no_whole_numbers() -> None:
    run, qrels = {"q": {"a": 1.0, "b": 2.0}}, {"q": {"a": 0.5, "b": 0.0}}
    with pytest.raises(UserError, match=r"'q', document 'a': label 0.5 is not a whole number, as nDCG@10 needs"):
        measure_run(run, qrels, ["RR@10", "nDCG@10"])
    with pytest.raises(UserError, match="RR"):
        measure_run(run, qrels, ["RR(rel=2)@10"])
    assert mean(run, qrels, "RR@10") == 0.5
    assert mean(run, {"q": {"a": 2.0, "b": -1.0}}, "nDCG@10") == pytest.approx(1 / math.log2(3))


def test_nothing_to_measure() -> None:
    with pytest.raises(UserError, match="no query has a relevant document"):
        measure_run({"q": {"a": 1.0}}, {"q": {"a": 0.0}}, ["nDCG@10"])
    with pytest.raises(UserError, match=r"'q'.*'a' is not a number"):
        measure_run({"q": {"a": math.nan}}, {"q": {"a": 1.0}}, ["nDCG@10"])


def test_infinite_scores_are_ranked() -> None:
    run = {"q": {"a": math.inf, "b": 1e300, "c": -math.inf}}
    assert mean(run, {"q": {"b": 1.0}}, "RR@10") == 0.5


@given(RUNS, QRELS)
@settings(deadline=None)
def test_ceiling_bounds_every_order(run: dict[str, dict[str, float]], qrels: dict[str, dict[str, float]]) -> None:
    for measure in ("nDCG@10", "RR@10", "R@100"):
        assert ceiling(run, qrels, measure) >= mean(run, qrels, measure) - 1e-9


def test_ceiling_by_hand() -> None:
    run = {"q": {"x": 3.0, "a": 1.0}, "p": {"x": 1.0}}
    assert ceiling(run, {"q": {"a": 1.0}, "p": {"b": 1.0}}, "nDCG@10") == 0.5


def test_run_file_round_trip(tmp_path: Path) -> None:
    run = {"q2": {"b": 1 / 3, "a": -1e-9}, "q1": {"x": 5.0}}
    path = tmp_path / "run.trec"
    write_trec_run(path, run, tag="mine")
    assert path.read_text().splitlines() == [
        "q1 Q0 x 1 5.0 mine",
        f"q2 Q0 b 1 {1 / 3!r} mine",
        "q2 Q0 a 2 -1e-09 mine",
    ]
    assert read_trec_run(path) == run


def test_white_space_in_ids_does_not_break_the_file(tmp_path: Path) -> None:
    write_trec_run(tmp_path / "run", {"q 1": {"a\tb": 1.0}}, tag="my tag")
    assert (tmp_path / "run").read_text() == "q%201 Q0 a%09b 1 1.0 my%20tag\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("q Q0 a 1 1.0\n", ":1: 5 columns"),
        ("q Q0 a 1 x t\n", ":1: score 'x'"),
        ("q Q0 a 1 1 t\n\nq Q0 a 2 1 t\n", ":3: document 'a' appears twice"),
        ("q Q0 a 1 nan t\n", ":1: score 'nan' is not a finite number"),
        ("q Q0 a 1 1 t\nq Q0 b 2 -inf t\n", ":2: score '-inf' is not a finite number"),
        ("q Q0 a 1 1 t\nq Q0 \udcff 2 1 t\n", ":2: not UTF-8 text"),
    ],
)
def test_bad_run_files(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "run").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=words):
        read_trec_run(tmp_path / "run")


def test_a_mark_at_the_start_of_a_run_file_is_no_part_of_the_first_id(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("q Q0 a 1 1 t\n", encoding="utf-8-sig")
    assert read_trec_run(tmp_path / "run") == {"q": {"a": 1.0}}


def test_recall_is_named_by_the_depth_of_the_lists() -> None:
    measures = ("R@100", "R@10", "Success(rel=2)@50", "nDCG@100", "P@100", "R@20")
    assert measures_of(Evaluate(depth=20, measures=measures)) == [
        *("nDCG@10", "R@20", "R@10", "Success(rel=2)@20", "nDCG@100", "P@100")
    ]
    assert measures_of(Evaluate(depth=100, measures=measures)) == ["nDCG@10", *measures]


# Labels of CoREB: 2 is relevant, 1 is a hard negative without gain.
HARD = Scale(2, {0: 0, 1: 0, 2: 1})
# Ours, and what is asked of ir-measures in its place, with {level} and {gains}.
AT_A_LEVEL = {
    "nDCG@5": "nDCG(gains={gains})@5",
    "nDCG": "nDCG(gains={gains})",
    "nDCG(dcg='log2')@3": "nDCG(dcg='log2')@3",
    "MRR@3": "RR(rel={level})@3",
    "MAP": "AP(rel={level})",
    "AP@4": "AP(rel={level})@4",
    "R@4": "R(rel={level})@4",
    "P@5": "P(rel={level})@5",
    "Success@2": "Success(rel={level})@2",
    "Rprec": "Rprec(rel={level})",
    "Bpref": "Bpref(rel={level})",
    "SetF": "SetF(rel={level})",
    "IPrec@0.5": "IPrec(rel={level})@0.5",
    "RR(rel=3)": "RR(rel=3)",
    "P(rel=1)@3": "P(rel=1)@3",
}


@given(
    RUNS,
    st.dictionaries(
        st.sampled_from(["q1", "q2", "q3"]), st.dictionaries(DOCUMENTS, st.integers(-2, 3).map(float)), min_size=1
    ),
    st.integers(1, 3),
    st.lists(st.integers(0, 5), min_size=4, max_size=4).filter(any),
)
@settings(max_examples=60, deadline=None)
def test_levels_and_gains_are_those_of_ir_measures(
    run: dict[str, dict[str, float]], qrels: dict[str, dict[str, float]], level: int, gains: list[int]
) -> None:
    relevant = sorted(q for q, judged in qrels.items() if any(label >= level for label in judged.values()))
    assume(relevant)
    scale = Scale(level, dict(enumerate(gains)))
    found = measure_run(run, qrels, list(AT_A_LEVEL), scale)
    judged = {q: {d: int(label) for d, label in qrels[q].items()} for q in relevant}
    # Its own rule for ties must not decide.
    lists = {q: [d for d, _ in ranked(q, run[q])] for q in relevant if run.get(q)}
    falling = {q: {d: float(-place) for place, d in enumerate(order)} for q, order in lists.items()}
    for name, theirs in AT_A_LEVEL.items():
        measure = ir_measures.parse_measure(theirs.format(level=level, gains=scale.gains))
        values = {r.query_id: r.value for r in ir_measures.iter_calc([measure], judged, falling)}
        assert list(found.per_query[name]) == relevant
        for q in relevant:
            assert found.per_query[name][q] == pytest.approx(values.get(q, 0.0), abs=2e-5), (name, q)


def test_a_hard_negative_without_gain_by_hand() -> None:
    run = {"q": {"hard": 3.0, "good": 2.0, "minus": 1.5, "unjudged": 1.0}, "only hard": {"x": 1.0}}
    qrels = {"q": {"hard": 1.0, "good": 2.0, "minus": -1.0}, "only hard": {"x": 1.0}}
    found = measure_run(run, qrels, ["nDCG@10", "MRR@10", "MAP", "R@1", "P@2", "Accuracy", "NumRel"], HARD)
    second = 1 / math.log2(3)
    assert found.per_query == {
        "nDCG@10": {"q": pytest.approx(second)},
        "MRR@10": {"q": 0.5},
        "MAP": {"q": 0.5},
        "R@1": {"q": 0.0},
        "P@2": {"q": 0.5},
        # Ahead of `good` is one of the three others.
        "Accuracy": {"q": pytest.approx(2 / 3)},
        "NumRel": {"q": 1.0},
    }
    assert found.without_relevant == ("only hard",)
    # By the labels themselves: both are relevant, and so is the other query.
    linear = measure_run(run, qrels, ["nDCG@10", "MRR@10"])
    assert linear.per_query["nDCG@10"] == {
        "only hard": 1.0,
        "q": pytest.approx((1 + 2 * second) / (2 + second)),
    }
    assert linear.per_query["MRR@10"]["q"] == 1.0


def test_gains_may_be_fractions_and_fall() -> None:
    run, qrels = {"q": {"a": 3.0, "b": 2.0, "c": 1.0}}, {"q": {"a": 2.0, "b": 1.0, "c": 3.0}}
    scale = Scale(1, {1: 3.0, 2: 0.5, 3: 0.0})
    second = 1 / math.log2(3)
    assert measure_run(run, qrels, ["nDCG@10"], scale).mean["nDCG@10"] == pytest.approx(
        (0.5 + 3 * second) / (3 + 0.5 * second)
    )
    # The best order goes by the gains, not by the labels.
    assert ceiling(run, qrels, "nDCG@10", scale) == pytest.approx(1.0)
    assert ceiling(run, {"q": {"c": 2.0, "a": 1.0}}, "MRR@10", Scale(2)) == 1.0


def test_a_measure_with_its_own_level_or_gains_keeps_them() -> None:
    run, qrels = {"q": {"a": 3.0, "b": 2.0}}, {"q": {"a": 1.0, "b": 2.0}}
    names = ["RR(rel=1)", "RR", "nDCG(gains={1: 1, 2: 1})@10", "nDCG(dcg='exp-log2')@10", "ERR", "NumRelRet", "NumRet"]
    found = measure_run(run, qrels, names, HARD).mean
    plain = measure_run(run, qrels, names).mean
    assert {name for name in names if found[name] != plain[name]} == {"RR", "NumRelRet"}
    assert (found["RR"], found["NumRelRet"], found["NumRet"]) == (0.5, 1.0, 2.0)


def test_a_query_without_a_gain_counts_0() -> None:
    scale = Scale(1, {0: 0, 1: 0, 2: 1})
    found = measure_run({"q": {"a": 1.0}}, {"q": {"a": 1.0}}, ["nDCG@10", "RR"], scale)
    assert found.mean == {"nDCG@10": 0.0, "RR": 1.0}


def test_levels_and_gains_are_in_the_names_of_tables() -> None:
    names = ["nDCG@10", "MRR@10", "MAP", "R@100", "AP(judged_only=True)", "RR(rel=1)", "ERR@10", "NumRet", "x"]
    assert [HARD.name(name) for name in names] == [
        *("nDCG(gains={1: 0, 2: 1})@10", "MRR(rel=2)@10", "MAP(rel=2)", "R(rel=2)@100"),
        *("AP(judged_only=True, rel=2)", "RR(rel=1)", "ERR@10", "NumRet", "x"),
    ]
    # What they are called is what ir-measures computes.
    parsed = [ir_measures.parse_measure(name) for name in (HARD.name("nDCG@10"), HARD.name("MAP"))]
    assert parsed == [ir_measures.nDCG(gains={1: 0, 2: 1}) @ 10, ir_measures.AP(rel=2)]
    # A label that is its own gain needs no mention.
    assert [Scale(1, {0: 0, 1: 1, 3: 3}).name(name) for name in names] == names
    assert Scale.read(HARD.as_json()) == HARD and Scale().as_json() == {}


def test_a_label_without_a_gain_is_refused() -> None:
    run, qrels = {"q": {"a": 1.0}}, {"q": {"a": 2.0, "b": 3.0, "c": -1.0}}
    words = r"query 'q', document 'b': the label 3 has no gain in evaluate.gains: add `3: GAIN`"
    with pytest.raises(UserError, match=words):
        measure_run(run, qrels, ["nDCG@10"], HARD)
    assert measure_run(run, qrels, ["MRR@10"], HARD).mean["MRR@10"] == 1.0
    with pytest.raises(UserError, match=r"a label of 4 or more, evaluate\.relevance_level"):
        measure_run(run, qrels, ["MRR@10"], Scale(4))

"""Measures against hand-computed values and an independent implementation; ties, missing queries, odd labels."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankwright.common.errors import UserError, UserErrors
from rankwright.evaluation.metrics import ceiling, check_measures, measure_run
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
    ],
)
def test_bad_names(name: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_measures([name])


def test_all_bad_names_at_once() -> None:
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

"""Fixed queries and candidates, reranked by a real tiny model, and files that give the numbers back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import PAIRS

from rankwright.data.collection import Collection
from rankwright.evaluation.evaluate import (
    choose_queries,
    first_stage_run,
    measure,
    read_evaluation,
    read_per_query,
    write_evaluation,
)
from rankwright.evaluation.results import find_finished
from rankwright.rerankers.reranker import Reranker
from rankwright.rerankers.scorer import rerank
from rankwright.retrieval.candidates import Candidate
from rankwright.retrieval.run_file import read_trec_run

CORPUS = {f"d{i}": document for i, (_, document) in enumerate(PAIRS)}
QUERIES = {f"q{i}": PAIRS[i][0] for i in range(4)}
SET = Collection("set", CORPUS, QUERIES, {"q0": {"d0": 2.0, "d5": 0.0}, "q1": {"d1": 1.0}, "q2": {"d5": 0.0}})
CANDIDATES = {
    "q0": [Candidate("d3", 9.0, 1), Candidate("d0", 7.5, 2), Candidate("d7", 1 / 3, 3)],
    "q1": [Candidate("d2", 4.0, 1)],
    "q3": [],
}


def of(count: int) -> Collection:
    """`count` queries, every third of them without a relevant document."""
    queries = {f"q{i}": "?" for i in range(count)}
    qrels = {f"q{i}": {"d": float(i % 3 > 0)} for i in range(count)}
    return Collection("set", {"d": "text"}, queries, qrels)


def test_queries_without_a_relevant_document_are_counted() -> None:
    chosen = choose_queries(SET, limit=None, seed=0)
    assert chosen.query_ids == ("q0", "q1")
    # q2 has only a judged negative, q3 no judgement at all.
    assert (chosen.without_relevant, chosen.total) == (2, 4)


@given(st.integers(0, 40), st.integers(1, 40), st.integers(0, 3), st.randoms(use_true_random=False))
def test_a_limit_takes_a_fixed_part(count: int, limit: int, seed: int, random: object) -> None:
    collection = of(count)
    everything = choose_queries(collection, limit=None, seed=seed)
    chosen = choose_queries(collection, limit=limit, seed=seed)
    assert set(chosen.query_ids) <= set(everything.query_ids)
    assert len(chosen.query_ids) == min(limit, len(everything.query_ids))
    assert (chosen.without_relevant, chosen.total) == (everything.without_relevant, count)
    # The order of the queries does not matter, and a larger limit only adds.
    ids = list(collection.queries)
    random.shuffle(ids)  # type: ignore[attr-defined]
    shuffled = Collection("set", collection.corpus, dict.fromkeys(ids, "?"), collection.qrels)
    assert choose_queries(shuffled, limit=limit, seed=seed) == chosen
    assert set(chosen.query_ids) <= set(choose_queries(collection, limit=limit + 1, seed=seed).query_ids)


def test_the_relevance_level_decides_which_queries_count() -> None:
    qrels = {"q0": {"d": 1.0}, "q1": {"d": 2.0}, "q2": {"d": -1.0}}
    graded = Collection("set", {"d": "text"}, dict.fromkeys(qrels, "?"), qrels)
    assert choose_queries(graded, limit=None, seed=0).query_ids == ("q0", "q1")
    chosen = choose_queries(graded, limit=None, seed=0, level=2)
    assert (chosen.query_ids, chosen.without_relevant) == (("q1",), 2)


def test_another_seed_takes_another_part() -> None:
    parts = {choose_queries(of(90), limit=10, seed=seed).query_ids for seed in range(5)}
    assert len(parts) == 5
    assert all(part == tuple(sorted(part)) for part in parts)


def test_first_stage_run_is_the_retriever() -> None:
    assert first_stage_run(CANDIDATES, ["q0", "q1", "q2", "q3"]) == {
        "q0": {"d3": 9.0, "d0": 7.5, "d7": 1 / 3},
        "q1": {"d2": 4.0},
        "q2": {},
        "q3": {},
    }
    assert list(first_stage_run(CANDIDATES, ["q1"])) == ["q1"]


@pytest.mark.parametrize("window", [65536, 1])
def test_reranking_equals_scoring_one_by_one(tiny_qwen3: Path, window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rankwright.rerankers.reranker.WINDOW_TOKENS", window)
    reranker = Reranker.load(str(tiny_qwen3), max_tokens=128, device="cpu")
    many = {**CANDIDATES, "q2": [Candidate(d, 0.0, rank) for rank, d in enumerate(CORPUS, start=1)]}
    advanced: list[int] = []
    query_ids = ["q2", "q0", "q3", "q1"]
    run = rerank(reranker, SET, many, query_ids, advanced.append)
    assert list(run) == query_ids
    assert advanced == [1, 1, 1, 1]
    assert run["q3"] == {}
    alone = {q: {c.document_id: reranker.score(QUERIES[q], [CORPUS[c.document_id]])[0] for c in many[q]} for q in many}
    for query_id, scores in run.items():
        assert list(scores) == [c.document_id for c in many[query_id]]
        assert scores == pytest.approx(alone[query_id], abs=1e-4)
    assert len(set(run["q2"].values())) == len(CORPUS)


def test_a_query_without_candidates_counts_zero() -> None:
    # q0: its relevant document is second of three, the other two are unjudged or out.
    measured = measure(first_stage_run(CANDIDATES, ["q0", "q1"]), SET.qrels, ["q0", "q1"], ["RR", "nDCG@10"])
    assert measured.per_query["RR"] == {"q0": 0.5, "q1": 0.0}
    # One relevant document at rank 2: 1 / log2(3).
    assert measured.per_query["nDCG@10"]["q0"] == pytest.approx(0.6309297535714575)
    nothing = measure({}, SET.qrels, ["q0"], ["RR"])
    assert nothing.mean == {"RR": 0.0}
    assert nothing.missing == ("q0",)


def test_an_evaluation_comes_back_as_it_was(tmp_path: Path) -> None:
    # Ids that a line reader could stumble over.
    ids = {"q0": "plain", "q1": "é\u2028\x85\x1d z"}
    qrels = {ids[q]: SET.qrels[q] for q in ids}
    run = {ids[q]: scores for q, scores in first_stage_run(CANDIDATES, list(ids)).items()}
    measured = measure(run, qrels, list(qrels), ["nDCG@10", "RR"])
    folder = tmp_path / "eval" / "set" / "bm25"
    assert find_finished(folder.parent) == ({}, [])
    write_evaluation(folder, run, measured, tag="tag", facts={"inputs": "abc", "pairs": 4})
    values, unfinished = find_finished(folder.parent)
    assert not unfinished and list(values) == ["bm25"]
    assert read_evaluation(folder) == {k: v for k, v in values["bm25"].items() if k != "seal"}
    assert {k: v for k, v in values["bm25"].items() if k not in ("seal", "sha256")} == {
        "nDCG@10": measured.mean["nDCG@10"],
        "RR": 0.25,
        "queries": 2,
        "queries_without_relevant": 0,
        "queries_missing": 0,
        "tie_rate": 0.0,
        "inputs": "abc",
        "pairs": 4,
    }
    for name in ("nDCG@10", "RR"):
        assert read_per_query(folder, name) == measured.per_query[name]
    rows = [json.loads(line) for line in (folder / "per_query.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]
    assert [row["query_id"] for row in rows] == sorted(qrels)
    assert read_trec_run(folder / "run.trec")["plain"] == run["plain"]


def test_a_value_that_was_not_computed_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "per_query.jsonl").write_text('{"query_id": "a", "RR": null}\n{"query_id": "b", "RR": 1}\n')
    assert read_per_query(tmp_path, "RR") == {"b": 1.0}


@pytest.mark.parametrize("text", ["", '{"nDCG@10": 0.', "[1]", '{"RR": 0.5}'])
def test_metrics_that_were_cut_off_are_not_an_evaluation(tmp_path: Path, text: str) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "per_query.jsonl").write_text("")
    (tmp_path / "base" / "metrics.json").write_text(text)
    assert find_finished(tmp_path) == ({}, ["base"])
    (tmp_path / "base" / "metrics.json").write_text('{"nDCG@10": 0.5}')
    assert find_finished(tmp_path) == ({"base": {"nDCG@10": 0.5}}, [])
    (tmp_path / "base" / "per_query.jsonl").unlink()
    assert find_finished(tmp_path) == ({}, ["base"])

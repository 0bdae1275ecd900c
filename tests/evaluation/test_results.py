"""The final table and its sentence: which columns there are, what fits on a line, and no praise that is not due."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rankwright.cli.show import results_tables
from rankwright.common.run_folder import RunFolder
from rankwright.common.stats import Difference
from rankwright.evaluation.evaluate import measure, write_evaluation
from rankwright.evaluation.results import ResultRow, results, verdict

UP, DOWN, FLAT = (Difference(m, m - 0.02, m + 0.02, 50) for m in (0.1, -0.1, 0.0))


def row(**given: Any) -> ResultRow:
    values = {"bm25": 0.5, "base": 0.3, "tuned": 0.4}
    facts = {"name": "one", "values": values, "queries": 50, "difference": UP, "over_first": DOWN, "ceiling": 0.9}
    return ResultRow(**{**facts, **given})


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"difference": None}, ""),
        (
            {},
            "tuned is better than the base: the interval is above zero; it is WORSE than BM25 (0.500), whose lists it "
            "reranks, and the base is below it too",
        ),
        ({"over_first": FLAT}, "it cannot be told apart from BM25 (0.500), whose lists it reranks"),
        ({"over_first": UP}, "; it is better than BM25 (0.500), whose lists it reranks"),
        ({"difference": DOWN}, "tuned is WORSE than the base: the interval is below zero"),
        ({"difference": FLAT, "over_first": None}, "tuned and base cannot be told apart: the interval includes zero"),
        (
            {"values": {"bm25": 0.5, "dense": 0.6, "fusion": 0.7, "base": 0.6, "tuned": 0.65}, "over_first": UP},
            "whose lists it reranks; fusion alone has more (0.700)",
        ),
        (
            {
                "values": {"bm25": 0.7, "dense": 0.5, "base": 0.4, "tuned": 0.6},
                "over_first": UP,
                "first_stage": "dense",
            },
            "better than dense (0.500), whose lists it reranks; BM25 alone has more (0.700)",
        ),
    ],
)
def test_the_sentence_says_where_a_first_stage_is_better(given: Mapping[str, Any], sentence: str) -> None:
    said = verdict(row(**given))
    assert said == sentence if not sentence or sentence.startswith("tuned is better") else sentence in said


def shown(rows: list[ResultRow], width: int) -> list[str]:
    console = Console(width=width, record=True, file=io.StringIO())
    for table in results_tables(rows, width):
        console.print(table)
    return console.export_text().splitlines()


def test_a_wide_terminal_takes_one_table_and_a_narrow_one_goes_on_below() -> None:
    values = {"bm25": 0.5, "dense": 0.4, "fusion": 0.6, "run": 0.1, "base": 0.3, "tuned": 0.4, "bge-reranker": 0.7}
    rows = [row(values=values), row(name="all", values=values, queries=1234)]
    wide, narrow = shown(rows, 200), shown(rows, 80)
    assert len(wide) == 7 and len(narrow) == 7 + 2 * 6
    for lines in (wide, narrow):
        text = "\n".join(lines)
        assert "…" not in text
        for part in ("1,234", "best possible", "bge-reranker", "0.900", "tuned - BM25 [95 % interval]"):
            assert part in text
        assert text.count("+0.100 [+0.080, +0.120]") == 2
    assert all(len(line) <= 80 for line in narrow)
    headers = [[c.strip() for c in line.strip("┃").split("┃")] for line in narrow if line.startswith("┃")]
    assert [h[0] for h in headers] == ["test set"] * 3
    assert [title for header in headers for title in header][1:8] == [
        "queries",
        "BM25",
        "dense",
        "fusion",
        "run",
        "best possible",
        "base",
    ]


def test_columns_without_any_number_are_left_out() -> None:
    bare = ResultRow("one", {"dense": 0.4}, 50, None)
    header = next(line for line in shown([bare], 80) if line.startswith("┃"))
    assert [c.strip() for c in header.strip("┃").split("┃")] == ["test set", "queries", "dense"]


INPUTS = {"bm25": "1", "dense": "2", "base": "3", "tuned": "4"}


def evaluated(run: RunFolder, name: str, scores: Mapping[str, Mapping[str, float]], ceiling: float) -> None:
    """scores: system -> query -> rank of the one relevant document."""
    for system, ranks in scores.items():
        lists = {q: {f"d{i}": -float(i) for i in range(1, 6)} for q in ranks}
        qrels = {q: {f"d{int(rank)}": 1.0} for q, rank in ranks.items()}
        facts = {"inputs": INPUTS[system], "first_stage": "dense", "ceiling": ceiling}
        measured = measure(lists, qrels, list(ranks), ["nDCG@10"])
        write_evaluation(run.path / "eval" / name / system, lists, measured, tag="x", facts=facts)


def test_all_pools_the_queries_of_the_sets(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.write_json("data_report.json", {"splits": {"test": [{"set": "a"}, {"set": "b"}]}})
    ranks = {"dense": 1, "base": 3, "tuned": 3}
    evaluated(run, "a", {s: {f"q{i}": rank for i in range(4)} for s, rank in ranks.items()}, 0.8)
    evaluated(run, "b", {s: {f"q{i}": 1 for i in range(2)} for s in [*ranks, "bm25"]}, 0.5)
    one, two, both = results(run, 0, INPUTS)
    assert list(two.values) == ["bm25", "dense", "base", "tuned"]
    # bm25 is there for one set only.
    assert (both.name, both.queries, list(both.values)) == ("all", 6, ["dense", "base", "tuned"])
    assert both.values["tuned"] == pytest.approx((4 * 0.5 + 2) / 6)
    assert both.ceiling == pytest.approx((4 * 0.8 + 2 * 0.5) / 6)
    assert both.over_first is not None and both.over_first.mean == pytest.approx(-2 / 6)
    assert both.first_stage == one.first_stage == "dense"
    # Two of b's queries are two of a's under other ids: counted once, with the mean of both values.
    texts = {"a": [f"Query {i}" for i in range(4)], "b": ["query  1", "query 3"]}
    rows = [{"set": s, "corpus": s, "query_id": f"q{i}", "query": t} for s in texts for i, t in enumerate(texts[s])]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    once = results(run, 0, INPUTS)[-1]
    assert (once.queries, once.repeated, once.ceiling) == (4, 2, None)
    assert once.values["tuned"] == pytest.approx((0.5 + 0.75 + 0.5 + 0.75) / 4)
    assert once.over_first is not None and once.over_first.mean == pytest.approx(-1.5 / 4)
    assert "(2 queries that several sets have count once)" in verdict(once)
    (tmp_path / "data" / "test.jsonl").unlink()
    # Numbers of other settings are no part of it.
    path = tmp_path / "eval" / "a" / "tuned" / "metrics.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "inputs": "0"}))
    assert "tuned" not in results(run, 0, INPUTS)[0].values

"""Results of a run: reading and pooling them, the final table and its columns, and a verdict without undue praise."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas
import pytest
from rich.console import Console

from rankwright.cli.show import results_tables
from rankwright.common.errors import UserError
from rankwright.common.run_folder import RunFolder
from rankwright.common.stats import paired_difference, randomisation_test
from rankwright.evaluation.evaluate import measure, write_evaluation
from rankwright.evaluation.results import (
    ALL,
    ResultRow,
    SetResults,
    Verdict,
    read_results,
    result_rows,
    rows_of,
    system_order,
    verdict,
)
from rankwright.recipe.schema import Recipe
from rankwright.retrieval.first_stages import stage_label

UP, DOWN, OPEN = (0.1, 0.05, 0.2), (-0.1, -0.2, -0.05), (0.0, -0.1, 0.1)
NONE = (None, None, None)
Numbers = tuple[float, float, float] | tuple[None, None, None]


def set_rows(
    name: str = "one",
    values: Mapping[str, float] | None = None,
    to_base: Numbers = UP,
    to_first: Numbers = DOWN,
    first: str = "bm25",
    *,
    ceiling: float | None = 0.9,
    queries: int = 50,
    repeated: int = 0,
    together: Numbers = NONE,
    weight: float | None = 0.15,
) -> list[ResultRow]:
    """The rows of one test set."""
    found = []
    for system, value in (values or {"bm25": 0.5, "base": 0.3, "tuned": 0.4}).items():
        base, stage = (to_base, to_first) if system == "tuned" else (NONE, NONE)
        stage = together if system == "combined" else stage
        weight_of = weight if system == "combined" else None
        facts = (name, system, "nDCG@10", value, *base, None, queries, first, *stage, ceiling, repeated, weight_of)
        found.append(ResultRow(*facts))
    return found


BETTER, WORSE = "Tuned is better than the base: the interval is above zero.", "Tuned is WORSE than the base: "


@pytest.mark.parametrize(
    ("rows", "tone", "sentences"),
    [
        (
            set_rows(),
            "worse",
            ["Do not deploy: BM25 alone ranks better (0.500 against 0.400).", BETTER, "The base is below BM25 too."],
        ),
        (set_rows(to_first=OPEN), "open", ["It is not clear whether tuned is better than BM25 (0.500), ", BETTER]),
        (set_rows(to_first=UP), "better", ["Tuned is better than BM25 (0.500), whose lists it reranks.", BETTER]),
        (
            set_rows(to_base=DOWN, to_first=NONE),
            "worse",
            ["Do not deploy: the base ranks better (0.300 against 0.400)."],
        ),
        (
            set_rows(to_base=DOWN, to_first=DOWN),
            "worse",
            ["Do not deploy: BM25 alone ranks better", WORSE, "The base is below BM25 too."],
        ),
        (
            set_rows(to_base=DOWN, to_first=UP),
            "worse",
            ["Do not deploy: the base ranks better", "Tuned is better than BM25 (0.500), whose lists it reranks."],
        ),
        (set_rows(to_base=OPEN, to_first=NONE), "open", ["It is not clear whether tuned is better than the base: the"]),
        (
            set_rows(values={"bm25": 0.5, "dense": 0.6, "fusion": 0.7, "base": 0.6, "tuned": 0.65}, to_first=UP),
            "open",
            ["Tuned is better than BM25", BETTER, "fusion alone scores higher (0.700)."],
        ),
        (
            set_rows(values={"bm25": 0.7, "dense": 0.5, "base": 0.4, "tuned": 0.6}, to_first=UP, first="dense"),
            "open",
            [
                "Tuned is better than dense (0.500), whose lists it reranks.",
                BETTER,
                "BM25 alone scores higher (0.700).",
            ],
        ),
        (
            [
                *set_rows("a", to_first=NONE),
                *set_rows("b", to_base=DOWN),
                *set_rows("c", to_base=OPEN),
                *set_rows("d", to_base=OPEN),
                *set_rows(ALL, to_first=UP, repeated=1234),
            ],
            "better",
            [
                "Tuned is better than BM25",
                BETTER,
                'Tuned is worse than the base on "b".',
                'On "c", "d" alone the difference from the base could be chance.',
                "Queries that are in several test sets and count once: 1,234.",
            ],
        ),
        (
            set_rows(values={"base": 0.4, "tuned": 0.6, "first stage": 0.5}, to_first=UP, first="first stage"),
            "better",
            ["Tuned is better than each set's first stage (0.500), whose lists it reranks.", BETTER],
        ),
        (
            set_rows(values={"bm25": 0.5}),
            "none",
            ["Base and tuned cannot be compared: base and tuned are not evaluated."],
        ),
        (set_rows(values={"base": 0.5}), "none", ["Base and tuned cannot be compared: tuned is not evaluated."]),
        (
            set_rows(to_base=NONE),
            "none",
            ["Base and tuned cannot be compared: they were measured on different queries."],
        ),
        (
            [*set_rows("a", values={"bm25": 0.5}), *set_rows("b", values={"base": 0.5, "tuned": 0.9})],
            "none",
            ["Base and tuned cannot be compared: no system is evaluated on all test sets."],
        ),
        ([], "none", ["Nothing is evaluated yet."]),
    ],
)
def test_the_verdict_is_honest(rows: list[ResultRow], tone: str, sentences: list[str]) -> None:
    found = verdict(rows)
    assert isinstance(found, Verdict) and found.tone == tone and len(found.sentences) == len(sentences)
    assert all(said.startswith(words) for said, words in zip(found.sentences, sentences, strict=True))


FOUR = {"bm25": 0.5, "base": 0.3, "tuned": 0.4, "combined": 0.55}
ALONE = "BM25 alone ranks better (0.500 against 0.400)."
BELOW = "The base is below BM25 too."


@pytest.mark.parametrize(
    ("rows", "tone", "sentences"),
    [
        (
            set_rows(values=FOUR, together=UP),
            "open",
            [
                f"Do not deploy tuned alone: {ALONE}",
                "Combined with BM25 (w = 0.15): 0.550, +0.100 [+0.050, +0.200] against BM25: deploy the combination.",
                BETTER,
                BELOW,
            ],
        ),
        (
            set_rows(values=FOUR, together=OPEN),
            "worse",
            [
                f"Do not deploy: {ALONE}",
                "Combined with BM25 (w = 0.15): 0.550, +0.000 [-0.100, +0.100] against BM25: it is not clear whether "
                "this is better, so there is no reason to deploy it yet.",
                BETTER,
                BELOW,
            ],
        ),
        (
            set_rows(values=FOUR, together=DOWN, weight=1.0),
            "worse",
            [
                f"Do not deploy: {ALONE}",
                "Combined with BM25 (w = 1): 0.550, -0.100 [-0.200, -0.050] against BM25: this is worse too, so deploy "
                "neither.",
                BETTER,
                BELOW,
            ],
        ),
        # Too few dev queries: nothing was combined.
        (
            set_rows(values={**FOUR, "combined": FOUR["tuned"]}, together=DOWN, weight=1.0),
            "worse",
            [f"Do not deploy: {ALONE}", BETTER, BELOW],
        ),
        (
            set_rows(values=FOUR, together=OPEN, weight=0.0),
            "worse",
            [
                f"Do not deploy: {ALONE}",
                "Combined with BM25, tuned adds nothing: dev gives it the weight 0.",
                BETTER,
                BELOW,
            ],
        ),
        # Where tuned alone is not below, there is nothing to add.
        (
            set_rows(values={**FOUR, "bm25": 0.2}, to_first=UP, together=UP),
            "better",
            ["Tuned is better than BM25 (0.200), whose lists it reranks.", BETTER],
        ),
    ],
)
def test_where_tuned_is_below_the_first_stage_the_verdict_gives_the_combination(
    rows: list[ResultRow], tone: str, sentences: list[str]
) -> None:
    found = verdict(rows)
    assert (found.tone, list(found.sentences)) == (tone, sentences)


def test_the_table_of_the_quickstart_fits_120_columns() -> None:
    lines = shown(set_rows("finance", FOUR), 160)
    assert "combined" in lines[2] and max(map(len, lines)) <= 120


def test_systems_have_one_label_and_one_order() -> None:
    assert [stage_label(s) for s in ("bm25", "run", "dense", "tuned")] == ["BM25", "run file", "dense", "tuned"]
    names = ["zeta", "exported", "tuned", "other", "run", "base", "alpha", "bm25"]
    expected = ["bm25", "run", "base", "tuned", "exported", "other", "alpha", "zeta"]
    assert system_order(names, ["missing", "other"]) == expected


def shown(rows: list[ResultRow], width: int) -> list[str]:
    console = Console(width=width, record=True, file=io.StringIO())
    for table in results_tables(rows, width):
        console.print(table)
    return console.export_text().splitlines()


def test_a_wide_terminal_takes_one_table_and_a_narrow_one_goes_on_below() -> None:
    values = {"bm25": 0.5, "dense": 0.4, "fusion": 0.6, "run": 0.1, "base": 0.3, "tuned": 0.4, "bge-reranker": 0.7}
    rows = [*set_rows("one", values), *set_rows(ALL, values, queries=1234)]
    wide, narrow = shown(rows, 200), shown(rows, 80)
    assert len(wide) == 7 and len(narrow) == 7 + 2 * 6
    for lines in (wide, narrow):
        text = "\n".join(lines)
        assert "…" not in text
        for part in ("1,234", "at best", "bge-reranker", "0.900", "tuned - BM25 [95 %]"):
            assert part in text
        assert text.count("+0.100 [+0.050, +0.200]") == 2
    assert all(len(line) <= 80 for line in narrow)
    headers = [[c.strip() for c in line.strip("┃").split("┃")] for line in narrow if line.startswith("┃")]
    assert [h[0] for h in headers] == ["test set"] * 3
    systems = ["BM25", "dense", "fusion", "run file", "at best", "base", "tuned"]
    shown_systems = [title for header in headers for title in header[1:]]
    assert shown_systems[:8] == ["queries", *systems]


def test_first_stages_come_first_where_only_some_sets_have_them() -> None:
    rows = [
        *set_rows("a", {"dense": 0.4, "base": 0.3, "tuned": 0.4}, first="dense"),
        *set_rows("b", {"bm25": 0.5, "tuned": 0.4}, NONE),
    ]
    header = next(line for line in shown(rows, 200) if line.startswith("┃"))
    titles = [c.strip() for c in header.strip("┃").split("┃")]
    assert titles[2:7] == ["dense", "BM25", "at best", "base", "tuned"]


def test_columns_without_any_number_are_left_out() -> None:
    header = next(line for line in shown(set_rows(values={"dense": 0.4}, ceiling=None), 80) if line.startswith("┃"))
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


def read(run: RunFolder, sets: Sequence[str] = ("a", "b")) -> list[SetResults]:
    recipe = Recipe.model_validate({"name": "job", "model": {"base": "b"}, "data": {}})
    return read_results(run.path, recipe, sets, INPUTS)[0]


@pytest.mark.parametrize(("empty", "warned"), [(0, False), (3, False), (4, True), (8, True)])
def test_a_set_whose_queries_have_no_candidates_is_a_warning(tmp_path: Path, empty: int, warned: bool) -> None:
    lists = {f"q{n}": {} if n < empty else {"d": 1.0} for n in range(8)}
    measured = measure(lists, {q: {"d": 1.0} for q in lists}, list(lists), ["nDCG@10"])
    for system in ("bm25", "base"):
        facts = {"inputs": INPUTS[system], **({} if system == "bm25" else {"first_stage": "bm25"})}
        write_evaluation(tmp_path / "eval/a" / system, lists, measured, tag="x", facts=facts)
    recipe = Recipe.model_validate({"name": "job", "model": {"base": "b"}, "data": {}})
    notes = read_results(tmp_path, recipe, ["a"], INPUTS)[1]
    assert [f"WARNING: a: {empty} of 8 queries have no candidates" in note for note in notes] == [True] * warned


def test_all_pools_the_queries_of_the_sets(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    ranks = {"dense": 1, "base": 3, "tuned": 3}
    evaluated(run, "a", {s: {f"q{i}": rank for i in range(4)} for s, rank in ranks.items()}, 0.8)
    evaluated(run, "b", {s: {f"q{i}": 1 for i in range(2)} for s in [*ranks, "bm25"]}, 0.5)
    one, two, both = read(run)
    assert list(two.means) == ["bm25", "dense", "base", "tuned"]
    # bm25 is there for one set only.
    assert (both.name, both.queries, list(both.means)) == (ALL, 6, ["dense", "base", "tuned"])
    assert both.means["tuned"] == pytest.approx((4 * 0.5 + 2) / 6)
    assert both.ceiling == pytest.approx((4 * 0.8 + 2 * 0.5) / 6)
    assert both.to_first is not None and both.to_first.mean == pytest.approx(-2 / 6)
    assert both.first_stage == one.first_stage == "dense"
    # Two of b's queries are two of a's under other ids: counted once, with the mean of both values.
    texts = {"a": [f"Query {i}" for i in range(4)], "b": ["query  1", "query 3"]}
    rows = [{"set": s, "corpus": s, "query_id": f"q{i}", "query": t} for s in texts for i, t in enumerate(texts[s])]
    rows.append({"set": "a", "corpus": "a"})
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    once = read(run)[-1]
    assert (once.queries, once.repeated, once.ceiling) == (4, 2, None)
    assert once.means["tuned"] == pytest.approx((0.5 + 0.75 + 0.5 + 0.75) / 4)
    assert once.to_first is not None and once.to_first.mean == pytest.approx(-1.5 / 4)
    assert verdict(rows_of([one, once])).sentences[-1] == "Queries that are in several test sets and count once: 2."
    (tmp_path / "data" / "test.jsonl").write_text("{}\n{")
    with pytest.raises(UserError, match=r"test\.jsonl:2: not a query of the test sets: give `rankwright run` again"):
        read(run)
    (tmp_path / "data" / "test.jsonl").unlink()
    # Numbers of other settings are not among them.
    path = tmp_path / "eval" / "a" / "tuned" / "metrics.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "inputs": "0"}))
    assert "tuned" not in read(run)[0].means


def test_rows_are_flat_and_make_a_data_frame(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    ranks = {"bm25": [1, 2, 3, 4], "base": [3, 3, 1, 2], "tuned": [1, 1, 2, 1]}
    for name in ("a", "b"):
        evaluated(run, name, {s: {f"q{i}": r for i, r in enumerate(found)} for s, found in ranks.items()}, 0.8)
    recipe = Recipe.model_validate({"name": "job", "model": {"base": "b"}, "data": {}})
    rows = result_rows(run, recipe, INPUTS, ["a", "b"])
    assert [(row["test_set"], row["system"]) for row in rows] == [(n, s) for n in ("a", "b", ALL) for s in ranks]
    values = {one.name: one.values for one in read(run)}
    for row in rows:
        base, own = values[row["test_set"]]["base"], values[row["test_set"]][row["system"]]
        d = paired_difference(base, own)
        assert row["value"] == sum(own.values()) / len(own) and row["queries"] == len(own)
        shown_difference = (row["difference"], row["low"], row["high"], row["p"])
        if row["system"] == "base":
            assert shown_difference == (None, None, None, None)
        else:
            assert shown_difference == (d.mean, d.low, d.high, randomisation_test(base, own))
    frame = pandas.DataFrame(rows)
    assert frame[frame.system == "tuned"].value.tolist() == [row["value"] for row in rows if row["system"] == "tuned"]
    assert list(pandas.DataFrame(rows_of(read(run))).columns) == list(frame.columns)

"""First stages but BM25 and dense: fusion against a plain rewrite, run files with faults, what a recipe may ask for."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_encoder import make_tiny_encoder

from rankwright.common.errors import UserError, UserErrors
from rankwright.data.collection import Collection
from rankwright.evaluation.evaluate import system_names
from rankwright.pipeline.checks import check_names
from rankwright.recipe.schema import Recipe
from rankwright.retrieval.candidates import Candidate, tie_order
from rankwright.retrieval.first_stages import check_first_stages, possible_stages, retrieve, training_stage
from rankwright.retrieval.fusion import reciprocal_rank_fusion
from rankwright.retrieval.retriever import retrievers
from rankwright.retrieval.run_file import read_lists, run, write_trec_run

CORPUS = {"d1": "a bond", "d2": "a loan", "d 3": "the court", "d4": "a river"}
QUERIES = {"q1": "bond", "q 2": "court", "q3": "river"}


def ranking(ids: list[str]) -> list[Candidate]:
    return [Candidate(d, 1.0 / rank, rank) for rank, d in enumerate(ids, start=1)]


documents = st.lists(st.sampled_from("abcdefgh"), unique=True)


@given(st.lists(documents, min_size=1, max_size=4), st.integers(1, 9), st.integers(0, 60))
def test_fusion_is_the_sum_of_reciprocal_ranks(lists: list[list[str]], depth: int, k: int) -> None:
    fused = reciprocal_rank_fusion([{"q": ranking(ids)} for ids in lists], depth=depth, k=k)["q"]
    scores: dict[str, float] = {}
    for ids in lists:
        for place, document_id in enumerate(ids):
            scores[document_id] = scores.get(document_id, 0) + 1 / (k + place + 1)
    rounded = {d: round(score, 12) for d, score in scores.items()}
    order = sorted(scores, key=lambda d: (-rounded[d], tie_order("q", d)))[:depth]
    assert [c.document_id for c in fused] == order
    assert [c.score for c in fused] == pytest.approx([scores[d] for d in order])
    assert [c.rank for c in fused] == list(range(1, len(order) + 1))
    backwards = reciprocal_rank_fusion([{"q": ranking(ids)} for ids in reversed(lists)], depth=depth, k=k)
    assert backwards == {"q": fused}


def test_a_document_with_the_id_of_its_query_is_no_result(capsys: pytest.CaptureFixture[str]) -> None:
    """BEIR's rule, with lists as long as before; a document that is judged for the query stays."""
    corpus = {"q": "red bond", "r": "red bond", "d1": "red bond today", "d2": "red loan"}
    queries = {"q": "red bond", "r": "red bond", "s": "red bond"}
    found = Collection("set", corpus, queries, {"q": {"d1": 1.0}, "r": {"r": 1.0}, "s": {"d1": 1.0}})
    lists = retrieve(recipe(), "bm25", found, 2)
    assert "set bm25: 1 document with the id of its query left out of its list" in capsys.readouterr().out
    kept = retrieve(recipe(data={"ignore_identical_ids": False}), "bm25", found, 4)
    assert capsys.readouterr().out == ""
    for query_id, expected in kept.items():
        without = [c for c in expected if (query_id, c.document_id) != ("q", "q")][:2]
        assert [(c.document_id, c.score) for c in lists[query_id]] == [(c.document_id, c.score) for c in without]
        assert [c.rank for c in lists[query_id]] == [1, 2]
    assert {"q", "r"} == {c.document_id for c in kept["q"][:2]} and "r" in {c.document_id for c in lists["r"]}


def test_a_query_of_one_list_only_is_fused_too() -> None:
    fused = reciprocal_rank_fusion([{"a": ranking(["x"])}, {"b": ranking(["y"]), "a": []}], depth=5)
    assert {q: [c.document_id for c in found] for q, found in fused.items()} == {"a": ["x"], "b": ["y"]}
    assert fused["a"][0].score == 1 / 61


def test_a_short_fusion_is_the_start_of_a_long_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANKWRIGHT_CACHE", str(tmp_path / "cache"))
    encoder = make_tiny_encoder(tmp_path / "encoder")
    wanted = recipe(dense={"model": str(encoder)})
    corpus = {f"d{i}": " ".join(random.Random(i).choices(["bond", "loan", "court", "river"], k=5)) for i in range(40)}
    long, short = (retrievers()["fusion"].of(wanted, depth)(corpus)(QUERIES) for depth in (30, 4))
    assert {q: found[:4] for q, found in long.items()} == short
    parts = [retrievers()[name].of(wanted, 200)(corpus)(QUERIES) for name in ("bm25", "dense")]
    assert reciprocal_rank_fusion(parts, depth=30) == long


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(line + "\n" for line in lines))
    return path


def test_a_run_file_gives_back_the_lists_that_were_written(tmp_path: Path) -> None:
    scores = {"q1": {"d1": 2.0, "d 3": 0.1 + 0.2}, "q 2": {"d2": 1.0, "d4": 1.0}}
    write_trec_run(tmp_path / "x.run", scores, tag="x")
    lists, told = read_lists(tmp_path / "x.run", CORPUS, QUERIES, 3)
    assert {q: {c.document_id: c.score for c in found} for q, found in lists.items()} == {**scores, "q3": {}}
    assert told == "queries 2; queries that are not in the file 1; lists shorter than 3 2"
    ties = [c.document_id for c in lists["q 2"]]
    assert ties == sorted(ties, key=lambda d: tie_order("q 2", d))


def test_what_a_run_file_lacks_or_has_too_much_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(
        tmp_path / "x.run",
        # The scores decide, not the order of the lines or the ranks.
        *("q1 Q0 d2 1 0.5 x", "q1 Q0 d1 2 0.7 x", "q1 Q0 d4 3 0.1 x", "q1 Q0 gone 4 0.9 x"),
        *("q3 Q0 d4 1 1 x", "other Q0 d1 1 1 x"),
    )
    lists = run(CORPUS, depth=2, path=path)(QUERIES)
    assert [c.document_id for c in lists["q1"]] == ["d1", "d2"]
    assert lists["q 2"] == []
    said = " ".join(capsys.readouterr().out.split())
    for part in (
        "queries 3;",
        "queries of other sets or not evaluated, left out 1;",
        "documents that are not in the corpus, left out 1;",
        "queries that are not in the file 1;",
        "lists shorter than 2 1",
    ):
        assert part in said, part


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ((), "nothing in common with the set .it is empty"),
        (("x Q0 d1 1 1 t",), "none of its queries, such as 'x'"),
        (("q1 Q0 gone 1 1 t",), "none of its documents"),
        (("q1 Q0 d1 1 t",), "x.run:1: 5 columns"),
        (("q1 Q0 d1 1 one t",), "score 'one' is not a finite number"),
        (("q1 Q0 d1 1 nan t",), "is not a finite number"),
        (("q1 Q0 d1 1 inf t",), "is not a finite number"),
        (("q1 Q0 d1 1 1 t", "q1 Q0 d1 2 1 t"), "x.run:2: document 'd1' appears twice"),
    ],
)
def test_a_run_file_that_is_of_no_use_is_one_line(tmp_path: Path, lines: tuple[str, ...], message: str) -> None:
    path = write(tmp_path / "x.run", *lines)
    with pytest.raises(UserError, match=message) as caught:
        run(CORPUS, depth=5, path=path)(QUERIES)
    assert "\n" not in str(caught.value)


def test_ids_that_are_the_same_text_in_a_run_file_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x.run", "q1 Q0 d%203 1 1 t")
    with pytest.raises(UserError, match="the same text in a run file"):
        run({**CORPUS, "d%203": "x"}, depth=5, path=path)(QUERIES)


def recipe(**sections: Any) -> Recipe:
    return Recipe.model_validate(
        {"name": "job", "model": {"base": "b"}, "data": {"test": ({"path": "one"},)}, **sections}
    )


WITH_RUN = {"test": ({"path": "one", "run": "a.run"}, {"path": "two", "run": "b.run"})}
HALF_RUN = {"test": ({"path": "one", "run": "a.run"}, {"path": "two"})}


TRAIN_RUN = TEST_RUN = ({"path": "x", "run": "r"},)
HALF = ({"path": "x", "run": "r"}, {"path": "y"})


def test_dev_is_reranked_in_the_lists_of_the_first_stage_where_it_has_them() -> None:
    def stage(**data: Any) -> str:
        return training_stage(recipe(data={"test": TEST_RUN, **data}, evaluate={"first_stage": "run"}))

    assert stage(train=TRAIN_RUN) == stage(dev=TRAIN_RUN) == "run"
    assert stage(train=HALF) == stage(train=TRAIN_RUN, dev=HALF) == "bm25"


def test_the_systems_of_a_recipe_in_order(tmp_path: Path) -> None:
    assert possible_stages(recipe()) == ("bm25",)
    baselines = ({"name": "bge", "kind": "x", "model": "y"},)
    everything = recipe(
        dense={"model": "m"}, data=HALF_RUN | {"train": HALF}, evaluate={"baselines": baselines, "first_stage": "run"}
    )
    assert system_names(everything) == ("bm25", "dense", "fusion", "run", "base", "tuned", "combined", "bge")
    assert training_stage(everything) == "bm25"
    assert training_stage(recipe(evaluate={"first_stage": "fusion"})) == "fusion"


@pytest.mark.parametrize(
    ("sections", "faults"),
    [
        ({}, []),
        ({"data": WITH_RUN, "evaluate": {"first_stage": "run"}}, []),
        ({"data": HALF_RUN}, []),
        ({"evaluate": {"first_stage": "dense"}}, ["evaluate.first_stage: dense needs a bi-encoder"]),
        ({"evaluate": {"first_stage": "fusion"}}, ["evaluate.first_stage: fusion needs a bi-encoder"]),
        ({"data": HALF_RUN, "evaluate": {"first_stage": "run"}}, ["data.test.1.run: evaluate.first_stage is run"]),
        (
            {"data": {"train": ({"path": "x", "run": "r"},), "dev": ({"path": "y"}, {"path": "z", "run": "r"})}},
            ["data.train.0.run: nothing reads this run file: write mine.retriever: run, or", "data.dev.1.run: nothing"],
        ),
        ({"data": {"train": TRAIN_RUN, "test": TEST_RUN}, "evaluate": {"first_stage": "run"}}, []),
        # Dev and test are taken out of it.
        ({"data": {"train": TRAIN_RUN, "test": {"from": "train"}}, "evaluate": {"first_stage": "run"}}, []),
        (
            {"data": {"train": HALF, "test": {"from": "train"}}, "evaluate": {"first_stage": "run"}},
            ["data.train.1.run: evaluate.first_stage is run, and this set has no run file"],
        ),
        (
            {"data": {"train": HALF, "test": TEST_RUN}, "evaluate": {"first_stage": "run"}},
            ["data.train.1.run: evaluate.first_stage is run, and this set has no run file"],
        ),
        (
            {"data": {"train": TRAIN_RUN, "dev": HALF, "test": TEST_RUN}, "evaluate": {"first_stage": "run"}},
            ["data.train.0.run: nothing reads this run file: write mine.retriever: run", "data.dev.1.run: evaluate."],
        ),
        ({"data": {"train": TRAIN_RUN}}, ["data.train.0.run: nothing reads this run file: write evaluate.first_stage"]),
        ({"dense": {"model": "./nothing"}}, ["dense.model: "]),
        ({"mine": {"retriever": "fusion"}}, ["mine.retriever: fusion needs a bi-encoder"]),
        (
            {"data": {"train": ({"path": "x", "run": "r"}, {"path": "y"})}, "mine": {"retriever": "run"}},
            ["data.train.1.run: mine.retriever is run"],
        ),
    ],
)
def test_mistakes_of_a_recipe_are_found_together(sections: dict[str, Any], faults: list[str]) -> None:
    found = check_first_stages(recipe(**sections))
    assert len(found) == len(faults)
    for message, start in zip(found, faults, strict=True):
        assert message.startswith(start)


def test_a_missing_run_file_is_found_with_the_sets(tmp_path: Path) -> None:
    from rankwright.data.sources import locate_all
    from rankwright.recipe.sources import Data

    (tmp_path / "one").mkdir()
    write(tmp_path / "good.run")
    sources = ({"path": "one", "run": "good.run"}, {"path": "one", "name": "b", "run": "god.run"})
    data = Data.model_validate({"root": str(tmp_path), "test": sources})
    with pytest.raises(UserErrors, match=r"data\.test\.1: .*did you mean 'good\.run'"):
        locate_all(data)
    located = locate_all(Data.model_validate({"root": str(tmp_path), "test": sources[:1]}))["test"][0]
    assert located.run == tmp_path / "good.run"


@pytest.mark.parametrize(
    ("mine", "faults"),
    [
        ({"filters": {"margin": {"absolute": 1.0}, "max_reuse": {"most": 3}}, "sampler": {"top": {}}}, []),
        ({"filters": {"margin": {}}}, ["mine.filters.margin: filter 'margin': give exactly one of absolute"]),
        ({"filters": {"margni": {}}}, ["mine.filters.margni: unknown filter 'margni', did you mean 'margin'"]),
        ({"filters": {"max_reuse": {"least": 1}}}, ["mine.filters.max_reuse: filter 'max_reuse' has no parameter"]),
        (
            {"filters": {"rank_window": {"first": 9, "last": 3}}, "sampler": {"stratified": {"bands": [9, 3]}}},
            ["mine.sampler: sampler 'stratified'", "mine.filters.rank_window: filter 'rank_window': first 9, last 3"],
        ),
    ],
)
def test_mistakes_of_filters_and_samplers_are_found_before_anything_runs(
    mine: dict[str, Any], faults: list[str]
) -> None:
    found = [fault for fault in check_names(recipe(mine=mine)) if fault.startswith("mine.")]
    assert len(found) == len(faults)
    for message, start in zip(found, faults, strict=True):
        assert message.startswith(start)

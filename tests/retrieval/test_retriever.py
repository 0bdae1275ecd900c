"""A first stage is one record: one that a module outside of the package adds works in every stage and table."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jobs
import pytest
from outside import outside_module

from rankwright.common.errors import UserErrors
from rankwright.pipeline.checks import check_names
from rankwright.pipeline.stages import Pipeline
from rankwright.recipe.loading import load_recipe
from rankwright.report.page import write_report
from rankwright.retrieval import candidates, retriever
from rankwright.retrieval.candidates import read_candidates
from rankwright.retrieval.first_stages import ordering_models, possible_stages, stage_label, stage_names
from rankwright.retrieval.retriever import RETRIEVERS, retrievers

OUTSIDE = """
from rankwright.retrieval.candidates import best_candidates
from rankwright.retrieval.retriever import RETRIEVERS, Retriever


def by_letters(corpus, *, depth: int = 100, letters: str = "aeiou"):
    def score(one, other):
        return sum(min(one.count(c), other.count(c)) for c in letters) / (1 + len(other))

    def search(queries):
        found = {q: {d: score(text, document) for d, document in corpus.items()} for q, text in queries.items()}
        return {q: best_candidates(q, scores, depth) for q, scores in found.items()}

    return search


RETRIEVERS.add(
    Retriever("letters", "By letters", by_letters, lambda recipe, run_file: {"letters": recipe.description or "aeiou"}),
    __name__,
)
"""


@pytest.fixture
def letters(tmp_path: Path) -> Iterator[str]:
    """The name of a retriever of a module outside of the package."""
    with outside_module(RETRIEVERS, tmp_path, "outside_letters", OUTSIDE):
        yield "letters"


def test_the_tables_begin_with_the_known_ones_in_their_order() -> None:
    assert stage_names() == ["bm25", "dense", "fusion", "run", "pairs"]
    assert [stage_label(name) for name in stage_names()] == ["BM25", "dense", "fusion", "run file", "Chance"]
    assert stage_label("tuned") == "tuned"


def test_one_record_is_mined_from_evaluated_and_shown(letters: str, tmp_path: Path) -> None:
    chosen = {"mine": {"retriever": letters}, "evaluate": {"first_stage": letters}}
    loaded = load_recipe(str(jobs.job(tmp_path / "job", "fixtures/tiny-base", **chosen)))
    pipeline = Pipeline(loaded)
    pipeline.start()
    assert possible_stages(loaded.recipe) == ("bm25", letters) and stage_names()[-1] == letters
    assert retrievers().extensions == ["outside_letters"]
    pipeline.mine()
    assert all(read_candidates(pipeline.folder.path / "candidates.jsonl").values())
    rows = pipeline.evaluate(["bm25", letters])
    assert [row["system"] for row in rows] == ["bm25", letters]
    page = write_report(pipeline.folder.path, pipeline.inputs.systems).read_text()
    assert "By letters" in page and "BM25" in page


def test_its_options_decide_the_stages_that_read_its_lists(letters: str, tmp_path: Path) -> None:
    path = str(jobs.job(tmp_path / "job", "fixtures/tiny-base", mine={"retriever": letters}))

    def hashes(*overrides: str) -> tuple[str, str, dict[str, str]]:
        pipeline = Pipeline(load_recipe(path, overrides))
        return pipeline.inputs.data, pipeline.inputs.mine, pipeline.inputs.scores["held-out"]

    before, after = hashes(), hashes("description=xyz")
    assert before == hashes() and before[0] == after[0] and before[1] != after[1]
    assert {s for s in before[2] if before[2][s] != after[2][s]} == {letters, "tuned"}


def test_an_unknown_name_is_one_line_with_its_place_and_the_known_ones(letters: str, tmp_path: Path) -> None:
    path = jobs.job(tmp_path / "job", "fixtures/tiny-base", evaluate={"first_stage": "lettres"})
    loaded = load_recipe(str(path), ["mine.retriever=bm52"])
    assert check_names(loaded.recipe) == [
        "evaluate.first_stage: unknown retriever 'lettres', did you mean 'letters'? "
        "(known: bm25, dense, fusion, letters, pairs, run)",
        "mine.retriever: unknown retriever 'bm52', did you mean 'bm25'? "
        "(known: bm25, dense, fusion, letters, pairs, run)",
    ]
    with pytest.raises(UserErrors):
        Pipeline(loaded).check()


@pytest.mark.parametrize("key", ["language", "code"])
def test_keys_that_moved_to_bm25_are_an_error_that_reports_where(key: str, tmp_path: Path) -> None:
    path = jobs.job(tmp_path / "job", "fixtures/tiny-base", mine={key: "german" if key == "language" else True})
    with pytest.raises(UserErrors) as caught:
        load_recipe(str(path))
    (line,) = caught.value.messages
    number = path.read_text().splitlines().index(next(x for x in path.read_text().splitlines() if key in x)) + 1
    assert line.endswith(f"recipe.yaml:{number}: mine.{key}: is now bm25.{key}: move it there")


def test_a_dense_model_orders_candidates_where_its_lists_are_mined(tmp_path: Path) -> None:
    path = str(jobs.job(tmp_path / "job", "fixtures/tiny-base", dense={"model": "org/encoder"}))
    model = ("dense model", "org/encoder", None)
    assert set(ordering_models(load_recipe(path).recipe)) == {(*model, False)}
    assert set(ordering_models(load_recipe(path, ["mine.retriever=dense"]).recipe)) == {(*model, True), (*model, False)}


def test_the_example_of_the_document_is_a_retriever() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (jobs.REPOSITORY / "train" / "README.md").read_text(), re.DOTALL)
    (block,) = [block for block in blocks if "RETRIEVERS.add" in block]
    names: dict[str, Any] = {
        **vars(candidates),
        **vars(retriever),
        "Mapping": Mapping,
        "__name__": "rankwright.example",
    }
    try:
        exec(block, names)
        search = retrievers()["by_length"].bind({"depth": 1})({"d1": "four", "d2": "seven s"})
        assert [c.document_id for c in search({"q": "three"})["q"]] == ["d1"]
    finally:
        RETRIEVERS._known.pop("by_length", None)

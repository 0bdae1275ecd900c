"""A filter is one function with its reasons: one of a module outside of the package works in every stage and page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jobs
import pytest
from outside import outside_module

from rankwright.data.collection import Collection
from rankwright.mining import filters as mining_filters
from rankwright.mining.filters import FILTERS, MiningView, split_filters
from rankwright.mining.pools import read_negatives, reasons
from rankwright.pipeline.checks import check_names
from rankwright.pipeline.stages import Pipeline
from rankwright.recipe.loading import load_recipe
from rankwright.report.audit import write_audit
from rankwright.report.page import write_report
from rankwright.retrieval.candidates import Candidate

OUTSIDE = """
from rankwright.mining.filters import FILTERS, Decided


def _odd(*, longest):
    return "longest must be even" if longest % 2 else None


@FILTERS.register(reasons={"too_long": "longer than a sentence"}, noted="characters", check=_odd)
def short_only(view, *, longest: int, label: float | None = None):
    corpus = view.collection.corpus
    listed = {q: [c.document_id for c in found] for q, found in view.candidates.items()}
    long = {q: {d: float(len(corpus[d])) for d in ids if len(corpus[d]) > longest} for q, ids in listed.items()}
    if label is not None:
        return Decided({}, long, {q: dict.fromkeys(found, label) for q, found in long.items()})
    return Decided({q: dict.fromkeys(found, "too_long") for q, found in long.items()}, long)
"""


@pytest.fixture
def short_only(tmp_path: Path) -> Iterator[str]:
    """The name of a filter of a module outside of the package."""
    with outside_module(FILTERS, tmp_path, "outside_filter", OUTSIDE):
        yield "short_only"


def test_it_removes_and_its_sentence_is_on_the_pages(short_only: str, tmp_path: Path) -> None:
    filters = {short_only: {"longest": 44}, "max_reuse": {"most": 2}}
    pipeline = Pipeline(load_recipe(str(jobs.job(tmp_path / "job", "fixtures/tiny-base", mine={"filters": filters}))))
    pipeline.start()
    pipeline.mine()
    assert pipeline.folder.facts("mine")["counts"]["too_long"] > 0
    assert split_filters(filters) == ([short_only], ["max_reuse"])
    pipeline.evaluate(["bm25"])
    page = write_report(pipeline.folder.path, pipeline.inputs.systems).read_text()
    assert "removed: longer than a sentence" in page
    audit = write_audit(pipeline.folder, 5).read_text()
    assert "longer than a sentence" in audit and "characters" in audit


def test_what_it_labels_has_its_reason(short_only: str, tmp_path: Path) -> None:
    filters = {short_only: {"longest": 44, "label": 0.5}}
    pipeline = Pipeline(load_recipe(str(jobs.job(tmp_path / "job", "fixtures/tiny-base", mine={"filters": filters}))))
    pipeline.start()
    pipeline.mine()
    pools = read_negatives(pipeline.folder.path / "negatives.jsonl")
    assert {(n.label, n.reason) for pool in pools.values() for n in pool} == {(0.0, "unjudged"), (0.5, "too_long")}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"longest": 3}, "mine.filters.short_only: filter 'short_only': longest must be even"),
        ({}, "mine.filters.short_only: filter 'short_only': longest: Field required"),
        (
            {"longst": 4},
            "mine.filters.short_only: filter 'short_only' has no parameter 'longst', did you mean 'longest'?",
        ),
    ],
)
def test_check_reports_options_that_are_wrong(
    short_only: str, options: dict[str, int], message: str, tmp_path: Path
) -> None:
    path = jobs.job(tmp_path / "job", "fixtures/tiny-base", mine={"filters": {short_only: options}})
    assert [fault for fault in check_names(load_recipe(str(path)).recipe) if fault.startswith(message)]


def test_every_reason_of_the_package_has_a_sentence() -> None:
    known = reasons()
    assert {"unjudged", "judged_not_relevant", "fill", "positive", "judged", "duplicate_of_positive"} < set(known)
    assert {"outside_window", "above_margin", "same_group", "near_duplicate_of_positive", "reused"} < set(known)
    assert all(known.values()) and known["teacher_above_margin"].startswith("the teacher")


def test_the_example_of_the_document_is_a_filter() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (jobs.REPOSITORY / "train" / "README.md").read_text(), re.DOTALL)
    (block,) = [block for block in blocks if "@FILTERS.register" in block]
    names: dict[str, Any] = {**vars(mining_filters), "__name__": "rankwright.example"}
    lists = {"q": [Candidate("long", 2.0, 1), Candidate("short", 1.0, 2)]}
    view = MiningView(Collection("s", {"long": "a long text", "short": "text"}, {"q": "?"}, {}), "bm25", lists, lists)
    try:
        exec(block, names)
        assert FILTERS.bind("short_only", {"longest": 5})(view).removed == {"q": {"long": "too_long"}}
    finally:
        FILTERS._known.pop("short_only", None)

"""Reranker.rank and .score, as a notebook calls them: the right document for every holder of texts, or one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pandas
import pyarrow
import pytest
import torch
from tiny import PAIRS

from rankwright import Reranker, UserError

DOCUMENTS = [document for _, document in PAIRS[:8]]
QUERY = "what is a bond?"


@pytest.fixture(scope="module")
def reranker(tiny_qwen3: Path) -> Reranker:
    return Reranker.load(tiny_qwen3, mode="official")


def test_a_sorted_column_ranks_its_own_documents(reranker: Reranker) -> None:
    """Index labels that are places of other rows: `documents[i]` would be another row than the i-th."""
    expected = reranker.score(QUERY, DOCUMENTS)
    frame = pandas.DataFrame({"text": DOCUMENTS}).sort_values("text", key=lambda column: column.str.len())
    order = list(frame.index)
    assert order != sorted(order)
    ranked = reranker.rank(QUERY, frame["text"])
    assert sorted(row.index for row in ranked) == list(range(len(DOCUMENTS)))
    for row in ranked:
        assert row.document == frame["text"].iloc[row.index] == DOCUMENTS[order[row.index]]
        assert row.score == pytest.approx(expected[order[row.index]], abs=3e-5)
    assert [row.document for row in ranked] == [row.document for row in reranker.rank(QUERY, DOCUMENTS)]


@pytest.mark.parametrize(
    "hold",
    [
        tuple,
        iter,
        numpy.array,
        pyarrow.array,
        lambda texts: dict(enumerate(texts)).values(),
        lambda texts: pandas.Series(texts, index=range(50, 50 + len(texts))),
    ],
    ids=["tuple", "iterator", "numpy", "arrow", "view", "pandas"],
)
def test_every_holder_is_ranked_and_scored_as_a_list(reranker: Reranker, hold: Any) -> None:
    assert reranker.rank(QUERY, hold(DOCUMENTS)) == reranker.rank(QUERY, DOCUMENTS)
    assert reranker.score(QUERY, hold(DOCUMENTS)) == reranker.score(QUERY, DOCUMENTS)
    assert list(reranker.score_groups([(QUERY, hold(DOCUMENTS))])) == [reranker.score(QUERY, DOCUMENTS)]


def test_a_number_of_results(reranker: Reranker) -> None:
    assert len(reranker.rank(QUERY, DOCUMENTS, numpy.int64(3))) == 3  # type: ignore[arg-type]
    assert len(reranker.rank(QUERY, DOCUMENTS, 10**9)) == len(DOCUMENTS)
    assert reranker.rank(QUERY, []) == []
    for value in (-1, 0, 2.0, True, "2", float("nan")):
        with pytest.raises(UserError, match=r"^top_k: must be "):
            reranker.rank(QUERY, DOCUMENTS, value)  # type: ignore[arg-type]


@pytest.mark.parametrize("query", [None, 3, b"q", Path("q"), [QUERY], float("nan"), "half \udc00 a pair"])
def test_a_query_that_is_not_a_text_is_one_line(reranker: Reranker, query: Any) -> None:
    for ask in (reranker.rank, reranker.score, lambda q, d: list(reranker.score_groups([(q, d)]))):
        with pytest.raises(UserError, match=r"^query: ") as caught:
            ask(query, DOCUMENTS)
        assert "\n" not in str(caught.value)


def test_a_fault_names_the_place_of_its_document(reranker: Reranker) -> None:
    for ask in (reranker.rank, reranker.score, lambda q, d: list(reranker.score_groups([(q, d)]))):
        with pytest.raises(UserError, match=r"^documents\[1\]: must be text, found None"):
            ask(QUERY, ["a", None])
        with pytest.raises(UserError, match=r"^documents: must be a list of texts, found one text"):
            ask(QUERY, "one text")


@pytest.mark.parametrize(
    "options",
    [
        {"max_tokens": 0},
        {"max_tokens": -5},
        {"max_tokens": 512.0},
        {"max_tokens": True},
        {"max_tokens": "512"},
        {"max_tokens": 10**30},
        {"device": "toaster"},
        {"device": "cuda:99"},
        {"dtype": "bf16"},
        {"dtype": torch.int64},
        {"mode": 3},
        {"mode": "officiall"},
        {"instruction": 5},
        {"instruction": "half \ud800 a pair"},
        {"base": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize("saved", [False, True])
def test_options_of_load(tiny_qwen3: Path, folders: dict[str, Path], options: dict[str, Any], saved: bool) -> None:
    folder = folders["qwen3-portable"] if saved else tiny_qwen3
    given = options if saved or "mode" in options else {"mode": "official", **options}
    with pytest.raises(UserError, match=rf"{next(iter(options))}|positions") as caught:
        Reranker.load(folder, **given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", [None, 3, "", b"x", "a\0b"])
def test_a_path_of_load(path: Any) -> None:
    with pytest.raises(UserError, match=r"^model: "):
        Reranker.load(path)

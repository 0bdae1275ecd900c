"""`data check`, `check`, `plan` and `score` report what is beyond the budget, and how it is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rankwright.cli import data_check
from rankwright.cli.data import show
from rankwright.cli.show import describe_long_documents
from rankwright.common.errors import UserErrors
from rankwright.common.run_folder import RunFolder
from rankwright.data.guesses import Named
from rankwright.pipeline.checks import check_targets
from rankwright.recipe.schema import Model, Prompt, Recipe
from rankwright.recipe.sources import Data

FILLER = "The river rises in the mountains in spring. " * 120
ANSWER = "It pays interest until it matures."


def recipe_of(base: Path, **prompt: Any) -> Recipe:
    return Recipe(name="r", model=Model(base=str(base)), data=Data(), prompt=Prompt(mode="portable", **prompt))


def test_data_check_counts_relevant_documents_beyond_the_budget_and_lost_answers(
    tiny_qwen3: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [f"{FILLER} {ANSWER}", f"{ANSWER} {FILLER}", ANSWER]
    rows = [
        {"query": f"what pays interest? {n}", "positives": [text], "negatives": ["no"], "gold": {"text": [ANSWER]}}
        for n, text in enumerate(texts)
    ]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    given = Named(columns={"known_answer": "gold.text.0"})
    found = data_check.check_path(path, None, str(tiny_qwen3), given)
    (row,) = found.statistics["train"]
    expected = {"pairs": 3, "beyond": 2, "looked": 2, "best_known": 2, "best_cut": 1}
    assert row["tokens"]["relevant_pairs"] == {**expected, "answers_known": 2, "answers_cut": 1}
    show(found)
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    for text in ("relevant documents beyond the budget", "of which a cut loses the best block by BM25", "the answer"):
        assert any(text in line and (" 2 of 3" in line or " 1 of 2" in line) for line in lines), text
    assert not any("columns not used" in line for line in lines)
    # Without answers, no line about them.
    show(data_check.check_path(path, None, str(tiny_qwen3)))
    assert "loses the answer" not in capsys.readouterr().out


def test_check_refuses_a_budget_without_room_for_a_block(tiny_qwen3: Path) -> None:
    assert check_targets(recipe_of(tiny_qwen3, max_tokens=320, long_documents="blocks"), weights=False) == []
    (fault,) = check_targets(recipe_of(tiny_qwen3, max_tokens=200, long_documents="blocks"), weights=False)
    assert fault.startswith("prompt.max_tokens: 200 is too small") and "prompt.long_documents: blocks" in fault
    least = int(fault.split("use at least ")[1].split(",")[0])
    enough = recipe_of(tiny_qwen3, max_tokens=least, query_tokens=50, long_documents="blocks")
    assert check_targets(enough, weights=False) == []
    assert check_targets(recipe_of(tiny_qwen3, max_tokens=200, long_documents="max"), weights=False) == []


def test_a_plan_counts_windows(tiny_qwen3: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunFolder(tmp_path)
    describe_long_documents(recipe_of(tiny_qwen3), run)
    assert capsys.readouterr().out == ""
    describe_long_documents(recipe_of(tiny_qwen3, long_documents="blocks"), run)
    assert "one prompt each" in capsys.readouterr().out
    windows = recipe_of(tiny_qwen3, long_documents="max")
    describe_long_documents(windows, run)
    assert "5,120 tokens has about 16 windows" in capsys.readouterr().out
    # 1 + ceil((1000 - 100) / (100 - 15)).
    documents = {"p50": 90, "p90": 1000, "max": 101, "budget": 100}
    run.write_json(
        run.data_report, {"splits": {"test": [{"set": "s", "tokens": {"documents": documents}}, {"set": "t"}]}}
    )
    describe_long_documents(windows, run)
    assert "test s: windows of a document p50, p90, max: 1, 12, 2" in capsys.readouterr().out


def test_an_unknown_strategy_is_one_line(tiny_qwen3: Path) -> None:
    from rankwright.recipe.loading import load_recipe

    with pytest.raises(UserErrors, match=r"prompt\.long_documents.*'cut', 'max' or 'blocks'"):
        load_recipe("quickstart", ["prompt.long_documents=best"])

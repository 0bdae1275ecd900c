"""Hub sets with passages inside the rows, read from local files of the same form."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rankwright.common.errors import UserError
from rankwright.data.cards import load_card
from rankwright.data.formats.hub import NestedColumns, read_nested


def columns() -> NestedColumns:
    """Those that the shipped card states."""
    hub = load_card("obliqa-hub").hub
    assert hub is not None and hub.nested is not None
    return NestedColumns(**hub.nested.model_dump())


def question(number: int, *passages: str) -> dict[str, object]:
    return {
        "QuestionID": f"q{number}",
        "Question": f"question {number}?",
        "Passages": [{"DocumentID": 1, "PassageID": f"{i}.1", "Passage": text} for i, text in enumerate(passages)],
    }


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    home = tmp_path / "obliqa"
    home.mkdir()
    (home / "ObliQA_train.json").write_text(json.dumps([question(1, "a", "b"), question(2, "c")]))
    (home / "ObliQA_test.json").write_text(json.dumps([question(3, "a")]))
    return home


def test_a_split_is_its_questions_over_the_passages_of_all_splits(folder: Path) -> None:
    test = read_nested(str(folder), columns=columns(), split="test", revision=None, name="obliqa")
    assert sorted(test.corpus.values()) == ["0.1\na", "0.1\nc", "1.1\nb"]
    assert dict(test.queries) == {"q3": "question 3?"}
    assert [test.corpus[d] for d in test.positives("q3")] == ["0.1\na"]
    train = read_nested(str(folder), columns=columns(), split="train", revision=None, name="obliqa")
    assert sorted(train.corpus[d] for d in train.positives("q1")) == ["0.1\na", "1.1\nb"]


def test_a_missing_split_and_a_missing_column_are_named(folder: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'train'"):
        read_nested(str(folder), columns=columns(), split="trian", revision=None, name="obliqa")
    other = NestedColumns(query="Frage", query_id="QuestionID", passages="Passages", title="PassageID", text="Passage")
    with pytest.raises(UserError, match="Frage"):
        read_nested(str(folder), columns=other, split="train", revision=None, name="obliqa")

"""Hub sets with passages inside the rows, read from local files of the same form."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rankwright.common.errors import UserError
from rankwright.data.cards import load_card
from rankwright.data.collection import Collection
from rankwright.data.formats.hub import read_nested
from rankwright.data.formats.reading import Reading


def read(folder: Path, split: str, **other: str) -> Collection:
    """By the columns that the shipped card states, or some others."""
    hub = load_card("obliqa-hub").hub
    assert hub is not None and hub.nested is not None
    nested = hub.nested.model_copy(update=other)
    return read_nested(hub.model_copy(update={"id": str(folder), "nested": nested}), Reading("obliqa", split))


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
    test = read(folder, "test")
    assert sorted(test.corpus.values()) == ["0.1\na", "0.1\nc", "1.1\nb"]
    assert dict(test.queries) == {"q3": "question 3?"}
    assert [test.corpus[d] for d in test.positives("q3")] == ["0.1\na"]
    train = read(folder, "train")
    assert sorted(train.corpus[d] for d in train.positives("q1")) == ["0.1\na", "1.1\nb"]


def test_a_missing_split_and_a_missing_column_are_named(folder: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"obliqa: unknown split 'trian', did you mean 'train'\? \(known: test, train\): give split: NAME",
    ):
        read(folder, "trian")
    with pytest.raises(UserError, match="Frage"):
        read(folder, "train", query="Frage")

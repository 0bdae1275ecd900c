"""JSONL files of groups: texts and objects, ids, labels and scores, and every mistake with its line."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from rankwright.common.errors import UserError, UserErrors
from rankwright.common.hashing import content_id
from rankwright.data.formats.read import read_collection


def write(path: Path, rows: Iterable[Any] | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def messages(path: Path, split: str | None = None) -> list[str]:
    with pytest.raises(UserError) as caught:
        read_collection(path, name="set", split=split)
    return str(caught.value).splitlines()


def test_groups_of_plain_texts_with_scores(tmp_path: Path) -> None:
    rows = [
        {
            "query": " one ",
            "positives": ["a"],
            "negatives": ["b", "c"],
            "positive_scores": [5],
            "negative_scores": [1, -2.5],
        },
        {"query": "two", "positives": ["b"], "source": "web"},
        {"query": "one", "positives": ["d", "a"], "negatives": ["b"]},
        {"query": "three", "positives": [], "negatives": ["a"]},
    ]
    write(tmp_path / "g.jsonl.gz", rows)
    said: list[str] = []
    read = read_collection(tmp_path / "g.jsonl.gz", name="set", split="whatever", say=said.append)
    a, b, c, d = map(content_id, "abcd")
    one, two, three = map(content_id, ("one", "two", "three"))
    assert read.queries == {one: "one", two: "two", three: "three"}
    assert read.corpus == {a: "a", b: "b", c: "c", d: "d"}
    assert read.qrels == {one: {a: 1.0, b: 0.0, c: 0.0, d: 1.0}, two: {b: 1.0}, three: {a: 0.0}}
    assert read.teacher_scores == {one: {a: 5.0, b: 1.0, c: -2.5}}
    assert said == ["set: columns not used: source", "set: 2 repeated (query, document) pairs read once"]


def test_groups_of_objects(tmp_path: Path) -> None:
    row = {
        "query_id": 7,
        "query": "one",
        "positives": [{"id": "x", "title": "T", "text": "a", "label": 3, "score": 0.5}, {"text": "b"}],
        "negatives": [{"id": 9, "text": "c", "label": 0, "score": None}],
    }
    write(tmp_path / "g.jsonl", [row])
    read = read_collection(tmp_path / "g.jsonl", name="set")
    assert read.queries == {"7": "one"}
    assert read.corpus == {"x": "T\na", content_id("b"): "b", "9": "c"}
    assert read.qrels == {"7": {"x": 3.0, content_id("b"): 1.0, "9": 0.0}}
    assert read.teacher_scores == {"7": {"x": 0.5}}


def test_weights(tmp_path: Path) -> None:
    rows: list[Any] = [
        {"query_id": "a", "query": "one", "positives": ["a"], "weight": 2.5},
        {"query_id": "b", "query": "two", "positives": ["a"], "weight": None},
        {"query_id": "c", "query": "three", "positives": ["a"], "weight": 1},
        {"query_id": "d", "query": "four", "positives": ["a"], "weight": "0.5"},
        {"query_id": "a", "query": "one", "positives": ["b"]},
        {"query_id": "b", "query": "two", "positives": ["b"], "weight": 3},
    ]
    write(tmp_path / "g.jsonl", rows)
    said: list[str] = []
    read = read_collection(tmp_path / "g.jsonl", name="set", say=said.append)
    assert read.weights == {"a": 2.5, "b": 3.0, "d": 0.5}
    assert [read.weight(q) for q in "abcd"] == [2.5, 3.0, 1.0, 0.5]
    assert said == ["set: 3 of 4 queries have a weight of their own"]


def test_faults_of_weights(tmp_path: Path) -> None:
    bad = ["0", "-1", "NaN", "Infinity", '"much"', "true", "[1]", "1e999"]
    lines = [f'{{"query": "q{i}", "positives": ["a"], "weight": {text}}}\n' for i, text in enumerate(bad)]
    lines += ['{"query": "q", "positives": ["a"], "weight": 2}\n', '{"query": "q", "positives": ["b"], "weight": 3}\n']
    write(tmp_path / "g.jsonl", "".join(lines))
    *found, last = messages(tmp_path / "g.jsonl")
    assert len(found) == len(bad)
    for line, message in enumerate(found, start=1):
        assert message.startswith(f"{tmp_path}/g.jsonl:{line}: `weight` is ") and "needs a number above 0" in message
    assert last == (f"{tmp_path}/g.jsonl:10: weight 3 here and 2 before, for the same query: keep one of the two")


def test_faults_of_groups(tmp_path: Path) -> None:
    rows: list[Any] = [
        {"query": "one", "positives": ["a"], "negatives": ["a"]},
        {"query": "", "positives": ["a"]},
        {"query": "two", "positives": "a"},
        {"query": "two", "positives": ["a"], "positive_scores": [1, 2]},
        {"query": "two", "positives": [5, {"txt": "a"}]},
        {"query": "two", "positives": [{"text": "a", "label": 0}], "negatives": [{"text": "b", "label": "x"}]},
        {"query": "two", "positives": [{"text": "a", "id": "1"}, {"text": "b", "id": "1"}]},
        {"query": "two", "positives": ["a"], "positive_scores": ["high"]},
        {"query": "two", "query_id": "k", "positives": ["a"]},
        {"query": "three", "query_id": "k", "positives": ["a"]},
        {"query": "two", "neg": ["b"], "positives": ["a"]},
        {"query": "two", "positive": ["b"]},
    ]
    write(tmp_path / "g.jsonl", rows)
    found = messages(tmp_path / "g.jsonl")
    expected = [
        (1, "has label 0 here and 1 before, for the same query"),
        (2, "the query is empty"),
        (3, "`positives` has type str, needs a list"),
        (4, "1 positives but 2 positive_scores"),
        (5, "positives[0] has type int, needs a text or an object"),
        (5, "positives[1] has no `text` that is a text; keys found: txt"),
        (6, "positives[0] has label 0: move it to negatives"),
        (6, "the label of negatives[0] is 'x', needs a number"),
        (7, "positives[1]: document id '1' had another text before"),
        (8, "the score of positives[0] is 'high', needs a number"),
        (10, "query id 'k' had another text before"),
        (11, "column 'neg' is unknown, did you mean 'negatives'?"),
        (12, "column 'positive' is unknown, did you mean 'positives'?"),
        (12, "no column `positives`, did you mean 'positive'?; columns found: query, positive"),
    ]
    assert len(found) == len(expected)
    for message, (line, words) in zip(found, expected, strict=True):
        assert message.startswith(f"{tmp_path}/g.jsonl:{line}: ") and words in message


def test_groups_without_any_positive(tmp_path: Path) -> None:
    write(tmp_path / "g.jsonl", [{"query": "q", "positives": [], "negatives": ["b"]}])
    [message] = messages(tmp_path / "g.jsonl")
    assert "no query has a relevant document" in message
    write(tmp_path / "g.jsonl", "")
    assert "the file is empty" in messages(tmp_path / "g.jsonl")[0]


def test_a_folder_of_groups_by_split(tmp_path: Path) -> None:
    for name, text in (("train-0", "a"), ("train-1", "b"), ("test", "c")):
        write(tmp_path / f"{name}.jsonl", [{"query": text, "positives": [text]}])
    assert set(read_collection(tmp_path, name="s", split="train").corpus.values()) == {"a", "b"}
    assert set(read_collection(tmp_path, name="s", split="test").corpus.values()) == {"c"}
    assert set(read_collection(tmp_path, name="s").corpus.values()) == {"a", "b", "c"}
    [message] = messages(tmp_path, "dev")
    assert "no file for split 'dev'. Splits by file name: test, train" in message
    plain = tmp_path / "plain"
    write(plain / "part-0.jsonl", [{"query": "q", "positives": ["x"]}])
    assert read_collection(plain, name="s", split="train").queries


def test_faults_of_several_files_come_together(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / f"{name}.jsonl", "{\n")
    with pytest.raises(UserErrors) as caught:
        read_collection(tmp_path, name="s")
    assert [Path(m.split(":")[0]).name for m in caught.value.messages] == ["a.jsonl", "b.jsonl"]


def test_half_of_a_character_in_a_document_is_a_fault(tmp_path: Path) -> None:
    sides = {"positives": ["whole", "half \ud83d"], "negatives": [{"text": "\ud83d"}]}
    write(tmp_path / "g.jsonl", [{"query": "q", **sides}])
    first, second = messages(tmp_path / "g.jsonl")
    assert "g.jsonl:1: `positives[1]` holds half of a character (\\ud83d): remove it" in first
    assert "g.jsonl:1: `negatives[0].text` holds half of a character (\\ud83d): remove it" in second

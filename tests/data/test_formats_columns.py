"""Columns of rows that say more than texts: labels under any name, scores, and the map of a recipe."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from format_fixtures import write_rows

from rankwright.common.errors import UserError, UserErrors
from rankwright.common.hashing import content_id
from rankwright.data.formats.read import read_collection
from rankwright.data.sources import locate_all
from rankwright.recipe.sources import Data, Source


def messages(path: Path, **options: Any) -> list[str]:
    with pytest.raises(UserError) as caught:
        read_collection(path, name="set", **options)
    return [line.replace(f"{path.parent}/", "") for line in str(caught.value).splitlines()]


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("label", ["yes", "no"], "the label of answer is 'yes', needs a number"),
        ("label", [[1, 0], [0]], "the label of answer is [1, 0], needs a number"),
        ("labels", [1, 0], "is 'labels' the label? Give `columns: {label: labels}`"),
        ("relevance", [1, 0], "is 'relevance' the label? Give `columns: {label: relevance}`"),
        ("Is_Relevant", [True, False], "is 'Is_Relevant' the label?"),
        ("grade of answer", [2, 0], "is 'grade of answer' the label?"),
    ],
)
def test_judgements_are_never_left_out_of_pairs(tmp_path: Path, name: str, values: list[Any], words: str) -> None:
    rows = [{"query": "one", "answer": text, name: value} for text, value in zip("ab", values, strict=True)]
    path = write_rows(tmp_path / "set.jsonl", rows)
    assert words in messages(path)[0] and "format: pairs" in messages(path)[0]
    said: list[str] = []
    assert read_collection(path, name="set", format="pairs", say=said.append).qrels
    assert said == [f"set: columns not used: {name}"]


def test_judgements_as_texts_decimals_and_by_the_map(tmp_path: Path) -> None:
    one, a, b = map(content_id, ("one", "a", "b"))
    rows = [{"query": "one", "answer": "a", "label": "2"}, {"query": "one", "answer": "b", "label": "0"}]
    assert read_collection(write_rows(tmp_path / "t.jsonl", rows), name="set").qrels == {one: {a: 2.0, b: 0.0}}
    rows = [{**row, "label": Decimal(row["label"])} for row in rows]
    assert read_collection(write_rows(tmp_path / "d.parquet", rows), name="set").qrels == {one: {a: 2.0, b: 0.0}}
    rows = [{"query": "one", "answer": text, "relevance": n} for n, text in enumerate("ba")]
    path = write_rows(tmp_path / "m.csv", rows)
    assert read_collection(path, name="set", columns={"label": "relevance"}).qrels == {one: {a: 1.0, b: 0.0}}


def test_later_rows_with_judgements_in_a_file_of_pairs(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"anchor": f"query {n}", "positive": "a"} for n in range(60)]
    for name in ("label", "relevance"):
        path = write_rows(tmp_path / "set.jsonl", [*rows, {**rows[0], "positive": "b", name: 0}])
        [message] = messages(path)
        assert message.startswith(f"set.jsonl:61: column {name!r} holds a judgement, and the first rows had none")
        assert len(read_collection(path, name="set", format="pairs").queries) == 60


def test_the_map_decides_where_the_files_own_names_could_be_meant_too(tmp_path: Path) -> None:
    one, a, b = map(content_id, ("one", "a", "b"))
    row = {"question": "not this", "q": "one", "answer": "nor this", "body": "a", "passage": "c"}
    path = write_rows(tmp_path / "set.csv", [row])
    said: list[str] = []
    read = read_collection(path, name="set", columns={"query": "q", "document": "body"}, say=said.append)
    assert (read.queries, read.qrels) == ({one: "one"}, {one: {a: 1.0}})
    assert said == ["set: columns not used: answer, passage, question"]
    # MS MARCO: what is mapped lies in an object whose own name could be meant.
    marco = {"query": "one", "query_id": 3, "passages": {"is_selected": [0, 1], "passage_text": ["b", "a"]}}
    path = write_rows(tmp_path / "marco.jsonl", [marco])
    columns = {"documents": "passages.passage_text", "labels": "passages.is_selected"}
    assert read_collection(path, name="set", columns=columns).qrels == {"3": {b: 0.0, a: 1.0}}


def test_a_list_of_scores_under_the_name_of_one(tmp_path: Path) -> None:
    rows = [{"anchor": "one", "positive": "a", "negative_1": "b", "negative_2": "c", "score": [0.9, 0.2, 0.1]}]
    one, a, b, c = map(content_id, ("one", "a", "b", "c"))
    for end in ("jsonl", "csv"):
        read = read_collection(write_rows(tmp_path / f"set.{end}", rows), name="set")
        assert read.teacher_scores == {one: {a: 0.9, b: 0.2, c: 0.1}}
    said: list[str] = []
    margin = [{"anchor": "one", "positive": "a", "negative": "b", "score": 0.7}]
    assert not read_collection(write_rows(tmp_path / "m.jsonl", margin), name="set", say=said.append).teacher_scores
    assert said == ["set: columns not used: score"]


def test_a_document_without_an_id_is_shown_by_its_text(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "set.jsonl", [{"query": "q", "pos": ["the same words"], "neg": ["the same words"]}])
    assert "neg[0]: document 'the same words' has label 0 here and 1 before" in messages(path)[0]


def test_formats_and_columns_of_a_recipe_are_checked_before_any_file_is_read(tmp_path: Path) -> None:
    path = str(write_rows(tmp_path / "set.csv", [{"query": "one", "answer": "a"}]))
    sources = [{"path": path, "format": "pair"}, {"hub": "owner/name", "columns": {"querry": "q", "positive": "p"}}]
    with pytest.raises(UserErrors) as caught:
        locate_all(Data(train=tuple(map(Source.model_validate, sources))))
    starts = [
        "data.train.0: unknown format 'pair'",
        "data.train.1: columns: unknown column name 'querry'",
        "data.train.1: columns: unknown column name 'positive'",
    ]
    lines = str(caught.value).splitlines()
    assert [line[: len(start)] for line, start in zip(lines, starts, strict=True)] == starts

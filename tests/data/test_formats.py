"""Every format and container gives the same six groups, up to what the format can hold, and is found by its content."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import format_fixtures as fixtures
import pytest
from format_fixtures import CONTAINERS, ROWS, expected, plain, write_beir, write_rows, write_trec

from rankwright.common.errors import UserError, UserErrors
from rankwright.common.hashing import content_id
from rankwright.data.formats.read import read_collection
from rankwright.data.sources import locate
from rankwright.recipe.sources import Source


def messages(path: Path, **options: Any) -> list[str]:
    with pytest.raises(UserError) as caught:
        read_collection(path, name="set", **options)
    return [line.replace(f"{path.parent}/", "") for line in str(caught.value).splitlines()]


@pytest.mark.parametrize("end", CONTAINERS)
@pytest.mark.parametrize("name", ROWS)
def test_formats_of_rows(tmp_path: Path, name: str, end: str) -> None:
    path = write_rows(tmp_path / f"set.{end}", ROWS[name]())
    assert plain(read_collection(path, name="set")) == expected(name)
    assert plain(read_collection(path, name="set", format=name)) == expected(name)


@pytest.mark.parametrize("packing", [".gz", ".zst"])
@pytest.mark.parametrize("end", CONTAINERS)
def test_packed_files(tmp_path: Path, end: str, packing: str) -> None:
    path = write_rows(tmp_path / f"set.{end}", ROWS["groups"](), packing)
    assert plain(read_collection(path, name="set")) == expected("groups")
    # What is inside is known by its bytes, not by its name.
    bare = path.rename(tmp_path / ("set.csv" if end == "csv" else "set.tsv" if end == "tsv" else "set"))
    assert plain(read_collection(bare, name="set")) == expected("groups")


def test_beir_and_its_group_key(tmp_path: Path) -> None:
    folder = write_beir(tmp_path / "set")
    assert plain(read_collection(folder, name="set", group_key="metadata.group")) == expected("beir")
    assert plain(read_collection(folder, name="set", group_key="group")) == expected("beir")
    assert read_collection(folder, name="set").query_groups == {}
    [message] = messages(folder, group_key="case")
    assert "no query and no document has the group key 'case'" in message


@pytest.mark.parametrize("corpus", ["jsonl", "doc"])
@pytest.mark.parametrize("topics", ["tsv", "top"])
def test_trec(tmp_path: Path, topics: str, corpus: str) -> None:
    folder = write_trec(tmp_path / "set", topics=topics, corpus=corpus)
    assert plain(read_collection(folder, name="set")) == expected("trec")


def test_trec_by_split_and_field(tmp_path: Path) -> None:
    for split, label in (("train", 1), ("test", 2)):
        (tmp_path / f"topics.{split}.txt").write_text(
            f"<top>\n<num> Number: 7{label}\n<title> short\n<desc> Description:\nthe {split} words\n</top>\n"
        )
        (tmp_path / f"qrels.{split}.txt").write_text(f"7{label} 0 d1 {label}\n")
    (tmp_path / "collection.tsv.gz").write_bytes(fixtures.packed(b"d1\tTitle\tthe text\n", ".gz"))
    read = read_collection(tmp_path, name="set", split="test", columns={"query": "desc"})
    assert (read.queries, read.qrels) == ({"72": "the test words"}, {"72": {"d1": 2.0}})
    assert read.corpus == {"d1": "Title\nthe text"}
    [message] = messages(tmp_path, split="tets")
    assert "topics for split 'tets', did you mean 'test'?, found 0. Files of topics: topics.test.txt" in message
    (tmp_path / "queries.jsonl").write_text('{"_id": "71", "text": "a"}\n')
    assert "give `format: beir` or `format: trec`" in messages(tmp_path, split="test")[0]
    assert read_collection(tmp_path, name="set", split="test", format="trec").queries == {"72": "short"}


def test_the_run_file_of_a_trec_folder_is_that_of_the_test_set(tmp_path: Path) -> None:
    folder = write_trec(tmp_path / "set")
    (folder / "bm25.run").write_text("q1 Q0 d1 1 2.5 x\n")
    source = Source(path=str(folder))
    assert locate(source, root=None, split="test").run == folder / "bm25.run"
    assert locate(source, root=None, split="train").run is None
    (folder / "dense.run").write_text("q1 Q0 d1 1 2.5 x\n")
    assert locate(source, root=None, split="test").run is None


def test_folders_that_datasets_saved(tmp_path: Path) -> None:
    import datasets

    table = datasets.Dataset.from_list(ROWS["groups"]())
    table.save_to_disk(str(tmp_path / "one"), num_shards=2)
    assert plain(read_collection(tmp_path / "one", name="set")) == expected("groups")
    datasets.DatasetDict({"train": table, "test": table.select([0])}).save_to_disk(str(tmp_path / "both"))
    assert plain(read_collection(tmp_path / "both", name="set", split="train")) == expected("groups")
    assert list(read_collection(tmp_path / "both", name="set", split="test").queries) == ["q1"]
    assert (
        "unknown split 'tset', did you mean 'test'? (known: test, train)"
        in messages(tmp_path / "both", split="tset")[0]
    )


def test_folders_of_files_by_split(tmp_path: Path) -> None:
    write_rows(tmp_path / "train-00000.parquet", ROWS["pairs"]())
    write_rows(tmp_path / "train-00001.csv", [{"query": "more", "answer": "text"}], ".gz")
    write_rows(tmp_path / "test.jsonl", ROWS["triplets"]())
    said: list[str] = []
    read = read_collection(tmp_path, name="set", split="train", say=said.append)
    assert len(read.queries) == len(expected("pairs").queries) + 1
    assert said[0] == f"{tmp_path}: 2 files of split 'train' read, 1 of other names left out"
    assert plain(read_collection(tmp_path, name="set", split="test")) == expected("triplets")


COLUMNS = {
    "groups": {"query": "q", "positives": "good", "negatives": "bad"},
    "flagembedding": {"query": "q", "negatives": "neg"},
    "pairs": {"query": "q", "document": "answer"},
    "n-tuple": {"query": "q"},
    "scored-pairs": {"query": "q", "document": "sentence2", "label": "note"},
    "labelled-lists": {"query": "q", "documents": "docs", "labels": "note"},
}


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("end", ["jsonl", "csv", "parquet"])
def test_column_maps(tmp_path: Path, name: str, end: str) -> None:
    changed = {"query": "q", "sentence1": "q", "positives": "good", "negatives": "bad", "label": "note"}
    changed["labels"] = "note"
    rows = [{changed.get(key, key): value for key, value in row.items()} for row in ROWS[name]()]
    path = write_rows(tmp_path / f"set.{end}", rows)
    assert plain(read_collection(path, name="set", columns=COLUMNS[name])) == expected(name)


def test_a_column_map_to_single_texts_and_into_objects(tmp_path: Path) -> None:
    rows = [{"question": "one", "answer": "text", "query": "not this", "meta": {"case": 7}}]
    path = write_rows(tmp_path / "set.jsonl", rows)
    said: list[str] = []
    columns = {"query": "question", "positives": "answer", "group": "meta.case"}
    read = read_collection(path, name="set", columns=columns, say=said.append)
    assert read.qrels == {content_id("one"): {content_id("text"): 1.0}}
    assert read.query_groups == {content_id("one"): "7"}
    assert said == ["set: columns not used: query"]


def test_wrong_column_maps_are_named_all_at_once(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "set.csv", [{"question": "a", "answer": "b"}])
    assert messages(path, columns={"query": "qestion", "positives": "answers"}) == [
        "set.csv: no column 'qestion' for query, did you mean 'question'?; columns found: question, answer",
        "set.csv: no column 'answers' for positives, did you mean 'answer'?; columns found: question, answer",
    ]
    found = messages(path, columns={"querry": "question", "positive": "answer"})
    assert [line[: line.index(" (known")] for line in found] == [
        "columns: unknown column name 'querry', did you mean 'query'?",
        "columns: unknown column name 'positive', did you mean 'positives'?",
    ]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"a": "x", "b": "y"}, "the columns a (text), b (text) are those of no format."),
        ({"query": "x", "pos": ["y"], "positives": ["y"]}, "fit groups and flagembedding: give `format: NAME`"),
        ({"query": "x", "anchor": "y", "positive": "z"}, "are those of no format"),
        ({"query": "x", "positive": "y", "passage": "z"}, "are those of no format"),
    ],
)
def test_content_that_fits_none_or_several(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    [message] = messages(write_rows(tmp_path / "set.jsonl", [row]))
    assert words in message and "columns: {query: ..., positives: ...}" in message


def test_by_order_where_the_format_is_said(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "set.csv", [{"title_of_bill": "one", "summary": "a", "other": "b", "third": "c"}])
    said: list[str] = []
    read = read_collection(path, name="set", format="n-tuple", say=said.append)
    assert read.qrels == {content_id("one"): {content_id("a"): 1.0, content_id("b"): 0.0, content_id("c"): 0.0}}
    assert said == [
        f"{path}: n-tuple: 'title_of_bill' is read as the query, 'summary' as document, 'other', 'third' as negatives"
    ]
    assert "4 documents" not in messages(path, format="triplets")[0]
    assert "3 documents, this format has 2: give `format: n-tuple`" in messages(path, format="triplets")[0]


def test_unknown_formats_and_formats_of_folders(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "set.csv", [{"query": "one", "answer": "a"}])
    assert messages(path, format="triplet")[0].startswith("unknown format 'triplet', did you mean 'triplets'?")
    assert "format beir is a folder, and this is a file" in messages(path, format="beir")[0]


def test_scores_of_sentence_transformers_miner(tmp_path: Path) -> None:
    rows = [{"query": "one", "answer": "a", "negative_1": "b", "negative_2": "c", "scores": [0.9, 0.2, 0.1]}]
    read = read_collection(write_rows(tmp_path / "set.parquet", rows), name="set")
    one, a, b, c = map(content_id, ("one", "a", "b", "c"))
    assert read.teacher_scores == {one: {a: 0.9, b: 0.2, c: 0.1}}
    lists = [{"query": "one", "answer": ["a", "b"], "labels": [1, 0], "scores": [0.9, 0.2]}]
    read = read_collection(write_rows(tmp_path / "lists.parquet", lists), name="set")
    assert (read.qrels, read.teacher_scores) == ({one: {a: 1.0, b: 0.0}}, {one: {a: 0.9, b: 0.2}})


def test_a_score_without_a_label_is_not_guessed(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "set.jsonl", [{"query": "one", "answer": text, "score": 0.5} for text in "ab"])
    [message] = messages(path)
    assert message.startswith("set.jsonl:1: a score that is not a whole number: is it a label or a teacher's?")
    assert "(2 lines like this: " in message
    read = read_collection(path, name="set", columns={"label": "score"})
    assert set(read.qrels[content_id("one")].values()) == {0.5}
    whole = write_rows(
        tmp_path / "whole.jsonl", [{"query": "one", "answer": t, "score": n} for n, t in enumerate("ab")]
    )
    assert read_collection(whole, name="set").qrels == {content_id("one"): {content_id("a"): 0.0, content_id("b"): 1.0}}


def test_ids_titles_and_groups_beside_any_format(tmp_path: Path) -> None:
    row = {"query_id": 7, "query": "one", "document": "a", "document_id": "x", "title": "T", "label": 2, "case": "c"}
    read = read_collection(write_rows(tmp_path / "set.parquet", [row]), name="set", group_key="case")
    assert (read.queries, read.corpus, read.qrels) == ({"7": "one"}, {"x": "T\na"}, {"7": {"x": 2.0}})
    assert read.query_groups == {"7": "c"}
    [message] = messages(tmp_path / "set.parquet", group_key="cases")
    assert "no row has the group key 'cases'" in message


def test_instructions_that_differ_are_said_and_not_used(tmp_path: Path) -> None:
    rows = ROWS["flagembedding"]()
    rows[0]["prompt"] = "another"
    said: list[str] = []
    read = read_collection(write_rows(tmp_path / "set.jsonl", rows), name="set", say=said.append)
    assert read.instruction is None
    assert any("6 of 6 rows have an instruction, 2 different ones: none is used" in line for line in said)


def test_rows_that_contradict_one_another(tmp_path: Path) -> None:
    rows = [{"anchor": "one", "positive": "a", "negative": "b"}, {"anchor": "one", "positive": "b", "negative": "c"}]
    [message] = messages(write_rows(tmp_path / "set.parquet", rows))
    assert message.startswith("set.parquet: row 2: positive: document ") and "has label 1 here and 0 before" in message
    with pytest.raises(UserErrors, match=r"set\.jsonl:2: .*has label 1 here and 0 before"):
        read_collection(write_rows(tmp_path / "set.jsonl", rows), name="set")


def test_later_rows_with_negatives_in_a_file_of_pairs(tmp_path: Path) -> None:
    rows = [{"anchor": f"query {n}", "positive": "a"} for n in range(60)]
    [message] = messages(write_rows(tmp_path / "set.jsonl", [*rows, {**rows[0], "negative": "b"}]))
    assert message.startswith("set.jsonl:61: column 'negative' holds a negative, and the first rows had none")

"""How the files of companies are read: what is guessed, what is asked, and that no label is wrong in silence."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from rankwright.cli.columns import labels_of
from rankwright.common.errors import UserError
from rankwright.data.discovery import find_sets
from rankwright.data.formats.read import read_collection
from rankwright.data.guesses import Format, Named, format_of

ROWS = 6


def pairs(**columns: Sequence[Any]) -> list[dict[str, Any]]:
    """Six rows with a query and a document, and further columns whose values repeat."""
    return [
        {"query": f"who pays for case {number}", "document": f"The tenant pays for case {number}."}
        | {name: values[number % len(values)] for name, values in columns.items()}
        for number in range(ROWS)
    ]


def without(rows: Sequence[Mapping[str, Any]], *names: str) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name not in names} for row in rows]


def written(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """The rows as JSONL, a JSON array or CSV, by the name."""
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
        return path
    text = json.dumps(rows) if path.suffix == ".json" else "\n".join(map(json.dumps, rows))
    path.write_text(text, encoding="utf-8")
    return path


def guessed(path: Path, given: Named = Named()) -> Format:  # noqa: B008 (frozen)
    [found] = find_sets(path)
    return format_of(found, given)


def labels(path: Path, given: Named = Named()) -> list[float]:  # noqa: B008 (frozen)
    """The labels in the order of the documents, read as it is guessed."""
    format = guessed(path, given)
    assert not format.question, format.question
    read = read_collection(
        path, name="set", columns=format.columns, labels=format.labels, format=None, say=lambda line: None
    )
    return [read.qrels[query][document] for query in read.queries for document in read.qrels[query]]


@pytest.mark.parametrize(
    ("rows", "given", "asked"),
    [
        (pairs(relevant=["yes", "no", "maybe"]), {}, "--labels no=0,yes=1,maybe=NUMBER"),
        (pairs(label=["90%", "10%"]), {}, "--labels 10%=NUMBER,90%=NUMBER"),
        (pairs(label=["2 - good", "NaN"]), {}, "--labels '2 - good=NUMBER,NaN=NUMBER'"),
        (pairs(rel=["Relevant", "Not relevant"]), {}, "--columns label=rel"),
        (pairs(rel=[True, False]), {}, "--columns label=rel"),
        (pairs(**{"relevance.responses": [["yes"], ["no"]]}), {}, "--columns label=relevance.responses"),
        (pairs(stars=[5, 1]), {}, "--columns label=stars"),
        (pairs(label=[None]), {}, "column 'label': it is empty"),
        (
            pairs(bad=[["The landlord pays for it, and he does so in each of all cases."]]),
            {},
            "--columns query=query positives=document negatives=bad",
        ),
        (
            [{"search term": r["query"], "product text": r["document"], "stars": 4} for r in pairs()],
            {},
            "--columns 'query=search term' 'document=product text'",
        ),
        ([{"ask": "who pays", "hits": [{"text": "He."}]}], {}, "--columns query=ask positives=hits (all documents"),
        ([{"a": r["query"], "b": r["document"], "rating": 4} for r in pairs()], {}, "query=a document=b label=rating"),
    ],
)
def test_what_cannot_be_told_is_asked_with_the_option_to_give(
    tmp_path: Path, rows: list[dict[str, Any]], given: dict[str, str], asked: str
) -> None:
    assert asked in guessed(written(tmp_path / "a.jsonl", rows), Named(given)).question


def test_words_in_a_table_of_labels_are_asked_about(tmp_path: Path) -> None:
    for name in ("queries", "documents"):
        written(tmp_path / f"{name}.csv", [{"id": n, "text": f"{name} {n}"} for n in range(ROWS)])
    rows = [{"query_id": n, "doc_id": n, "label": ("good", "meh")[n % 2]} for n in range(ROWS)]
    written(tmp_path / "labels.csv", rows)
    assert "--labels good=1,meh=NUMBER" in guessed(tmp_path).question
    assert guessed(tmp_path, Named(labels={"meh": 0})).labels == {"good": 1, "meh": 0}
    assert labels(tmp_path, Named(labels={"meh": 0})) == [1, 0] * (ROWS // 2)


@pytest.mark.parametrize("ours", ["group", "negatives", "label"])
def test_a_column_that_is_not_there_is_the_first_fault(tmp_path: Path, ours: str) -> None:
    path = written(tmp_path / "a.jsonl", pairs(bad=["Nobody does."]))
    format = guessed(path, Named({ours: "nothere"}))
    with pytest.raises(UserError, match=f"no column 'nothere' for {ours}"):
        read_collection(path, name="set", columns=format.columns)


def test_dates_are_not_labels_and_are_asked_about_once(tmp_path: Path) -> None:
    rows = [{"query": f"q {n}", "document": f"d {n}", "label": f"2024-05-{n:02}"} for n in range(1, 29)]
    found = guessed(written(tmp_path / "a.csv", rows))
    assert "many different texts" in found.question
    assert not found.unclear


@pytest.mark.parametrize(
    ("name", "rows", "given", "found"),
    [
        ("a.csv", pairs(label=["1,0", "0,5", "0,0"]), Named(), [1, 0.5, 0]),
        ("a.csv", pairs(relevant=["yes", "no", "maybe"]), Named(labels={"maybe": 0}), [1, 0, 0]),
        ("a.csv", pairs(label=["TRUE", "FALSE"]), Named(), [1, 0]),
        ("a.csv", pairs(label=["1.0", "0"]), Named(), [1, 0]),
        ("a.jsonl", pairs(label=[1.0, "1", "0", 0]), Named(), [1, 1, 0, 0]),
        # Both columns are named, so all rows are relevant.
        ("a.jsonl", pairs(rel=[True, False]), Named({"query": "query", "document": "document"}), [1]),
        ("a.jsonl", pairs(rel=[True, False]), Named({"label": "rel"}), [1, 0]),
        ("a.csv", pairs(created=["2024-01-02"], agent=["ann"], priority=[3]), Named(), [1]),
    ],
)
def test_labels_are_what_people_wrote(
    tmp_path: Path, name: str, rows: list[dict[str, Any]], given: Named, found: list[float]
) -> None:
    assert labels(written(tmp_path / name, rows), given) == [found[number % len(found)] for number in range(ROWS)]


def test_columns_of_wrong_answers_are_negatives(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", pairs(**{"wrong answer 1": ["Nobody does."], "wrong answer 2": ["He does."]}))
    read = read_collection(path, name="set", say=lambda line: None)
    assert {tuple(row.values()) for row in read.qrels.values()} == {(1.0, 0.0, 0.0)}


def test_clicks_name_documents_of_a_list_by_their_ids(tmp_path: Path) -> None:
    shown = [{"doc_id": "a", "text": "The landlord pays."}, {"doc_id": "b", "text": "The tenant pays."}]
    rows = [{"query": f"who pays {n}", "results": shown, "clicked": ["b"]} for n in range(ROWS)]
    assert labels(written(tmp_path / "a.jsonl", rows)) == [0, 1] * ROWS


def tasks(*answers: list[str], ranked: bool = False) -> list[dict[str, Any]]:
    """Tasks of Label Studio; the choices of each annotator in `answers`."""
    ranking = [{"type": "ranker", "value": {"ranker": {"top": ["a"]}}}] if ranked else []
    return [
        {
            "data": without(pairs(), "label")[number],
            "annotations": [
                {"result": [*ranking, {"type": "choices", "value": {"choices": [choices[number % len(choices)]]}}]}
                for choices in answers
            ],
        }
        for number in range(ROWS)
    ]


def test_a_ranking_before_the_choices_is_not_the_label(tmp_path: Path) -> None:
    path = written(tmp_path / "a.json", tasks(["Relevant", "Not relevant"], ranked=True))
    assert labels(path) == [1, 0] * (ROWS // 2)


def test_answers_that_are_not_read_are_counted(tmp_path: Path) -> None:
    path = written(tmp_path / "a.json", tasks(["Relevant", "Not relevant"], ["Relevant"]))
    format, said = guessed(path), list[str]()
    read_collection(path, name="set", columns=format.columns, labels=format.labels, say=said.append)
    assert any(line.startswith("set: 6 rows with more elements") and "annotations.0" in line for line in said)


def test_marks_inside_of_listed_documents_are_not_lost(tmp_path: Path) -> None:
    answers = [{"text": "The tenant pays.", "good": True}, {"text": "Nobody pays.", "good": False}]
    path = written(tmp_path / "a.jsonl", [{"query": "who pays", "positives": answers}])
    with pytest.raises(UserError, match=r"has the key 'good' .*divide them by it into positives and negatives"):
        read_collection(path, name="set")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("yes=1,no=0", {"yes": 1, "no": 0}),
        (" very good = 2 , bad=0", {"very good": 2, "bad": 0}),
        ("0,0=0,0,5=0.5,1,0=1", {"0,0": 0, "0,5": 0.5, "1,0": 1}),
        ("1=0,2=1", {"1": 0, "2": 1}),
        ("a=b=1,c=0", {"a=b": 1, "c": 0}),
    ],
)
def test_values_of_labels_may_hold_decimal_commas(text: str, found: dict[str, float]) -> None:
    assert labels_of(text) == found


@pytest.mark.parametrize("text", ["yes", "yes=1,no", "=1", "yes=x", "yes,no=0"])
def test_labels_of_another_form_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="must be VALUE=NUMBER"):
        labels_of(text)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("query,document\na,b\n\ufeffquery,document\nc,d\n", r"a\.csv:3: the header stands here again"),
        ("query,document,label\n", r"a\.csv:1: holds no rows"),
        ("Report\nquery,document\na,b\n", "is the first line a title"),
        ("query,document\na,b,\n", "remove the separator at its end"),
        ("query,document\na,b, c\n", "put a text that holds the separator in quotes"),
    ],
)
def test_csv_as_tools_write_it_is_a_fault_with_its_cause(tmp_path: Path, text: str, fault: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=fault):
        read_collection(path, name="set")


@pytest.mark.parametrize("indent", [None, 2])
def test_rows_inside_of_one_json_object_are_found(tmp_path: Path, indent: int | None) -> None:
    path, said = tmp_path / "a.json", list[str]()
    path.write_text(json.dumps({"version": "1.1", "data": pairs()}, indent=indent))
    assert len(read_collection(path, name="set", say=said.append).queries) == ROWS
    assert any("its rows are the 6 elements of 'data'" in line for line in said)


@pytest.mark.parametrize(
    ("whole", "fault"),
    [
        ({"query": {"0": "a", "1": "b"}, "document": {"0": "c", "1": "d"}}, "orient='records'"),
        ({"columns": ["query", "document"], "index": [0], "data": [["a", "b"]]}, "orient='records'"),
        ({"train": pairs(), "test": pairs()}, "several lists"),
        ({"data": [{"query": "a", "document": "b"}, 7]}, "element 2"),
    ],
)
def test_json_objects_that_are_not_rows_are_faults(tmp_path: Path, whole: dict[str, Any], fault: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(whole))
    with pytest.raises(UserError, match=fault):
        read_collection(path, name="set")


def test_json_files_with_one_row_or_one_per_line_are_read_as_before(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for rows in (pairs()[:1], pairs()):
        path.write_text("\n".join(map(json.dumps, rows)))
        assert len(read_collection(path, name="set").queries) == len(rows)


def test_formulas_without_values_are_not_empty_cells(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in (["query", "document", "label"], ["a", "b", 1], ["c", "d", "=1-1"], ["e", "f", None]):
        book.active.append(row)
    book.save(tmp_path / "a.xlsx")
    with pytest.raises(UserError) as found:
        read_collection(tmp_path / "a.xlsx", name="set")
    assert "row 3: column 'label' holds a formula without its value" in str(found.value)
    assert "row 4: document has no label" in str(found.value)

"""Files as companies have them: each goes through `data check`, `init`, `check` and the first stages of a run."""

from __future__ import annotations

import csv
import datetime
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jobs
import pytest

from rankwright import Reranker, read_collection
from rankwright.cli import data_check
from rankwright.cli.init import Wishes, init
from rankwright.common.errors import UserError
from rankwright.common.run_folder import RunFolder
from rankwright.pipeline.stages import Pipeline
from rankwright.recipe.loading import load_recipe

BASE = "fixtures/tiny-base"
QUERIES = 24
TOPICS = "lease bond court river garden engine paper winter music bridge summer town".split()


def texts(number: int) -> tuple[str, str, str]:
    """(query, the document that answers it, another one)"""
    topic, other = TOPICS[number % 12], TOPICS[(number + 5) % 12]
    return (
        f"what does rule {number} of the {topic} demand",
        f"Rule {number} of the {topic}: it must be written down and signed twice.",
        f"The {other} has {number} doors, and nobody counted its windows.",
    )


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(header)
        table.writerows(rows)


def judged(yes: object, no: object) -> list[list[object]]:
    rows: list[list[object]] = []
    for number in range(QUERIES):
        query, right, wrong = texts(number)
        rows += [[query, right, yes], [query, wrong, no]]
    return rows


def label_studio(path: Path) -> None:
    tasks = []
    for number, (query, text, choice) in enumerate(judged("Relevant", "Not relevant")):
        result = [{"type": "choices", "from_name": "relevance", "value": {"choices": [choice]}}]
        tasks.append(
            {"id": number, "data": {"query": query, "text": text}, "annotations": [{"id": number, "result": result}]}
        )
    path.write_text(json.dumps(tasks))


def argilla(path: Path) -> None:
    rows = [
        {
            "id": str(number),
            "status": "completed",
            "fields": {"question": query, "passage": text},
            "responses": {"relevance": [{"value": answer, "user_id": "one", "status": "submitted"}]},
        }
        for number, (query, text, answer) in enumerate(judged("yes", "no"))
    ]
    path.write_text("\n".join(map(json.dumps, rows)))


def sessions(path: Path) -> None:
    rows = []
    for number in range(QUERIES):
        query, right, wrong = texts(number)
        rows += [{"query": query, "documents": [wrong, right], "clicked": [1]}]
        # Another session in which nothing was clicked.
        rows += [{"query": query, "documents": [right, wrong], "clicked": None}]
    path.write_text("\n".join(map(json.dumps, rows)))


def workbook(path: Path) -> None:
    import openpyxl

    book = openpyxl.Workbook()
    sheet = book.active
    sheet.append(["Frage", "Antwort", "Bewertung", "Datum"])
    for row in judged(True, False):
        sheet.append([*row, datetime.date(2024, 5, 1)])
    book.create_sheet("empty")
    book.save(path)


def spreadsheet(path: Path, separator: str, encoding: str) -> None:
    """A table as Excel exports it on a German machine."""
    rows = [["Frage", "Antwort", "Bewertung"], *((f"{q} \u2013 für Käufer?", d, x) for q, d, x in judged("ja", "nein"))]
    text = "".join(separator.join(map(str, row)) + "\r\n" for row in rows)
    path.write_bytes(text.encode(encoding))


def joined(folder: Path, header: Sequence[Sequence[str]], names: Sequence[str], yes: object, no: object) -> None:
    """Tables of queries, documents and labels, joined by ids."""
    folder.mkdir()
    sides: tuple[dict[str, int], dict[str, int]] = {}, {}
    pairs = []
    for query, text, label in judged(yes, no):
        places = [side.setdefault(one, len(side)) for side, one in zip(sides, (query, text), strict=True)]
        pairs.append([*places, label, "anna"])
    for name, columns, side in zip(names, header, sides, strict=False):
        write_csv(folder / name, columns, [[place, text, "2024-05-01"] for text, place in side.items()])
    write_csv(folder / names[2], header[2], pairs)


CASES: dict[str, tuple[str, Callable[[Path], None], dict[str, str], dict[str, float]]] = {
    "booleans of a spreadsheet": (
        "table.csv",
        lambda path: write_csv(path, ["query", "passage", "label"], judged("TRUE", "FALSE")),
        {},
        {},
    ),
    "booleans of JSON": (
        "table.jsonl",
        lambda path: (
            path.write_text(
                "\n".join(json.dumps({"query": q, "document": d, "label": x}) for q, d, x in judged(True, False))
            )
            and None
        ),
        {},
        {},
    ),
    "words for yes and no": (
        "table.csv",
        lambda path: write_csv(path, ["question", "answer", "relevant"], judged("yes", "no")),
        {"label": "relevant"},
        {"no": 0, "yes": 1},
    ),
    "German": (
        "tabelle.csv",
        lambda path: write_csv(path, ["Suchanfrage", "Antwort", "Relevanz"], judged("ja", "nein")),
        {"query": "Suchanfrage", "document": "Antwort", "label": "Relevanz"},
        {"ja": 1, "nein": 0},
    ),
    "French": (
        "table.csv",
        lambda path: write_csv(path, ["Requ\u00eate", "R\u00e9ponse", "Pertinence"], judged(2, 0)),
        {"query": "Requ\u00eate", "document": "R\u00e9ponse", "label": "Pertinence"},
        {},
    ),
    "Spanish": (
        "tabla.csv",
        lambda path: write_csv(path, ["Pregunta", "Respuesta", "Relevancia"], judged(1, 0)),
        {"query": "Pregunta", "document": "Respuesta", "label": "Relevancia"},
        {},
    ),
    "columns of one's own": (
        "table.csv",
        lambda path: write_csv(path, ["query", "doc_text", "rating"], judged(3, 0)),
        {"document": "doc_text", "query": "query", "label": "rating"},
        {},
    ),
    "a log of clicks, one row for each document": (
        "log.csv",
        lambda path: write_csv(path, ["query", "document", "clicked"], [*judged(1, 0), *judged(0, 0)]),
        {},
        {},
    ),
    "a log of clicks, one row for each session": ("log.jsonl", sessions, {}, {}),
    "Label Studio": (
        "project-1.json",
        label_studio,
        {"query": "data.query", "document": "data.text", "label": "annotations.0.result.0.value.choices"},
        {"Not relevant": 0, "Relevant": 1},
    ),
    "CSV of a German Excel": (
        "tabelle.csv",
        lambda path: spreadsheet(path, ";", "cp1252"),
        {"query": "Frage", "document": "Antwort", "label": "Bewertung"},
        {"ja": 1, "nein": 0},
    ),
    "Unicode text of Excel": (
        "tabelle.txt",
        lambda path: spreadsheet(path, "\t", "utf-16"),
        {"query": "Frage", "document": "Antwort", "label": "Bewertung"},
        {"ja": 1, "nein": 0},
    ),
    "tables joined by ids": (
        "shop",
        lambda path: joined(
            path,
            [["id", "query", "created"], ["id", "text", "created"], ["query_id", "doc_id", "label", "annotator"]],
            ["queries.csv", "documents.csv", "labels.csv"],
            *(1, 0),
        ),
        {},
        {},
    ),
    "German tables joined by ids": (
        "laden",
        lambda path: joined(
            path,
            [
                ["AnfrageNr", "Anfrage", "Datum"],
                ["DokId", "Inhalt", "Datum"],
                ["AnfrageNr", "DokId", "Relevanz", "Wer"],
            ],
            ["Suchanfragen.csv", "Dokumente.csv", "Bewertungen.csv"],
            *("ja", "nein"),
        ),
        {"document_id": "DokId"},
        {"ja": 1, "nein": 0},
    ),
    "an Excel workbook": (
        "table.xlsx",
        workbook,
        {"query": "Frage", "document": "Antwort", "label": "Bewertung"},
        {},
    ),
    "Argilla": (
        "records.jsonl",
        argilla,
        {"query": "fields.question", "document": "fields.passage", "label": "responses.relevance.0.value"},
        {"no": 0, "yes": 1},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_files_of_companies_are_read_as_they_are(tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    name, write, columns, labels = CASES[case]
    write(tmp_path / name)
    check = data_check.check_path(tmp_path / name, None, None)
    assert check.count("error") == 0, [problem.what for problem in check.problems]
    (row,) = check.statistics["train" if "train" in check.statistics else next(iter(check.statistics))]
    assert (row["queries"], row["judgements"]) == (QUERIES, 2 * QUERIES)
    said = capsys.readouterr().out
    assert ("position bias" in said) == ("clicks" in case)

    output = tmp_path / "recipe.yaml"
    init([tmp_path / name], output, base=BASE, name=None, fraction=0.25, wishes=Wishes({}, {}, "stop"))
    said = capsys.readouterr().out
    assert all(theirs in said for theirs in [*columns.values(), *labels])
    loaded = load_recipe(str(output), ["mine.depth=10"])
    pipeline = Pipeline(loaded, RunFolder(tmp_path / "run"), progress=False)
    assert pipeline.check() and pipeline.mine()["queries"] > 0


@pytest.mark.parametrize("case", CASES)
def test_the_labels_are_those_of_the_file(tmp_path: Path, case: str) -> None:
    name, write, columns, labels = CASES[case]
    write(tmp_path / name)
    read = read_collection(tmp_path / name, name="set", columns=columns, labels=labels, say=lambda line: None)
    assert len(read.queries) == QUERIES
    found = {
        (read.queries[query], read.corpus[document]): label
        for query, judgements in read.qrels.items()
        for document, label in judgements.items()
    }
    for number in range(QUERIES):
        query, right, wrong = texts(number)
        query += " \u2013 für Käufer?" if "of a German" in case or "Unicode" in case else ""
        assert found[query, right] > 0 and found[query, wrong] == 0


def test_columns_that_cannot_be_told_are_a_draft_and_a_question(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    write_csv(path, ["a", "b", "c"], judged(1, 0))
    output = tmp_path / "recipe.yaml"
    with pytest.raises(UserError, match=r"Which one is the query and which one the document\? .*--columns query=a"):
        init([path], output, base=BASE, name=None, fraction=0.25, wishes=Wishes({}, {}, "stop"))
    draft = load_recipe(str(output)).recipe
    assert draft.data.train[0].columns == {"query": "FILL_IN", "document": "FILL_IN", "label": "FILL_IN"}
    output.unlink()
    done = jobs.rankwright(
        *("init", path, "--columns", "query=a", "document=b", "label=c", "-o", output, "--base", BASE)
    )
    assert done.returncode == 0, done.stderr
    assert "judgements (labels 0, 1)" in done.stdout
    done = jobs.rankwright("data", "check", path, "--columns", "query=a,document=b,label=c")
    assert done.returncode == 0 and "48" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("columns", "labels", "fault"),
    [
        ({"label": "annotations.0.result.0.value.choice"}, {}, "did you mean 'annotations.0.result.0.value.choices'?"),
        ({"label": "value.choices"}, {}, "no column 'value.choices' for label"),
        ({"group": "data.case"}, {}, "no column 'data.case' for group"),
        ({"negatives": "data.negatives"}, {}, "no column 'data.negatives' for negatives"),
        ({}, {"Relevant": 1}, "the label of document is 'Not relevant', needs a number"),
        ({}, {}, "give `labels: {Relevant: 1, ...}`"),
    ],
)
def test_a_path_that_no_row_has_and_a_label_that_cannot_be_read_are_faults(
    tmp_path: Path, columns: dict[str, str], labels: dict[str, float], fault: str
) -> None:
    label_studio(tmp_path / "tasks.json")
    named = {"query": "data.query", "document": "data.text", "label": "annotations.0.result.0.value.choices.0"}
    with pytest.raises(UserError) as caught:
        read_collection(tmp_path / "tasks.json", name="s", columns={**named, **columns}, labels=labels)
    assert fault in str(caught.value)


def test_rows_without_a_label_are_faults_and_not_relevant(tmp_path: Path) -> None:
    label_studio(tmp_path / "tasks.json")
    tasks: list[dict[str, Any]] = json.loads((tmp_path / "tasks.json").read_text())
    for task in tasks[:60:3]:
        task["annotations"] = []
    (tmp_path / "tasks.json").write_text(json.dumps(tasks))
    named = {"query": "data.query", "document": "data.text", "label": "annotations.0.result.0.value.choices.0"}
    with pytest.raises(UserError, match=r"has no label: .*\(16 lines like this: "):
        read_collection(tmp_path / "tasks.json", name="s", columns=named, labels={"Relevant": 1, "Not relevant": 0})


@pytest.mark.parametrize(
    ("clicked", "found"),
    [
        ([True, False, False], ["a"]),
        ([0, 1, 1], ["b", "c"]),
        ([2], ["c"]),
        (1, ["b"]),
        (["b"], ["b"]),
        ("c", ["c"]),
        ([], []),
        (None, []),
    ],
)
def test_what_was_clicked_in_a_list(tmp_path: Path, clicked: object, found: list[str]) -> None:
    rows = [{"query": "q", "documents": ["a", "b", "c"], "clicked": clicked}]
    rows += [{"query": "other", "documents": ["a", "d"], "clicked": [1]}]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, rows)))
    read = read_collection(tmp_path / "log.jsonl", name="s", format="clicks", say=lambda line: None)
    (query,) = [q for q, text in read.queries.items() if text == "q"]
    assert [read.corpus[d] for d, label in read.qrels[query].items() if label > 0] == found


@pytest.mark.parametrize("clicked", [[7], ["x"], [1.5], "nothing"])
def test_clicks_that_cannot_be(tmp_path: Path, clicked: object) -> None:
    rows = [{"query": "q", "documents": ["a", "b", "c"], "clicked": clicked}]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(UserError, match="needs marks"):
        read_collection(tmp_path / "log.jsonl", name="s", format="clicks")


def test_workbooks_that_cannot_be_read(tmp_path: Path) -> None:
    import openpyxl

    def fault(path: Path) -> str:
        with pytest.raises(UserError) as caught:
            read_collection(path, name="s")
        return str(caught.value)

    book = openpyxl.Workbook()
    book.active.append(["query", "document"])
    book.active.append(["a", "b"])
    book.create_sheet("more").append(["query", "document"])
    book.save(tmp_path / "two.xlsx")
    assert "2 sheets have rows ('Sheet', 'more')" in fault(tmp_path / "two.xlsx")
    wide = openpyxl.Workbook()
    for row in (["query", "document"], ["a", "b", None], ["c", "d", "lost"]):
        wide.active.append(row)
    wide.save(tmp_path / "wide.xlsx")
    assert "row 3: 3 cells, the header has 2 columns" in fault(tmp_path / "wide.xlsx")
    twice = openpyxl.Workbook()
    twice.active.append(["query", "query"])
    twice.save(tmp_path / "twice.xlsx")
    assert "row 1: two columns are named 'query'" in fault(tmp_path / "twice.xlsx")
    whole = (tmp_path / "two.xlsx").read_bytes()
    (tmp_path / "cut.xlsx").write_bytes(whole[: len(whole) // 2])
    assert "damaged Excel workbook" in fault(tmp_path / "cut.xlsx")
    (tmp_path / "flipped.xlsx").write_bytes(whole[:200] + bytes([whole[200] ^ 255]) + whole[201:])
    assert "\n" not in fault(tmp_path / "flipped.xlsx")
    (tmp_path / "old.xls.csv").write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600))
    assert "old Excel workbook" in fault(tmp_path / "old.xls.csv")


@pytest.mark.slow
def test_german_tables_in_cp1252_become_an_export_whose_texts_are_right(tmp_path: Path, tiny_qwen3: Path) -> None:
    header = [
        ["AnfrageNr", "Anfrage", "Datum"],
        ["DokId", "Inhalt", "Datum"],
        ["AnfrageNr", "DokId", "Relevanz", "Wer"],
    ]
    names = ["Suchanfragen.csv", "Dokumente.csv", "Bewertungen.csv"]
    joined(tmp_path / "Größe", header, names, "ja", "nein")
    for name in names:
        text = (tmp_path / "Größe" / name).read_text(encoding="utf-8")
        german = text.replace("what does", "für wen gilt \u2013").replace("must be", "müsse").replace(",", ";")
        (tmp_path / "Größe" / name).write_bytes(german.encode("cp1252"))
    done = jobs.rankwright("init", "Größe", "-o", "recipe.yaml", "--base", tiny_qwen3, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("read as cp1252, a guess") == 2
    settings = ["train.max_steps=2", "train.groups_per_step=2", "mine.depth=10", "evaluate.depth=8", "gate=null"]
    done = jobs.rankwright("run", "recipe.yaml", *settings, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "Grosse"
    rows = [json.loads(line) for line in (run / "data" / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rows and all(row["query"].startswith("für wen gilt \u2013 rule") for row in rows)
    scores = Reranker.load(str(run / "export" / "hf")).score(rows[0]["query"], ["Es müsse so sein.", "Nein."])
    assert len(scores) == 2 and all(map(math.isfinite, scores))

"""`rankwright data check`: all faults with file and line, exit codes, JSON, places of texts in any file with lines."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import jobs
import pytest
from format_fixtures import write_trec
from typer.testing import CliRunner

from rankwright.cli import data as data_check_output
from rankwright.cli import data_check
from rankwright.cli.main import app
from rankwright.common.errors import UserError
from rankwright.data.discovery import find_lines, find_sets, our_split, wanted_judgement, wanted_text
from rankwright.recipe.loading import load_recipe

DOCUMENTS = [
    ("d1", "donâ€™t worry about the bond"),
    ("d2", "bad \ufffd char"),
    ("d3", ""),
    ("d4", "Same text here"),
    ("d5", "same  text HERE"),
    ("d6", "ctrl \x07 bell"),
    ("d7", "nobody judged this one"),
]
QUERIES = [("q1", "one bond"), ("q2", "ONE bond"), ("q3", "three"), ("q4", "four")]
QRELS = ["q1\td4\t1", "q2\td5\t0", "q3\td6\t0", "q1\tdX\t1", "qZ\td1\t1", "q4\td1\thigh"]


def write_bad(folder: Path) -> Path:
    rows = [json.dumps({"_id": i, "title": "T" if i == "d6" else "", "text": text}) for i, text in DOCUMENTS]
    rows += ['{"_id": "d9"', '{"_id": "d1", "text": "again"}', '{"_id": "s", "text": "\\ud83d"}']
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text("\n".join(rows), encoding="utf-8")
    (folder / "queries.jsonl").write_text("\n".join(json.dumps({"_id": i, "text": t}) for i, t in QUERIES))
    (folder / "qrels" / "train.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *QRELS]))
    return folder


def places(check: data_check.DataCheck, kind: str) -> list[tuple[str, ...]]:
    return [e.where or (e.what,) for p in check.problems if p.kind == kind for e in p.examples]


def test_every_fault_has_its_line(tmp_path: Path) -> None:
    folder = write_bad(tmp_path / "bad")
    check = data_check.check_path(folder, None, None)
    corpus, queries, qrels = (f"{folder}/{name}" for name in ("corpus.jsonl", "queries.jsonl", "qrels/train.tsv"))
    for kind, where in {
        "not JSON": f"{corpus}:8",
        "id ... appears a second time": f"{corpus}:9",
        "`text` holds half of a character": f"{corpus}:10",
        "the judgement names a document that is not in the corpus": f"{qrels}:5",
        "the judgement names a query that is not in the queries": f"{qrels}:6",
        "score ... is not a number": f"{qrels}:7",
    }.items():
        [(what,)] = places(check, kind)
        assert what.startswith(f"{where}: "), kind
    assert places(check, "mojibake") == [(f"{corpus}:1",)]
    assert places(check, "replacement characters (U+FFFD)") == [(f"{corpus}:2",)]
    assert places(check, "empty") == [(f"{corpus}:3",)]
    # The title was joined to the text.
    assert places(check, "control characters") == [(f"{corpus}:6",)]
    assert places(check, "exact duplicates") == [
        (f"{corpus}:4", f"{corpus}:5"),
        (f"{queries}:1", f"{queries}:2"),
    ]
    assert places(check, "conflicting labels") == [(f"{qrels}:2", f"{qrels}:3")]
    assert places(check, "no positive") == [(f"{queries}:2",), (f"{queries}:3",)]
    assert places(check, "no judgement") == [(f"{queries}:4",)]
    [row] = check.statistics["train"]
    assert row["rows_with_faults"] == 6 and row["unused_documents"] == 4
    assert check.count("error") == 6
    text = json.dumps(data_check_output.as_json(check), allow_nan=False)
    assert json.loads(text)["errors"] == 6


def test_a_recipe_is_checked_with_its_tokenizer_and_between_its_splits(tmp_path: Path, tiny_qwen3: Path) -> None:
    recipe = jobs.job(tmp_path, tiny_qwen3, prompt={"max_tokens": 96, "query_tokens": 4})
    held_out = tmp_path / "sets" / "held-out" / "queries.jsonl"
    query = json.loads((tmp_path / "sets" / "one" / "queries.jsonl").read_text().splitlines()[0])["text"]
    rows = [json.loads(line) for line in held_out.read_text().splitlines()]
    rows[0]["text"] = query.upper()
    held_out.write_text("\n".join(map(json.dumps, rows)))
    check = data_check.check_recipe(load_recipe(str(recipe)))
    assert "at most 96, the query at most 4" in check.tokens
    assert list(check.statistics) == ["train", "test"]
    assert check.statistics["train"][0]["tokens"]["queries"]["cut"] > 20
    errors = [p.what for p in check.problems if p.level == "error"]
    assert len(errors) == 1 and "is in test too: same query 1" in errors[0]
    check = data_check.check_recipe(load_recipe(str(recipe), ["data.on_leak=drop"]))
    assert check.count("error") == 0
    assert any("1 query is in test too, dropped by on_leak: drop" in p.what for p in check.problems)


def test_a_tokenizer_that_cannot_be_had_is_said(tmp_path: Path) -> None:
    recipe = jobs.job(tmp_path, "nobody/nothing")
    check = data_check.check_recipe(load_recipe(str(recipe)))
    assert check.tokens.startswith("no lengths in tokens: the tokenizer cannot be had")
    assert check.count("error") == 0 and "tokens" not in check.statistics["train"][0]


def test_what_would_stop_a_run_beyond_rows(tmp_path: Path) -> None:
    folder = jobs.write_set(tmp_path / "s", "test", first=0, queries=3)
    qrels = folder / "qrels" / "test.tsv"
    qrels.write_text(qrels.read_text().replace("\t1\n", "\t1.5\n"))
    [problem] = [p for p in data_check.check_path(folder, None, None).problems if p.level == "error"]
    assert "the label 1.5 is not a whole number" in problem.what
    (folder / "corpus.jsonl").unlink()
    [problem] = [p for p in data_check.check_path(folder, None, None).problems if p.level == "error"]
    assert "no file corpus.jsonl" in problem.what


BROKEN_RUNS = {
    "q1 Q0 d1 1 10,5 x\n": ":1: score '10,5' is not a finite number: write a point in place of the comma",
    "q1 Q0 d1 1 1_0 x\n": ":1: score '1_0' is not a finite number",
    "q1 Q0 d1 1 2.5\n": ":1: 5 columns, needs 6",
    "q1 Q0 d1 1 2.5 x\nq1 Q0 d1 2 2 x\n": ":2: document 'd1' appears twice for query 'q1'",
    "zz Q0 d1 1 2.5 x\n": ": has nothing in common with the set (none of its queries, such as 'zz')",
    "": ": has nothing in common with the set (it is empty)",
}


@pytest.mark.parametrize(
    ("text", "expected", "split"),
    [*((*row, "test") for row in BROKEN_RUNS.items()), (*next(iter(BROKEN_RUNS.items())), "train")],
)
def test_run_files_are_read(tmp_path: Path, text: str, expected: str, split: str) -> None:
    recipe = jobs.job(tmp_path, "nobody/nothing")
    run = tmp_path / "list.run"
    run.write_text(text)
    options = [f"data.{split}.0.run={run}", *(["mine.retriever=run"] if split == "train" else [])]
    check = data_check.check_recipe(load_recipe(str(recipe), options))
    [problem] = [p for p in check.problems if p.level == "error"]
    assert problem.split == split and problem.what.startswith(f"{run}{expected}")


def test_the_run_file_of_a_trec_folder_is_read(tmp_path: Path) -> None:
    folder = write_trec(tmp_path / "set")
    (folder / "bm25.run").write_text("q1 Q0 d1 1 x x\n")
    [problem] = [p for p in data_check.check_path(folder, None, None).problems if p.level == "error"]
    assert problem.what.startswith(f"{folder / 'bm25.run'}:1: score 'x' is not a finite number")


def test_exit_codes_and_json(tmp_path: Path) -> None:
    clean = jobs.write_set(tmp_path / "clean", "train", first=0, queries=5)
    done = jobs.rankwright("data", "check", clean, "--json", tmp_path / "found.json")
    assert done.returncode == 0, done.stderr
    assert "clean: nothing found\nNext:\n    rankwright init " in done.stdout
    assert json.loads((tmp_path / "found.json").read_text())["statistics"]["train"][0]["queries"] == 5
    done = jobs.rankwright("data", "check", write_bad(tmp_path / "bad"))
    assert done.returncode == 2 and "corpus.jsonl:8: not JSON" in done.stdout and not done.stderr
    queries = clean / "queries.jsonl"
    queries.write_text(queries.read_text() + '{"_id": "more", "text": "a query more"}\n')
    (clean / "qrels" / "train.tsv").open("a").write("more\td1\t0\n")
    assert jobs.rankwright("data", "check", clean).returncode == 0
    done = jobs.rankwright("data", "check", clean, "--strict")
    assert done.returncode == 2 and "queries.jsonl:6 'more'" in done.stdout


def test_splits_of_a_path(tmp_path: Path) -> None:
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"query": name, "positives": [f"of {name}"]}))
    assert list(data_check.check_path(tmp_path, None, None).statistics) == ["train", "test"]
    assert list(data_check.check_path(tmp_path, "test", None).statistics) == ["test"]
    with pytest.raises(UserError, match=r"unknown split 'tset', did you mean 'test'\? \(known: test, train\)"):
        data_check.check_path(tmp_path, "tset", None)


def test_what_the_splits_of_a_path_share_is_a_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"query": "the same", "positives": [f"of {name}"]}))
    [problem] = [p for p in data_check.check_path(tmp_path, None, None).problems if p.level == "error"]
    assert problem.what.startswith("data.train: 1 of 1 query is in test too: same query 1")
    capsys.readouterr()
    assert not data_check.check_path(tmp_path, "test", None).problems
    # Where there is nothing to compare, nothing is said to be apart.
    assert "leakage" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train.jsonl", "train"),
        ("my-valid.jsonl.gz", "dev"),
        ("questions_test_v2.csv", "test"),
        ("trainer.jsonl", None),
        ("contest.jsonl", None),
        ("Validation", "dev"),
    ],
)
def test_names_of_splits(name: str, split: str | None) -> None:
    assert our_split(name) == split


def test_sets_are_found_in_folders_of_any_shape(tmp_path: Path) -> None:
    jobs.write_set(tmp_path / "law" / "train", "train", first=0, queries=2)
    jobs.write_set(tmp_path / "law" / "test", "test", first=5, queries=2)
    (tmp_path / "money").mkdir()
    for name in ("train-0", "train-1", "test", "notes"):
        (tmp_path / "money" / f"{name}.jsonl").write_text("{}")
    (tmp_path / "money" / "README.md").write_text("x")
    found = [(f.name, f.path.relative_to(tmp_path).as_posix(), f.split, f.upstream) for f in find_sets(tmp_path)]
    assert sorted(found, key=str) == sorted(
        [
            ("law", "law/train", "train", "train"),
            ("law", "law/test", "test", "test"),
            ("money", "money", "train", "train"),
            ("money", "money/test.jsonl", "test", None),
            ("notes", "money/notes.jsonl", None, None),
        ],
        key=str,
    )
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no data found"):
        find_sets(tmp_path / "empty")


def test_places_in_lines_of_any_form(tmp_path: Path) -> None:
    rows: list[Any] = [
        {"messages": [{"role": "user", "content": "which bond?"}], "positive_messages": [[{"content": " a loan "}]]},
        {"query": "which loan?", "pos": ["a bond"], "n": 7, "none": None, "deep": [[["inner"]]]},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(b'query,document\n"which, then?","a ""quoted"" one"\n'))
    (tmp_path / "test.tsv").write_text("q1\td1\t1\nq1\td2\t0\n")
    wanted = [
        wanted_text("no-id", "a loan"),
        wanted_text("7", "inner"),
        wanted_text("x", 'a "quoted" one'),
        wanted_judgement(("q1", "d2"), ("?", "?")),
        wanted_judgement(("m", "n"), ("which loan?", "a bond")),
        wanted_text("gone", "not there"),
    ]
    found = find_lines(wanted, tmp_path, "test")
    assert {number: Path(place).name for number, place in found.items()} == {
        0: "a.jsonl:1",
        1: "a.jsonl:2",
        2: "b.csv.gz:2",
        3: "test.tsv:2",
        4: "a.jsonl:2",
    }


@pytest.mark.parametrize("whole", [list, lambda rows: {"data": list(rows)}])
def test_a_json_file_of_rows_is_data_and_one_of_a_recipe_is_a_recipe(tmp_path: Path, whole: Any) -> None:
    path, runner = tmp_path / "rows.json", CliRunner()
    path.write_text(json.dumps(whole([{"query": f"who pays {n}", "document": f"He pays {n}."} for n in range(4)])))
    done = runner.invoke(app, ["data", "check", str(path)])
    assert done.exit_code == 0 and "clean: nothing found" in done.output, done.output
    path.write_text(json.dumps({"name": "a", "model": {"base": "b"}}))
    refused = runner.invoke(app, ["data", "check", str(path)])
    assert "data: missing" in str(refused.exception)

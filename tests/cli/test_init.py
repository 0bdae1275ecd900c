"""`rankwright init` on files of several shapes: its recipe loads, passes `check`, and one is run to the end."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import jobs
import pytest
import yaml

from rankwright.cli.init import Wishes, init
from rankwright.cli.show import describe_recipe
from rankwright.common.errors import UserError, UserErrors
from rankwright.common.run_folder import RunFolder
from rankwright.data.collection import Collection
from rankwright.data.discovery import take_test, write_taken
from rankwright.data.formats.read import read_collection
from rankwright.data.guesses import guess_columns
from rankwright.data.statistics import share_of_code
from rankwright.evaluation.gate import GateRefused
from rankwright.model.lengths import choose_budget
from rankwright.pipeline.stages import Pipeline
from rankwright.recipe.loading import LoadedRecipe, load_recipe

FIXTURES = jobs.REPOSITORY / "data" / "fixtures"
BASE = "fixtures/tiny-base"


def write(*paths: Path, output: Path, **options: Any) -> LoadedRecipe:
    wishes = Wishes(options.pop("columns", {}), options.pop("labels", {}), options.pop("on_fault", "stop"))
    init(paths, output, **{"base": BASE, "name": None, "fraction": 0.2, "wishes": wishes, **options})
    return load_recipe(str(output))


def passes_check(loaded: LoadedRecipe, folder: Path) -> dict[str, Any]:
    """What `rankwright check` does to the data; the report it makes."""
    pipeline = Pipeline(loaded, RunFolder(folder))
    pipeline.start()
    pipeline.data()
    report: dict[str, Any] = json.loads((folder / "data_report.json").read_text())
    return report


def groups_file(path: Path, source: Path, **more: Any) -> Path:
    read = read_collection(source, name="s", split=source.name)
    rows = [
        {"query": text, "positives": [read.corpus[d] for d in read.positives(q)], "negatives": [], **more}
        for q, text in read.queries.items()
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_a_folder_with_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    shutil.copytree(FIXTURES / "code", tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    loaded = write(Path("mine"), output=Path("recipe.yaml"))
    out = capsys.readouterr().out
    assert "rankwright check recipe.yaml\n    rankwright run recipe.yaml" in out
    recipe = loaded.recipe
    assert recipe.name == "mine" and recipe.bm25.code
    assert [(s.name, s.path, s.split) for s in recipe.data.train] == [("mine", "mine/train", "train")]
    assert [(s.name, s.path, s.split) for s in recipe.data.test] == [("mine", "mine/test", "test")]
    assert "licence: own" in Path("recipe.yaml").read_text()
    report = passes_check(loaded, tmp_path / "run")
    pairs = report["splits"]["train"][0]["tokens"]["judged_pairs"]
    # The budget holds what it says it holds.
    assert pairs["cut"] <= 0.1 * pairs["pairs"]


def test_the_same_rows_in_two_formats_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    rows = [(f"question {i} of {i % 7}", f"text {i} about {j}", int(j == 0)) for i in range(20) for j in range(2)]
    names = ("query", "document", "label")
    (tmp_path / "shop").mkdir()
    monkeypatch.chdir(tmp_path / "shop")
    with Path("sales.csv").open("w", newline="") as file:
        csv.writer(file).writerows([names, *rows])
    # The same rows in another order.
    Path("sales.jsonl").write_text("\n".join(json.dumps(dict(zip(names, row, strict=True))) for row in rows[::-1]))
    loaded = write(Path(), output=Path("recipe.yaml"))
    out = capsys.readouterr().out
    assert "sales.csv and sales.jsonl hold the same rows, which count 2 times" in out
    assert "sales.csv: columns used: query, document, label" in out and "a folder in BEIR layout" in out
    assert loaded.recipe.name == "shop"
    assert {s.name for s in loaded.recipe.data.train} == {"sales-csv", "sales-jsonl"}


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    output = tmp_path / "r.yaml"
    write(FIXTURES / "legal", output=output)
    before = output.read_text()
    with pytest.raises(UserError, match="is there already, and is not overwritten: remove it, or use -o OTHER"):
        write(FIXTURES / "legal", output=output)
    assert output.read_text() == before
    (tmp_path / "new-data").mkdir()
    file = groups_file(tmp_path / "all.jsonl", FIXTURES / "legal" / "train")
    with pytest.raises(UserError, match=r"new-data is there already"):
        write(file, output=tmp_path / "new.yaml")
    assert not (tmp_path / "new.yaml").exists()


def test_one_file_gets_a_test_set_taken_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    groups_file(Path("my own questions.jsonl"), FIXTURES / "finance" / "train")
    loaded = write(Path("my own questions.jsonl"), output=Path("fin.yaml"), fraction=0.25)
    assert "50 of 200 queries (25% asked for) were taken out" in capsys.readouterr().out
    assert not loaded.recipe.bm25.code
    report = passes_check(loaded, tmp_path / "run")
    counts = {split: sum(row["queries"] for row in rows) for split, rows in report["splits"].items()}
    assert counts == {"train": 126, "dev": 24, "test": 50}
    # Both have the whole corpus, so that the test set is not made easier.
    assert {row["documents"] for rows in report["splits"].values() for row in rows} == {90}


def test_a_recipe_works_from_any_folder_and_moves_with_its_data(
    tmp_path: Path, tiny_qwen3: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, moved, elsewhere = (tmp_path / name for name in ("project", "moved", "elsewhere"))
    shutil.copytree(tiny_qwen3, project / "bases" / "small")
    for folder in (project / "recipes", elsewhere):
        folder.mkdir()
    for split in ("train", "test"):
        groups_file(project / f"{split}.jsonl", FIXTURES / "legal" / split)
    monkeypatch.chdir(project)
    loaded = write(Path("train.jsonl"), Path("test.jsonl"), base="bases/small", output=Path("recipes/mine.yaml"))
    written = yaml.safe_load(Path("recipes/mine.yaml").read_text())
    assert written["model"]["base"] == "../bases/small" and written["data"]["train"][0]["path"] == "../train.jsonl"
    here = Pipeline(loaded).inputs
    before = (here.data, here.train, here.scores)
    monkeypatch.chdir(elsewhere)
    project.rename(moved)
    there = Pipeline(load_recipe(moved / "recipes" / "mine.yaml")).inputs
    assert (there.data, there.train, there.scores) == before
    done = jobs.rankwright("mine", "../moved/recipes/mine.yaml", "mine.depth=5", cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    # What is written lies where the command was given.
    assert (elsewhere / "runs" / "mine" / "negatives.jsonl").is_file()


def test_files_named_after_splits_and_one_that_is_not(tmp_path: Path, capsys: Any) -> None:
    for name, half in (("questions-train", "train"), ("questions-test", "test"), ("other", "test")):
        groups_file(tmp_path / f"{name}.jsonl", FIXTURES / "legal" / half)
    loaded = write(tmp_path, output=tmp_path / "r.yaml")
    assert "other.jsonl: left out, no split in its name" in capsys.readouterr().out
    assert [Path(s.path or "").name for s in loaded.recipe.data.train] == ["questions-train.jsonl"]
    assert [Path(s.path or "").name for s in loaded.recipe.data.test] == ["questions-test.jsonl"]
    passes_check(loaded, tmp_path / "run")


def test_a_leak_is_written_down(tmp_path: Path) -> None:
    for split in ("train", "test"):
        groups_file(tmp_path / f"{split}.jsonl", FIXTURES / "legal" / split)
    first = (tmp_path / "test.jsonl").read_text().splitlines()[0]
    (tmp_path / "train.jsonl").write_text((tmp_path / "train.jsonl").read_text() + "\n" + first)
    loaded = write(tmp_path, output=tmp_path / "r.yaml")
    assert loaded.recipe.data.on_leak == "drop"
    assert "1 of 201 queries is in test too: same query 1" in (tmp_path / "r.yaml").read_text()
    assert passes_check(loaded, tmp_path / "run")["leakage"]


def test_faults_are_told_and_dropped_when_wanted(tmp_path: Path) -> None:
    file = groups_file(tmp_path / "train.jsonl", FIXTURES / "legal" / "train")
    file.write_text(file.read_text() + "\n{\n")
    with pytest.raises(UserErrors) as caught:
        write(file, output=tmp_path / "r.yaml")
    assert "train.jsonl:201: not JSON" in caught.value.messages[0] and "--drop-faults" in caught.value.messages[-1]
    loaded = write(file, output=tmp_path / "r.yaml", on_fault="drop")
    assert loaded.recipe.data.on_fault == "drop"
    passes_check(loaded, tmp_path / "run")


def test_a_table_whose_columns_have_names_of_their_own(tmp_path: Path) -> None:
    read = read_collection(FIXTURES / "legal" / "train", name="s", split="train")
    with (tmp_path / "support.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["row_id", "Customer question", "Paragraph text", "url"])
        for number, (q, text) in enumerate(read.queries.items()):
            table.writerow([number, text, read.corpus[next(iter(read.positives(q)))], "https://example.org"])
    loaded = write(tmp_path / "support.csv", output=tmp_path / "r.yaml")
    # What is taken apart is written with our names.
    assert loaded.recipe.data.train[0].columns == {}
    passes_check(loaded, tmp_path / "run")
    shutil.copy(tmp_path / "support.csv", tmp_path / "train.csv")
    groups_file(tmp_path / "test.jsonl", FIXTURES / "legal" / "test")
    loaded = write(tmp_path / "train.csv", tmp_path / "test.jsonl", output=tmp_path / "two.yaml")
    assert loaded.recipe.data.train[0].columns == {"query": "Customer question", "document": "Paragraph text"}
    assert "GUESSED" in (tmp_path / "two.yaml").read_text()
    report = passes_check(loaded, tmp_path / "run2")
    assert sum(row["queries"] for s in ("train", "dev") for row in report["splits"][s]) == len(read.queries)


def test_labels_of_another_name_beside_names_we_know(tmp_path: Path) -> None:
    lines = [f"question {n},text {n},1\nquestion {n},other {n},0" for n in range(30)]
    (tmp_path / "train.csv").write_text("\n".join(["sentence1,sentence2,Relevance", *lines]))
    loaded = write(tmp_path / "train.csv", output=tmp_path / "r.yaml")
    assert "labels 0, 1" in (tmp_path / "r.yaml").read_text()
    report = passes_check(loaded, tmp_path / "run")
    assert sum(row["judgements"] for rows in report["splits"].values() for row in rows) == 60
    lines = [f"claim {n * 7},answer {n * 7},yes\nclaim {n * 7},river {n * 7},no" for n in range(30)]
    (tmp_path / "test.csv").write_text("\n".join(["question,answer,relevant", *lines]))
    loaded = write(tmp_path / "train.csv", tmp_path / "test.csv", output=tmp_path / "text.yaml")
    (test,) = loaded.recipe.data.test
    assert test.columns == {"label": "relevant"} and test.labels == {"no": 0, "yes": 1}


def test_columns_are_guessed_by_whole_words() -> None:
    kinds = {"task": "text", "questionText": "text", "passage_id": "text", "Passages shown": "text", "code": "text"}
    assert guess_columns(kinds) == {"query": "questionText", "document": "code"}
    assert (
        guess_columns({"question": "text", "answer": "text", "Relevance (0-3)": "number"})["label"] == "Relevance (0-3)"
    )
    assert guess_columns({"question": "text", "answer": "text", "context": "text"}) == {"query": "question"}


def test_tables_of_other_trainers_are_told_by_their_content(tmp_path: Path) -> None:
    for split in ("train", "test"):
        read = read_collection(FIXTURES / "finance" / split, name="s", split=split)
        rows = [
            {"query": t, "pos": [read.corpus[d] for d in read.positives(q)], "neg": []} for q, t in read.queries.items()
        ]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    loaded = write(tmp_path, output=tmp_path / "r.yaml")
    assert "# flagembedding: 200 queries" in (tmp_path / "r.yaml").read_text()
    passes_check(loaded, tmp_path / "run")


@pytest.mark.parametrize("more", [{}, {"weights": {"q0": 2.0}}, {"teacher_scores": {"q1": {"d1": 0.5, "d9": -3.0}}}])
def test_nothing_of_a_set_is_lost_when_it_is_taken_apart(tmp_path: Path, more: dict[str, Any]) -> None:
    corpus = {f"d{i}": f"document number {i} of them" for i in range(20)}
    words = "bond loan court river town seller goods interest spring flood".split()
    queries = {f"q{i}": f"what is the {word} worth" for i, word in enumerate(words)}
    qrels = {f"q{i}": {f"d{i}": 2.0, f"d{(i + 8) % 20}": 0.0} for i in range(10)}
    whole = Collection("s", corpus, queries, qrels, **more)
    rest, test = take_test(whole, fraction=0.3, seed=0)
    paths = write_taken(tmp_path / "out", rest, test)
    sides = [
        read_collection(tmp_path / "out" / path, name="s", split=split if path == "." else None)
        for split, path in zip(("train", "test"), paths, strict=True)
    ]
    assert {**sides[0].queries, **sides[1].queries} == queries and len(sides[1].queries) == 3
    assert {**sides[0].qrels, **sides[1].qrels} == qrels
    assert sides[1].corpus == corpus
    assert dict(sides[0].weights) == {q: w for q, w in whole.weights.items() if q in rest.queries}
    assert dict(sides[0].teacher_scores) == {q: row for q, row in whole.teacher_scores.items() if q in rest.queries}


def test_ids_with_tabs_are_taken_apart_too(tmp_path: Path) -> None:
    queries = {f"q\t{i}": word for i, word in enumerate(["bond", "loan", "court", "river"])}
    whole = Collection("s", {f"d\t{i}": f"of {i}" for i in range(4)}, queries, {q: {f"d{q[1:]}": 1.0} for q in queries})
    paths = write_taken(tmp_path / "out", *take_test(whole, fraction=0.25, seed=0))
    sides = [read_collection(tmp_path / "out" / path, name="s") for path in paths]
    assert {**sides[0].qrels, **sides[1].qrels} == whole.qrels


def test_code_and_prose() -> None:
    for name, expected in (("code", True), ("finance", False), ("legal", False)):
        read = read_collection(FIXTURES / name / "train", name=name, split="train")
        assert (share_of_code(list(read.corpus.values())) >= 0.5) == expected


def test_budgets_without_a_tokenizer_are_said_to_be_estimates() -> None:
    budget = choose_budget(["short query"] * 20, ["word " * 300] * 20, [], None)
    assert "ESTIMATED" in budget.why and budget.max_tokens == 640 and budget.query_tokens is None
    long = choose_budget(["word " * 300] * 20, ["word " * 5000] * 20, [], None)
    assert long.max_tokens == 1024 and long.query_tokens == 500 and "more than is usual" in long.why


def test_the_command_and_a_run_of_what_it_wrote(tmp_path: Path) -> None:
    for split in ("train", "test"):
        shutil.copytree(FIXTURES / "finance" / split, tmp_path / "fin" / split)
    output = tmp_path / "fin.yaml"
    done = jobs.rankwright("init", tmp_path / "fin", "-o", output, "--base", BASE)
    assert done.returncode == 0 and f"written: {output}. Next:" in done.stdout, done.stderr
    quick = ["train.max_steps=2", "train.dev_queries=4", "evaluate.limit_queries=6", "evaluate.depth=5"]
    loaded = load_recipe(str(output), [*quick, "train.groups_per_step=2", "mine.negatives=2", "export.targets=[]"])
    pipeline = Pipeline(loaded, RunFolder(tmp_path / "run"))
    pipeline.start()
    describe_recipe(loaded, pipeline.ledger(), offline=False)
    # Two steps gain nothing, and the recipe asks for a gain of the combination over the search.
    with pytest.raises(GateRefused, match=r"(?s)combined - BM25 .* on dev nDCG@10 was"):
        pipeline.report()
    assert (tmp_path / "run" / "report.html").is_file()
    assert json.loads((tmp_path / "run" / "eval" / "fin" / "tuned" / "metrics.json").read_text())["queries"] == 6

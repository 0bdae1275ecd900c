"""`rankwright init` on documents without queries: the recipe that it writes, with and without queries of people."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner
from writer_server import documents

from rankwright.cli.main import app
from rankwright.recipe.loading import load_recipe


def folder(path: Path, count: int = 60) -> Path:
    path.mkdir()
    for number, row in enumerate(documents(count)):
        (path / f"d{number}.md").write_text(f"# About the {row['_id']} of the town\n\n{row['text']}\n")
    return path


def init(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["init", *map(str, arguments), "--base", "fixtures/tiny-base"])
    return done.exit_code, done.output + str(done.exception or "")


def test_a_bare_folder_of_documents_gets_a_recipe_that_writes_queries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "contracts")
    code, said = init("contracts")
    assert code == 0, said
    assert "documents: contracts: 60 documents, no queries" in said and "no test: name a file" in said
    recipe = load_recipe("recipe.yaml").recipe
    assert recipe.name == "contracts" and recipe.synthesize is not None and recipe.gate is None
    assert [one.path for one in recipe.synthesize.documents] == ["contracts"]
    assert [one.synthesized for one in recipe.data.train] == ["train"] and recipe.data.test == ()
    assert init("contracts")[0] != 0, "nothing is overwritten"


def test_queries_of_people_beside_them_become_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "docs")
    rows = [{"query": f"what is d{n}", "document": f"about d{n}"} for n in range(5)]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, said = init("docs", "asked.jsonl", "-o", "own.yaml")
    assert code == 0, said
    recipe = load_recipe("own.yaml").recipe
    assert isinstance(recipe.data.test, tuple) and [one.path for one in recipe.data.test] == ["asked.jsonl"]
    assert recipe.gate is not None and recipe.name == "own"


def test_too_few_documents_are_refused(tmp_path: Path) -> None:
    code, said = init(folder(tmp_path / "few", 5), "-o", tmp_path / "r.yaml")
    assert code != 0 and "no queries, and 5 passages that some could be written for: at least 50" in said
    assert not (tmp_path / "r.yaml").exists()

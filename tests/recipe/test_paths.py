"""Relative paths of a recipe: they start at the folder of the file that holds them, wherever it is run."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from rankwright.common.errors import UserError
from rankwright.data.sources import locate_all
from rankwright.recipe.loading import load_recipe, recipe_json
from rankwright.recipe.schema import Recipe


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recipe's files; the working directory is another one."""
    home = tmp_path / "home"
    for folder in ("home/sets/one", "home/bases/small", "home/bases/dense", "home/adapters", "elsewhere/sets/two"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("home/rows.jsonl", "home/lists.trec", "home/sets/lists.trec", "elsewhere/typed.jsonl"):
        (tmp_path / file).write_text("{}\n")
    monkeypatch.chdir(tmp_path / "elsewhere")
    return home


def loaded(path: Path, values: dict[str, object], *overrides: str) -> Recipe:
    rest = {"name": "r", "model": {"base": "bases/small"}, "data": {"test": [{"path": "rows.jsonl"}]}}
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump({**rest, **values}))
    return load_recipe(path, overrides).recipe


def test_every_path_of_a_file_starts_at_its_folder(home: Path) -> None:
    judge = {"name": "j", "url": "http://127.0.0.1:1", "model": "m"}
    recipe = loaded(
        home / "mine.yaml",
        {
            "data": {
                "train": [{"path": "rows.jsonl", "run": "lists.trec"}, {"path": "./sets/one"}],
                "test": [{"path": "fixtures/legal", "name": "a"}, {"path": str(home / "sets"), "name": "b"}],
                "dev": [{"card": "./own.yaml"}, {"card": "fiqa"}, {"hub": "sets/one"}, {"hub": "owner/set"}],
            },
            "dense": {"model": "bases/dense"},
            "mine": {
                "teacher": {"name": "t", "kind": "rankwright", "model": "adapters", "options": {"base": "bases/small"}}
            },
            "teacher": {"pairs": {"judges": [judge], "refine": {"student": "runs/first"}}},
            "evaluate": {"baselines": [{"name": "s", "kind": "served", "model": "adapters"}]},
            "licence": {"decisions": [{"input": "bases/small", "by": "me", "why": "mine"}]},
            "run_dir": "out",
        },
    )
    assert [(s.path, s.run) for s in recipe.data.train] == [
        (str(home / "rows.jsonl"), str(home / "lists.trec")),
        (str(home / "sets/one"), None),
    ]
    assert [s.path for s in recipe.data.test_sources] == ["fixtures/legal", str(home / "sets")]
    assert isinstance(recipe.data.dev, tuple)
    assert [s.card or s.hub for s in recipe.data.dev] == [
        str(home / "own.yaml"),
        "fiqa",
        str(home / "sets/one"),
        "owner/set",
    ]
    assert recipe.model.base == recipe.licence.decisions[0].input == str(home / "bases/small")
    assert recipe.dense is not None and recipe.dense.model == str(home / "bases/dense")
    teacher = recipe.mine.teacher
    assert teacher is not None and teacher.model == str(home / "adapters")
    assert teacher.options["base"] == str(home / "bases/small")
    assert recipe.pairs is not None and recipe.pairs.refine is not None
    assert recipe.pairs.refine.student == str(home / "runs/first")
    # The name that a server knows; a folder that is written.
    assert recipe.evaluate.baselines[0].model == "adapters"
    assert recipe.run_dir == "out"


def test_paths_start_at_a_root_and_the_root_at_the_recipe(home: Path) -> None:
    values = {"data": {"root": "sets", "test": [{"path": "one", "run": "lists.trec"}]}}
    recipe = loaded(home / "mine.yaml", values)
    assert recipe.data.root == str(home / "sets")
    found = locate_all(recipe.data)["test"][0]
    assert (found.path, found.run) == (home / "sets/one", home / "sets/lists.trec")
    # What is typed starts where it is typed.
    typed = loaded(home / "mine.yaml", {"data": {"test": [{"path": "two"}]}}, "data.root=sets")
    assert locate_all(typed.data)["test"][0].path == Path("sets/two")


def test_what_is_typed_starts_at_the_working_directory(home: Path) -> None:
    whole = loaded(home / "mine.yaml", {}, "data.test=[{path: typed.jsonl}]", "model.base=typed/base")
    assert whole.data.test_sources[0].path == "typed.jsonl" and whole.model.base == "typed/base"
    part = loaded(home / "mine.yaml", {}, "data.test.0.path=typed.jsonl")
    assert part.data.test_sources[0].path == "typed.jsonl"


def test_each_file_of_extends_has_its_own_folder(home: Path) -> None:
    loaded(home / "mine.yaml", {})
    recipe = loaded(
        home / "sub" / "more.yaml", {"extends": "../mine.yaml", "data": {"train": [{"path": "more.jsonl"}]}}
    )
    assert recipe.data.train[0].path == str(home / "sub/more.jsonl")
    (home / "sub" / "short.yaml").write_text("name: s\nextends: ../mine.yaml\n")
    short = load_recipe(home / "sub" / "short.yaml").recipe
    assert locate_all(short.data)["test"][0].path == home / "sub/../rows.jsonl"


def test_in_its_own_folder_a_recipe_is_as_written(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    recipe = loaded(Path("mine.yaml"), {"data": {"root": "sets", "test": [{"path": "one"}]}})
    assert (recipe.model.base, recipe.data.root) == ("bases/small", "sets")
    # Below the working directory a path stays relative; one that would mean an embedded set does not.
    monkeypatch.chdir(home.parent)
    assert load_recipe("home/mine.yaml").recipe.model.base == "home/bases/small"
    fixtures = loaded(home.parent / "fixtures" / "mine.yaml", {"data": {"test": [{"path": "legal"}]}})
    assert fixtures.data.test_sources[0].path == "./fixtures/legal"


def test_the_recipe_of_a_run_means_the_same_again(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home.parent)
    recipe = loaded(Path("home/mine.yaml"), {"data": {"root": "sets", "test": [{"path": "one"}]}})
    run = home.parent / "runs" / "r"
    run.mkdir(parents=True)
    (run / "recipe.json").write_text(recipe_json(recipe))
    assert load_recipe("runs/r/recipe.json").recipe == recipe


def test_a_path_that_is_not_there_names_where_it_was_looked_for(home: Path) -> None:
    recipe = loaded(home / "mine.yaml", {"data": {"test": [{"path": "typed.jsonl"}]}})
    with pytest.raises(UserError) as caught:
        locate_all(recipe.data)
    assert f"data.test.0: {home / 'typed.jsonl'}: no such file or folder" in str(caught.value)


@pytest.mark.parametrize("data", [5, ["x"], {"train": 3, "test": [1, {"path": 2}]}, None])
def test_odd_values_are_left_to_the_schema(home: Path, data: object) -> None:
    with pytest.raises(UserError, match="data"):
        loaded(
            home / "mine.yaml", {"data": data, "licence": {"decisions": [3]}, "mine": 4, "evaluate": {"baselines": [0]}}
        )

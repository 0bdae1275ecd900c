"""Recipes are found, extended and overridden; every mistake is told at once as file:line: key: what."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import rankwright
from rankwright.common.errors import UserError, UserErrors
from rankwright.common.resources import recipe_files
from rankwright.data.cards import load_card
from rankwright.evaluation.runs import experiment_of
from rankwright.recipe.loading import list_recipes, load_recipe, merge_under, recipe_json, recipe_yaml
from rankwright.recipe.schema import Mine, Recipe, recipe_keys
from rankwright.recipe.sources import DevFromTrain
from rankwright.recipe.yaml_file import YamlFile, read_yaml

GOOD = "name: mine\nmodel: {base: some/base}\ndata: {test: [{card: fiqa, split: test}]}\n"
ONE_OF = "exactly one of path, card, hub, pairs, synthesized"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(files: dict[str, str]) -> None:
    for name, text in files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text, encoding="utf-8")


def mistakes(text: str, *overrides: str) -> list[str]:
    write({"a.yaml": text})
    with pytest.raises(UserErrors) as caught:
        load_recipe("a.yaml", overrides)
    return caught.value.messages


words = st.sampled_from([*(k.rpartition(".")[2] for k in recipe_keys()), "zzz", "2e-5", "null"])
leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | words
trees = st.recursive(leaves, lambda t: st.lists(t, max_size=3) | st.dictionaries(words, t, max_size=4), max_leaves=20)


# The shipped recipes


@pytest.mark.parametrize("name", recipe_files())
def test_shipped_recipe_loads(name: str) -> None:
    loaded = load_recipe(name)
    text = loaded.path.read_text(encoding="utf-8")
    assert text.startswith("# "), "first line says what it is for"
    # Other YAML parsers see the same text; only their numbers may differ (2e-5).
    assert yaml.safe_load(text).keys() == read_yaml(loaded.path).data.keys()
    data = loaded.recipe.data
    held_out = [split for split in (data.dev, data.test) if isinstance(split, tuple)]
    for source in (*data.train, *(source for split in held_out for source in split)):
        if source.card:
            assert source.split in load_card(source.card).splits
        elif source.synthesized is None:
            # A run of another recipe of ours, or an embedded set.
            place = (source.pairs or "").startswith("runs/") or (source.path or "").startswith("fixtures/")
            assert place, "no path of one machine"


def test_shipped_recipes_have_names_and_descriptions_of_their_own() -> None:
    infos = list_recipes()
    assert {"quickstart", "finance", "legal", "code", "mixed", "offline/finance"} <= {i.name for i in infos}
    assert [i.name for i in infos if not i.description or "\n" in i.description] == []
    names = [load_recipe(i.name).recipe.name for i in infos]
    assert len(set(names)) == len(names), "two recipes would write to one folder"


def test_no_torch() -> None:
    heavy = "{'torch', 'transformers'}"
    code = f"import sys, rankwright.recipe.loading, rankwright.data.cards; print({heavy} & set(sys.modules))"
    env = {"PYTHONPATH": str(Path(rankwright.__file__).parent.parent)}
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert answer.stdout.strip() == "set()"


# Mistakes


def test_all_mistakes_at_once_in_the_order_of_lines() -> None:
    text = """\
name: mine
modle: {base: x}
data:
  train:
    - path: x
      crd: y
  dev: {fractoin: 0.1}
train:
  learning_rate: abc
  max_steps: 0
seed: 1
seed: 2
"""
    assert mistakes(text, "train.epochs=true", "evaluate.dept=3") == [
        "a.yaml:1: model: missing, must be given",
        "a.yaml:2: modle: unknown key, did you mean 'model'?",
        "a.yaml:6: data.train.0.crd: unknown key, did you mean 'card'?",
        "a.yaml:7: data.dev.fractoin: unknown key, did you mean 'fraction'?",
        "a.yaml:9: train.learning_rate: must be a number, found text 'abc'",
        "a.yaml:10: train.max_steps: must be greater than 0, found the number 0",
        "a.yaml:12: seed: given twice, first on line 11: keep one",
        "override: train.epochs: must be a number, found true",
        "override: evaluate.dept: unknown key, did you mean 'depth'?",
    ]


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ("3", "data.dev: must be {from: train, fraction: 0.1} or a list of sets, found the number 3"),
        ("{from: test}", "data.dev.from: must be 'train', found text 'test'"),
        ("{fraction: 1}", "data.dev.fraction: must be less than 1.0, found the number 1"),
        ("[{pth: a}]", "data.dev.0.pth: unknown key, did you mean 'path'?"),
        ("[{split: dev}]", "data.dev.0: give exactly one of path, card, hub, pairs, synthesized"),
        (
            "[{path: a, card: b}]",
            "data.dev.0: give exactly one of path, card, hub, pairs, synthesized (found path, card)",
        ),
    ],
)
def test_mistakes_of_dev_speak_of_the_form_that_was_meant(value: str, what: str) -> None:
    assert mistakes(GOOD, f"data.dev={value}") == [f"override: {what}"]


@pytest.mark.parametrize(
    ("overrides", "what"),
    [
        (["method=full", "rslora=true"], "rslora: only with method lora: remove them, or use method: lora"),
        (
            ["method=full", "dora=true", "dropout=0.1", "targets=[q_proj]"],
            "dropout, dora, targets: only with method lora: remove them, or use method: lora",
        ),
        (
            ["dora=true", "merge_with_base=0.5"],
            "merge_with_base: not with dora, whose weights are not linear in what is trained: drop one",
        ),
    ],
)
def test_methods_that_do_not_go_together(overrides: list[str], what: str) -> None:
    assert mistakes(GOOD, *(f"model.{o}" for o in overrides)) == [f"a.yaml:2: model: {what}"]


def test_methods_that_go_together() -> None:
    write({"a.yaml": GOOD})
    for overrides in (
        ["rslora=true", "dora=true", "targets=[q_proj]", "dropout=0.1"],
        ["rslora=true", "merge_with_base=0.3"],
        # Rank and alpha may be inherited from a recipe for LoRA.
        ["method=full", "rank=4", "merge_with_base=0.3", "dropout=0", "targets=null"],
    ):
        load_recipe("a.yaml", [f"model.{o}" for o in overrides])


def test_mistakes_of_methods() -> None:
    assert mistakes(GOOD, "model.targets=[]", "model.merge_with_base=1") == [
        "override: model.targets: must hold at least 1, found a list",
        "override: model.merge_with_base: must be less than 1.0, found the number 1",
    ]


def test_unknown_recipe() -> None:
    with pytest.raises(UserError, match=r"unknown recipe 'quikstart', did you mean 'quickstart'\? \(known: abl"):
        load_recipe("quikstart")
    with pytest.raises(UserError, match=r"no such file missing\.yaml"):
        load_recipe("missing.yaml")


# Overrides


def test_overrides() -> None:
    write({"a.yaml": GOOD + "evaluate: {limit_queries: 3}\n"})
    overrides = (
        "data.root=../x",
        "train.max_steps=10",
        "evaluate.limit_queries=null",
        "prompt.instruction=Is it: a # b?",
        "train.trackers=[wandb, trackio]",
        "data.test.0.split=dev",
        "data.dev=[{card: fiqa, split: dev}]",
        "loss.options={}",
        "description='12'",
        "train.epochs=2",
        "train.epochs=3",
    )
    loaded = load_recipe("a.yaml", overrides)
    recipe = loaded.recipe
    assert (loaded.overrides, loaded.path, loaded.sources) == (overrides, Path("a.yaml"), (Path("a.yaml"),))
    assert recipe.data.root == "../x"
    assert (recipe.train.max_steps, recipe.evaluate.limit_queries, recipe.train.epochs) == (10, None, 3)
    assert recipe.prompt.instruction == "Is it: a # b?"
    assert recipe.train.trackers == ("wandb", "trackio")
    assert (recipe.data.test[0].card, recipe.data.test[0].split) == ("fiqa", "dev")
    assert not isinstance(recipe.data.dev, DevFromTrain) and recipe.data.dev[0].split == "dev"
    assert recipe.description == "12"


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("train.max_steps", "'train.max_steps' must be KEY=VALUE, such as train.max_steps=10"),
        ("=1", "'=1' must be KEY=VALUE, such as train.max_steps=10"),
        ("train..epochs=1", "'train..epochs=1' must be KEY=VALUE, such as train.max_steps=10"),
        ("extends=quickstart", "'extends=quickstart' must be KEY=VALUE, such as train.max_steps=10"),
        ("train.trackers=[1", "train.trackers: not valid YAML: expected ',' or ']', but got '<stream end>'"),
        ("seed=1e999", "seed: must be a finite number, found 1e999"),
        ("loss.options={a: 1, a: 2}", "loss.options: a: given twice, first on line 1: keep one"),
        ("data.test.7.split=x", "data.test.7: no such element, the list has 1"),
        ("data.test.x=1", "data.test.x: no such element, the list has 1"),
        ("name.first=x", "name: must be text, found a mapping"),
    ],
)
def test_mistakes_of_overrides(override: str, what: str) -> None:
    assert mistakes(GOOD, override) == [f"override: {what}"]


@given(st.lists(st.text(max_size=20) | st.tuples(words, st.text(max_size=9)).map("=".join), max_size=3))
def test_garbage_overrides_are_user_errors(overrides: list[str]) -> None:
    write({"a.yaml": GOOD})
    try:
        load_recipe("a.yaml", overrides)
    except UserErrors as error:
        assert all(message.startswith("override: ") for message in error.messages)


# Extending


def test_extends_merges_mappings_and_replaces_lists() -> None:
    write(
        {
            "base/root.yaml": GOOD + "train: {epochs: 2, max_steps: 5}\ndescription: base\n",
            "base/middle.yaml": "extends: root.yaml\nname: middle\ntrain: {epochs: 3}\n",
            "mine.yaml": "extends: base/middle.yaml\nname: leaf\ndata: {test: [{path: x}]}\nmodel: {rank: 8}",
        }
    )
    loaded = load_recipe("mine.yaml")
    assert loaded.sources == (Path("mine.yaml"), Path("base/middle.yaml"), Path("base/root.yaml"))
    assert (loaded.recipe.train.epochs, loaded.recipe.train.max_steps) == (3, 5)
    assert (loaded.recipe.model.base, loaded.recipe.model.rank) == ("some/base", 8)
    assert [s.path for s in loaded.recipe.data.test] == ["x"]
    assert (loaded.recipe.name, loaded.recipe.description) == ("leaf", "base")


def test_extends_a_shipped_recipe_by_name() -> None:
    write({"mine.yaml": "extends: quickstart\nname: leaf\n"})
    shipped = load_recipe("quickstart").recipe
    changed = load_recipe("mine.yaml").recipe
    assert changed == shipped.model_copy(update={"name": "leaf"})


def test_a_mistake_is_blamed_on_the_file_that_made_it() -> None:
    write({"base.yaml": GOOD + "train:\n  epochs: x\n  max_steps: 0\n", "base2.yaml": "seed: [\n"})
    assert mistakes("name: a\nextends: base.yaml\ntrain: {max_steps: 1.5}\n") == [
        "a.yaml:3: train.max_steps: must be a whole number, found the number 1.5",
        "base.yaml:5: train.epochs: must be a number, found text 'x'",
    ]
    assert mistakes("name: a\nextends: base.yaml\n", "train.max_steps=-1", "train.epochs=1") == [
        "override: train.max_steps: must be greater than 0, found the number -1"
    ]
    found = mistakes("name: a\nextends: base2.yaml\nsed: 1\n")
    assert [m.split(": ")[0] for m in found] == ["a.yaml:3", "base2.yaml:2"], "nothing is called missing"


@pytest.mark.parametrize(
    ("other", "what"),
    [
        ("a.yaml", "goes round in a circle: a.yaml -> a.yaml"),
        ("b.yaml", "goes round in a circle: a.yaml -> b.yaml -> a.yaml"),
        ("c.yaml", "no such file c.yaml, did you mean 'b.yaml'?"),
        ("quickstrat", "unknown recipe 'quickstrat', did you mean 'quickstart'?"),
        ("[a, b]", "must be the name or the path of a recipe"),
    ],
)
def test_mistakes_of_extends(other: str, what: str) -> None:
    write({"b.yaml": "extends: ./a.yaml\nname: b\n"})
    [message] = mistakes(f"name: a\nextends: {other}\n")
    assert message.startswith(("a.yaml:2: extends: ", "b.yaml:1: extends: ")) and what in message


def test_an_extending_recipe_needs_a_name_of_its_own() -> None:
    [message] = mistakes("extends: quickstart\n")
    assert message == "a.yaml:1: name: missing, must be given: a recipe that extends another needs a name of its own"


mappings = st.dictionaries(st.sampled_from("abc"), trees, max_size=3)


def merged(over: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    tree = YamlFile(0, "a", data=copy.deepcopy(over))
    merge_under(tree, YamlFile(1, "b", data=base))
    return tree.data


@given(mappings, mappings)
def test_merging(over: dict[str, Any], base: dict[str, Any]) -> None:
    before = repr(base)
    result = merged(over, base)
    assert repr(base) == before, "the base is left alone"
    assert repr(merged(over, {})) == repr(over)
    assert repr(merged({}, base)) == repr(base)
    assert result.keys() == over.keys() | base.keys()
    # Merging the same again changes nothing; what only one side has is unchanged.
    assert merged(over, result) == result or "nan" in repr(result)
    assert all(repr(result[k]) == repr(base[k]) for k in base.keys() - over.keys())
    assert all(repr(result[k]) == repr(v) for k, v in over.items() if not isinstance(v, dict))


# Canonical JSON


@pytest.mark.parametrize("change", [lambda r: r, lambda r: r.model_copy(update={"seed": 3})])
def test_recipe_json_is_canonical_and_validates_back(change: Callable[[Recipe], Recipe]) -> None:
    recipe = change(load_recipe("quickstart").recipe)
    text = recipe_json(recipe)
    assert Recipe.model_validate_json(text) == recipe
    assert text == recipe_json(Recipe.model_validate_json(text))
    assert json.loads(text)["data"]["dev"] == {"from": "train", "fraction": 0.1}
    assert list(json.loads(text)) == sorted(json.loads(text))


@pytest.mark.parametrize("name", recipe_files())
def test_the_whole_recipe_as_yaml_loads_as_the_same_recipe(name: str) -> None:
    recipe = load_recipe(
        name, ["train.learning_rate=1e-7", "mine.filters={rank_window: {first: 2}, margin: {}}"]
    ).recipe
    write({"whole.yaml": recipe_yaml(recipe)})
    again = load_recipe("whole.yaml").recipe
    assert again == recipe and list(again.mine.filters) == ["rank_window", "margin"]


def test_recipe_json_keeps_the_order_of_filters() -> None:
    """It decides what is mined, and so what a run folder says was run."""
    given = ["near_duplicate", "max_reuse", "margin"]
    options = {"max_reuse": {"most": 3}, "margin": {"ranks": 1}}
    shipped = load_recipe("quickstart").recipe
    recipe = shipped.model_copy(update={"mine": Mine(filters={name: options.get(name, {}) for name in given})})
    text = recipe_json(recipe)
    assert list(json.loads(text)["mine"]["filters"]) == given
    assert list(Recipe.model_validate_json(text).mine.filters) == given
    assert list(json.loads(text)["mine"]) == sorted(json.loads(text)["mine"])
    # Runs that differ in it are not runs of one experiment.
    other = json.loads(text)
    other["mine"]["filters"] = dict(reversed(other["mine"]["filters"].items()))
    assert experiment_of(other) != experiment_of(json.loads(text))


def test_filters_and_sampler_are_not_mixed_with_those_of_the_base() -> None:
    base = "mine: {depth: 30, sampler: {top: {}}, filters: {near_duplicate: {}, margin: {ranks: 3}}}\n"
    own = "mine: {sampler: {uniform: {}}, filters: {margin: {absolute: 1.0}}}\n"
    write({"base.yaml": GOOD + base, "mine.yaml": f"extends: base.yaml\nname: leaf\n{own}"})
    mine = load_recipe("mine.yaml").recipe.mine
    assert (mine.depth, mine.sampler, mine.filters) == (30, {"uniform": {}}, {"margin": {"absolute": 1.0}})
    [message] = mistakes(GOOD + base, "mine.sampler.uniform={}")
    assert message.endswith("mine.sampler: must hold at most 1, found a mapping")

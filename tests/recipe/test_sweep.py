"""A sweep file becomes ordinary recipes, or a list of all its mistakes with their lines."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rankwright.common.errors import UserError, UserErrors
from rankwright.common.resources import recipe_files, sweep_files
from rankwright.recipe.loading import load_recipe, recipe_json
from rankwright.recipe.sweep_runs import LoadedSweep, load_sweep, named_runs

GOOD = {"extends": "quickstart", "name": "try"}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def sweep(over: dict[str, Any], *overrides: str, yes: bool = False, **keys: Any) -> LoadedSweep:
    Path("s.yaml").write_text(yaml.safe_dump({**GOOD, **keys, "over": over}, sort_keys=False))
    return load_sweep("s.yaml", overrides, yes=yes)


def wsd_base() -> str:
    """The quickstart with a schedule that rungs can compare."""
    Path("wsd.yaml").write_text("extends: quickstart\nname: base\ntrain: {schedule: wsd}\n")
    return "./wsd.yaml"


def mistakes(text: str, *overrides: str) -> list[str]:
    Path("s.yaml").write_text(text)
    with pytest.raises(UserErrors) as caught:
        load_sweep("s.yaml", overrides)
    return caught.value.messages


# What is shipped


@pytest.mark.parametrize("name", sweep_files())
def test_a_shipped_sweep_expands(name: str) -> None:
    loaded = load_sweep(name)
    assert len(loaded.sweep.seeds) >= 3 and loaded.sweep.description
    assert loaded.default.recipe.train.seed is None
    assert {run.seed for run in loaded.runs} == set(loaded.sweep.seeds)


def test_shipped_sweeps_are_no_recipes() -> None:
    assert {"ablations/losses", "ablations/seeds"} <= set(sweep_files()) and not set(sweep_files()) & set(
        recipe_files()
    )
    with pytest.raises(UserError, match="is a sweep: give `rankwright sweep ablations/losses`"):
        load_recipe("ablations/losses")
    with pytest.raises(UserErrors, match="this file is a sweep"):
        load_recipe(str(sweep_files()["ablations/losses"]))


# Expansion


def test_a_grid_with_the_default_in_it() -> None:
    loaded = sweep({"loss.name": ["listwise_softmax", "bce"], "model.rank": [8, 16]}, seeds=[3, 5])
    assert [run.name for run in loaded.runs] == [
        *("default-s3", "rank-8-s3", "loss-bce_rank-8-s3", "loss-bce-s3"),
        *("default-s5", "rank-8-s5", "loss-bce_rank-8-s5", "loss-bce-s5"),
    ]
    run = named_runs(loaded, "loss-bce_rank-8-s5")[0]
    recipe = run.loaded.recipe
    assert (recipe.loss.name, recipe.model.rank, recipe.seed, recipe.train.seed) == ("bce", 8, 0, 5)
    assert (
        recipe.run_dir == str(run.folder) == "runs/try/loss-bce_rank-8-s5" and recipe.name == "try-loss-bce_rank-8-s5"
    )
    assert loaded.in_design and run.configuration.settings == {"loss.name": "bce", "model.rank": 8}


def test_the_default_is_added_where_the_grid_lacks_it() -> None:
    loaded = sweep({"model.rank": [4, 8]})
    assert not loaded.in_design and [one.name for one in loaded.configurations] == ["default", "rank-4", "rank-8"]
    assert loaded.default.settings == {"model.rank": 16}


def test_one_at_a_time() -> None:
    loaded = sweep({"loss.name": ["bce", "ranknet"], "model.rank": [8, 16]}, design="one_at_a_time", seeds=[0])
    assert [one.changed for one in loaded.configurations] == [(), ("loss.name",), ("loss.name",), ("model.rank",)]


def test_a_whole_section_replaces_the_recipes() -> None:
    """Options of the recipe's loss must not be left under another loss."""
    Path("base.yaml").write_text(
        "extends: quickstart\nname: base\nloss: {name: lambda_rank, options: {k: 10}}\n", encoding="utf-8"
    )
    loaded = sweep({"loss": [{"name": "bce"}]}, extends="./base.yaml")
    assert loaded.configurations[1].recipe.loss.options == {}
    assert loaded.default.recipe.loss.options == {"k": 10}


def test_ranges() -> None:
    loaded = sweep(
        {"train.learning_rate": {"log": [1e-5, 1e-3], "points": 3}, "model.rank": {"log": [4, 64], "points": 5}}
    )
    rates = {one.settings["train.learning_rate"] for one in loaded.configurations[1:]}
    assert rates == {1e-5, 1e-4, 1e-3}
    assert {one.settings["model.rank"] for one in loaded.configurations[1:]} == {4, 8, 16, 32, 64}
    shares = sweep({"model.dropout": {"linear": [0, 0.3], "points": 4}})
    assert {one.settings["model.dropout"] for one in shares.configurations} == {0.0, 0.1, 0.2, 0.3}


def test_a_grid_needs_points_however_it_is_written() -> None:
    with pytest.raises(UserErrors, match="points: missing, must be given"):
        sweep({"train.learning_rate": {"log": [1e-5, 1e-3]}}, design={"kind": "grid"})


def test_random_draws_are_the_same_each_time() -> None:
    over = {"train.learning_rate": {"log": [1e-5, 1e-3]}, "loss.name": ["bce", "ranknet"]}
    names = [[run.name for run in sweep(over, design={"random": {"runs": 9}}).runs] for _ in range(2)]
    other = [run.name for run in sweep(over, design={"random": {"runs": 9, "seed": 1}}).runs]
    assert names[0] == names[1] != other and len(names[0]) == 30
    rates = [one.settings["train.learning_rate"] for one in sweep(over, design={"random": {"runs": 50}}).configurations]
    assert all(1e-5 <= rate <= 1e-3 for rate in rates[1:])
    assert 10 < sum(math.log10(rate) < -4 for rate in rates[1:]) < 40, "uniform in the logarithm"


def test_a_learning_curve_changes_the_number_of_queries_alone() -> None:
    loaded = sweep({}, design={"learning_curve": [0.1, 0.5, 1]}, seeds=[0, 1])
    assert [one.name for one in loaded.configurations] == ["default", "queries_share-0.1", "queries_share-0.5"]
    assert loaded.in_design and loaded.factors == ("train.queries_share",)
    shares = {run.name: run.loaded.recipe.train.queries_share for run in loaded.runs}
    assert shares["default-s1"] == 1 and shares["queries_share-0.1-s1"] == 0.1
    assert not sweep({}, design={"learning_curve": [0.1, 0.5]}).in_design, "all queries are trained on anyway"


def test_a_budget_takes_the_first_seeds_first() -> None:
    loaded = sweep({"model.rank": [4, 8]}, budget={"runs": 4})
    assert [run.name for run in loaded.runs] == ["default-s0", "rank-4-s0", "rank-8-s0", "default-s1"]


def test_paths_start_at_the_sweeps_folder(tmp_path: Path) -> None:
    (tmp_path / "inner" / "bases" / "b").mkdir(parents=True)
    Path("inner/s.yaml").write_text("extends: quickstart\nname: x\nover: {model.base: [./bases/b]}\n")
    assert load_sweep("inner/s.yaml").configurations[1].recipe.model.base == "inner/bases/b"


def test_overrides_change_all_runs() -> None:
    loaded = sweep({"model.rank": [4]}, "train.max_steps=3", "run_dir=elsewhere")
    assert {run.loaded.recipe.train.max_steps for run in loaded.runs} == {3}
    assert loaded.folder == Path("elsewhere")


VALUES = {
    "model.rank": st.integers(1, 64),
    "train.learning_rate": st.floats(1e-6, 1e-2),
    "loss.name": st.sampled_from(["bce", "ranknet", "list_mle", "listwise_softmax"]),
    "model.rslora": st.booleans(),
}


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.fixed_dictionaries(
        {}, optional={key: st.lists(one, min_size=1, max_size=3, unique=True) for key, one in VALUES.items()}
    )
)
def test_every_combination_is_one_recipe(over: dict[str, list[Any]]) -> None:
    loaded = sweep(over, seeds=[0])
    texts = [recipe_json(one.recipe) for one in loaded.configurations]
    names = [run.name.lower() for run in loaded.runs]
    assert len(set(texts)) == len(texts) and len(set(names)) == len(names) and max(map(len, names)) <= 100
    for values in itertools.product(*over.values()):
        wanted = dict(zip(over, values, strict=True))
        assert sum(one.settings == wanted for one in loaded.configurations) == 1
    assert [run.name for run in sweep(over, seeds=[0]).runs] == [run.name for run in loaded.runs]


# Bad input


def test_all_mistakes_of_the_file_at_once() -> None:
    text = """\
extends: quickstart
name: try
over:
  model.merge_with_base: [0.1]
  train.warmup_fraction: {log: [0, 1], points: 2}
  bm25.code: [true]
  train.epochs: []
  model.rank: [4, 4]
  train.learning_rate: {lg: [1, 2]}
  train.weight_decay: {linear: [0, 1]}
  data: [{}]
  loss: [{name: bce}]
  loss.name: [bce]
  seed: [1, 2]
seeds: [0, 0]
design: gird
budget: {runs: 0}
choose: {on: test}
"""
    same = "changes the queries, the lists or the measure of dev or test, so that runs are not comparable"
    assert mistakes(text) == [
        "s.yaml:4: over.model.merge_with_base: works after training, which dev does not see: set it in the recipe",
        "s.yaml:5: over.train.warmup_fraction.log: must be two numbers, the lower first, both above 0: log: [a, b]",
        f"s.yaml:6: over.bm25.code: {same}",
        "s.yaml:7: over.train.epochs: must hold at least one value",
        "s.yaml:8: over.model.rank.1: this value is given twice: each is trained once",
        "s.yaml:9: over.train.learning_rate: must be a list of values, {log: [a, b], points: n} or {linear: [a, b], "
        "points: n}, found a mapping, did you mean 'log'?",
        "s.yaml:10: over.train.weight_decay: points: missing, must be given: {linear: [a, b], points: 4}",
        f"s.yaml:11: over.data: {same}",
        "s.yaml:13: over.loss.name: lies in loss, which is swept too: leave one of them out",
        "s.yaml:14: over.seed: it also draws data and dev: give `seeds`, which vary train.seed",
        "s.yaml:15: seeds: a seed is given twice: each counts once",
        "s.yaml:16: design.kind: must be 'grid' or 'one_at_a_time', found text 'gird', did you mean 'grid'?",
        "s.yaml:17: budget.runs: must be greater than 0, found the number 0",
        "s.yaml:18: choose.on: must be 'dev', found text 'test'",
    ]


def test_mistakes_of_all_runs_once_each_with_their_lines() -> None:
    text = """\
extends: quickstart
name: try
over:
  loss:
    - {name: bce}
    - {nam: ranknet}
  train.learning_rat: [1, 2]
  train.epochs: [1, -1]
"""
    found = mistakes(text)
    assert "s.yaml:7: train.learning_rat: unknown key, did you mean 'learning_rate'?" in found
    wrong = [line for line in found if line.startswith("s.yaml:6: loss.nam: unknown key, did you mean 'name'?")]
    assert len(wrong) == 1
    negative = [line for line in found if line.startswith("s.yaml:8: train.epochs: must be greater than 0")]
    assert len(negative) == 1 and "train.epochs: -1 and 3 more configurations)" in negative[0]
    assert len(found) == 3


def test_too_many_runs() -> None:
    over = {"model.rank": {"linear": [1, 400], "points": 400}}
    with pytest.raises(UserError, match=r"s.yaml:3: over: 1,200 runs .* more than 1,000: .* or give --yes"):
        sweep(over)
    assert len(sweep(over, yes=True, seeds=[0]).runs) >= 400
    with pytest.raises(UserError, match=r"more than 1,000: leave values out, .*one_at_a_time$"):
        sweep({**over, "model.alpha": {"linear": [1, 400], "points": 400}}, yes=True)


def test_schedules_that_rungs_cannot_compare() -> None:
    with pytest.raises(
        UserErrors, match=r"^s.yaml:\d+: early: train.schedule is cosine: at a rung .*train.schedule=wsd"
    ):
        sweep({"model.rank": [4]}, early={"asha": {}})
    with pytest.raises(UserErrors, match=r"train\.schedule is linear: "):
        sweep({"train.schedule": ["wsd", "linear"]}, "train.epochs=2", extends=wsd_base(), early={"asha": {}})
    assert sweep({"train.schedule": ["constant"]}, extends=wsd_base(), early={}).sweep.early is not None


@pytest.mark.parametrize(
    ("over", "design", "found"),
    [
        ({}, {"learning_curve": [0.5, 1]}, "early: would end the smaller shares, which the learning curve is made of"),
        ({"train.queries_share": [0.5, 1]}, "grid", r"early: train\.queries_share is swept: at a rung some runs would"),
        ({"model.rank": [4], "train.epochs": [1, 3]}, "grid", r"early: train\.epochs is swept: at a rung some runs"),
    ],
)
def test_runs_that_have_not_trained_equally_long_at_a_rung(over: dict[str, Any], design: Any, found: str) -> None:
    with pytest.raises(UserErrors, match=rf"^s.yaml:\d+: {found}"):
        sweep(over, extends=wsd_base(), design=design, early={"asha": {}})
    assert sweep(over, extends=wsd_base(), design=design).sweep.early is None


def test_designs_and_budgets_that_do_not_fit_together() -> None:
    both = {"optuna": {"runs": 3}, "random": {"runs": 3}}
    with pytest.raises(UserErrors, match="random, optuna: give one of them"):
        sweep({"model.rank": [4]}, design=both)
    with pytest.raises(UserErrors, match="budget: per_hour: missing, the price of an hour: give both"):
        sweep({"model.rank": [4]}, budget={"cost": 5})
    with pytest.raises(UserErrors, match=r"budget\.hours: must be greater than 0"):
        sweep({"model.rank": [4]}, budget={"hours": 0})
    bound = sweep({"model.rank": [4]}, budget={"cost": 5, "per_hour": 2.5, "hours": 3}).sweep.budget
    assert bound.most_seconds == 2 * 3600
    with pytest.raises(UserError, match="10,001 configurations"):
        sweep({"model.rank": [4]}, design={"random": {"runs": 10_000}})


def test_a_design_that_needs_optuna(monkeypatch: pytest.MonkeyPatch) -> None:
    over, design = {"model.rank": [4, 8]}, {"optuna": {"runs": 3}}
    with pytest.raises(UserErrors, match="early: a rung compares all configurations, and optuna proposes"):
        pytest.importorskip("optuna")
        sweep(over, extends=wsd_base(), design=design, early={"asha": {}})
    with pytest.raises(UserErrors, match=r"model\.rank: must be greater than 0"):
        sweep({"model.rank": [4, -1]}, design=design)
    with pytest.raises(UserErrors, match=r"s.yaml:\d+: over: must hold a key: there is nothing to draw or propose"):
        sweep({}, design=design)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserErrors) as caught:
        sweep(over, design=design)
    (line,) = caught.value.messages
    assert "design.optuna: optuna is not installed: `pip install 'rankwright[sweep]'`" in line


def test_training_sets_with_dev_taken_out_of_them() -> None:
    with pytest.raises(UserErrors, match="dev is taken out of train and would change with it"):
        sweep({"data.train": [[{"path": "fixtures/code/train", "split": "train"}]]})


def test_queries_are_not_written_anew_where_dev_has_some() -> None:
    filters = {"synthesize.filters": [{"format": {}}]}
    with pytest.raises(UserErrors, match=r"over\.synthesize\.filters: dev is written and would change with it"):
        sweep(filters, extends="documents")
    Path("own.yaml").write_text(
        "extends: documents\nname: own\ndata: {dev: [{path: fixtures/legal/train, split: train}]}\n"
    )
    assert len(sweep(filters, extends="./own.yaml").configurations) == 2
    Path("taken.yaml").write_text("extends: documents\nname: taken\ndata: {dev: {from: train}}\n")
    with pytest.raises(UserErrors, match="dev is taken out of train and would change with it"):
        sweep(filters, extends="./taken.yaml")


@pytest.mark.parametrize(
    ("design", "found"),
    [
        (
            "{learning_curve: [0.1, 1.5]}",
            "s.yaml:4: design.learning_curve.1: must be at most 1.0, found the",
        ),
        (
            "{learning_curve: [0.1, 0.1]}",
            "s.yaml:4: design.learning_curve.1: this value is given twice: each is trained",
        ),
        (
            "{learning_curve: [1]}",
            "s.yaml:4: design: learning_curve: give two shares or more, such as [0.1, 0.25, 0.5,",
        ),
        ("{learning_curve: [0.1, 1], random: {runs: 3}}", "s.yaml:4: design: random, learning_curve: give one of them"),
    ],
)
def test_mistakes_of_a_learning_curve(design: str, found: str) -> None:
    text = f"extends: quickstart\nname: try\nover: {{model.rank: [4]}}\ndesign: {design}\n"
    over, own, swept = mistakes(text, "train.queries_share=0.5")
    assert over.startswith("s.yaml:3: over: must be {} with design.learning_curve") and own.startswith(found)
    assert swept == "override: train.queries_share: is swept: change the file"


def test_overrides_that_a_sweep_does_not_take() -> None:
    text = "extends: quickstart\nname: try\nover: {model.rank: [4]}\n"
    assert mistakes(text, "model.rank=3", "name=x") == [
        "override: model.rank: is swept: change the file",
        "override: name: is of the sweep, not of its recipe: change the file",
    ]


def test_no_such_file_recipe_or_run() -> None:
    with pytest.raises(UserError, match="unknown sweep 'ablations/loses', did you mean 'ablations/losses'"):
        load_sweep("ablations/loses")
    with pytest.raises(UserError, match="unknown recipe 'quikstart', did you mean 'quickstart'"):
        sweep({"model.rank": [4]}, extends="quikstart")
    with pytest.raises(UserError, match=r"--only: unknown run 'rank-5', did you mean"):
        named_runs(sweep({"model.rank": [4]}), "rank-5")


def test_it_needs_no_torch() -> None:
    code = "import sys; from rankwright.recipe.sweep_runs import load_sweep; load_sweep('ablations/rank'); "
    answer = subprocess.run(
        [sys.executable, "-c", f"{code}print('torch' in sys.modules)"], capture_output=True, text=True
    )
    assert answer.stdout.strip() == "False", answer.stderr

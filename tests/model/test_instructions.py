"""Instructions of single sets, from the recipe to the exports: each set under its own, and one frozen at the end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jobs
import pytest
import yaml

from rankwright.common.errors import UserError
from rankwright.common.run_folder import RunFolder
from rankwright.data.sources import locate_all
from rankwright.data.split_files import read_split
from rankwright.model.instructions import check_mixture, frozen_instruction, is_read_otherwise, recipe_instruction
from rankwright.pipeline.checks import check_names
from rankwright.pipeline.inputs import StageInputs
from rankwright.pipeline.stages import Pipeline
from rankwright.recipe.loading import load_recipe
from rankwright.recipe.schema import Baseline, Prompt, Recipe
from rankwright.rerankers.kinds import baseline_under, load_baseline
from rankwright.rerankers.reranker import Reranker
from rankwright.rerankers.scorer import rerank
from rankwright.retrieval.candidates import read_candidates
from rankwright.retrieval.run_file import read_trec_run
from rankwright.training.sampling import draws_of_prepared
from rankwright.training.setup import load_base_tokenizer, recipe_contract

CLAUSE, CODE = "Find the clause.", "Find the code."
GENERAL = "Given a web search query, retrieve relevant passages that answer the query"


def recipe_of(base: object = "Qwen/Qwen3-0.6B", **sections: Any) -> Recipe:
    data = {"train": [{"path": "a"}], "test": [{"path": "t"}], **sections.pop("data", {})}
    text = json.dumps({"name": "x", "model": {"base": str(base)}, "data": data, **sections})
    return Recipe.model_validate_json(text)


def sources(*instructions: str | None) -> list[dict[str, Any]]:
    return [{"path": f"p{n}", **({"instruction": i} if i is not None else {})} for n, i in enumerate(instructions)]


@pytest.mark.parametrize(
    ("train", "chosen", "frozen"),
    [
        ((None, None), None, None),
        ((CLAUSE, f" {CLAUSE}\n"), None, CLAUSE),
        ((CLAUSE,), CODE, CODE),
        ((CLAUSE, None), GENERAL, None),
        ((CLAUSE, CODE), f" {CODE} ", CODE),
        ((GENERAL, None), None, None),
    ],
)
def test_the_instruction_of_the_exports(train: tuple[Any, ...], chosen: str | None, frozen: str | None) -> None:
    export = {} if chosen is None else {"instruction": chosen}
    recipe = recipe_of(data={"train": sources(*train)}, export=export)
    assert check_mixture(recipe) == []
    assert frozen_instruction(recipe) == frozen
    for own in (None, GENERAL, CLAUSE, CODE):
        same = (GENERAL if own is None else own) == (GENERAL if frozen is None else frozen)
        assert is_read_otherwise(recipe, own) == (not same)
    without = recipe.model_copy(update={"export": recipe.export.model_copy(update={"targets": ()})})
    assert not is_read_otherwise(without, CLAUSE)


def test_several_instructions_and_no_choice_is_said_with_the_candidates() -> None:
    recipe = recipe_of(data={"train": sources(CLAUSE, None, CLAUSE)}, prompt={"instruction": "Mine."})
    (fault,) = check_mixture(recipe)
    assert fault.startswith("export.instruction: the training sets have 2 instructions")
    assert f"{CLAUSE!r} of data.train.0, data.train.2; 'Mine.' of data.train.1" in fault
    assert check_mixture(recipe_of(data={"train": sources(CLAUSE, CODE)}, export={"targets": []})) == []


def test_a_weight_is_for_training_sets_and_is_said_with_all_else() -> None:
    dev, test = [{"path": "d", "weight": 0.5}], [{"path": "t"}, {"path": "u", "weight": 2.0}]
    data = {"train": [{"path": "a", "weight": 3.0}], "dev": dev, "test": test}
    faults = check_names(recipe_of(data=data, train={"schedule": "no such"}))
    assert [f.split(":")[0] for f in faults] == ["train.schedule", "data.dev.0.weight", "data.test.1.weight"]


def test_a_base_that_carries_its_own_instruction_keeps_it(folders: dict[str, Path]) -> None:
    base = folders["qwen3-portable"]
    own = json.loads((base / "rankwright.json").read_text())["instruction"]
    assert recipe_instruction(recipe_of(base)) == own
    assert recipe_instruction(recipe_of(base, prompt={"instruction": "Mine."})) == "Mine."


def write_job(folder: Path, base: Path, **changes: Any) -> Path:
    """Two training and two test sets; changes: sections that are put in place of the job's."""
    path = jobs.job(folder, base)
    jobs.write_set(folder / "sets" / "two", "train", first=100, queries=12)
    jobs.write_set(folder / "sets" / "other", "test", first=60, queries=8)
    recipe = yaml.safe_load(path.read_text())
    recipe["train"] |= {"max_steps": 12, "evaluate_every": 2, "save_every": 2, "patience": 2}
    recipe["data"] |= {
        "train": [{"path": "one", "weight": 0.5, "instruction": CLAUSE}, {"path": "two", "weight": 1.3, "limit": 10}],
        "test": [{"path": "held-out", "instruction": CLAUSE}, {"path": "other", "limit": 6}],
    }
    recipe["export"] = {"instruction": CLAUSE}
    for section, values in changes.items():
        recipe[section] = {**recipe.get(section, {}), **values}
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.fixture(scope="module")
def mixed(tiny_qwen3: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """(folder of a whole run, what it said)."""
    folder = tmp_path_factory.mktemp("mixed")
    done = jobs.rankwright("run", write_job(folder, tiny_qwen3))
    assert done.returncode == 0, done.stderr
    return folder / "run", done.stdout


def test_the_mix_is_counted_as_planned_and_as_it_came(mixed: tuple[Path, str]) -> None:
    run, said = mixed
    mix = json.loads((run / "mix.json").read_text())
    facts = json.loads((run / "stages" / "train.json").read_text())
    one, two = mix["sets"]
    # 3 of 30 and 1 of the 10 that are kept went to dev.
    assert [(s["queries"], s["weight"], s["draws_an_epoch"]) for s in (one, two)] == [(27, 0.5, 13.5), (9, 1.3, 11.7)]
    assert (one["instruction"], two["instruction"]) == (CLAUSE, GENERAL)
    assert one["share"] + two["share"] == pytest.approx(1.0) and mix["draws_an_epoch"] == 25.2
    assert one["planned_groups"] + two["planned_groups"] == 12 * 4
    assert facts["planned_steps"] == mix["planned_steps"] == 12 and mix["steps"] == facts["step"]
    assert one["groups"] + two["groups"] == facts["step"] * 4
    assert "train on 36 queries: 12 steps of 4 groups (1.90 epochs of 25.2 groups)" in said
    assert "other: 6 of 8 queries kept (limit, by seed 0)" in said
    assert "mix of the training sets" in said and f"exports hold the instruction {CLAUSE!r}" in said
    page = (run / "report.html").read_text()
    assert 'id="mix-table"' in page and CLAUSE in page


def test_a_plan_counts_the_draws_of_an_epoch(mixed: tuple[Path, str]) -> None:
    path, run = str(mixed[0].parent / "recipe.yaml"), RunFolder(mixed[0])
    assert draws_of_prepared(load_recipe(path).recipe, run) == pytest.approx(25.2)
    # As the recipe has it now, not as it was when the data were read.
    weighted = load_recipe(path, ["data.train.0.weight=2"]).recipe
    assert draws_of_prepared(weighted, run) == pytest.approx(65.7)
    assert draws_of_prepared(weighted, RunFolder(mixed[0] / "none")) is None


def test_a_set_with_another_instruction_is_scored_under_the_exports_as_well(mixed: tuple[Path, str]) -> None:
    run, said = mixed
    assert (run / "eval" / "other" / "exported" / "metrics.json").is_file()
    assert not (run / "eval" / "held-out" / "exported").exists()
    tuned, exported = (read_trec_run(run / "eval" / "other" / s / "run.trec") for s in ("tuned", "exported"))
    assert tuned != exported and tuned.keys() == exported.keys()
    header = next(line for line in said.splitlines() if "test set" in line and "┃" in line)
    assert [c.strip() for c in header.split("┃")[1:8]] == [
        *("test set", "queries", "BM25", "at best", "base", "tuned", "exported")
    ]
    assert "<b>exported</b> is tuned with the instruction" in (run / "report.html").read_text()
    done = jobs.rankwright("compare", run)
    assert done.returncode == 0 and "not evaluated on all of these test sets, left out: exported" in done.stdout


def test_exports_hold_the_instruction_and_score_what_exported_says(mixed: tuple[Path, str], tiny_qwen3: Path) -> None:
    run, _ = mixed
    for target in ("hf", "adapter"):
        folder = run / "export" / target
        assert json.loads((folder / "rankwright.json").read_text())["instruction"] == CLAUSE
        assert f"instruction: {CLAUSE}" in (folder / "README.md").read_text()
        golden = [json.loads(line) for line in (folder / "golden.jsonl").read_text().splitlines()]
        assert {row["instruction"] for row in golden} == {CLAUSE}
        reranker = Reranker.load(str(folder), base=str(tiny_qwen3) if target == "adapter" else None)
        for collection in read_split(run / "data", "test"):
            place = run / "eval" / collection.name
            candidates = read_candidates(place / "candidates.jsonl")
            system = "exported" if collection.name == "other" else "tuned"
            said = read_trec_run(place / system / "run.trec")
            found = rerank(reranker, collection, candidates, sorted(candidates), lambda *_: None)
            for query_id, scores in found.items():
                # A merged layer rounds otherwise; the adapter's layers are those that were evaluated.
                close = {d: pytest.approx(s, abs=1e-4) for d, s in scores.items()} if target == "hf" else scores
                assert said[query_id] == close


def evaluate(path: Path, *overrides: str) -> Path:
    """bm25 and base in this process; the folder of the results."""
    pipeline = Pipeline(load_recipe(str(path), overrides))
    pipeline.start()
    pipeline.evaluate(["bm25", "base"])
    return pipeline.folder.path / "eval"


def test_two_sets_are_scored_as_two_evaluations_with_one_instruction_each(tiny_qwen3: Path, tmp_path: Path) -> None:
    tests = [{"path": "held-out", "instruction": CLAUSE}, {"path": "other", "instruction": CODE}]
    both = write_job(tmp_path / "both", tiny_qwen3, data={"train": [{"path": "one"}], "test": tests})
    folder = evaluate(both)
    scores = {name: (folder / name / "base" / "run.trec").read_bytes() for name in ("held-out", "other")}
    for source in tests:
        data = {"train": [{"path": "one"}], "test": [{"path": source["path"]}]}
        prompt = {"instruction": source["instruction"]}
        alone = evaluate(write_job(tmp_path / source["path"], tiny_qwen3, data=data, prompt=prompt))
        assert (alone / source["path"] / "base" / "run.trec").read_bytes() == scores[source["path"]]
    # And another instruction gives other scores; those of the other set are kept, with their clock.
    seconds = json.loads((folder / "other" / "base" / "metrics.json").read_text())["seconds"]
    evaluate(both, f"data.test={json.dumps([{**tests[0], 'instruction': CODE}, tests[1]])}")
    assert (folder / "held-out" / "base" / "run.trec").read_bytes() != scores["held-out"]
    assert (folder / "other" / "base" / "run.trec").read_bytes() == scores["other"]
    assert json.loads((folder / "other" / "base" / "metrics.json").read_text())["seconds"] == seconds


def test_baselines_that_read_the_instruction_are_scored_under_the_sets(tiny_qwen3: Path, tmp_path: Path) -> None:
    prompt = Prompt(max_tokens=320, instruction="Mine.")
    for kind, other in (("qwen3-reranker", CLAUSE), ("mxbai", CLAUSE), ("mxbai", GENERAL), ("rankwright", GENERAL)):
        baseline = Baseline(name="x", kind=kind, model=str(tiny_qwen3))
        own, wanted = (
            load_baseline(baseline, p, cache=tmp_path)
            for p in (prompt, prompt.model_copy(update={"instruction": other}))
        )
        assert isinstance(own, Reranker) and isinstance(wanted, Reranker)
        under = baseline_under(baseline, own, other)
        assert isinstance(under, Reranker) and under.contract == wanted.contract != own.contract
        assert under.model is own.model and baseline_under(baseline, own, None) is own
    for kind in ("zerank", "bge"):
        baseline = Baseline(name="x", kind=kind, model=str(tiny_qwen3))
        scorer = load_baseline(baseline, prompt, cache=tmp_path)
        assert baseline_under(baseline, scorer, CLAUSE) is scorer


def test_a_folder_of_ours_as_a_baseline_keeps_its_own_instruction(folders: dict[str, Path], tmp_path: Path) -> None:
    baseline = Baseline(name="x", kind="rankwright", model=str(folders["qwen3-portable"]))
    scorer = load_baseline(baseline, Prompt(), cache=tmp_path)
    assert baseline_under(baseline, scorer, CLAUSE) is scorer


def test_what_depends_on_a_sets_instruction_and_weight(tiny_qwen3: Path, tmp_path: Path) -> None:
    path = write_job(tmp_path, tiny_qwen3)
    raw = yaml.safe_load(path.read_text())
    raw["evaluate"]["baselines"] = [
        {"name": "q", "kind": "qwen3-reranker", "model": str(tiny_qwen3)},
        {"name": "z", "kind": "zerank", "model": str(tiny_qwen3)},
    ]

    def inputs(split: str, number: int, **changes: Any) -> StageInputs:
        data = {**raw["data"], split: [dict(s) for s in raw["data"][split]]}
        data[split][number] |= changes
        recipe = Recipe.model_validate_json(json.dumps({**raw, "data": data}))
        return StageInputs(recipe, locate_all(recipe.data))

    before = inputs("train", 0)
    told = inputs("test", 1, instruction=CODE)
    assert before.scores["held-out"] == told.scores["held-out"]
    other = {s for s in before.scores["other"] if before.scores["other"][s] != told.scores["other"][s]}
    assert other == {"base", "tuned", "q", "z"} and before.train == told.train and before.data != told.data
    # Under the exports it is read as before.
    assert "exported" in before.scores["other"] and "exported" not in before.scores["held-out"]
    assert "exported" not in inputs("test", 1, instruction=CLAUSE).scores["other"]
    for changes in ({"instruction": CODE}, {"weight": 2.0}):
        trained = inputs("train", 0, **changes)
        assert before.mine == trained.mine and before.data != trained.data and before.train != trained.train
        assert before.scores["other"]["base"] == trained.scores["other"]["base"]
        assert before.scores["other"]["tuned"] != trained.scores["other"]["tuned"]
    # A teacher scores a set under the set's instruction.
    raw["mine"] = {"teacher": raw["evaluate"]["baselines"][0]}
    before = inputs("train", 0)
    assert before.shards == inputs("train", 0, weight=2.0).shards
    told = inputs("train", 0, instruction=CODE)
    assert before.shards != told.shards and before.mine != told.mine


def test_a_frame_without_a_place_refuses_the_instruction_of_a_set(tiny_qwen3: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_qwen3, tmp_path / "zerank-2"))
    recipe = recipe_of(base, data={"train": sources(CLAUSE, ""), "test": sources(None, CODE)}, export={"targets": []})
    with pytest.raises(UserError) as error:
        recipe_contract(recipe, *load_base_tokenizer(recipe))
    first, second = str(error.value).splitlines()
    assert first.startswith("data.train.0.instruction: the frame zerank has no place for one: remove it")
    assert second.startswith("data.test.1.instruction: the frame zerank has no place")
    # A frame with a line for it, which is not there without one, takes it.
    base = Path(shutil.copytree(tiny_qwen3, tmp_path / "mxbai-rerank-base-v2"))
    prompt = {"max_tokens": 320}
    recipe = recipe_of(base, data={"train": sources(CLAUSE)}, export={"targets": []}, prompt=prompt)
    contract = recipe_contract(recipe, *load_base_tokenizer(recipe))
    assert not contract.takes_instruction
    told = recipe_of(base, export={"targets": []}, prompt={**prompt, "instruction": CLAUSE})
    tokenizer = load_base_tokenizer(recipe)[1]
    assert contract.under(CLAUSE, tokenizer) == recipe_contract(told, *load_base_tokenizer(told))
    assert contract.under(CLAUSE, tokenizer).under("", tokenizer) == contract


def test_an_instruction_that_leaves_no_room_is_said_before_training(tiny_qwen3: Path) -> None:
    tests = [{"path": "t", "instruction": "very " * 200}]
    recipe = recipe_of(tiny_qwen3, data={"test": tests}, prompt={"max_tokens": 160})
    with pytest.raises(UserError, match=r"^data\.test\.0\.instruction: prompt\.max_tokens: 160 is too small"):
        recipe_contract(recipe, *load_base_tokenizer(recipe))


def test_another_instruction_has_no_fitted_temperature(folders: dict[str, Path]) -> None:
    reranker = Reranker.load(str(folders["qwen3-portable"]))
    fitted = Reranker(reranker.model, reranker.tokenizer, reranker.contract.replace(temperature=2.0))
    assert fitted.under(None) is fitted.under(fitted.contract.instruction) is fitted
    other = fitted.under(CLAUSE)
    assert (other.contract.temperature, other.contract.instruction) == (1.0, CLAUSE)
    assert other.model is fitted.model
    whole = Reranker.load(str(folders["qwen3-portable"]), instruction=CLAUSE)
    assert other.score("a bond", ["A loan.", "A cat."]) == whole.score("a bond", ["A loan.", "A cat."])

"""What is done again after a change of the recipe: a table."""

from __future__ import annotations

from pathlib import Path

import jobs
import pytest

from rankwright.data.sources import locate_all
from rankwright.pipeline.inputs import StageInputs
from rankwright.recipe.loading import load_recipe

ALL = "data mine train bm25 base tuned"
# Override -> what depends on it, of the stages and of the scores of the test set.
CHANGES = {
    "data.train.0.weight=2": "data train tuned",
    "data.train.0.instruction=Find it": "data train tuned exported",
    "data.train.0.limit=20": "data mine train tuned",
    "data.train.0.group_key=x": "data mine train tuned",
    "data.train.0.licence=MIT": "",
    "data.train.0.abstract={until: 0.3}": "train tuned",
    "data.test.0.instruction=Find it": "data base tuned exported",
    "data.test.0.limit=5": "data bm25 base tuned",
    "data.dev.fraction=0.3": "data mine train tuned",
    "data.on_fault=drop": "data",
    "data.on_leak=drop": "data mine train tuned",
    "licence.require=commercial": "",
    # Duplicates of code are found in another way than those of prose: data_report.json.
    "bm25.code=true": ALL,
    "mine.depth=10": "mine train tuned",
    "mine.negatives=2": "mine train tuned",
    "evaluate.depth=5": "mine train bm25 base tuned",
    "evaluate.limit_queries=5": "bm25 base tuned",
    "export.instruction=Find it": "exported",
    "prompt.instruction=Find it": "train base tuned",
    "train.save_every=1": "",
    "train.trackers=[tensorboard]": "",
    "model.attention=plain": "",
    "model.gradient_checkpointing=true": "",
    "model.merge_with_base=0.5": "tuned",
    # The base's own row is of its own weights.
    "model.quantize=nf4": "train tuned",
    "train.learning_rate=0.1": "train tuned",
    # Mining also retrieves for the training queries; the base reads no scores.
    "prompt.first_stage_score={}": "mine train tuned",
    "seed=1": "data mine train tuned",
}


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return jobs.job(tmp_path_factory.mktemp("job"), "fixtures/tiny-base", data={"dev": {"from": "train"}})


def hashes(recipe_file: Path, *overrides: str) -> dict[str, str]:
    recipe = load_recipe(str(recipe_file), overrides).recipe
    inputs = StageInputs(recipe, locate_all(recipe.data))
    return {"data": inputs.data, "mine": inputs.mine, "train": inputs.train, **inputs.scores["held-out"]}


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_change_does_again(recipe_file: Path, change: str) -> None:
    before, after = hashes(recipe_file), hashes(recipe_file, change)
    assert before == hashes(recipe_file)
    changed = {name for name in {*before, *after} if before.get(name) != after.get(name)}
    assert changed == set(CHANGES[change].split())

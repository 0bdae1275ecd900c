"""What an edit of the code does again: a table, on a copy of the package."""

from __future__ import annotations

import runpy
import shutil
from pathlib import Path

import jobs
import pytest

from rankwright.common.run_folder import PACKAGE
from rankwright.data.sources import locate_all
from rankwright.pipeline.inputs import CODE, StageInputs, code_of
from rankwright.recipe.loading import load_recipe

MODEL = "train base tuned calibrate export"
ALL = f"data mine bm25 measures attributes {MODEL}"
# File that is edited -> what depends on it: stages, and the scores of the test set; `measures`: BM25's, of its
# lists; `attributes`: queries.jsonl.
EDITS = {
    "report/page.py": "",
    "cli/main.py": "",
    "cli/show.py": "",
    "__main__.py": "",
    "pipeline/stages.py": "",
    "common/hashing.py": ALL,
    "recipe/schema.py": ALL,
    "data/leakage.py": ALL,
    "data/formats/beir.py": ALL,
    "pipeline/data.py": f"data mine bm25 measures {MODEL}",
    "retrieval/bm25.py": f"mine bm25 measures attributes {MODEL}",
    "mining/filters.py": "mine train tuned calibrate export",
    "supervision/teacher.py": "mine train tuned calibrate export",
    "pipeline/mine.py": "mine train tuned calibrate export",
    # Without teacher.pairs nothing is judged.
    "pipeline/judge.py": "",
    # Without pretrain no base is merged.
    "pipeline/pretrain.py": "",
    "pipeline/control.py": "",
    "training/losses.py": "train tuned calibrate export",
    "pipeline/train.py": "train tuned calibrate export",
    # It loads the base to be scored.
    "training/setup.py": f"attributes {MODEL}",
    "model/prompt.py": f"measures attributes {MODEL}",
    "evaluation/gate.py": "measures attributes calibrate export",
    # The checkpoint is chosen by it.
    "evaluation/metrics.py": "measures attributes train tuned calibrate export",
    "pipeline/calibrate.py": "calibrate export",
    "export/weights.py": "export",
    "pipeline/export.py": "export",
}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("copy") / "rankwright"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def hashes(package: Path, folder: Path, **mine: object) -> dict[str, str]:
    path = jobs.job(folder, "fixtures/tiny-base", mine=mine) if not folder.exists() else folder / "recipe.yaml"
    recipe = load_recipe(str(path)).recipe
    inputs = StageInputs(recipe, locate_all(recipe.data), package)
    stages = {"data": inputs.data, "mine": inputs.mine, "train": inputs.train, "calibrate": inputs.calibrate}
    return {
        **stages,
        "export": inputs.export(None, {}),
        **inputs.scores["held-out"],
        "measures": inputs.systems["bm25"],
        "attributes": code_of("attributes", package),
    }


@pytest.mark.parametrize("edit", EDITS)
def test_what_an_edit_does_again(package: Path, tmp_path: Path, edit: str) -> None:
    edited = tmp_path / "rankwright"
    shutil.copytree(package, edited)
    with (edited / edit).open("a", encoding="utf-8") as file:
        file.write("# edited\n")
    before, after = hashes(package, tmp_path / "job"), hashes(edited, tmp_path / "job")
    assert {name for name in before if before[name] != after[name]} == set(EDITS[edit].split())


def test_another_place_of_the_package_changes_nothing(package: Path, tmp_path: Path) -> None:
    assert hashes(package, tmp_path / "job") == hashes(PACKAGE, tmp_path / "job")


def test_a_teacher_of_ours_is_scored_again_after_an_edit_of_the_model(package: Path, tmp_path: Path) -> None:
    teacher = {"name": "big", "kind": "rankwright", "model": "fixtures/tiny-base"}
    before = hashes(package, tmp_path / "job", teacher=teacher)
    edited = tmp_path / "rankwright"
    shutil.copytree(package, edited)
    (edited / "model" / "prompt.py").write_text("", encoding="utf-8")
    after = hashes(edited, tmp_path / "job")
    assert before["data"] == after["data"] and before["mine"] != after["mine"]


def test_a_moved_file_is_another_code(package: Path, tmp_path: Path) -> None:
    before, edited = hashes(package, tmp_path / "job"), tmp_path / "rankwright"
    shutil.copytree(package, edited)
    (edited / "data" / "leakage.py").rename(edited / "data" / "leaks.py")
    assert hashes(edited, tmp_path / "job")["data"] != before["data"]


@pytest.mark.parametrize("made", CODE)
def test_the_table_agrees_with_the_imports_that_are_allowed(made: str) -> None:
    layout = runpy.run_path(str(jobs.REPOSITORY / "scripts" / "check_layout.py"))
    room, *others = [part for part in CODE[made].split() if "/" not in part]
    assert others == layout["may_import"](room)
    files = [part for part in CODE[made].split() if "/" in part]
    assert all((PACKAGE / file).is_file() for file in files)
    assert not {file.partition("/")[0] for file in files} & {room, *others}

"""The whole job on a random model: every file of the design is there, and doing it twice changes nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jobs
import pytest

from rankwright.data.store.texts import read_texts
from rankwright.pipeline.overview import summary
from rankwright.pipeline.stages import Pipeline
from rankwright.recipe.loading import load_recipe
from rankwright.rerankers.reranker import Reranker


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_qwen3: Path) -> tuple[Path, str]:
    """(folder, output) of one whole run, whose folder is relative, as `runs/NAME` is."""
    folder = tmp_path_factory.mktemp("job")
    jobs.job(folder, tiny_qwen3)
    done = jobs.rankwright("run", "recipe.yaml", "run_dir=run", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_every_stage_leaves_its_files(finished: tuple[Path, str]) -> None:
    run = finished[0] / "run"
    for name in [
        "recipe.json",
        "provenance.json",
        "data/train.jsonl",
        "data/dev.jsonl",
        "data/test.jsonl",
        "data_report.json",
        "negatives.jsonl",
        "candidates.jsonl",
        "metrics.jsonl",
        "checkpoints/step-4/model.safetensors",
        "checkpoints/step-4/rankwright.json",
        *[
            f"eval/held-out/{s}/{f}"
            for s in ("bm25", "base", "tuned")
            for f in ("run.trec", "per_query.jsonl", "metrics.json")
        ],
        "export/hf/model.safetensors",
        "export/hf/golden.jsonl",
        "export/hf/parity.json",
        "export/hf/README.md",
        "export/adapter/adapter_model.safetensors",
        "calibration.json",
        "report.html",
    ]:
        assert (run / name).is_file(), name


def test_the_table_shows_what_the_files_say(finished: tuple[Path, str]) -> None:
    folder, output = finished
    for system in ("bm25", "base", "tuned"):
        values = json.loads((folder / "run" / "eval" / "held-out" / system / "metrics.json").read_text())
        assert f"{values['nDCG@10']:.3f}" in output
        assert values["queries"] == 12
        assert values["nDCG@10"] <= values["ceiling"] + 1e-12
    assert "tuned - base [95 %]" in output


def test_the_card_leads_with_what_decides(finished: tuple[Path, str]) -> None:
    folder, output = finished
    found = summary(Pipeline(load_recipe(str(folder / "recipe.yaml"), [f"run_dir={folder / 'run'}"])))
    first, *others = found["verdict"]["sentences"]
    card = (folder / "run" / "export" / "hf" / "README.md").read_text(encoding="utf-8")
    assert f"**{first}**" in card and card.index(first) < card.index("## Use")
    assert all(sentence in card and sentence in output for sentence in others)


def test_the_mean_of_the_per_query_values_is_the_headline(finished: tuple[Path, str]) -> None:
    folder = finished[0] / "run" / "eval" / "held-out" / "tuned"
    rows = [json.loads(line) for line in (folder / "per_query.jsonl").read_text().splitlines()]
    mean = sum(row["nDCG@10"] for row in rows) / len(rows)
    assert json.loads((folder / "metrics.json").read_text())["nDCG@10"] == pytest.approx(mean)


def test_the_export_scores_like_the_evaluation(finished: tuple[Path, str]) -> None:
    run = finished[0] / "run"
    reranker = Reranker.load(str(run / "export" / "hf"))
    corpus = {d: t for path in (run / "data" / "corpora").glob("*.arrow") for d, t in read_texts(path)[0].items()}
    query = next(row for row in map(json.loads, (run / "data" / "test.jsonl").read_text().splitlines()))
    lines = [line.split() for line in (run / "eval" / "held-out" / "tuned" / "run.trec").read_text().splitlines()]
    mine = [(document, float(score)) for q, _, document, _, score, _ in lines if q == query["query_id"]]
    assert mine
    scores = reranker.score(query["query"], [corpus[d] for d, _ in mine])
    assert scores == pytest.approx([s for _, s in mine], abs=1e-4)


def test_the_same_command_again_does_nothing_twice(finished: tuple[Path, str]) -> None:
    folder = finished[0]
    weights = folder / "run" / "export" / "hf" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    done = jobs.rankwright("run", folder / "recipe.yaml")
    assert done.returncode == 0
    assert done.stdout.count("unchanged, skipped") == 5  # data, mine, train, calibrate, export
    assert done.stdout.count("unchanged, kept") == 4
    assert weights.stat().st_mtime_ns == before


@pytest.mark.slow
def test_merging_with_the_base_trains_nothing_again(finished: tuple[Path, str], tmp_path: Path) -> None:
    from safetensors.torch import load_file

    shutil.copytree(finished[0] / "run", tmp_path / "run")
    done = jobs.rankwright(
        "run", finished[0] / "recipe.yaml", f"run_dir={tmp_path / 'run'}", "model.merge_with_base=0.75"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("unchanged, skipped") == 3  # data, mine, train
    assert [s for s in ("bm25", "base", "tuned") if f"{s}: unchanged, kept" in done.stdout] == ["bm25", "base"]
    assert "tuned is base + 0.25 * (trained - base)" in done.stdout
    best = json.loads((tmp_path / "run" / "stages" / "train.json").read_text())["best_step"]
    trained = load_file(tmp_path / "run" / "checkpoints" / f"step-{best}" / "model.safetensors")
    exported = load_file(tmp_path / "run" / "export" / "adapter" / "adapter_model.safetensors")
    assert len(exported) == len(trained)
    for name, value in trained.items():
        share = 0.25 if "lora_B" in name else 1.0
        assert (exported[name.removeprefix("lm.").replace(".default", "")] == share * value).all(), name
    assert "model.merge_with_base" in (tmp_path / "run" / "export" / "hf" / "README.md").read_text()


@pytest.mark.slow
def test_a_deleted_export_is_made_again(finished: tuple[Path, str]) -> None:
    folder = finished[0]
    for path in (folder / "run" / "export" / "adapter").iterdir():
        path.unlink()
    (folder / "run" / "export" / "adapter").rmdir()
    assert jobs.rankwright("export", folder / "recipe.yaml").returncode == 0
    assert (folder / "run" / "export" / "adapter" / "adapter_model.safetensors").is_file()


def test_no_file_of_the_export_names_this_machine(finished: tuple[Path, str]) -> None:
    folder = finished[0]
    for path in (folder / "run" / "export").rglob("*"):
        if path.is_file():
            assert str(folder).encode() not in path.read_bytes(), path.name
            assert path.stat().st_mode & 0o777 == 0o644


def test_provenance_says_the_command_as_a_user_types_it(finished: tuple[Path, str]) -> None:
    # The launcher's own place on this machine is nobody's business.
    command = json.loads((finished[0] / "run" / "provenance.json").read_text(encoding="utf-8"))["command"]
    assert command[0] == "rankwright" and command[1] in ("run", "export")


@pytest.mark.slow
def test_evaluate_only_needs_no_training(tmp_path: Path, tiny_qwen3: Path) -> None:
    recipe = jobs.job(tmp_path, tiny_qwen3)
    done = jobs.rankwright("evaluate", recipe, "--only", "bm25,base")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert (tmp_path / "run" / "eval" / "held-out" / "base" / "metrics.json").is_file()
    done = jobs.rankwright("evaluate", recipe, "--only", "fusion")
    assert (
        done.returncode == 2 and "(known: base, bm25, tuned): it needs a bi-encoder: add dense: {model: " in done.stderr
    )


@pytest.mark.slow
def test_full_fine_tuning_and_bce_and_a_llama(tmp_path: Path, tiny_llama: Path) -> None:
    recipe = jobs.job(tmp_path, tiny_llama, model={"method": "full"}, loss={"name": "bce"})
    done = jobs.rankwright("run", recipe, "train.learning_rate=1e-4", "model.gradient_checkpointing=true")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "export" / "hf" / "parity.json").is_file()
    assert not (tmp_path / "run" / "export" / "adapter").exists()


@pytest.mark.slow
def test_a_deleted_file_of_a_stage_is_made_again(finished: tuple[Path, str]) -> None:
    folder = finished[0]
    negatives = folder / "run" / "negatives.jsonl"
    before = negatives.read_bytes()
    negatives.unlink()
    assert jobs.rankwright("mine", folder / "recipe.yaml").returncode == 0
    assert negatives.read_bytes() == before
    corpora = sorted((folder / "run" / "data" / "corpora").iterdir())
    corpora[-1].unlink()
    done = jobs.rankwright("mine", folder / "recipe.yaml")
    assert done.returncode == 0, done.stderr
    assert sorted((folder / "run" / "data" / "corpora").iterdir()) == corpora


@pytest.mark.slow
def test_another_recipes_checkpoint_is_never_exported_as_this_ones(tmp_path: Path, tiny_qwen3: Path) -> None:
    recipe = jobs.job(tmp_path, tiny_qwen3)
    assert jobs.rankwright("train", recipe).returncode == 0
    # The same step of another training takes the place of the one that the record names.
    assert jobs.rankwright("train", recipe, "train.learning_rate=0.1").returncode == 0
    done = jobs.rankwright("train", recipe)
    assert done.returncode == 0 and "4 steps of 4 groups" in done.stdout
    state = json.loads((tmp_path / "run" / "checkpoints" / "step-4" / "state.json").read_text())
    assert state["best_step"] == 4


def test_systems_of_other_settings_are_not_set_beside_each_other(finished: tuple[Path, str]) -> None:
    folder = finished[0]
    done = jobs.rankwright("evaluate", folder / "recipe.yaml", "evaluate.depth=3", "--only", "bm25,base")
    assert done.returncode == 0, done.stderr
    header = next(line for line in done.stdout.splitlines() if "test set" in line and "┃" in line)
    columns = [cell.strip() for cell in header.split("┃")[1:-1]]
    assert columns == ["test set", "queries", "BM25", "at best", "base"]


def test_a_base_with_its_own_instruction_keeps_it_unless_the_recipe_states_one(
    finished: tuple[Path, str], tmp_path: Path
) -> None:
    from rankwright.model.prompt import PromptContract
    from rankwright.recipe.loading import load_recipe
    from rankwright.training.setup import base_reranker, load_base_tokenizer, recipe_contract

    base = tmp_path / "base"
    base.mkdir()
    for path in (finished[0] / "run" / "export" / "hf").iterdir():
        (base / path.name).write_bytes(path.read_bytes())
    contract = PromptContract.load(base)
    assert contract is not None
    contract.replace(instruction="Find the clause").save(base)
    recipe = jobs.job(tmp_path / "job", base)
    for overrides, expected in (((), "Find the clause"), (("prompt.instruction=Find it",), "Find it")):
        loaded = load_recipe(str(recipe), overrides).recipe
        assert base_reranker(loaded).contract.instruction == expected
        assert recipe_contract(loaded, *load_base_tokenizer(loaded)).instruction == expected

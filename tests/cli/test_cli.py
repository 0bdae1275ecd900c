"""The command line as a person uses it: results on good input, one clear line a mistake on bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jobs
import pytest
import yaml

from rankwright import __version__
from rankwright.cli.models import read_documents
from rankwright.recipe.loading import load_recipe


def complaints(*arguments: object, **extra: str) -> list[str]:
    """The error lines of a command that must fail as a user's mistake: exit 2, no traceback."""
    done = jobs.rankwright(*arguments, **extra)
    assert done.returncode == 2, (done.returncode, done.stdout[-500:], done.stderr[-1500:])
    assert "Traceback" not in done.stderr + done.stdout
    return done.stderr.strip().splitlines()


def test_recipes_lists_every_shipped_recipe() -> None:
    done = jobs.rankwright("recipes")
    assert done.returncode == 0
    names = {line.split()[0] for line in done.stdout.splitlines() if line.strip()}
    shipped = {
        p.relative_to(jobs.REPOSITORY / "recipes").with_suffix("").as_posix()
        for p in (jobs.REPOSITORY / "recipes").rglob("*.yaml")
    }
    assert shipped <= names


def test_recipes_are_listed_from_the_first_run_on() -> None:
    lines = jobs.rankwright("recipes").stdout.splitlines()[1:]
    assert [line.split()[0] for line in lines[:4]] == ["quickstart", "finance", "legal", "code"]


def test_a_recipe_and_its_keys_are_shown(tmp_path: Path) -> None:
    assert jobs.rankwright("--version").stdout == f"rankwright {__version__}\n"
    shown = jobs.rankwright("recipes", "show", "quickstart").stdout
    assert shown.endswith((jobs.REPOSITORY / "recipes" / "quickstart.yaml").read_text(encoding="utf-8"))
    whole = tmp_path / "whole.yaml"
    whole.write_text(jobs.rankwright("recipes", "show", "quickstart", "train.epochs=2").stdout, encoding="utf-8")
    assert load_recipe(str(whole)).recipe == load_recipe("quickstart", ["train.epochs=2"]).recipe
    keys = jobs.rankwright("keys", "train.patience").stdout.splitlines()
    assert (
        keys[0] == "train.patience: whole number above 0 and at most 1,000,000,000; no default"
        and keys[-1] == "    for example: 5"
    )
    assert complaints("keys", "trian")[0].startswith("error: unknown section or key 'trian', did you mean 'train'?")


def test_a_mistake_of_the_recipe_needs_no_torch() -> None:
    code = "import sys; from rankwright.cli.main import main; main()"
    for arguments in (["run", "nope"], ["run", "quickstart", "trian.x=1"], ["check", "quickstart", "train.epochs=no"]):
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-c", code, *arguments], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 2 and "error: " in done.stderr
        assert "transformers" not in done.stderr and " torch" not in done.stderr


@pytest.mark.parametrize("recipe", ["finance", "legal", "code", "mixed"])
def test_gpu_recipes_pass_check_offline(tmp_path: Path, recipe: str) -> None:
    done = jobs.rankwright("check", recipe, f"run_dir={tmp_path / 'run'}", "--offline")
    assert done.returncode == 0, done.stderr
    assert "no mistakes found" in done.stdout and "not fetched" in done.stdout


def test_all_mistakes_of_a_recipe_come_at_once_with_their_lines(tmp_path: Path, tiny_qwen3: Path) -> None:
    recipe = jobs.job(tmp_path, tiny_qwen3)
    text = recipe.read_text() + "trian: {}\n"
    recipe.write_text(text.replace("learning_rate: 0.003", "learning_rate: fast").replace("rank: 4", "rnak: 4"))
    lines = complaints("train", recipe)
    assert len(lines) == 3
    for line, parts in zip(
        sorted(lines, key=lambda text: int(text.split(":")[2])),
        (
            ["model", "rnak", "did you mean 'rank'"],
            ["train.learning_rate", "must be a number", "'fast'"],
            ["trian", "did you mean 'train'"],
        ),
        strict=True,
    ):
        assert line.startswith(f"error: {recipe}:") and all(part in line for part in parts), line


def test_unknown_names_are_found_before_anything_is_written(tmp_path: Path, tiny_qwen3: Path) -> None:
    recipe = jobs.job(tmp_path, tiny_qwen3)
    lines = complaints(
        "run", recipe, "loss.name=listwise_softmaxx", "train.schedule=cosin", "evaluate.measures=[nDGC@10]"
    )
    text = "\n".join(lines)
    assert len(lines) == 3
    assert "did you mean 'listwise_softmax'" in text and "did you mean 'cosine'" in text and "nDCG" in text
    assert not (tmp_path / "run").exists()


def test_a_loss_parameter_that_does_not_exist_is_named(tmp_path: Path, tiny_qwen3: Path) -> None:
    recipe = jobs.job(tmp_path, tiny_qwen3)
    (line,) = complaints("train", recipe, "loss.options={temprature: 2.0}")
    assert "temprature" in line and "did you mean 'temperature'" in line


def test_missing_files_name_what_is_near(tmp_path: Path, tiny_qwen3: Path) -> None:
    recipe = jobs.job(tmp_path, tiny_qwen3)
    text = "\n".join(complaints("train", recipe, "data.train=[{path: onne}]", f"model.base={tiny_qwen3}x"))
    assert "did you mean one" in text or "did you mean 'one'" in text
    assert tiny_qwen3.name in text
    (line,) = complaints("train", "quickstar")
    assert "did you mean 'quickstart'" in line


def break_corpus(folder: Path) -> None:
    (folder / "corpus.jsonl").write_text("")


def break_column(folder: Path) -> None:
    path = folder / "corpus.jsonl"
    path.write_text(path.read_text().replace('"text"', '"txt"', 1))


def break_qrel(folder: Path) -> None:
    path = folder / "qrels" / "train.tsv"
    path.write_text(path.read_text() + "q3\td999\t1\n")


def break_positives(folder: Path) -> None:
    path = folder / "qrels" / "train.tsv"
    path.write_text(path.read_text().replace("\t1\n", "\t0\n").replace("\t2\n", "\t0\n"))


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (break_corpus, ["corpus.jsonl:1:", "empty"]),
        (break_column, ["corpus.jsonl:1:", "text", "txt"]),
        (break_qrel, ["train.tsv:32:", "d999"]),
        (break_positives, ["no query has a relevant document"]),
    ],
)
def test_faults_in_data_are_located(tmp_path: Path, tiny_qwen3: Path, spoil, expected: list[str]) -> None:
    recipe = jobs.job(tmp_path, tiny_qwen3)
    spoil(tmp_path / "sets" / "one")
    text = "\n".join(complaints("train", recipe))
    assert all(part in text for part in expected), text
    assert not (tmp_path / "run" / "data" / "train.jsonl").exists()
    assert not (tmp_path / "run" / "stages" / "data.json").exists()


def test_a_run_folder_that_cannot_be_written_is_a_clear_line(tmp_path: Path, tiny_qwen3: Path) -> None:
    recipe = jobs.job(tmp_path, tiny_qwen3)
    (tmp_path / "a-file").write_text("")
    (line,) = complaints("train", recipe, f"run_dir={tmp_path / 'a-file' / 'run'}")
    assert "run_dir" in line and "cannot write" in line


@pytest.mark.slow
def test_control_c_stops_with_one_line_and_the_same_command_continues(tmp_path: Path, tiny_qwen3: Path) -> None:
    recipe = jobs.job(tmp_path, tiny_qwen3, train={"max_steps": 400, "groups_per_step": 24})
    command = [sys.executable, "-m", "rankwright", "train", str(recipe)]
    process = subprocess.Popen(
        command, env=jobs.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    log, deadline = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 120
    while time.monotonic() < deadline and not (log.exists() and len(log.read_text().splitlines()) > 5):
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.strip().splitlines()[-1].startswith("stopped. Saved after step") and "Traceback" not in errors
    assert not list((tmp_path / "run").rglob("*.tmp")) and not list((tmp_path / "run").rglob(".step-*"))
    done = jobs.rankwright("train", recipe)
    assert done.returncode == 0 and "continuing after step" in done.stdout


def test_score_ranks_the_documents_of_a_file(tmp_path: Path, tiny_qwen3: Path) -> None:
    lines = tmp_path / "documents.txt"
    lines.write_text("A bond is a loan.\nA cat sleeps.\n\nThe river rises.\n")
    done = jobs.rankwright("score", tiny_qwen3, "--query", "what is a bond?", "--documents", lines)
    assert done.returncode == 0, done.stderr
    assert sum(text in done.stdout for text in ("A bond", "A cat", "The river")) == 3
    rows = tmp_path / "documents.jsonl"
    rows.write_text(json.dumps({"text": "A bond is a loan."}) + "\n" + json.dumps({"body": "x"}) + "\n")
    (line,) = complaints("score", tiny_qwen3, "--query", "bond", "--documents", rows)
    assert f"{rows}:2:" in line and "body" in line
    (line,) = complaints("score", tiny_qwen3, "--query", "bond", "--documents", tmp_path / "none.txt")
    assert "no such file" in line
    # What a text editor would show as one line is one document.
    rows.write_text(json.dumps({"text": "one\u2028document"}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_documents(rows) == ["one\u2028document"]


def test_a_model_folder_without_weights_is_a_clear_line(tmp_path: Path, tiny_qwen3: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tiny_qwen3 / name).read_bytes())
    documents = tmp_path / "documents.txt"
    documents.write_text("text\n")
    (line,) = complaints("score", folder, "--query", "bond", "--documents", documents)
    assert "model.base" in line and "neither model.safetensors nor model.safetensors.index.json is there" in line


def test_a_recipe_may_extend_another(tmp_path: Path, tiny_qwen3: Path) -> None:
    jobs.job(tmp_path, tiny_qwen3)
    child = tmp_path / "child.yaml"
    child.write_text(yaml.safe_dump({"name": "child", "extends": "./recipe.yaml", "seed": 3}))
    done = jobs.rankwright("mine", child)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["seed"] == 3


@pytest.mark.parametrize(
    "arguments", [["nosuch"], ["run"], ["run", "quickstart", "--bad"], ["score", "x"], ["score", "x", "--top-k", "0"]]
)
def test_usage_errors_are_lines_not_tracebacks(arguments: list[str]) -> None:
    assert complaints(*arguments)


def test_check_changes_no_run(tmp_path: Path, tiny_qwen3: Path) -> None:
    recipe = jobs.job(tmp_path, tiny_qwen3)
    assert jobs.rankwright("check", recipe).returncode == 0
    assert not (tmp_path / "run").exists()
    (line,) = complaints("check", recipe, "bm25.language=klingon")
    assert "bm25.language" in line and "klingon" in line


def test_a_fractional_test_label_is_said_before_training(tmp_path: Path, tiny_qwen3: Path) -> None:
    recipe = jobs.job(tmp_path, tiny_qwen3)
    path = tmp_path / "sets" / "held-out" / "qrels" / "test.tsv"
    path.write_text(path.read_text().replace("\t2\n", "\t0.5\n", 1))
    (line,) = complaints("train", recipe)
    assert "0.5" in line and "whole number" in line


@pytest.mark.slow
def test_score_takes_the_base_of_an_adapter(tmp_path: Path, tiny_qwen3: Path) -> None:
    recipe = jobs.job(tmp_path, tiny_qwen3)
    assert jobs.rankwright("run", recipe).returncode == 0
    documents = tmp_path / "documents.txt"
    documents.write_text("A bond is a loan.\n")
    adapter = tmp_path / "run" / "export" / "adapter"
    (line,) = complaints("score", adapter, "--query", "bond", "--documents", documents)
    assert "--base FOLDER" in line
    done = jobs.rankwright("score", adapter, "--query", "bond", "--documents", documents, "--base", tiny_qwen3)
    assert done.returncode == 0 and "A bond" in done.stdout

"""The pretrain stage through the whole: the same bytes from the saved base, kills, leaks, bad pairs, the control."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from rankwright.common.run_folder import RunFolder
from rankwright.pipeline.stages import Pipeline
from rankwright.recipe.loading import load_recipe

FIXTURES = Path(__file__).parents[2] / "data" / "fixtures"


def documents(name: str = "finance") -> list[dict[str, str]]:
    lines = (FIXTURES / name / "train" / "corpus.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def recipe(folder: Path, base: Path, rows: list[dict[str, str]] | None = None, **section: Any) -> Path:
    """A recipe with title -> body of the fixtures' documents as weak pairs."""
    folder.mkdir(exist_ok=True)
    pairs = folder / "pairs.jsonl"
    made = [{"title": d["title"], "body": d["text"]} for d in documents()] if rows is None else rows
    pairs.write_text("".join(json.dumps(row) + "\n" for row in made))
    objective = {"query_likelihood": 0.0, "keep_answers": 0.0}
    weak = {"path": str(pairs), "name": "titles", "from": "title", "to": "body", "licence": "own"}
    whole = {
        "name": "adapted",
        "run_dir": str(folder / "run"),
        "model": {"base": str(base), "rank": 4, "alpha": 8},
        "pretrain": {"pairs": [weak], "objective": objective, "rank": 16, "steps": 4, "groups_per_step": 4, **section},
        "data": {
            "train": [{"path": str(FIXTURES / "finance" / "train"), "split": "train", "name": "finance", "limit": 60}],
            "test": [{"path": str(FIXTURES / "finance" / "test"), "split": "test", "name": "held-out", "limit": 20}],
        },
        "prompt": {"max_tokens": 96},
        "mine": {"depth": 10, "negatives": 3},
        "train": {"max_steps": 4, "groups_per_step": 4, "dev_queries": 6, "learning_rate": 1e-3, "save_every": 1},
        "evaluate": {"depth": 5, "combine": False},
        "export": {"targets": ["hf"]},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(whole))
    return path


def pipeline(path: Path, *overrides: str) -> Pipeline:
    return Pipeline(load_recipe(str(path), overrides), progress=False)


def weights(run: RunFolder) -> bytes:
    """The trained weights of a run's best checkpoint."""
    return (run.checkpoint(run.facts("train")["best_step"]) / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_qwen3: Path) -> Pipeline:
    path = recipe(tmp_path_factory.mktemp("pretrain"), tiny_qwen3, control="equal_compute")
    return pipeline(path).run()


def test_training_from_the_merged_base_is_training_from_the_saved_one(finished: Pipeline, tmp_path: Path) -> None:
    run = finished.folder
    plain = pipeline(finished.loaded.path, "pretrain=null", f"model.base={run.pretrained}", f"run_dir={tmp_path / 'r'}")
    plain.train()
    assert weights(plain.folder) == weights(run)


def text_of(folder: Path, name: str, extra: str = "") -> dict[str, Any]:
    """A file of texts: the fixtures' documents of a domain."""
    path = folder / f"{name}.jsonl"
    rows = [{"document": d["text"]} for d in documents(name)]
    rows += [{"document": extra}] if extra else []
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"path": str(path), "licence": "own"}


TEXT = {"block_tokens": 64, "blocks_per_step": 2}
ALL_PARTS = {"query_likelihood": 0.1, "text": 1.0, "keep_answers": 0.1}


def rows_of(run: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.metrics.read_text().splitlines()]


def test_pairs_and_text_are_trained_on_together(tmp_path: Path, tiny_qwen3: Path) -> None:
    section = {"text": [text_of(tmp_path, "legal")], "replay": {**text_of(tmp_path, "code"), "share": 0.25}}
    path = recipe(tmp_path, tiny_qwen3, objective=ALL_PARTS, **section, **TEXT)
    p = pipeline(path)
    p.train()
    facts = p.folder.facts("pretrain")
    steps = [row for row in rows_of(RunFolder(p.folder.pretraining)) if row["step"] > 0]
    assert all({"loss", "query_likelihood", "text_loss", "keep_answers", "tflop"} <= row.keys() for row in steps)
    assert set(facts["perplexity"]) == {"domain", "general"}
    # Far fewer steps than teach anything.
    assert all(0.5 < of["after"] / of["before"] < 1.1 for of in facts["perplexity"].values())
    assert facts["text"]["tokens"] == 64 * facts["text"]["blocks"]


def test_text_alone_lowers_its_perplexity(tmp_path: Path, tiny_qwen3: Path) -> None:
    section = {"text": [text_of(tmp_path, "legal")], "learning_rate": 5e-3, "steps": 12}
    path = recipe(tmp_path, tiny_qwen3, objective=ALL_PARTS, **section, **TEXT)
    p = pipeline(path, "pretrain.pairs=[]")
    p.train()
    facts, child = p.folder.facts("pretrain"), RunFolder(p.folder.pretraining)
    of = facts["perplexity"]["domain"]
    assert of["after"] < 0.9 * of["before"]
    assert facts["pairs"] == 0 and not child.negatives.exists()
    steps = rows_of(child)
    assert "dev_log_likelihood" in steps[0] and "dev_nDCG@10" not in steps[0]
    assert all({"text_loss", "keep_answers", "tflop", "loss"} <= row.keys() for row in steps[1:])

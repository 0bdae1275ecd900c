"""A small real job for tests: sets in BEIR layout, a recipe, and ways to run the command line on it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
TOPICS = (
    "bond loan court contract river town seller goods interest spring floods company government print item "
    "range sofa library water bridge garden winter summer paper music engine market"
).split()


def write_set(folder: Path, split: str, *, first: int, queries: int, numbered: bool = False) -> Path:
    """`queries` documents of seven words each, and a query of three of its words for each of them.

    Texts come again after 120 of them, unless they are numbered.
    """
    (folder / "qrels").mkdir(parents=True)
    documents, questions, judgements = [], [], ["query-id\tcorpus-id\tscore"]
    for number in range(first, first + queries):
        words = [TOPICS[(number * 7 + k * (number % 5 + 1)) % len(TOPICS)] for k in range(7)]
        words[5] += str(number) if numbered else ""
        documents.append({"_id": f"d{number}", "title": "", "text": " ".join(words)})
        questions.append({"_id": f"q{number}", "text": " ".join(words[1:6:2])})
        judgements.append(f"q{number}\td{number}\t{1 + number % 2}")
    for name, rows in (("corpus", documents), ("queries", questions)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "qrels" / f"{split}.tsv").write_text("\n".join(judgements) + "\n")
    return folder


def job(folder: Path, base: Path | str, **sections: dict[str, Any]) -> Path:
    """Write sets and recipe.yaml into `folder`; sections are merged into the recipe. Returns the recipe's path."""
    folder.mkdir(exist_ok=True)
    write_set(folder / "sets" / "one", "train", first=0, queries=30)
    write_set(folder / "sets" / "held-out", "test", first=40, queries=12)
    recipe: dict[str, Any] = {
        "name": "job",
        "run_dir": str(folder / "run"),
        "model": {"base": str(base), "rank": 4, "alpha": 8},
        "data": {
            "root": str(folder / "sets"),
            "train": [{"path": "one", "split": "train"}],
            "test": [{"path": "held-out", "split": "test"}],
        },
        "prompt": {"max_tokens": 160},
        "mine": {"depth": 20, "negatives": 3},
        "train": {
            "epochs": 100,
            "max_steps": 4,
            "groups_per_step": 4,
            "evaluate_every": 4,
            "save_every": 2,
            "learning_rate": 0.003,
        },
        "evaluate": {"depth": 8},
    }
    for section, values in sections.items():
        recipe[section] = {**recipe.get(section, {}), **values}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def environment(**extra: str) -> dict[str, str]:
    """The test's environment for a child process: this checkout's package, one thread, no network."""
    paths = [str(REPOSITORY / "train"), str(REPOSITORY / "tests"), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(p for p in paths if p),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "160",
        **extra,
    }


def rankwright(
    *arguments: object, launcher: Sequence[str] = (), cwd: Path | None = None, **extra: str
) -> subprocess.CompletedProcess[str]:
    """Run `python [launcher] -m rankwright ...` to its end."""
    command = [sys.executable, *launcher, "-m", "rankwright", *map(str, arguments)]
    env = environment(**extra)
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=cwd, timeout=900, check=False)


def metrics(run: Path) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def evaluation_job(folder: Path, base: Path) -> Path:
    """A job whose test set, of 220 queries with 16 candidates each, is scored in several blocks."""
    recipe = job(folder, base, evaluate={"depth": 16})
    shutil.rmtree(folder / "sets" / "held-out")
    write_set(folder / "sets" / "held-out", "test", first=40, queries=220, numbered=True)
    return recipe


def evaluation_files(run: Path, systems: Sequence[str] = ("bm25", "base", "tuned")) -> dict[str, Any]:
    """What an evaluation left, without what depends on the clock."""
    found: dict[str, Any] = {}
    for system in systems:
        folder = run / "eval" / "held-out" / system
        values = json.loads((folder / "metrics.json").read_text())
        found[system] = {k: v for k, v in values.items() if k not in ("pairs_per_s", "seconds", "seal")}
        found[f"{system} files"] = [(folder / name).read_bytes() for name in ("run.trec", "per_query.jsonl")]
    return found

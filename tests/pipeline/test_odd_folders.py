"""Run folders in states that no command leaves: the next run ends with the same numbers, or says what to delete."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jobs
import pytest

from rankwright.common.errors import UserError
from rankwright.evaluation.compare import compare
from rankwright.pipeline.stages import Pipeline
from rankwright.recipe.loading import load_recipe
from rankwright.report.page import write_report

Change = Callable[[Path], object]
JSON = ["null", "3", '"x"', "[]", '{"inputs": [1], "outputs": 3, "sha256": "x"}', "\xff", "{" * 5000, "1" * 5000]


def clear(path: Path) -> Path:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    return path


def file_at(name: str) -> Change:
    return lambda run: clear(run / name).write_text("x")


def link_at(name: str, target: str) -> Change:
    return lambda run: clear(run / name).symlink_to(target)


def text_in(name: str, text: str) -> Change:
    return lambda run: (run / name).write_text(text)


def edited(name: str, **values: Any) -> Change:
    return lambda run: (run / name).write_text(json.dumps({**json.loads((run / name).read_text()), **values}))


PLACES = ["stages", "data", "data/corpora", "tokens", "checkpoints", "checkpoints/step-4", "eval", "eval/held-out/base"]
RECORDS = ["stages/data.json", "stages/train.json", "data_report.json", "calibration.json", "speed.json", "mix.json"]
RECORDS += ["eval/held-out/base/metrics.json", "checkpoints/step-4/state.json", "recipe.json", "provenance.json"]
ODD: dict[str, Change] = {
    **{f"a file as {name}": file_at(name) for name in PLACES},
    **{f"a link to nowhere as {name}": link_at(name, "nowhere") for name in PLACES[::2]},
    **{f"a link to itself as {name}": link_at(name, Path(name).name) for name in PLACES[1::2]},
    **{f"{JSON[n % len(JSON)][:9]} in {name}": text_in(name, JSON[n % len(JSON)]) for n, name in enumerate(RECORDS)},
    **{f"{JSON[n % len(JSON)][:9]} in {name}": text_in(name, JSON[n % len(JSON)]) for n, name in enumerate(RECORDS, 3)},
    "a best step that is a path": edited("stages/train.json", best_step="../../x"),
    "a best step that is a list": edited("stages/train.json", best_step=[1]),
    "outputs of somebody else": edited("stages/data.json", outputs={"../../x": {"bytes": 1, "sha256": "x"}}),
    "a step of many digits": lambda run: (run / "checkpoints" / f"step-{9**40}").mkdir(),
    "a step of a strange digit": lambda run: (run / "checkpoints" / "step-\N{SUPERSCRIPT TWO}").mkdir(),
    "a file as a step": lambda run: (run / "checkpoints" / "step-7").write_text("x"),
    "a folder as the lock": lambda run: clear(run / ".lock").mkdir(),
    "a pipe as the lock": lambda run: os.mkfifo(clear(run / ".lock")),
    "a device as the lock": link_at(".lock", "/dev/full"),
    "a link to nowhere as the lock": link_at(".lock", "nowhere/x"),
    "odd rows of metrics": text_in("metrics.jsonl", '[1]\nnull\n{"step": "x"}\n3\n'),
    "odd rows of scores": text_in("eval/held-out/base/scores.jsonl", '[1]\nnull\n{"block": "x"}\n3\n'),
    "odd rows of dev scores": text_in("dev_scores.jsonl", "[1]\nnull\n"),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_qwen3: Path) -> Path:
    folder = tmp_path_factory.mktemp("job")
    recipe = jobs.job(folder, tiny_qwen3, export={"targets": []})
    Pipeline(load_recipe(str(recipe)), progress=False).run()
    return folder


def told(action: Callable[[], object], run: Path) -> Path | None:
    """What the one line of an error names, or None without an error."""
    try:
        action()
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 600
        path = Path(str(error).partition(": ")[0])
        assert path.is_relative_to(run), error
        return path
    return None


@pytest.mark.slow
@pytest.mark.parametrize("part", range(3))
def test_odd_states_of_a_run_folder(finished: Path, tmp_path: Path, part: int) -> None:
    expected = jobs.evaluation_files(finished / "run")
    for name, change in list(ODD.items())[part::3]:
        run = clear(tmp_path / "run")
        shutil.copytree(finished / "run", run)
        change(run)
        # They change nothing, so the state is still odd.
        told(lambda run=run: compare([run, finished / "run"]), run)
        told(lambda run=run: write_report(run, output=tmp_path / "report.html"), run)
        pipeline = Pipeline(load_recipe(str(finished / "recipe.yaml"), [f"run_dir={run}"]), progress=False)
        wrong = told(pipeline.run, run)
        if wrong is not None:
            # The advice, followed.
            told(Pipeline(pipeline.loaded, progress=False).run, clear(wrong).parent)
        assert jobs.evaluation_files(run) == expected, name

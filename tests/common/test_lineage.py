"""What is stale in a run folder: one tiny job that is trained, evaluated and changed again, seen on every surface."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import jobs
import pytest
from torch import Tensor
from typer.testing import CliRunner

from rankwright.cli.main import app
from rankwright.common.errors import UserError
from rankwright.common.lineage import lineage
from rankwright.common.run_folder import RunFolder
from rankwright.evaluation.compare import compare
from rankwright.evaluation.gate import recorded_verdict
from rankwright.export.push import plan_push
from rankwright.export.verify.folder import open_export
from rankwright.pipeline.stages import Pipeline
from rankwright.recipe.loading import load_recipe
from rankwright.report.page import write_report
from rankwright.rerankers.reranker import Reranker
from rankwright.training.losses import LOSSES

EVERYTHING = ["train", "evaluate", "calibrate", "gate", "export hf"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_qwen3: Path) -> Path:
    """The recipe of a finished job with a gate that lets everything through; do not change its run."""
    folder = tmp_path_factory.mktemp("lineage")
    gate = {"min_gain": -1.0, "confidence": 0.5}
    recipe = jobs.job(folder, tiny_qwen3, export={"targets": ["hf"]}, gate=gate, train={"max_steps": 2})
    Pipeline(load_recipe(str(recipe)), progress=False).run()
    return recipe


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> RunFolder:
    shutil.copytree(finished.parent / "run", tmp_path / "run")
    return RunFolder(tmp_path / "run")


def again(recipe: Path, run: RunFolder, stage: str, *changes: str) -> None:
    Pipeline(load_recipe(str(recipe), [f"run_dir={run.path}", *changes]), progress=False).run_to(stage)


def test_a_finished_run_is_of_one_training_everywhere(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    found = lineage(run)
    assert found.stale == {} and found.lines == []
    state = json.loads((run.checkpoint(2) / "state.json").read_text())
    assert found.training == state["inputs"] == run.facts("evaluate")["of"]["training"]
    assert 'id="stale"' not in run.report.read_text()
    assert plan_push(run.path, "hf", "a/b").files
    assert not any("stale" in note for note in open_export(run.export("hf")).notes)
    assert not any("stale" in note for note in compare([run.path]).notes)
    Reranker.load(run.path)
    shown = capsys.readouterr().out
    assert "a run folder: its export" in shown and "WARNING" not in shown


def test_another_training_makes_all_of_the_one_before_stale_on_every_surface(
    finished: Path, run: RunFolder, tmp_path: Path
) -> None:
    again(finished, run, "train", "train.learning_rate=0.002")
    found = lineage(run)
    assert list(found.stale) == EVERYTHING[1:] and set(found.stale.values()) == {"train"}
    (line,) = found.lines
    assert line.startswith("The model was trained again (20") and " UTC); evaluation, " in line
    assert line.endswith("evaluation, calibration, gate and export hf are still from before")
    # As a part of a longer sentence it has no colon of its own, but in the time.
    whole = found.line_of("evaluate")
    assert whole is not None and ": " not in whole and whole.endswith("` makes it again")
    command = f"rankwright run {finished} run_dir={run.path} train.learning_rate=0.002"
    assert found.command == command
    # The page of before was marked by the training itself; written again it has the same banner.
    before = run.report.read_text()
    assert before.index('id="stale"') < before.index("<h1") and line in before and command in before
    written = write_report(run.path, output=tmp_path / "again.html").read_text()
    assert line in written and command in written
    with pytest.raises(UserError, match="stale, not pushed: The model was trained again") as refused:
        plan_push(run.path, "hf", "a/b")
    assert command in str(refused.value) and "\n" not in str(refused.value)
    assert any(line in note for note in open_export(run.export("hf")).notes)
    assert any(line in note for note in compare([run.path]).notes)
    (tmp_path / "texts.txt").write_text("one\ntwo\n")
    for place in (run.path, run.export("hf")):
        done = CliRunner().invoke(app, ["score", str(place), "-q", "a", "-d", str(tmp_path / "texts.txt")])
        assert done.exit_code == 0 and f"is stale: {line}" in done.output, done.output


@pytest.mark.slow
def test_the_command_that_is_named_mends_all(finished: Path, run: RunFolder) -> None:
    again(finished, run, "train", "train.learning_rate=0.002")
    assert lineage(run).lines and 'id="stale"' in run.report.read_text()
    again(finished, run, "report", "train.learning_rate=0.002")
    assert lineage(run).stale == {} and 'id="stale"' not in run.report.read_text()
    assert plan_push(run.path, "hf", "a/b").files


def test_a_training_that_did_not_end_is_named(finished: Path, run: RunFolder) -> None:
    def stops(scores_QD: Tensor, labels_QD: Tensor, mask_QD: Tensor) -> Tensor:
        if scores_QD.requires_grad:
            raise UserError("stopped")
        return scores_QD.mean(dim=1)

    LOSSES.register(stops)
    try:
        with pytest.raises(UserError, match="stopped"):
            again(finished, run, "train", "loss.name=stops")
    finally:
        LOSSES._known.pop("stops")
        LOSSES.extensions.remove(__name__)
    found = lineage(run)
    assert found.training is None and list(found.stale) == EVERYTHING[1:]
    assert found.lines[0].startswith("A training began and is not finished (20")
    assert found.lines[0] in run.report.read_text()


def test_other_negatives_make_the_training_stale(finished: Path, run: RunFolder) -> None:
    again(finished, run, "mine", "mine.negatives=2")
    found = lineage(run)
    assert list(found.stale) == EVERYTHING and set(found.stale.values()) == {"mine"}
    assert found.lines[0].startswith("Negatives were mined again (20")
    assert "; training, evaluation, calibration, gate and export hf are still from before" in found.lines[0]


def test_a_command_with_other_settings_that_trained_nothing(finished: Path, run: RunFolder) -> None:
    again(finished, run, "mine", "train.learning_rate=0.002")
    found = lineage(run)
    assert list(found.stale) == EVERYTHING and set(found.stale.values()) == {"recipe"}
    assert found.lines[0].startswith("The last command changed settings of the recipe (20")
    # A gate, a licence and where runs are tracked change no training.
    again(finished, run, "mine", "gate.min_gain=-2", "name=other", "licence.require=null")
    assert lineage(run).stale == {}


def test_another_evaluation_of_the_same_training(finished: Path, run: RunFolder) -> None:
    again(finished, run, "evaluate", "evaluate.measures=[nDCG@10,RR]")
    found = lineage(run)
    assert found.stale == {"export hf": "evaluate"} and found.training == run.facts("train")["inputs"]
    assert found.lines[0].startswith("The evaluation was made again (20")
    with pytest.raises(UserError, match="stale, not pushed: The evaluation was made again"):
        plan_push(run.path, "hf", "a/b")
    # The page of before shows other measures; written again it shows these.
    old = "Stale: this page shows results that are no longer those of the run"
    assert old in run.report.read_text() and found.lines[0] in run.report.read_text()
    written = write_report(run.path).read_text()
    assert old not in written and "Stale: parts of this run are from before." in written


def test_an_evaluation_that_did_not_end(run: RunFolder) -> None:
    (run.eval_folder("held-out", "tuned") / "metrics.json").unlink()
    found = lineage(run)
    assert list(found.stale) == ["evaluate", "calibrate", "gate", "export hf"]
    assert found.lines[0].startswith("An evaluation began and is not finished")


def forge(run: RunFolder) -> None:
    verdict = json.loads(run.gate.read_text())
    run.write_json(run.gate, {**verdict, "override": "why not"})


def other_numbers(run: RunFolder) -> None:
    path = run.eval_folder("held-out", "base") / "per_query.jsonl"
    path.write_text(path.read_text().replace("0.", "0.0"))


@pytest.mark.parametrize("change", [forge, other_numbers])
def test_the_verdict_is_bound_to_its_numbers(change: Callable[[RunFolder], None], run: RunFolder) -> None:
    assert recorded_verdict(run) == {**(recorded_verdict(run) or {}), "accepted": True, "override": None}
    change(run)
    assert lineage(run).stale == {"gate": "gate", "export hf": "gate"}
    with pytest.raises(UserError, match=r"stale, not pushed: gate\.json is not the verdict on these numbers"):
        plan_push(run.path, "hf", "a/b")


def test_a_folder_that_recorded_nothing_is_not_called_stale(run: RunFolder) -> None:
    for path in (run.path / "stages").iterdir():
        record = json.loads(path.read_text())
        path.write_text(json.dumps({k: v for k, v in record.items() if k != "of"}))
    run.write_json(run.provenance, {"command": ["rankwright", "run", "job.yaml"]})
    assert lineage(run).lines == [] and lineage(run).command == "rankwright run job.yaml"

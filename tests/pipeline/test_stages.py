"""The table of stages and its loop, in one process."""

from __future__ import annotations

from pathlib import Path

import jobs
import pytest

from rankwright.common import run_folder
from rankwright.common.errors import UserError
from rankwright.evaluation.runs import experiment_of
from rankwright.pipeline.stage_table import STAGES
from rankwright.pipeline.stages import Pipeline
from rankwright.recipe.loading import load_recipe
from rankwright.recipe.schema import result_values, walk_keys


def test_every_stage_with_a_record_is_known_to_the_run_folder() -> None:
    assert [stage.name for stage in STAGES if stage.name != "gate"] == list(run_folder.STAGES)
    # Once the first process works alone, the others have gone.
    alone = [stage.processes == "one" for stage in STAGES]
    assert alone == sorted(alone)


def test_a_done_stage_is_skipped_and_a_missing_output_is_made_again(
    tmp_path: Path, tiny_qwen3: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = load_recipe(str(jobs.job(tmp_path, tiny_qwen3)))
    run = Pipeline(loaded)
    facts = run.mine()
    assert facts["processes"] == 1 and "unchanged, skipped" not in capsys.readouterr().out
    before = run.folder.negatives.stat().st_mtime_ns
    # A kill after the record was written leaves shards.
    run.folder.mining.mkdir()
    assert Pipeline(loaded).mine() == facts
    assert capsys.readouterr().out.count("unchanged, skipped") == 2
    assert run.folder.negatives.stat().st_mtime_ns == before and not run.folder.mining.exists()
    run.folder.removed.unlink()
    Pipeline(loaded).mine()
    assert capsys.readouterr().out.count("unchanged, skipped") == 1
    assert run.folder.removed.is_file()


def test_a_stage_that_fails_has_no_record(tmp_path: Path, tiny_qwen3: Path) -> None:
    path = jobs.job(tmp_path, tiny_qwen3)
    run = Pipeline(load_recipe(str(path)), progress=False)
    run.data()
    (tmp_path / "sets" / "one" / "corpus.jsonl").write_text("")
    again = Pipeline(load_recipe(str(path)), progress=False)
    with pytest.raises(UserError, match=r"corpus\.jsonl"):
        again.data()
    assert again.folder.facts("data") == {}


def test_marked_keys_change_no_result() -> None:
    marked = {key for key, field in walk_keys() if (field.json_schema_extra or {}) == {"changes_result": False}}
    assert marked == {
        "name",
        "description",
        "run_dir",
        "model.gradient_checkpointing",
        "model.attention",
        "train.save_every",
        "train.trackers",
        "train.track_report",
        "teacher.pairs.parallel",
        "synthesize.parallel",
        "synthesize.audit.queries",
        "synthesize.audit.min_accepted",
    }
    values = {"name": "x", "seed": 1, "train": {"save_every": 1, "epochs": 2}, "unknown": {"name": "y"}, "data": None}
    kept = {"seed": 1, "train": {"epochs": 2}, "unknown": {"name": "y"}, "data": None}
    assert result_values(values) == kept
    assert experiment_of(values) == experiment_of({**kept, "seed": 2})
    assert experiment_of(values) != experiment_of({**kept, "train": {"epochs": 3}})

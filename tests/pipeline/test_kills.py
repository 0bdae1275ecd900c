"""Whatever a run is stopped by, at whatever file: the same command continues, and ends with the same bytes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jobs
import pytest
from kill_points import drive

# In every stage: while it writes, between its files, before its record.
POINTS = [
    *("data/corpora/", "/dev.jsonl", "/.data_report.json", "/stages/.data.json"),
    *("/mining/", "/.negatives.jsonl", "/.dev_candidates.jsonl", "/stages/.mine.json"),
    *("/tokens/.", "/.mix.json", "/metrics.jsonl", "/checkpoints/.step-2.tmp", "/pools/", "/pools/.step-2"),
    *("/checkpoints/.step-4.tmp", "/stages/.train.json"),
    *("held-out/.candidates.jsonl", "/base/scores-0.jsonl", "/base/.scores.jsonl", "/base/.metrics.json"),
    *("/tuned/.run.trec", "/tuned/.per_query.jsonl", "/.speed.json", "/stages/.evaluate.json"),
    *("/dev_scores.jsonl", "/.calibration.json", "/stages/.calibrate.json"),
    *("/export/.hf.tmp/golden.jsonl", "/export/.hf.tmp", "/stages/.export.json", "/.report.html"),
]
FILES = (
    *("data/train.jsonl", "data/dev.jsonl", "data/test.jsonl", "negatives.jsonl", "candidates.jsonl", "removed.jsonl"),
    *("dev_candidates.jsonl", "dev_scores.jsonl", "calibration.json", "mix.json", "eval/held-out/queries.jsonl"),
    *("checkpoints/step-4/model.safetensors", "checkpoints/step-4/optimizer.pt", "export/hf/model.safetensors"),
    *("export/hf/tokenizer.json", "export/hf/golden.jsonl", "export/hf/rankwright.json"),
)
CLOCK = ("pairs_per_s", "tokens_per_s", "mfu", "step_seconds", "dev_seconds")


def results(run: Path) -> dict[str, object]:
    """All that a run leaves, without what depends on the clock."""
    steps = [{k: v for k, v in row.items() if k not in CLOCK} for row in jobs.metrics(run)]
    pools = {path.name: path.read_bytes() for path in (run / "pools").glob("*.jsonl")}
    report = json.loads((run / "data_report.json").read_text())
    files = {name: (run / name).read_bytes() for name in FILES}
    return {**files, **jobs.evaluation_files(run), "steps": steps, "pools": pools, "report": report}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_qwen3: Path) -> tuple[Path, dict[str, object]]:
    """(recipe, results of a run that nothing stopped)."""
    folder = tmp_path_factory.mktemp("whole")
    recipe = jobs.job(folder, tiny_qwen3, mine={"refresh_steps": 2}, export={"targets": ["hf"]})
    drive(recipe, folder / "run", 0, [])
    return recipe, results(folder / "run")


# SIGKILL, SIGTERM and Ctrl-C; a launcher's SIGTERM is not the same as a user's.
@pytest.mark.slow
@pytest.mark.parametrize(("number", "start", "step"), [(9, 0, 2), (9, 1, 2), (15, 0, 3), (2, 1, 3)])
def test_a_run_stopped_in_every_stage_ends_with_the_same_bytes(
    whole: tuple[Path, dict[str, object]], tmp_path: Path, number: int, start: int, step: int
) -> None:
    recipe, expected = whole
    points = POINTS[start::step]
    ended, _ = drive(recipe, tmp_path / "run", number, points)
    # Training saves before it ends by SIGTERM (75) or Ctrl-C (130).
    allowed = {9: {"-9"}, 15: {"-15", "75"}, 2: {"130"}}[number]
    assert [point for point, code in ended[:-1] if code not in allowed] == [], ended
    assert results(tmp_path / "run") == expected
    assert not [path for path in (tmp_path / "run").rglob(".*") if path.name not in (".lock", ".model", ".proven.json")]


# The second of two processes; sys.argv: as of rankwright.
SECOND = """
import os, signal, sys
from rankwright.cli.main import main

def hook(event, arguments):
    if event in ("open", "os.rename") and any(os.environ["POINT"] in str(path) for path in arguments[:2]):
        os.kill(os.getpid(), signal.SIGKILL)

if os.environ["RANK"] == "1" and os.environ["POINT"]:
    sys.addaudithook(hook)
main()
"""


@pytest.mark.slow
def test_one_of_two_processes_is_killed_and_both_continue_to_the_same_bytes(tmp_path: Path, tiny_qwen3: Path) -> None:
    recipe = jobs.job(tmp_path, tiny_qwen3)
    script = tmp_path / "second.py"
    script.write_text(SECOND)

    def evaluate(run: Path, point: str) -> int:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        command = [sys.executable, *launcher, str(script), "evaluate", str(recipe), f"run_dir={run}"]
        done = subprocess.run(command, env=jobs.environment(POINT=point), capture_output=True, text=True, check=False)
        assert "train/rankwright/" not in done.stderr, done.stderr
        return done.returncode

    assert evaluate(tmp_path / "whole", "") == 0
    for point in ("/mining/", "/ids.bin", "/held-out/candidates.jsonl"):
        assert evaluate(tmp_path / "run", point) != 0, point
    assert evaluate(tmp_path / "run", "") == 0
    for name in ("negatives.jsonl", "checkpoints/step-4/model.safetensors", "checkpoints/step-4/optimizer.pt"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert jobs.evaluation_files(tmp_path / "run") == jobs.evaluation_files(tmp_path / "whole")

"""What needs no model imports neither torch nor transformers; `score` imports what it needs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jobs
import pytest

# Each command runs in a fork of one process, which has imported the command line alone.
CODE = """
import json, os, sys
from rankwright.cli.main import main
for arguments in json.load(sys.stdin):
    if os.fork():
        os.wait()
        continue
    sys.argv, code = ["rankwright", *arguments], None
    try:
        main()
    except SystemExit as end:
        code = end.code
    print(json.dumps([code, sorted({"torch", "transformers", "scipy", "datasets"} & set(sys.modules))]), flush=True)
    os._exit(0)
"""
LOST = """
name: lost
model: {base: fixtures/tiny-base}
data: {train: [{path: lost.jsonl}], test: [{path: fixtures/legal, split: test}]}
"""
MISTAKES = {
    "recipes that are not there": [
        *([name, "nope"] for name in ("run", "check", "mine", "train", "evaluate", "export", "plan")),
        ["run", "nope.yaml"],
        ["recipes", "show", "nope"],
    ],
    "keys that are not there": [["run", "quickstart", "train.max_stps=3"], ["check", "quickstart", "trian.x=1"]],
    "keys that are asked for": [["keys", "trian"]],
    "sets that are not there": [["run", "lost.yaml"], ["train", "lost.yaml"]],
    "files that are not there": [
        ["init", "nope.jsonl"],
        ["score", "fixtures/tiny-base", "-q", "a", "-d", "nope.txt"],
        ["data", "convert", "nope.jsonl", "out.jsonl", "--to", "pairs"],
        ["audit", "read", "nope.json"],
    ],
    "folders that are not there": [
        ["score", "./nope", "-q", "a", "-d", "documents.txt"],
        ["verify", "nope"],
        ["push", "nope", "hf", "owner/name"],
        ["report", "nope"],
        ["compare", "nope", "other"],
    ],
}


LOOKS = [["keys"], ["keys", "mine"], ["recipes"], ["recipes", "--schema"], ["recipes", "show", "quickstart", "--whole"]]
SCORE = """
import sys
from rankwright.cli.main import main
try:
    main()
except SystemExit as end:
    print(end.code, *sorted(sys.modules), sep="\\n")
"""
# What `score` has no use for, and what takes long to import.
NOT_FOR_SCORE = (
    "bm25s datasets ir_measures matplotlib mteb onnx onnxruntime pandas peft pyarrow scipy.stats sentence_transformers "
    "sklearn tensorflow torchvision rankwright.pipeline.stages rankwright.training.loop"
).split()


def test_score_imports_what_it_needs(tiny_qwen3: Path, tmp_path: Path) -> None:
    (tmp_path / "d.txt").write_text("a bond\na court\na river\n")
    done = subprocess.run(
        [sys.executable, "-c", SCORE, "score", tiny_qwen3, "-q", "bond", "-d", "d.txt", "--mode", "official"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=jobs.environment(),
        timeout=120,
        check=False,
    )
    found = done.stdout.splitlines()
    assert "0" in found and {"torch", "transformers.modeling_utils"} <= set(found), done.stderr
    assert [name for name in NOT_FOR_SCORE if name in found] == []


@pytest.mark.skipif(sys.platform == "win32", reason="forks")
def test_mistakes_and_looks_that_need_no_model_import_none(tmp_path: Path) -> None:
    (tmp_path / "lost.yaml").write_text(LOST)
    (tmp_path / "documents.txt").write_text("a document\n")
    mistakes = [command for group in MISTAKES.values() for command in group]
    commands = [*LOOKS, *mistakes]
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=jobs.environment(),
        timeout=120,
        check=True,
    )
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    rows = {" ".join(command): row for command, row in zip(commands, found, strict=True)}
    assert rows == {" ".join(command): [0 if command in LOOKS else 2, []] for command in commands}
    errors = done.stderr.splitlines()
    assert len(errors) == len(mistakes) and all(line.startswith("error: ") for line in errors), errors

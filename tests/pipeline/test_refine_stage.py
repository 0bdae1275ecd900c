"""Refinement through the whole: a run that was judged and trained is judged further, and its student trained on."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jobs
import pytest
from judge_server import JudgeServer, running_judge, word_judge
from rerank_server import Fault
from test_judge_stage import BIAS, NOISE, different, files, judged, recipe, rows

from rankwright.common.errors import UserError, UserErrors
from rankwright.common.run_folder import RunFolder
from rankwright.data.split_files import read_split
from rankwright.pipeline.checks import check_names
from rankwright.pipeline.judge import bill
from rankwright.pipeline.refine import read_earlier
from rankwright.pipeline.stages import Pipeline
from rankwright.recipe.loading import load_recipe
from rankwright.rerankers.pair_scores import read_teacher_scores
from rankwright.supervision.preferences.answers import AnswerFile, judged_reply

SHARE, CALLS = 0.25, 12


@pytest.fixture(scope="module")
def one_server() -> Iterator[JudgeServer]:
    with running_judge(word_judge(NOISE, BIAS)) as server:
        yield server


@pytest.fixture(scope="module")
def first(one_server: JudgeServer, tmp_path_factory: pytest.TempPathFactory, tiny_qwen3: Path) -> Iterator[Path]:
    """A recipe whose run was judged, trained and exported; copy its folder before changing it."""
    folder = tmp_path_factory.mktemp("first") / "job"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1")
        patch.setenv("RANKWRIGHT_CACHE", str(folder.parent / "cache"))
        # A copy of each document, which is judged once.
        path = recipe(folder, tiny_qwen3, one_server, design={"cycles": {"count": 1}})
        corpus = folder / "sets" / "one" / "corpus.jsonl"
        copies = [{**row, "_id": f"again-{row['_id']}"} for row in rows(corpus)[::3]]
        corpus.write_text(corpus.read_text() + "".join(json.dumps(row) + "\n" for row in copies))
        Pipeline(load_recipe(str(path), ["export.targets=[hf]"]), progress=False).run()
        yield path


@pytest.fixture
def server(one_server: JudgeServer) -> JudgeServer:
    one_server.reset(word_judge(NOISE, BIAS))
    return one_server


def refinement(first: Path, folder: Path, *more: str) -> list[str]:
    """Overrides of a run in `folder` that refines the first one."""
    refine = {"student": str(first.parent / "run"), "share": SHARE, "calls_per_query": CALLS}
    return [f"run_dir={folder}", f"teacher.pairs.refine={json.dumps(refine)}", "export.targets=[hf]", *more]


def test_the_doubtful_queries_are_judged_further_and_the_student_trains_on(
    first: Path, server: JudgeServer, tmp_path: Path
) -> None:
    before = RunFolder(first.parent / "run")
    export = before.export("hf")
    overrides = refinement(first, tmp_path / "second", f"model.base={export}")
    whole = Pipeline(load_recipe(str(first), overrides), progress=False).run()
    run, was = whole.folder, json.loads(before.judge_report.read_text())
    report = json.loads(run.judge_report.read_text())
    found = report["refinement"]
    # Only the further calls are asked; all others are those of the first run.
    assert found["queries"] == 3 and found["calls"] == 3 * CALLS == len(server.asked)
    assert report["calls"] == was["calls"] + 3 * CALLS and report["rounds"][0] == was["rounds"][0]
    assert rows(run.judge_answers)[: was["calls"]] == rows(before.judge_answers)
    doubtful = {row["query_id"]: row for row in found["chosen"]}
    assert [row["disagreement"] for row in found["chosen"]] == sorted(
        (row["disagreement"] for row in found["chosen"]), reverse=True
    )
    calls = {query_id: [0, 0] for query_id in doubtful}
    for place, folder in enumerate((before, run)):
        for row in rows(folder.judge_pairs):
            if row["query_id"] in calls:
                calls[row["query_id"]][place] += 1
    assert all(now - then == CALLS for then, now in calls.values())
    assert found["sd"][1] < found["sd"][0] and all(len(row["overlap"]) == 2 for row in found["chosen"])
    # The scores of the others stay, but for the bias that all share.
    assert report["equal_texts"] == was["equal_texts"] > 0
    old, new = read_teacher_scores(before.teacher_scores), read_teacher_scores(run.teacher_scores)
    assert {q: set(own) for q, own in old.items()} == {q: set(own) for q, own in new.items()}
    changes = {q: max(abs(old[q][d] - new[q][d]) for d in old[q]) for q in old}
    assert max(value for q, value in changes.items() if q not in doubtful) < min(changes[q] for q in doubtful)
    page = run.report.read_text()
    assert 'id="refinement-table"' in page and "36 calls more" in page
    # The training starts where the student ended.
    results = {row["system"]: row["value"] for row in whole.results()}
    student = {
        row["system"]: row["value"] for row in Pipeline(load_recipe(str(first), ["export.targets=[hf]"])).results()
    }
    assert results["base"] == pytest.approx(student["tuned"], abs=1e-3)
    # Again: nothing is asked, and another place of the student's folder changes nothing.
    kept, asked = files(run.path), len(server.asked)
    for name in ("scores.jsonl", "report.json"):
        (run.path / "judge" / name).unlink()
    judged(first, *overrides)
    assert different(run.path, kept) == [] and len(server.asked) == asked
    shutil.copytree(before.path, moved := tmp_path / "moved")
    again = Pipeline(load_recipe(str(first), [*overrides, f"teacher.pairs.refine.student={moved}"]))
    assert again.inputs.judge == whole.inputs.judge


def test_threads_and_kills_leave_the_same_bytes(first: Path, server: JudgeServer, tmp_path: Path) -> None:
    whole = files(judged(first, *refinement(first, tmp_path / "whole", "teacher.pairs.parallel=1")).folder.path)
    calls = len(server.asked)
    server.reset(word_judge(NOISE, BIAS))
    server.faults = [Fault(status=500, body=b"x"), Fault(hang_up=True)]
    eight = judged(first, *refinement(first, tmp_path / "eight", "teacher.pairs.parallel=8"))
    assert different(eight.folder.path, whole) == []
    server.pause_seconds = 0.1
    run = tmp_path / "killed"
    overrides = refinement(first, run, "teacher.pairs.parallel=2")
    command = [sys.executable, "-m", "rankwright", "judge", str(first), *overrides]
    answers, start = run / "judge" / "answers.jsonl", len(server.asked)
    env = jobs.environment(NO_PROXY="127.0.0.1")
    child = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while child.poll() is None and len(server.asked) < start + 9:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    left = answers.read_bytes()
    kept = left.count(b"\n") - (first.parent / "run" / "judge" / "answers.jsonl").read_bytes().count(b"\n")
    assert 0 < kept < calls and whole["judge/answers.jsonl"].startswith(left)
    server.reset(word_judge(NOISE, BIAS))
    judged(first, *overrides)
    assert different(run, whole) == [] and len(server.asked) == calls - kept


def test_the_bill_is_what_is_asked_beyond_the_first_run(first: Path, server: JudgeServer, tmp_path: Path) -> None:
    loaded = load_recipe(str(first), refinement(first, tmp_path / "run"))
    assert bill(loaded.recipe, RunFolder(tmp_path / "run")).calls == 3 * CALLS + 50 * 8, "and dev at most"
    pipeline = judged(first, *refinement(first, tmp_path / "run"))
    # Too few of dev are judged for a verdict.
    assert bill(pipeline.recipe, pipeline.folder).calls == 3 * CALLS == len(server.asked)


WRONG = {
    "no folder": (["teacher.pairs.refine.student=nowhere"], r"refine\.student: nowhere: no such folder.*judged and"),
    "another folder": (["teacher.pairs.refine.student=tests"], r"refine\.student: tests: not a run folder: name the"),
    "another judge": (
        ["teacher.pairs.judges.0.model=n"],
        r"teacher\.pairs\.judges: .* was judged by local \(m\): name the same ones in the same order",
    ),
    "another prior": (
        ["teacher.pairs.fit.prior=none"],
        r"teacher\.pairs\.fit\.prior: the scores of .* start from first_stage: give the same",
    ),
    "no budget": (
        ["teacher.pairs.budget.tokens=1000"],
        r"teacher\.pairs\.budget\.tokens: 1,000 are spent: answers of .* count too, and took [\d,]+: raise it",
    ),
    "a student that is not all": (
        ["train.first_stage_offset=0.5"],
        r"train\.first_stage_offset: such a student orders by more than its own scores, which are all that teacher",
    ),
    "less than a call": (
        ["teacher.pairs.refine.calls_per_query=1", "teacher.pairs.judges=[{name: a, url: 'http://h', model: m}, "
         "{name: b, url: 'http://h', model: n}]"],
        r"refine\.calls_per_query: 1 are less than one for each of 2 judges",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_mistakes_are_found_by_check(first: Path, server: JudgeServer, tmp_path: Path, name: str) -> None:
    wrong, expected = WRONG[name]
    right = refinement(first, tmp_path / "run")
    assert check_names(load_recipe(str(first), right).recipe) == []
    with pytest.raises(UserErrors, match=expected):
        raise UserErrors(check_names(load_recipe(str(first), [*right, *wrong]).recipe))
    assert not server.asked


def test_a_run_that_cannot_be_refined_is_named(first: Path, server: JudgeServer, tmp_path: Path) -> None:
    shutil.copytree(first.parent / "run", copy := tmp_path / "copy")
    right = [*refinement(first, tmp_path / "run"), f"teacher.pairs.refine.student={copy}"]

    def faults() -> str:
        return "\n".join(check_names(load_recipe(str(first), right).recipe))

    assert faults() == ""
    own = load_recipe(str(first), [*right, f"run_dir={copy}"]).recipe
    assert "is the folder of this run: give another one, e.g. run_dir=PATH" in "\n".join(check_names(own))
    shutil.move(copy / "export", tmp_path / "export")
    assert "has no export to load: give `rankwright export " in faults()
    shutil.move(tmp_path / "export", copy / "export")
    pairs = copy / "judge" / "pairs.jsonl"
    pairs.write_bytes(pairs.read_bytes().replace(b'"t": 0', b'"t": 1', 1))
    assert "judge/pairs.jsonl is not as the judge stage wrote it: give `rankwright judge " in faults()
    (copy / "stages" / "judge.json").unlink()
    assert "it was not judged to the end, by this version: give `rankwright judge " in faults()
    assert not server.asked


def test_another_seed_or_other_texts_ask_nothing(first: Path, server: JudgeServer, tmp_path: Path) -> None:
    # Another dev is taken out of train.
    with pytest.raises(UserError, match=r"refine\.student: one/q\d+ was judged there and is not a training query here"):
        judged(first, *refinement(first, tmp_path / "seed", "seed=3"))
    with pytest.raises(UserError, match=r"refine\.student: query .* were shown to local in other words there"):
        judged(first, *refinement(first, tmp_path / "words", "prompt.instruction=Find the clause"))
    assert not server.asked
    # A test query must not be shown, whatever the student's run had as test.
    pipeline = Pipeline(load_recipe(str(first), refinement(first, tmp_path / "test")), progress=False)
    pipeline.mine()
    test = pipeline.folder.split("test")
    (row,) = rows(test)[:1]
    judged_ids = {one["query_id"] for one in rows(first.parent / "run" / "judge" / "scores.jsonl")}
    (train,) = read_split(pipeline.folder.data, "train")
    text = train.queries[min(judged_ids).removeprefix("one/")]
    content = test.read_bytes()
    test.write_bytes(content + (json.dumps({**row, "query_id": "planted", "query": text}) + "\n").encode())
    assert pipeline.recipe.pairs is not None
    answers = AnswerFile(tmp_path / "answers.jsonl", judged_reply)
    with pytest.raises(UserError, match="is a test query too: judges must not see it"):
        read_earlier(pipeline.recipe, pipeline.recipe.pairs, pipeline.folder, answers)

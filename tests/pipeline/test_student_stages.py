"""A pairwise student through the whole: trained on judged pairs, asked in the judge's place, refused elsewhere."""

from __future__ import annotations

import json
import math
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jobs
import pytest
import yaml
from judge_server import running_judge
from tiny import make_tiny_qwen3
from typer.testing import CliRunner

from rankwright import Reranker
from rankwright.cli.main import app
from rankwright.common.errors import UserError, UserErrors
from rankwright.common.run_folder import RunFolder
from rankwright.data.split_files import read_split
from rankwright.model.prompt import PromptContract
from rankwright.pipeline.checks import check_names
from rankwright.pipeline.judge import bill
from rankwright.pipeline.stages import Pipeline
from rankwright.recipe.loading import load_recipe
from rankwright.rerankers.comparer import Comparer, student_folder

QUESTION = "Does document A answer the query better than document B?"
PLANTED, BIAS = "river", 0.5
FILES = ("judge/answers.jsonl", "judge/pairs.jsonl", "judge/scores.jsonl", "judge/report.json", "teacher.jsonl")


def planted_word(query: str, first: str, second: str) -> float:
    """Documents with the word are better, whatever the query; the one shown first has a little more."""
    return 1 / (1 + math.exp(-(4.0 * ((PLANTED in first) - (PLANTED in second)) + BIAS)))


def student_recipe(folder: Path, base: Path, judged: Path, **sections: Any) -> Path:
    recipe: dict[str, Any] = {
        "name": "student",
        "run_dir": str(folder / "student"),
        "model": {"base": str(base), "method": "full"},
        "data": {
            "train": [{"pairs": str(judged)}],
            "dev": {"from": "train", "fraction": 0.2},
            "test": {"from": "train", "fraction": 0.2},
        },
        "prompt": {"instruction": QUESTION, "max_tokens": 160},
        "mine": {"retriever": "pairs"},
        "loss": {"name": "soft_bce"},
        "train": {"epochs": 5, "groups_per_step": 8, "learning_rate": 0.001, "evaluate_every": 40},
        "evaluate": {"first_stage": "pairs", "combine": False, "measures": ["P@1"]},
        "export": {"targets": ["hf"]},
    }
    for section, values in sections.items():
        recipe[section] = {**recipe.get(section, {}), **values}
    path = folder / "student.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a base, a run whose judge has finished (one/run), and a student that was trained on it."""
    folder = tmp_path_factory.mktemp("student")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1")
        patch.setenv("RANKWRIGHT_CACHE", str(folder / "cache"))
        base = make_tiny_qwen3(folder / "base")
        with running_judge(planted_word) as server:
            judge = {"name": "dear", "url": server.url, "model": "m", "licence": "Apache-2.0"}
            pairs = {"judges": [judge], "queries": 28, "depth": 10}
            path = jobs.job(folder / "one", base, teacher={"pairs": pairs}, loss={"name": "kl_distil"})
            Pipeline(load_recipe(str(path)), progress=False).judge()
        path = student_recipe(folder, base, folder / "one" / "run")
        Pipeline(load_recipe(str(path)), progress=False).run()
        yield folder


def judging(folder: Path, home: Path, **pairs: Any) -> Path:
    """A recipe whose judge is the student: the documents that it was trained on, with other queries."""
    judge = {"name": "student", "kind": "pairwise", "model": str(home / "student")}
    section = {"judges": [judge], "queries": 16, "depth": 8, **pairs}
    path = jobs.job(folder, home / "base", teacher={"pairs": section}, loss={"name": "kl_distil"})
    queries = folder / "sets" / "one" / "queries.jsonl"
    others = [{**row, "text": " ".join([*row["text"].split()[:0:-1], "garden"])} for row in rows(queries)]
    queries.write_text("".join(json.dumps(row) + "\n" for row in others))
    return path


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_student_agrees_with_the_judge_on_queries_that_it_never_saw(home: Path) -> None:
    run = RunFolder(home / "student")
    splits = {name: read_split(run.data, name)[0] for name in ("train", "dev", "test")}
    texts = {name: set(collection.queries.values()) for name, collection in splits.items()}
    assert not texts["train"] & (texts["dev"] | texts["test"]) and not texts["dev"] & texts["test"]
    judged = rows(home / "one" / "run" / "judge" / "pairs.jsonl")
    pairs = {(row["query_id"], *sorted((row["first"], row["second"]))) for row in judged}
    assert sum(len(collection.queries) for collection in splits.values()) == len(pairs) > 200
    for query_id, labels in splits["train"].qrels.items():
        assert sum(labels.values()) == pytest.approx(1) and set(labels) == {f"{query_id}/ab", f"{query_id}/ba"}
    # A tie of the judge is not quite one: what its fitted bias left.
    report = json.loads((home / "one" / "run" / "judge" / "report.json").read_text())
    left = BIAS - report["judges"][0]["bias"]
    expected = {1 / (1 + math.exp(-lead - left)) for lead in (-4.0, 0.0, 4.0)}
    expected |= {1 - t for t in expected}
    found = {t for labels in splits["train"].qrels.values() for t in labels.values()}
    single = [t for t in found if min(abs(t - one) for one in expected) < 1e-6]
    assert len(single) >= 4, "pairs that were asked in one order"

    (systems,) = json.loads(run.student.read_text()).values()
    tuned, base = systems["tuned"], systems["base"]
    assert tuned["pairs"] == len(splits["test"].queries) and tuned["clear"]["pairs"] > 20
    assert tuned["clear"]["agreement"] > 0.85 > base["clear"]["agreement"] and tuned["log_loss"] < 0.6
    metrics = json.loads((run.eval_folder("run", "tuned") / "metrics.json").read_text())
    assert metrics["P@1"] == pytest.approx(tuned["agreement"], abs=0.02)
    page = run.report.read_text()
    assert 'id="pairs-table"' in page and "Chance" in page and f"{100 * tuned['agreement']:.1f}\xa0%" in page


def test_it_judges_in_the_place_of_the_dear_one(home: Path, tmp_path: Path) -> None:
    path = judging(tmp_path, home)
    pipeline = Pipeline(load_recipe(str(path)), progress=False)
    assert bill(pipeline.recipe, pipeline.folder).money is None
    pipeline.judge()
    run = pipeline.folder
    report = json.loads(run.judge_report.read_text())
    (judge,) = report["judges"]
    assert judge["calls"] == judge["answers"] == report["calls"] > 100 and report["tokens"] == 0
    assert (
        judge["both_orders"] and report["money"] is None and judge["same_in_both_orders"]["pairs"] == judge["answers"]
    )
    answers = rows(run.judge_answers)
    assert all(0 < row["t"] < 1 and round(row["t"], 4) == row["t"] for row in answers)
    # Its own bias is what both orders show; the answers have it no more.
    bias = sum(math.log(a / (1 - a)) - math.log(b / (1 - b)) for row in answers for a, b in [row["orders"]])
    assert judge["bias"] == pytest.approx(bias / 2 / len(answers))
    texts = {row["_id"]: row["text"] for row in rows(tmp_path / "sets" / "one" / "corpus.jsonl")}
    has = {f"one/{d}": PLANTED in text for d, text in texts.items()}
    clear = [row for row in rows(run.judge_pairs) if has[row["first"]] != has[row["second"]]]
    right = sum((row["t"] > 0.5) == has[row["first"]] for row in clear)
    assert len(clear) > 30 and right > 0.85 * len(clear)
    # The same command asks nothing again, and what is gone is made of what is kept.
    before = {name: (run.path / name).read_bytes() for name in FILES}
    run.judge_scores.unlink()
    Pipeline(load_recipe(str(path)), progress=False).judge()
    assert {name: (run.path / name).read_bytes() for name in FILES} == before
    ledger = {row["input"]: row for row in json.loads(run.licences.read_text())["inputs"]}
    assert ledger["student"]["kind"] == "judge" and ledger["student"]["use"] == ["distil"]
    assert (
        "trained from base (base, unknown), one (data set, unknown), m (judge, Apache-2.0)"
        in (ledger["student"]["stated_by"])
    )
    own = {row["input"]: row for row in json.loads(RunFolder(home / "student").licences.read_text())["inputs"]}
    # Some of the pairs are its test set.
    assert own["m"]["use"] == ["distil", "evaluate"] and own["m"]["licence"] == "Apache-2.0"
    assert own["one"]["use"] == ["train", "dev", "evaluate"] and own["one"]["kind"] == "data set"


def test_kills_budgets_and_threads_leave_the_same_bytes(home: Path, tmp_path: Path) -> None:
    path = judging(tmp_path, home, parallel=1)
    whole = Pipeline(load_recipe(str(path)), progress=False)
    whole.judge()
    expected = {name: (whole.folder.path / name).read_bytes() for name in FILES}
    run = tmp_path / "killed"
    command = [sys.executable, "-m", "rankwright", "judge", str(path), f"run_dir={run}", "teacher.pairs.parallel=4"]
    answers = run / "judge" / "answers.jsonl"
    child = subprocess.Popen(command, env=jobs.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while child.poll() is None and not (answers.exists() and answers.read_bytes().count(b"\n") >= 20):
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    child.wait()
    left = answers.read_bytes()
    assert expected["judge/answers.jsonl"].startswith(left[: left.rfind(b"\n") + 1])
    # In the middle of a query whose pairs were asked together.
    answers.write_bytes(b"".join(line + b"\n" for line in left.split(b"\n")[:13]))
    Pipeline(load_recipe(str(path), [f"run_dir={run}", "teacher.pairs.parallel=4"]), progress=False).judge()
    assert [name for name in FILES if (run / name).read_bytes() != expected[name]] == []
    short = Pipeline(
        load_recipe(str(path), [f"run_dir={tmp_path / 'short'}", "teacher.pairs.budget.calls=140"]), progress=False
    )
    short.judge()
    report = json.loads(short.folder.judge_report.read_text())
    assert report["calls"] == 140 and report["ended_by"].startswith("teacher.pairs.budget.calls: ")
    kept = (short.folder.path / "judge" / "answers.jsonl").read_bytes()
    assert kept.count(b"\n") == 140 and expected["judge/answers.jsonl"].startswith(kept[: kept.find(b"\n")])


def test_a_batch_gives_what_single_pairs_give(home: Path) -> None:
    comparer = Comparer(student_folder(str(home / "student")))
    texts = [row["text"] for row in rows(home / "one" / "sets" / "one" / "corpus.jsonl")]
    pairs = [*zip(texts[:20], texts[5:25], strict=True), ("", "river " * 300), ("a " * 400, "river")]
    together = comparer.compare("bond river", pairs)
    alone = [comparer.compare("bond river", [pair])[0] for pair in pairs]
    turned = comparer.compare("bond river", [(b, a) for a, b in pairs])
    for one, other, back in zip(together, alone, turned, strict=True):
        assert one.first_wins == pytest.approx(other.first_wins, abs=1.1e-4)
        assert one.first_wins + back.first_wins == pytest.approx(1, abs=2.1e-4)
        assert one.shown_first == pytest.approx(1 - back.shown_second, abs=2.1e-4)


def test_a_model_that_compares_is_refused_as_a_reranker_and_the_other_way_round(home: Path, tmp_path: Path) -> None:
    export = home / "student" / "export" / "hf"
    contract = PromptContract.load(export)
    assert contract is not None and contract.is_pairwise and contract.instruction == QUESTION
    refused = r"compares two documents, and scores none alone: .*kind: pairwise"
    for model in (export, home / "student"):
        with pytest.raises(UserError, match=refused):
            Reranker.load(model)
    (tmp_path / "documents.txt").write_text("a\nb\n")
    asked = CliRunner().invoke(
        app, ["score", str(export), "--query", "q", "--documents", str(tmp_path / "documents.txt")]
    )
    assert isinstance(asked.exception, UserError) and "compares two documents" in str(asked.exception)
    path = jobs.job(tmp_path / "job", home / "base")
    baseline = f"{{name: s, kind: rankwright, model: {export}}}"
    for key in (f"evaluate.baselines=[{baseline}]", f"mine.teacher={baseline}"):
        with pytest.raises(UserErrors, match=refused):
            raise UserErrors(check_names(load_recipe(str(path), [key]).recipe))
    with pytest.raises(UserErrors, match=rf"model\.base: .*{refused}"):
        Pipeline(load_recipe(str(path), [f"model.base={export}"]), progress=False).check()
    path = judging(tmp_path / "judging", home)
    for model, words in (
        (home / "base", "scores single documents, and compares none: train a student"),
        (home / "one" / "run", "a run folder without an export to load"),
        ("no/such/folder", "no such folder"),
        ("owner/name", "no such folder: give a run folder of a student"),
    ):
        override = f"teacher.pairs.judges=[{{name: s, kind: pairwise, model: {model}}}]"
        with pytest.raises(UserErrors, match=rf"teacher\.pairs\.judges\.0\.model: .*{words}"):
            raise UserErrors(check_names(load_recipe(str(path), [override]).recipe))
    card, serve = ((export / name).read_text() for name in ("README.md", "SERVE.md"))
    assert "kind: pairwise" in card and "This model is not served" in serve and 'Reranker.load("PATH")' not in card


WRONG = {
    "a loss of documents": (["loss.name=listwise_softmax"], r"loss: .*write \{name: soft_bce\}"),
    "a search": (["mine.retriever=bm25"], r"mine\.retriever: .*no search finds pairs: write pairs"),
    "another search": (["evaluate.first_stage=bm25"], r"evaluate\.first_stage: .*write pairs"),
    "a combination": (["evaluate.combine={}"], r"evaluate\.combine: .*write false"),
    "filters": (["mine.filters={rank_window: {first: 2}}"], r"mine\.filters: .*remove it"),
    "windows": (["prompt.long_documents=max"], r"prompt\.long_documents: .*cut to their share"),
    "one order": (["mine.positives=1"], r"mine\.positives: .*at least 2"),
    "a server's export": (["export.targets=[hf, gguf]"], r"export\.targets: .*remove gguf"),
    "a set of documents": (["data.test=[{path: x}]"], r"data\.test\.0: .*this set is not pairs"),
}


@pytest.mark.parametrize("name", WRONG)
def test_mistakes_of_a_student_are_found_by_check(home: Path, name: str) -> None:
    overrides, expected = WRONG[name]
    path = str(home / "student.yaml")
    assert check_names(load_recipe(path).recipe) == []
    with pytest.raises(UserErrors, match=expected):
        raise UserErrors(check_names(load_recipe(path, overrides).recipe))


def test_keys_that_have_no_meaning_beside_others_are_refused(home: Path, tmp_path: Path) -> None:
    path = str(home / "student.yaml")
    with pytest.raises(UserErrors, match=r"data\.train\.0: .*format: not with pairs"):
        load_recipe(path, ["data.train=[{pairs: x, format: beir}]"])
    judge = str(judging(tmp_path, home))
    with pytest.raises(UserErrors, match=r"judges\.0: .*url: only of a server"):
        load_recipe(judge, ["teacher.pairs.judges=[{name: s, kind: pairwise, model: x, url: 'http://h'}]"])
    with pytest.raises(UserErrors, match=r"judges\.0: .*url: missing"):
        load_recipe(judge, ["teacher.pairs.judges=[{name: s, model: x}]"])
    with pytest.raises(UserErrors, match=r"across_queries: judges\.0 compares documents of one query"):
        raise UserErrors(check_names(load_recipe(judge, ["teacher.pairs.across_queries=1"]).recipe))
    plain = jobs.job(tmp_path / "plain", home / "base")
    with pytest.raises(UserErrors, match=r"mine\.retriever: pairs needs the pairs of a run"):
        raise UserErrors(check_names(load_recipe(str(plain), ["mine.retriever=pairs"]).recipe))


def test_a_student_that_saw_a_test_query_is_refused(home: Path, tmp_path: Path) -> None:
    path = judging(tmp_path, home)
    shutil.rmtree(tmp_path / "sets" / "held-out")
    jobs.write_set(tmp_path / "sets" / "held-out", "test", first=0, queries=12)
    with pytest.raises(
        UserError, match=r"teacher\.pairs\.judges\.0\.model: .* was trained on \d+ quer.* of the test sets"
    ):
        Pipeline(load_recipe(str(path)), progress=False).judge()

"""The evaluate stage as a command: any systems, nothing scored twice."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import ir_measures
import jobs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_encoder import make_tiny_encoder

from rankwright.cli.data_check import check_recipe
from rankwright.recipe.loading import load_recipe
from rankwright.rerankers.score_blocks import BLOCK_PAIRS, BlockScores, _facts
from rankwright.rerankers.scorer import Scorer
from rankwright.retrieval.candidates import Candidate, ranked
from rankwright.retrieval.run_file import read_trec_run, write_trec_run

TIMES = ("pairs_per_s", "seconds")


@pytest.fixture
def again(whole: Path, tmp_path: Path) -> tuple[Path, str]:
    """(a copy of its run, the setting that names it)."""
    shutil.copytree(whole / "run", tmp_path / "run")
    return tmp_path / "run", f"run_dir={tmp_path / 'run'}"


def test_other_measures_are_taken_of_the_same_scores(whole: Path, again: tuple[Path, str]) -> None:
    run, setting = again
    before = json.loads((run / "eval" / "held-out" / "base" / "metrics.json").read_text())
    done = jobs.rankwright(
        "evaluate", whole / "recipe.yaml", setting, 'evaluate.measures=["nDCG@5","P@1"]', "--only", "bm25,base"
    )
    assert done.returncode == 0, done.stderr
    after = json.loads((run / "eval" / "held-out" / "base" / "metrics.json").read_text())
    assert "nDCG@5" in after and "R@100" not in after
    # The clock of the first time, so nothing was scored again.
    assert [after[k] for k in (*TIMES, "nDCG@10", "prompt_mode")] == [
        before[k] for k in (*TIMES, "nDCG@10", "prompt_mode")
    ]


@pytest.mark.slow
def test_a_system_more_keeps_the_others(
    whole: Path, again: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, setting = again
    monkeypatch.setenv("RANKWRIGHT_CACHE", str(tmp_path / "cache"))
    encoder = make_tiny_encoder(tmp_path / "encoder")
    bm25 = read_trec_run(run / "eval" / "held-out" / "bm25" / "run.trec")
    # A run file of somebody else's, without one query, with a document that nobody knows.
    bm25.pop("q41")
    bm25["q42"]["stranger"] = 99.0
    write_trec_run(tmp_path / "x.run", bm25, tag="x")
    arguments = [whole / "recipe.yaml", setting, f"dense.model={encoder}", f"data.test.0.run={tmp_path / 'x.run'}"]
    done = jobs.rankwright("evaluate", *arguments)
    assert done.returncode == 0, done.stderr
    kept = [line.split(":")[0] for line in done.stdout.splitlines() if line.endswith("unchanged, kept")]
    assert kept == ["bm25", "base", "tuned", "combined"]
    assert "documents that are not in the corpus, left out 1; queries that are not in the file 1" in done.stdout
    assert "held-out run: nDCG@10" in done.stdout and "queries without candidates (they count 0): 1" in done.stdout
    header = next(line for line in done.stdout.splitlines() if "test set" in line and "┃" in line)
    assert [c.strip() for c in header.split("┃")[1:8]] == [
        *("test set", "queries", "BM25", "dense", "fusion", "run file", "at best"),
    ]
    # Other lists: the rerankers are scored again, and say on whose lists.
    done = jobs.rankwright("evaluate", *arguments, "evaluate.first_stage=run", "--only", "run,base")
    assert done.returncode == 0, done.stderr
    metrics = json.loads((run / "eval" / "held-out" / "base" / "metrics.json").read_text())
    assert (metrics["first_stage"], metrics["queries_missing"]) == ("run", 1)
    assert "run: unchanged, kept" in done.stdout
    assert "q41" not in read_trec_run(run / "eval" / "held-out" / "base" / "run.trec")


@pytest.mark.slow
def test_numbers_of_other_settings_go_and_their_scores_stay(whole: Path, again: tuple[Path, str]) -> None:
    run, setting = again
    before = jobs.evaluation_files(run)
    seconds = json.loads((run / "eval" / "held-out" / "base" / "metrics.json").read_text())["seconds"]
    done = jobs.rankwright("evaluate", whole / "recipe.yaml", setting, "evaluate.depth=3", "--only", "tuned")
    assert done.returncode == 0, done.stderr
    # As a kill leaves it: without a record that tells which numbers belong together.
    (run / "stages" / "evaluate.json").unlink()
    assert [p.parent.name for p in (run / "eval" / "held-out").glob("*/metrics.json")] == ["tuned"]
    done = jobs.rankwright("evaluate", whole / "recipe.yaml", setting)
    assert done.returncode == 0, done.stderr
    assert jobs.evaluation_files(run) == before
    assert json.loads((run / "eval" / "held-out" / "base" / "metrics.json").read_text())["seconds"] == seconds


@pytest.mark.slow
def test_what_was_deleted_or_damaged_since_is_made_again(whole: Path, again: tuple[Path, str]) -> None:
    run, setting = again
    before = jobs.evaluation_files(run)
    lists = run / "eval" / "held-out" / "bm25" / "candidates.jsonl"
    text = lists.read_text()
    lists.write_text(text[:-40])
    (run / "eval" / "held-out" / "base" / "run.trec").unlink()
    (run / "eval" / "held-out" / "bm25" / "per_query.jsonl").unlink()
    done = jobs.rankwright("evaluate", whole / "recipe.yaml", setting, "--only", "bm25,base")
    assert done.returncode == 0, done.stderr
    assert lists.read_text() == text and jobs.evaluation_files(run) == before


@pytest.mark.slow
def test_a_test_set_more_scores_only_that_set(whole: Path, again: tuple[Path, str], tmp_path: Path) -> None:
    run, setting = again
    other = jobs.write_set(tmp_path / "other", "test", first=60, queries=4)
    with (other / "queries.jsonl").open("a") as file:
        file.write('{"_id": "in vain", "text": "bond"}\n')
    with (other / "qrels" / "test.tsv").open("a") as file:
        file.write("in vain\td60\t0\n")
    before = {s: json.loads((run / "eval" / "held-out" / s / "metrics.json").read_text()) for s in ("base", "tuned")}
    tests = f'data.test=[{{"path": "held-out", "split": "test"}}, {{"path": "{other}", "split": "test"}}]'
    done = jobs.rankwright("evaluate", whole / "recipe.yaml", setting, tests)
    assert done.returncode == 0, done.stderr
    for system, values in before.items():
        after = json.loads((run / "eval" / "held-out" / system / "metrics.json").read_text())
        # The clock of the first time; and the other set's numbers count as of one evaluation with these.
        assert {**after, "inputs": "", "seal": ""} == {**values, "inputs": "", "seal": ""}
        others = json.loads((run / "eval" / "other" / system / "metrics.json").read_text())
        assert others["inputs"] == after["inputs"] != values["inputs"]
        assert (others["queries"], others["queries_without_relevant"]) == (4, 1)
    scores = (run / "eval" / "other" / "base" / "scores.jsonl").read_bytes()
    # Without the set that came first, too; another seed chooses no queries where there is no limit.
    tests = f'data.test=[{{"path": "{other}", "split": "test"}}]'
    done = jobs.rankwright("evaluate", whole / "recipe.yaml", setting, tests, "seed=5", "--only", "base")
    assert done.returncode == 0, done.stderr
    assert (run / "eval" / "other" / "base" / "scores.jsonl").read_bytes() == scores


@given(st.lists(st.integers(0, 300), max_size=30))
def test_blocks_are_cut_by_the_lists_alone(lengths: list[int]) -> None:
    lists = {f"q{i}": [Candidate(f"d{n}", 1.0, n + 1) for n in range(length)] for i, length in enumerate(lengths)}
    blocks = BlockScores(Path("unused"), "now", lists, tuple(lists)).blocks
    assert [q for block in blocks for q in block] == [q for q in lists if lists[q]]
    sizes = [[len(lists[q]) for q in block] for block in blocks]
    assert all(sum(block) >= BLOCK_PAIRS for block in sizes[:-1])
    assert all(sum(block[:-1]) < BLOCK_PAIRS for block in sizes)


class Halves(Scorer):
    """A scorer that gives a document half its number."""

    def score_groups(self, groups: Any) -> Any:
        for _, documents in groups:
            yield [float(d) / 2 for d in documents]


class Remembers(Halves):
    """It asks for the first query only, and knows the others' scores."""

    known = 0

    @property
    def cached(self) -> int:
        return self.known

    def score_groups(self, groups: Any) -> Any:
        for place, (_, documents) in enumerate(groups):
            self.known += len(documents) if place else 0
            yield [0.5] * len(documents)


def test_scores_from_a_cache_are_no_speed(tmp_path: Path) -> None:
    from rankwright.data.collection import Collection

    lists = {f"q{i}": [Candidate(f"d{n}", 1.0, n + 1) for n in range(size)] for i, size in enumerate((300, 100, 100))}
    collection = Collection("c", {f"d{n}": str(n) for n in range(300)}, dict.fromkeys(lists, "?"), {})
    options: dict[str, Any] = {"rank": 0, "advance": lambda *_: None, "look": lambda: None}
    scores = BlockScores(tmp_path / "x", "now", lists, tuple(lists))
    scores.score([0, 1], Remembers(), collection, **options)
    rows = scores.done()
    facts = scores.gather()[1]
    assert (facts["pairs"], facts["documents_cached"]) == (500, 100)
    assert facts["pairs_per_s"] == pytest.approx(300 / rows[0]["seconds"], abs=0.1) if rows[0]["seconds"] else True
    assert "pairs_per_s" not in _facts([rows[1]])


def test_rows_of_other_inputs_or_cut_short_are_scored_again(tmp_path: Path) -> None:
    from rankwright.data.collection import Collection

    lists = {f"q{i}": [Candidate(f"d{n}", 1.0, n + 1) for n in range(200)] for i in range(4)} | {"none": []}
    collection = Collection("c", {f"d{n}": str(n) for n in range(200)}, dict.fromkeys(lists, "?"), {})
    options: dict[str, Any] = {"rank": 0, "advance": lambda *_: None, "look": lambda: None}
    scores = BlockScores(tmp_path / "x", "now", lists, tuple(lists))
    assert len(scores.blocks) == 2
    scores.score([1], Halves(), collection, **options)
    assert list(scores.done()) == [1]
    assert BlockScores(tmp_path / "x", "other", lists, tuple(lists)).done() == {}
    path = tmp_path / "x" / "scores-0.jsonl"
    row = json.loads(path.read_text())
    path.write_text(json.dumps({**row, "scores": row["scores"][:-1]}) + "\n[]\n" + path.read_text()[:40])
    assert scores.done() == {}
    scores.score([0, 1], Halves(), collection, **options)
    run, facts = scores.gather()
    assert run["q3"]["d7"] == 3.5 and run["none"] == {}
    assert (facts["pairs"], "documents_cut" in facts) == (800, False)
    assert [p.name for p in (tmp_path / "x").iterdir()] == ["scores.jsonl"]


def faults(recipe: Path, *settings: object) -> list[str]:
    """What the data stage of a job says, which must fail."""
    done = jobs.rankwright("mine", recipe, *settings)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stdout + done.stderr
    return done.stderr.splitlines()


@pytest.mark.slow
def test_what_evaluation_would_refuse_is_refused_before_training(tiny_qwen3: Path, tmp_path: Path) -> None:
    recipe = jobs.job(tmp_path, tiny_qwen3)
    # A run file that has some queries of the set, and none of those that are evaluated.
    (tmp_path / "x.run").write_text("q40 Q0 d40 1 1 x\n")
    settings = [f"data.test.0.run={tmp_path / 'x.run'}", "evaluate.limit_queries=1"]
    assert any("has nothing in common with the set" in line for line in faults(recipe, *settings, "seed=1"))
    with (tmp_path / "sets" / "held-out" / "corpus.jsonl").open("a") as file:
        file.write('{"_id": "a b", "text": "x"}\n{"_id": "a%20b", "text": "y"}\n')
    assert faults(recipe) == [
        "error: set 'held-out': the ids 'a b' and 'a%20b' are the same text in a run file: rename one",
    ]


HARD = ["evaluate.relevance_level=2", "evaluate.gains={0: 0, 1: 0, 2: 1}"]


@pytest.mark.slow
def test_levels_and_gains_are_those_of_ir_measures_in_a_run(tiny_qwen3: Path, tmp_path: Path) -> None:
    """Half of the queries have a label of 2, the others only one of 1."""
    recipe = jobs.job(tmp_path, tiny_qwen3)
    qrels = tmp_path / "sets" / "held-out" / "qrels" / "test.tsv"
    # A document judged 1 beside the relevant one, and a negative label.
    qrels.write_text(qrels.read_text() + "q41\td40\t1\nq43\td42\t1\nq45\td44\t-1\n")
    done = jobs.rankwright("evaluate", recipe, *HARD, "--only", "bm25")
    assert done.returncode == 0, done.stderr
    assert "6 of 12 queries, 6 without a relevant document (a label of 2 or more) left out" in done.stdout
    assert "nDCG(gains={1: 0, 2: 1})@10 on the test queries" in done.stdout
    folder = tmp_path / "run" / "eval" / "held-out" / "bm25"
    found = json.loads((folder / "metrics.json").read_text())
    judged: dict[str, dict[str, int]] = {}
    for line in qrels.read_text().splitlines()[1:]:
        query, document, label = line.split("\t")
        judged.setdefault(query, {})[document] = int(label)
    judged = {q: labels for q, labels in judged.items() if 2 in labels.values()}
    # Equal scores are ordered by our rule, not by trec_eval's.
    lists = {q: ranked(q, scores) for q, scores in read_trec_run(folder / "run.trec").items()}
    run = {q: {d: float(-place) for place, (d, _) in enumerate(order)} for q, order in lists.items()}
    theirs = {"nDCG@10": "nDCG(gains={0: 0, 1: 0, 2: 1})@10", "MAP": "AP(rel=2)", "MRR@10": "RR(rel=2)@10"}
    for ours, name in theirs.items():
        value = ir_measures.calc_aggregate([ir_measures.parse_measure(name)], judged, run)
        assert found[ours] == pytest.approx(next(iter(value.values())), abs=1e-6), name
    assert (found["queries"], found["relevance_level"], found["gains"]) == (6, 2, {"0": 0.0, "1": 0.0, "2": 1.0})
    # Every list holds its relevant document, so the best order is worth 1.
    assert found["ceiling"] == 1.0
    # By the labels themselves, the same lists are measured again.
    assert jobs.rankwright("evaluate", recipe, "--only", "bm25").returncode == 0
    linear = json.loads((folder / "metrics.json").read_text())
    assert (linear["queries"], "gains" in linear) == (12, False)
    assert faults(recipe, "evaluate.gains={0: 0, 1: 1}") == [
        f"error: evaluate.gains: the label 2 of set {name!r} has no gain: add `2: GAIN`" for name in ("one", "held-out")
    ]
    checked = check_recipe(load_recipe(str(recipe), ["evaluate.gains={0: 0, 1: 1}"]))
    assert {p.what for p in checked.problems if "evaluate.gains" in p.what} == {
        f"evaluate.gains: the label 2 of set {name!r} has no gain: add `2: GAIN`" for name in ("one", "held-out")
    }
    assert faults(recipe, "evaluate.relevance_level=3", "data.test.0.relevant_from=2") == [
        "error: data.dev: no query has a document with a label of 3 or more, the evaluate.relevance_level: the labels "
        "are 2, as relevant_from of a set leaves them: set it to one of them"
    ]


@pytest.mark.slow
def test_levels_and_gains_reach_every_figure(tiny_qwen3: Path, tmp_path: Path) -> None:
    recipe = jobs.job(tmp_path, tiny_qwen3, data={"dev": {"from": "train", "fraction": 0.3}}, gate={"min_gain": -1.0})
    done = jobs.rankwright("run", recipe, *HARD, 'export.targets=["hf"]', "--override", "a test")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    assert "nDCG(gains={1: 0, 2: 1})@10 on the test queries" in done.stdout
    card = (run / "export" / "hf" / "README.md").read_text()
    assert "metric: nDCG" not in card and "name: nDCG(gains={1: 0, 2: 1})@10" in card.replace("'", "")
    assert "nDCG(gains={1: 0, 2: 1})@10" in (run / "report.html").read_text()
    calibration = json.loads((run / "calibration.json").read_text())
    # One document of each of the six queries has a label of 2.
    assert calibration["test"]["held-out"]["relevant"] == 6 == calibration["test"]["held-out"]["queries"]
    attributes = [json.loads(line) for line in (run / "eval" / "held-out" / "queries.jsonl").read_text().splitlines()]
    assert [row["relevant"] for row in attributes] == [1] * 6

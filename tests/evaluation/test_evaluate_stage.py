"""The evaluate stage as a command: any systems, nothing scored twice."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jobs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_encoder import make_tiny_encoder

from rankwright.rerankers.score_blocks import BLOCK_PAIRS, BlockScores, _facts
from rankwright.rerankers.scorer import Scorer
from rankwright.retrieval.candidates import Candidate
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
    assert kept == ["bm25", "base", "tuned"]
    assert "documents that are not in the corpus, left out 1; queries that are not in the file 1" in done.stdout
    assert "held-out run: nDCG@10" in done.stdout and "queries without candidates (they count 0): 1" in done.stdout
    header = next(line for line in done.stdout.splitlines() if "test set" in line and "┃" in line)
    assert [c.strip() for c in header.split("┃")[1:8]] == [
        *("test set", "queries", "BM25", "dense", "fusion", "run file", "best possible"),
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

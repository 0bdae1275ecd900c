"""Mining in shards: the same bytes for any number of processes and after any kill; short pools; who removed what."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jobs
import pytest
from tiny_encoder import make_tiny_encoder

from rankwright.common.processes import Processes
from rankwright.common.run_folder import RunFolder
from rankwright.data.collection import Collection
from rankwright.data.normalisation import normalised
from rankwright.data.split_files import write_split
from rankwright.mining import shards as mine_shards
from rankwright.mining.filters import MiningView
from rankwright.mining.pools import ALWAYS, PROMOTED, Negative, filled, read_negatives
from rankwright.pipeline.mine import MOST_REMOVED, make_shards, mine
from rankwright.recipe.schema import Recipe
from rankwright.retrieval import vectors
from rankwright.retrieval.candidates import Candidate, read_candidates

WORDS = "bond loan court contract river town seller goods interest spring floods company".split()
FILTERS: dict[str, Any] = {
    "rank_window": {"last": 18},
    "margin": {"relative_to_spread": 0.1},
    "near_duplicate": {},
    "same_group": {},
    "max_reuse": {"most": 4},
}
OUTPUTS = ("negatives.jsonl", "candidates.jsonl", "removed.jsonl", "dev_candidates.jsonl")
TWO = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def made_up(name: str, queries: int, seed: int) -> Collection:
    drawn = random.Random(seed)
    corpus = {f"d{i}": " ".join(drawn.choices(WORDS, k=7)) for i in range(60)}
    corpus["twin"] = corpus["d0"].upper()
    asked = {f"q{i}": " ".join(drawn.choices(WORDS, k=3)) for i in range(queries)}
    qrels = {q: {f"d{drawn.randrange(60)}": 1.0, "d59": 0.0} for q in asked}
    qrels["q0"], asked["q0"] = {"d0": 1.0}, " ".join(corpus["d0"].split()[:3])
    qrels["q1"] = {"d5": 0.0}
    return Collection(name, corpus, asked, qrels, document_groups={f"d{i}": f"g{i // 4}" for i in range(60)})


def recipe(**mine_keys: Any) -> Recipe:
    mine_keys = {"depth": 20, "negatives": 6, **mine_keys}
    dense = {"dense": mine_keys.pop("dense")} if "dense" in mine_keys else {}
    return Recipe.model_validate({"name": "x", "model": {"base": "b"}, "data": {}, "mine": mine_keys, **dense})


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(mine_shards, "SHARD_QUERIES", 8)
    monkeypatch.setenv("RANKWRIGHT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return prepared(tmp_path / "run")


def prepared(folder: Path) -> RunFolder:
    write_split(folder / "data", "train", [made_up("one", 37, 0), made_up("two", 11, 1)])
    write_split(folder / "data", "dev", [made_up("one", 9, 2)])
    return RunFolder(folder)


NO_FILES: dict[str, dict[str, Path | None]] = {"train": {}, "dev": {}}


def go(chosen: Recipe, run: RunFolder, count: int = 1, inputs: str = "i", **options: Any) -> dict[str, bytes]:
    """The stage's files, made by so many processes."""
    options = {"run_files": NO_FILES, "inputs": inputs, **options}
    if count == 1:
        work(0, 1, "", chosen, run, options, patched())
    else:
        # Not threads: transformers changes its classes for as long as a model is being loaded.
        context = multiprocessing.get_context("forkserver")
        # Imported once, not by every process.
        context.set_forkserver_preload(["torch.distributed", "rankwright.pipeline.mine", "sentence_transformers"])
        store = str(run.path / "store")
        left = [
            context.Process(target=work, args=(rank, count, store, chosen, run, options, patched()))
            for rank in range(count)
        ]
        for process in left:
            process.start()
        for process in left:
            process.join()
        assert [process.exitcode for process in left] == [0] * count
    assert not (run.path / "mining").exists()
    return {name: (run.path / name).read_bytes() for name in OUTPUTS}


def patched() -> tuple[int, int, str]:
    """What tests change of this process, for the others."""
    return mine_shards.SHARD_QUERIES, vectors.SHARD_TEXTS, os.environ["RANKWRIGHT_CACHE"]


def work(
    rank: int,
    count: int,
    store: str,
    chosen: Recipe,
    run: RunFolder,
    options: dict[str, Any],
    now: tuple[int, int, str],
) -> None:
    """What one of `count` processes does."""
    from torch.distributed import FileStore, HashStore

    mine_shards.SHARD_QUERIES, vectors.SHARD_TEXTS, os.environ["RANKWRIGHT_CACHE"] = now
    processes = Processes(rank, count, FileStore(store, count) if count > 1 else HashStore())
    with processes.together():
        facts = mine(chosen, run, processes=processes, **options)
        processes.meet()
        if processes.is_first:
            run.finish("mine", options["inputs"], seconds=0, **facts)
            mine_shards.Shards.forget(run.mining)


@pytest.mark.parametrize("filters", [FILTERS, {k: v for k, v in FILTERS.items() if k != "max_reuse"}])
def test_any_number_of_processes_gives_the_same_bytes(tmp_path: Path, filters: dict[str, Any]) -> None:
    chosen = recipe(filters=filters, fill="random")
    found = [go(chosen, prepared(tmp_path / str(count)), count) for count in (1, 2, 3)]
    assert found[0] == found[1] == found[2]
    assert all(found[0].values())


def test_size_of_a_shard_does_not_matter(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = recipe(filters=FILTERS, fill="random")
    small = go(chosen, run)
    monkeypatch.setattr(mine_shards, "SHARD_QUERIES", 100)
    assert go(chosen, run, inputs="j") == small


@pytest.mark.parametrize("seed", range(4))
def test_whatever_a_kill_leaves_is_continued(tmp_path: Path, seed: int) -> None:
    chosen = recipe(filters=FILTERS, fill="random")
    whole = go(chosen, prepared(tmp_path / "whole"))
    run = prepared(tmp_path / "run")
    make_shards(chosen, run, inputs="i", run_files=NO_FILES, processes=Processes())
    paths = sorted((run.path / "mining").iterdir())
    assert len(paths) == 5 + 2 + 2
    # Some are not made yet, one is being written, and so are the stage's own files.
    drawn = random.Random(seed)
    gone = drawn.sample(paths, 1 + 2 * seed)
    for path in gone:
        path.unlink()
    gone[0].with_name(f".{gone[0].name}.ab.tmp").write_text('{"shard": 0, ')
    (run.path / ".negatives.jsonl.ab.tmp").write_text("{")
    kept = {p: p.stat().st_mtime_ns for p in paths if p not in gone}
    make_shards(chosen, run, inputs="i", run_files=NO_FILES, processes=Processes())
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())
    assert go(chosen, run, 2) == whole


def test_a_changed_shard_is_made_again(tmp_path: Path) -> None:
    whole, run = go(recipe(), prepared(tmp_path / "whole")), prepared(tmp_path / "run")
    make_shards(recipe(), run, inputs="i", run_files=NO_FILES, processes=Processes())
    paths = sorted((run.path / "mining").iterdir())
    for number, path in enumerate(paths):
        content = path.read_bytes()
        digit = max(place for place in range(len(content)) if content[place] in b"01234567")
        changed = content[:digit] + bytes([content[digit] ^ 1]) + content[digit + 1 :]
        path.write_bytes([changed, content[: digit // 2], b"[]", b"null\n{}\n"][number % 4])
    assert go(recipe(), run) == whole


def test_shards_of_other_inputs_are_not_used(run: RunFolder) -> None:
    make_shards(recipe(depth=3), run, inputs="other", run_files=NO_FILES, processes=Processes())
    go(recipe(), run)
    assert max(len(found) for found in read_candidates(run.path / "candidates.jsonl").values()) == 20


def test_short_pools_stay_short_or_are_filled_and_marked(run: RunFolder) -> None:
    filters = {**FILTERS, "rank_window": {"last": 4}}
    go(recipe(filters=filters), run)
    facts = run.facts("mine")
    short = read_negatives(run.path / "negatives.jsonl")
    assert facts["short_pools"] == sum(len(pool) < 6 for pool in short.values()) > 0
    go(recipe(filters=filters, fill="random"), run, inputs="filled")
    full = read_negatives(run.path / "negatives.jsonl")
    facts = run.facts("mine")
    added = 0
    for name, seed, queries in (("one", 0, 37), ("two", 1, 11)):
        collection = made_up(name, queries, seed)
        candidates = read_candidates(run.path / "candidates.jsonl")
        for query_id in collection.queries:
            key = f"{name}/{query_id}"
            pool, before = full[key], short[key]
            assert pool[: len(before)] == before
            new = [n.document_id.removeprefix(f"{name}/") for n in pool[len(before) :]]
            added += len(new)
            positives = collection.positives(query_id)
            assert all(
                (n.source, n.reason, n.rank, n.score) == ("random", "fill", None, None) for n in pool[len(before) :]
            )
            assert not set(new) & (set(collection.qrels[query_id]) | ({"twin"} if query_id == "q0" else set()))
            texts = {normalised(collection.corpus[d]) for d in positives}
            assert not texts & {normalised(collection.corpus[d]) for d in new}
            groups = {collection.document_groups[d] for d in positives}
            assert not groups & {collection.document_groups.get(d) for d in new}
            assert not {c.document_id for c in candidates[key]} & {n.document_id for n in pool[len(before) :]}
            assert len(pool) == max(6, len(before)) if positives else len(pool) == len(before)
    assert facts["counts"]["filled"] == added > 0


def test_a_promoted_document_is_no_negative_that_a_pool_has() -> None:
    collection = made_up("one", 3, 0)
    promoted = Negative("d7", PROMOTED, 1, 2.0, "teacher_above_margin", (), 1.0)
    pool = (promoted, Negative("d8", "bm25", 2, 1.0, "unjudged"))
    retrieved = {"q0": [Candidate("d7", 2.0, 1), Candidate("d8", 1.0, 2)]}
    view = MiningView(collection, "bm25", retrieved, {})
    full = filled(pool, "q0", 3, view=view, filters={}, document_ids=sorted(collection.corpus))
    assert full[:2] == pool and [n.reason for n in full[2:]] == ["fill"] * 2


def test_what_every_filter_removed(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    go(recipe(filters=FILTERS), run)
    facts = run.facts("mine")
    retrieved = sum(map(len, read_candidates(run.path / "candidates.jsonl").values()))
    left = retrieved
    for row in facts["filters"]:
        left -= row["removed"]
        assert row["left"] == left >= 0
    assert [row["filter"] for row in facts["filters"][len(ALWAYS) :]] == list(FILTERS)
    pools = read_negatives(run.path / "negatives.jsonl")
    assert left == facts["counts"]["kept"] == sum(n.reason == "unjudged" for pool in pools.values() for n in pool)
    rows = [json.loads(line) for line in (run.path / "removed.jsonl").read_text().splitlines()]
    shown = sum(len(row["removed"]) + row["more"] for row in rows)
    assert shown == retrieved - left - facts["counts"]["positive"] - facts["counts"]["judged"]
    assert all(0 < len(row["removed"]) <= MOST_REMOVED for row in rows)
    reasons = {(r["filter"], r["reason"]) for row in rows for r in row["removed"]}
    assert {("always", "duplicate_of_positive"), ("margin", "above_margin"), ("max_reuse", "reused")} <= reasons
    assert any("margin" in r["decisions"] for row in rows for r in row["removed"] if r["filter"] == "margin")
    said = " ".join(capsys.readouterr().out.split())
    assert "what was removed" in said and "max_reuse" in said and "have fewer than 6 negatives: kept short" in said


def test_a_run_file_of_a_training_set(run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [f"q{q} Q0 d{(q + k) % 60} {k} {9 - k} x" for q in range(36) for k in range(5)]
    (tmp_path / "x.run").write_text("\n".join(lines) + "\n")
    files = {"train": {"one": tmp_path / "x.run", "two": tmp_path / "x.run"}, "dev": {}}
    go(recipe(retriever="run"), run, run_files=files)
    found = read_candidates(run.path / "candidates.jsonl")
    assert [c.document_id for c in found["one/q7"]] == [f"one/d{7 + k}" for k in range(5)]
    assert found["one/q36"] == []
    assert {n.source for pool in read_negatives(run.path / "negatives.jsonl").values() for n in pool} == {
        "run",
        "judged",
    }
    assert "queries that are not in the file 1" in " ".join(capsys.readouterr().out.split())


WORKER = """
import sys
from pathlib import Path
from torch.distributed import FileStore
from rankwright.mining import shards as mine_shards
from rankwright.retrieval import vectors
from rankwright.pipeline.mine import mine
from rankwright.common.processes import Processes
from rankwright.recipe.schema import Recipe
from rankwright.common.run_folder import RunFolder
rank, count, store, folder, recipe = sys.argv[1:]
mine_shards.SHARD_QUERIES, vectors.SHARD_TEXTS = 8, 16
processes = Processes(int(rank), int(count), FileStore(store, int(count)))
with processes.together():
    files = {"train": {}, "dev": {}}
    mine(Recipe.model_validate_json(recipe), RunFolder(Path(folder)), inputs="i", run_files=files, processes=processes)
"""


@pytest.mark.slow
def test_processes_share_the_encoding(tmp_path: Path) -> None:
    # Processes and not threads: transformers does not load models in several threads at once.
    chosen = recipe(retriever="fusion", filters=FILTERS, dense={"model": str(make_tiny_encoder(tmp_path / "encoder"))})
    found, vectors = [], []
    for count in (1, 2):
        run = prepared(tmp_path / str(count))
        environment = jobs.environment(RANKWRIGHT_CACHE=str(tmp_path / f"cache{count}"))
        arguments = [str(count), str(tmp_path / f"store{count}"), str(run.path), chosen.model_dump_json(by_alias=True)]
        commands = [[sys.executable, "-c", WORKER, str(rank), *arguments] for rank in range(count)]
        started = [subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) for command in commands]
        assert [process.wait(timeout=200) for process in started] == [0] * count
        found.append({name: (run.path / name).read_bytes() for name in OUTPUTS})
        files = sorted((tmp_path / f"cache{count}").rglob("*.npy"))
        vectors.append({path.name: path.read_bytes() for path in files})
    assert found[0] == found[1]
    assert vectors[0] == vectors[1] and len(vectors[0]) > 6


@pytest.mark.slow
def test_killed_and_continued_by_two_processes(tiny_qwen3: Path, tmp_path: Path) -> None:
    filters = {"margin": {"absolute": 0.5}, "max_reuse": {"most": 9}}
    # So many queries of the same few words are also those of test.
    path = jobs.job(tmp_path, tiny_qwen3, mine={"filters": filters}, data={"on_leak": "drop"})
    shutil.rmtree(tmp_path / "sets" / "one")
    jobs.write_set(tmp_path / "sets" / "one", "train", first=0, queries=1300)
    command = [sys.executable, "-m", "rankwright", "mine", str(path)]
    process = subprocess.Popen(command, env=jobs.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 100
    while not list((tmp_path / "run" / "mining").glob("*.jsonl")) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = {p: p.stat().st_ino for p in (tmp_path / "run" / "mining").glob("*.jsonl")}
    assert kept and not (tmp_path / "run" / "negatives.jsonl").exists()
    done = jobs.rankwright("mine", path, launcher=TWO)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("what was removed") == 1
    assert json.loads((tmp_path / "run" / "stages" / "mine.json").read_text())["processes"] == 2
    assert jobs.rankwright("mine", path, f"run_dir={tmp_path / 'whole'}").returncode == 0
    for name in OUTPUTS:
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()

"""Teacher scores: those of the scorer, kept by content, the same after a kill and for any number of processes."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jobs
import numpy as np
import pytest
from rerank_server import running_server, true_score
from tiny import PAIRS
from tiny_encoder import make_tiny_cross_encoder

from rankwright.common.errors import UserError
from rankwright.data.collection import Collection
from rankwright.recipe.schema import Baseline, Mine, Model, Prompt, Recipe
from rankwright.recipe.sources import Data
from rankwright.rerankers import kept_scorer as module
from rankwright.rerankers.kinds import check_teacher, load_baseline
from rankwright.rerankers.pair_scores import PairScores, pair_key
from rankwright.supervision.teacher import Teacher

PROMPT = Prompt(max_tokens=64)
QUERIES = {f"q{n}": query for n, query in enumerate(dict.fromkeys(query for query, _ in PAIRS))}
CORPUS = {f"d{n}": document for n, document in enumerate(dict.fromkeys(document for _, document in PAIRS))}
SET = Collection("set", CORPUS, QUERIES, {})
WANTED = {q: list(CORPUS) for q in QUERIES}


@pytest.fixture(scope="module")
def cross_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_cross_encoder(tmp_path_factory.mktemp("cross") / "tiny-bert")


def row(model: object, **changes: Any) -> Baseline:
    return Baseline(**{"name": "big", "kind": "cross-encoder", "model": str(model), **changes})


def teacher(model: Path, cache: Path, prompt: Prompt = PROMPT) -> Teacher:
    return Teacher(row(model), prompt, cache=cache)


def test_scores_are_those_of_the_scorer(cross_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_PAIRS", 7)
    one = teacher(cross_encoder, tmp_path)
    found = one.of(SET)(WANTED)
    plain: Any = load_baseline(row(cross_encoder), PROMPT, cache=tmp_path)
    for query_id, scores in found.items():
        assert list(scores) == list(CORPUS)
        expected = plain.score(QUERIES[query_id], list(CORPUS.values()))
        assert list(scores.values()) == pytest.approx(expected, abs=1e-5)
    pairs = len(QUERIES) * len(CORPUS)
    assert one.scored == pairs
    # Another process, which reads them and loads nothing; texts and not ids count.
    again = teacher(cross_encoder, tmp_path)
    renamed = Collection("other", {f"x{d}": t for d, t in CORPUS.items()}, QUERIES, {})
    kept = again.of(renamed)({q: [f"x{d}" for d in CORPUS] for q in QUERIES})
    assert [list(scores.values()) for scores in kept.values()] == [list(s.values()) for s in found.values()]
    assert (again.scored, again._scorers) == (0, {})
    # What is more is all that is scored.
    more = replace(SET, corpus={**CORPUS, "new": "a new document on the court"})
    teacher(cross_encoder, tmp_path).of(more)({"q0": ["new", "d0"]})
    assert sum(len(np.load(path)) for path in tmp_path.rglob("*.npy")) == pairs + 1


def test_equal_pairs_are_scored_once_and_nothing_wanted_is_fine(cross_encoder: Path, tmp_path: Path) -> None:
    twins = Collection("set", {"a": "one text", "b": "one text"}, {"q": "what", "r": "what"}, {})
    one = teacher(cross_encoder, tmp_path)
    found = one.of(twins)({"q": ["a", "b", "a"], "r": ["b"]})
    assert found["q"]["a"] == found["q"]["b"] == found["r"]["b"]
    assert one.scored == 1
    assert teacher(cross_encoder, tmp_path / "new").of(twins)({"q": []}) == {"q": {}}


def test_weights_options_prompt_and_instruction_ask_anew(cross_encoder: Path, tiny_qwen3: Path, tmp_path: Path) -> None:
    changed = shutil.copytree(cross_encoder, tmp_path / cross_encoder.name)
    weights = changed / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    few = {"q0": ["d0", "d1"]}

    def scored(one: Teacher, collection: Collection = SET) -> int:
        one.of(collection)(few)
        return one.scored

    assert scored(teacher(cross_encoder, tmp_path)) == 2
    # A copy elsewhere has the same content.
    assert scored(teacher(changed, tmp_path)) == 0
    weights.write_bytes(bytes(content))
    assert scored(teacher(changed, tmp_path)) == 2
    assert scored(teacher(cross_encoder, tmp_path, Prompt(max_tokens=48))) == 2
    assert scored(Teacher(row(cross_encoder, options={"precision": "bf16"}), PROMPT, cache=tmp_path)) == 2
    # A cross-encoder has no place for an instruction; a language model reads that of the set.
    assert scored(teacher(cross_encoder, tmp_path), replace(SET, instruction="Find the clause")) == 0
    ours = row(tiny_qwen3, kind="qwen3-reranker")
    prompt = Prompt(max_tokens=320)
    assert scored(Teacher(ours, prompt, cache=tmp_path)) == 2
    assert scored(Teacher(ours, prompt, cache=tmp_path), replace(SET, instruction="Find the clause")) == 2
    assert scored(Teacher(ours, prompt, cache=tmp_path)) == 0
    assert len(list((tmp_path / "teacher").iterdir())) == 6


def test_sets_of_several_instructions_share_the_weights(tiny_qwen3: Path, tmp_path: Path) -> None:
    prompt = Prompt(max_tokens=320)
    model = row(tiny_qwen3, kind="qwen3-reranker")
    one = Teacher(model, prompt, cache=tmp_path)
    for instruction in (None, "Find the clause", "Find the judgement"):
        found = one.of(replace(SET, instruction=instruction))({"q0": ["d0", "d1"]})["q0"]
        stated = prompt if instruction is None else prompt.model_copy(update={"instruction": instruction})
        plain: Any = load_baseline(model, stated, cache=tmp_path)
        expected = plain.score(QUERIES["q0"], [CORPUS["d0"], CORPUS["d1"]])
        assert list(found.values()) == pytest.approx(expected, abs=1e-5)
    assert len({id(scorer.model) for scorer in one._scorers.values()}) == 1 and one.scored == 6


def test_a_damaged_file_is_removed_and_its_pairs_scored_again(
    cross_encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = teacher(cross_encoder, tmp_path).of(SET)(WANTED)
    (path,) = tmp_path.rglob("*.npy")
    path.write_bytes(path.read_bytes()[:-9])
    one = teacher(cross_encoder, tmp_path)
    assert one.of(SET)(WANTED) == first
    assert one.scored == len(QUERIES) * len(CORPUS)
    assert "damaged" in capsys.readouterr().out


def test_keys_that_end_in_zero_bytes_and_texts_without_valid_unicode(tmp_path: Path) -> None:
    store = PairScores(tmp_path, print)
    keys = {bytes(15) + b"\1": 0.5, b"\1" + bytes(15): -1 / 3, pair_key("\ud800", "x"): 1e-300}
    store.add(keys)
    again = PairScores(tmp_path, print)
    assert {key: again.find(key) for key in keys} == keys
    assert again.find(pair_key("x", "\ud800")) is None
    assert pair_key("a b", "c") != pair_key("a", "b c")


def test_a_file_that_cannot_be_read_is_not_taken_for_damaged(tmp_path: Path) -> None:
    keys = {pair_key("a", "b"): 0.5}
    PairScores(tmp_path, print).add(keys)
    (path,) = tmp_path.glob("*.npy")
    # As what a disk, or a limit of open files, may answer; root may read whatever its mode says.
    content = path.read_bytes()
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match="cannot be read"):
        PairScores(tmp_path, print)
    path.rmdir()
    path.write_bytes(content)
    # One that goes while it is looked at is another process's to write again.
    (tmp_path / "gone.npy").symlink_to(tmp_path / "absent")
    assert PairScores(tmp_path, print).find(pair_key("a", "b")) == 0.5


TESTS = Path(__file__).parents[1]
KILLED = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = {tests!r}
from rankwright.rerankers import kept_scorer as module
from rankwright.rerankers.pair_scores import PairScores
from test_teacher import SET, WANTED, teacher
module.BLOCK_PAIRS = 4
add = PairScores.add
def kill(self, scores):
    if len(list(self.folder.iterdir())) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    add(self, scores)
PairScores.add = kill
teacher(Path(sys.argv[1]), Path(sys.argv[2])).of(SET)(WANTED)
"""


def kept(cache: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in cache.rglob("*.npy")}


def test_two_processes_and_a_kill_give_the_same_files(
    cross_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK_PAIRS", 4)
    whole = teacher(cross_encoder, tmp_path / "one").of(SET)(WANTED)
    # Processes share nothing but the folder.
    ranks = [teacher(cross_encoder, tmp_path / "two") for _ in range(2)]
    for number, query_id in enumerate(sorted(WANTED)):
        ranks[number % 2].of(SET)({query_id: WANTED[query_id]})
    assert all(0 < one.scored < len(QUERIES) * len(CORPUS) for one in ranks)
    command = [sys.executable, "-c", KILLED.format(tests=[str(TESTS / "supervision"), str(TESTS / "support")])]
    command += [str(cross_encoder), str(tmp_path / "killed")]
    done = subprocess.run(command, env=jobs.environment(), capture_output=True, timeout=200, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(kept(tmp_path / "killed")) == 3
    resumed = teacher(cross_encoder, tmp_path / "killed")
    assert resumed.of(SET)(WANTED) == whole
    assert resumed.scored == (len(QUERIES) - 3) * len(CORPUS)
    files = kept(tmp_path / "one")
    assert len(files) == len(QUERIES)
    assert kept(tmp_path / "two") == kept(tmp_path / "killed") == files


def test_a_served_teacher_is_asked_by_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running_server() as server:
        server.reset("tei")
        served = row("m", kind="served", options={"url": server.url, "shape": "tei"})
        found = Teacher(served, PROMPT, cache=tmp_path).of(SET)({"q0": ["d0"]})
        assert found == {"q0": {"d0": pytest.approx(true_score(QUERIES["q0"], CORPUS["d0"]))}}
        monkeypatch.setenv("WORLD_SIZE", "2")
        with pytest.raises(UserError, match=r"mine\.teacher: big is served, and asked by one process"):
            Teacher(served, PROMPT, cache=tmp_path)


def test_what_a_recipe_says_wrong_is_said_under_its_key(tmp_path: Path) -> None:
    def faults(**changes: Any) -> Sequence[str]:
        mine = Mine(teacher=row(tmp_path / "absent", **changes))
        return check_teacher(Recipe(name="r", model=Model(base="b"), data=Data(), mine=mine))

    assert [f.split(":")[0] for f in faults(options={"batches": 1})] == ["mine.teacher.options", "mine.teacher.model"]
    assert faults(kind="crossencoder")[0].startswith("mine.teacher.kind: unknown baseline 'crossencoder', did you mean")
    with pytest.raises(UserError, match=r"^mine\.teacher: .*absent: no such folder"):
        teacher(tmp_path / "absent", tmp_path).of(SET)({"q0": ["d0"]})


def test_scores_are_json_numbers(cross_encoder: Path, tmp_path: Path) -> None:
    found = teacher(cross_encoder, tmp_path).of(SET)({"q0": ["d0"]})
    assert json.loads(json.dumps(found)) == found

"""Negatives mined again while training: ranked by the model, the same bits whatever is killed, on two processes too."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jobs
import pytest
import torch
from safetensors.torch import load

from rankwright.common.outputs import sealed, unsealed
from rankwright.common.run_folder import RunFolder
from rankwright.data.split_files import qualified, read_split
from rankwright.mining.pools import read_negatives
from rankwright.model.prompt import PromptEncoder
from rankwright.pipeline.train import tokenised
from rankwright.recipe.loading import load_recipe
from rankwright.rerankers.reranker import Reranker
from rankwright.retrieval.candidates import read_candidates
from rankwright.training.checkpoint import load_checkpoint, read_state
from rankwright.training.refresh import HARDEST
from rankwright.training.setup import build_trainable, load_base_tokenizer, recipe_contract

TWO = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
# Checkpoints before each refresh, at 2 and 4, and at the end, of which the newest two stay.
STEPS = {"max_steps": 5, "groups_per_step": 5, "evaluate_every": 9, "save_every": 9, "learning_rate": 0.01}
MINE = {"refresh_steps": 2, "negatives": 2, "filters": {"margin": {"absolute": 0.01}}, "sampler": {"top": {}}}
# The command line with blocks of one query, which kills itself at the n-th call of a function.
KILLED = """
import os, signal, sys
from rankwright.common.processes import Processes
from rankwright.rerankers import score_blocks
from rankwright.training import refresh
score_blocks.BLOCK_PAIRS = 1
calls, write = 0, {module}.{function}
def instead(*arguments):
    global calls
    calls += 1
    if calls == {number}:
        os.kill(os.getpid(), signal.SIGKILL)
    return write(*arguments)
{module}.{function} = instead
from rankwright.cli.main import main
main()
"""


def job(folder: Path, base: Path) -> Path:
    data = {"train": [{"path": "one", "split": "train", "instruction": "Find the sale."}]}
    return jobs.job(folder, base, train=STEPS, mine=MINE, data=data)


def train(recipe: Path, place: str = "score_blocks.append_lines", number: int = 0) -> subprocess.CompletedProcess[str]:
    """Train; with a number until that call of `place`."""
    module, function = place.split(".")
    code = KILLED.format(module=module, function=function, number=number)
    command = [sys.executable, "-c", code, "train", str(recipe)]
    done = subprocess.run(command, env=jobs.environment(), capture_output=True, timeout=240, check=False, text=True)
    assert done.returncode == (-signal.SIGKILL if number else 0), done.stderr
    return done


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_qwen3: Path) -> tuple[Path, str]:
    """(folder, output) of a training that nobody killed."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, train(job(folder, tiny_qwen3)).stdout


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load((folder / "run" / "checkpoints" / "step-5" / "model.safetensors").read_bytes())


def pools(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "run" / "pools").glob("*.jsonl")}


def test_pools_are_named_by_their_content_and_checkpoints_name_them(whole: tuple[Path, str]) -> None:
    folder, output = whole
    files = pools(folder)
    assert sorted(name.split("-")[1] for name in files) == ["2", "4"]
    assert len(list((folder / "run" / "pools").iterdir())) == 2
    for name, content in files.items():
        assert name.endswith(f"-{hashlib.sha256(content).hexdigest()[:16]}.jsonl")
    states = {path.name: read_state(path) for path in (folder / "run" / "checkpoints").iterdir()}
    by_step = {name.split("-")[1]: name.removesuffix(".jsonl") for name in files}
    # Of the pool that the step itself drew from: the checkpoint of step 4 is from before the second refresh.
    assert {n: s and s.pool for n, s in states.items()} == {"step-4": by_step["2"], "step-5": by_step["4"]}
    # Two steps of five groups draw ten queries, the last step five.
    assert [content.count(b"\n") for _, content in sorted(files.items())] == [10, 5]
    assert "mine.refresh_steps: after step 2 10 queries" in output and "pairs/s" in output


def test_a_pool_is_ranked_by_the_model_and_filtered_by_the_same_rules(whole: tuple[Path, str]) -> None:
    """Against scores of each query alone, with the weights of the checkpoint before it."""
    folder, _ = whole
    recipe = load_recipe(str(folder / "recipe.yaml"), []).recipe
    base, tokenizer = load_base_tokenizer(recipe)
    contract = recipe_contract(recipe, base, tokenizer)
    model = build_trainable(recipe, base, tokenizer, contract, torch.device("cpu"))
    load_checkpoint(folder / "run" / "checkpoints" / "step-4", model)
    (collection,) = map(qualified, read_split(folder / "run" / "data", "train"))
    reranker = Reranker(model, tokenizer, contract).under(collection.instruction)
    assert reranker.contract.instruction == "Find the sale."
    candidates = read_candidates(folder / "run" / "candidates.jsonl")
    (path,) = (folder / "run" / "pools").glob("step-4-*.jsonl")
    changed = 0
    for query_id, pool in read_negatives(path).items():
        ids = list(dict.fromkeys([*(c.document_id for c in candidates[query_id]), *collection.positives(query_id)]))
        found = reranker.score(collection.queries[query_id], [collection.corpus[d] for d in ids])
        scores = dict(zip(ids, found, strict=True))
        best = max(scores[d] for d in collection.positives(query_id))
        left = [d for d in ids if scores[d] <= best - 0.01]
        if not left:
            assert pool == read_negatives(folder / "run" / "negatives.jsonl")[query_id]
            continue
        expected = sorted(left, key=lambda d: -scores[d])[: HARDEST * 2]
        assert [n.document_id for n in pool] == expected
        assert [n.score for n in pool] == pytest.approx([scores[d] for d in expected], abs=1e-5)
        assert {n.source for n in pool} == {"model"}
        order = sorted(ids, key=lambda d: -scores[d])
        assert [n.rank for n in pool] == [order.index(d) + 1 for d in expected]
        changed += 1
    assert changed


def test_all_that_a_refresh_may_score_or_draw_is_tokenised_before(
    whole: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = whole
    recipe = load_recipe(str(folder / "recipe.yaml"), []).recipe
    base, tokenizer = load_base_tokenizer(recipe)
    encoder = PromptEncoder(recipe_contract(recipe, base, tokenizer), tokenizer)
    store = tokenised(recipe, RunFolder(folder / "run"), encoder)
    monkeypatch.setattr(PromptEncoder, "encode_documents", None)
    monkeypatch.setattr(PromptEncoder, "encode_head", None)
    (collection,) = map(qualified, read_split(folder / "run" / "data", "train"))
    for query_id, found in read_candidates(folder / "run" / "candidates.jsonl").items():
        ids = dict.fromkeys([*(c.document_id for c in found), *collection.qrels[query_id]])
        texts = [collection.corpus[d] for d in ids]
        assert store.under(collection.instruction).encode(collection.queries[query_id], texts).tail_ids


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "number"),
    [
        # In the middle of the second refresh: ten blocks belong to the first.
        ("score_blocks.append_lines", 13),
        # All is scored, and the pool is not there yet; it is there, and nobody was told its name.
        ("refresh.write_text_atomic", 2),
        ("Processes.from_first", 6),
    ],
)
def test_killed_in_a_refresh_and_continued_gives_the_same_bits(
    whole: tuple[Path, str], tiny_qwen3: Path, tmp_path: Path, place: str, number: int
) -> None:
    recipe = job(tmp_path, tiny_qwen3)
    train(recipe, place, number)
    folder = tmp_path / "run" / "pools"
    left = [len(path.read_text().splitlines()) for path in (folder / "scores-4").glob("0/*")]
    expected = {
        "score_blocks.append_lines": ([2], 1),
        "refresh.write_text_atomic": ([5], 1),
        "Processes.from_first": ([], 2),
    }
    assert (left, len(pools(tmp_path))) == expected[place]
    assert "continuing after step 4" in train(recipe).stdout
    ours, theirs = weights(tmp_path), weights(whole[0])
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert pools(tmp_path) == pools(whole[0])
    assert len(list(folder.iterdir())) == 2


def test_a_refresh_that_never_comes_is_said(whole: tuple[Path, str], tmp_path: Path) -> None:
    shutil.copytree(whole[0] / "run", tmp_path / "run")
    settings = [whole[0] / "recipe.yaml", f"run_dir={tmp_path / 'run'}", "train.max_steps=1", "mine.refresh_steps=2"]
    done = jobs.rankwright("train", *settings)
    assert done.returncode == 0, done.stderr
    assert "WARNING: mine.refresh_steps: 2: never, training has 1 step" in done.stdout


def test_a_checkpoint_goes_on_with_the_pool_that_it_names_or_says_that_it_is_gone(
    whole: tuple[Path, str], tmp_path: Path
) -> None:
    shutil.copytree(whole[0] / "run", tmp_path / "run")
    for name in ("stages/train.json", "metrics.jsonl"):
        (tmp_path / "run" / name).unlink()
    settings = [whole[0] / "recipe.yaml", f"run_dir={tmp_path / 'run'}"]
    (pool,) = (tmp_path / "run" / "pools").glob("step-4-*.jsonl")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-4")
    # As if it were to train further: step 6 draws from the pool that step 5 drew from.
    state = unsealed(json.loads((tmp_path / "run" / "checkpoints" / "step-5" / "state.json").read_text()))
    pool.write_bytes(pool.read_bytes()[:-1])
    folder = tmp_path / "run" / "checkpoints" / "step-3"
    (tmp_path / "run" / "checkpoints" / "step-5").rename(folder)
    (folder / "state.json").write_text(json.dumps(sealed({**state, "step": 3, "best_step": 3})))
    done = jobs.rankwright("train", *settings)
    assert done.returncode == 2, done.stdout
    assert "pools/step-4-" in done.stderr and "gone or damaged" in done.stderr


@pytest.mark.slow
def test_two_processes_publish_one_pool_and_train_like_one(
    whole: tuple[Path, str], tiny_qwen3: Path, tmp_path: Path
) -> None:
    done = jobs.rankwright("train", job(tmp_path, tiny_qwen3), launcher=TWO, ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stderr
    assert sorted(name.split("-")[1] for name in pools(tmp_path)) == ["2", "4"]
    assert len(list((tmp_path / "run" / "pools").iterdir())) == 2
    losses = [[row.get("loss") for row in jobs.metrics(f / "run")][1:] for f in (tmp_path, whole[0])]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)

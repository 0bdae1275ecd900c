"""What stops or warns a run: SIGTERM, a fast path that is wrong, values that are not finite, scores that collapse."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jobs
import pytest
import torch
from tiny import PAIRS

from rankwright import Pipeline
from rankwright.common.errors import UserError
from rankwright.model.loading import load_model, load_tokenizer
from rankwright.model.prompt import EncodedGroup, PromptEncoder, make_contract
from rankwright.pipeline.train import make_accelerator
from rankwright.recipe.loading import load_recipe
from rankwright.recipe.schema import Model, Recipe, Train
from rankwright.recipe.sources import Data
from rankwright.training.gradients import StepSums, prepare
from rankwright.training.guards import WATCHED_STEPS, SpreadWatch, check_first_group, refuse_not_finite, stop_on_signals
from rankwright.training.sampling import TrainGroup
from rankwright.training.setup import build_trainable, recipe_prompt

FINE = StepSums(1.0, 0.5, 1.0, stop=False, not_finite=())
GROUPS = [TrainGroup(f"q{i}", (1.0, 0.0), EncodedGroup([1], [[2], [3]], False, 0)) for i in range(7)]


@pytest.fixture
def accelerator() -> Any:
    """Products in the type of the weights."""
    return make_accelerator(Recipe(name="r", model=Model(base="b"), data=Data(), train=Train(precision="fp32")))


def test_signals_are_heard_inside_the_block_only() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    said: list[str] = []
    with stop_on_signals(said.append) as stop:
        assert not stop.requested
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested and not stop.interrupted and not said
    with stop_on_signals(said.append) as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested and stop.interrupted and "press Ctrl-C again" in said[0]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_scores_near_zero_may_be_rounded_as_much_as_their_parts(
    tiny_qwen3: Path, accelerator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = load_tokenizer(str(tiny_qwen3))
    contract = make_contract(tokenizer, mode="portable", max_tokens=160)
    group = PromptEncoder(contract, tokenizer).encode(PAIRS[0][0], [d for _, d in PAIRS[:6]])
    model = load_model(str(tiny_qwen3), contract, tokenizer, dtype=torch.bfloat16).train()
    with torch.no_grad():
        prompts = [torch.tensor([group.head_ids + tail]) for tail in group.tail_ids]
        states_HN = torch.stack([model.decoder(input_ids=p).last_hidden_state[0, -1] for p in prompts], dim=1).float()
    # A long row that is orthogonal to every scored state: of its large products nothing but their rounding is left.
    row_H = 100 * torch.randn(len(states_HN), generator=torch.Generator().manual_seed(0))
    row_H = row_H - states_HN @ torch.linalg.lstsq(states_HN, row_H[:, None]).solution[:, 0]
    model.rows_2H = torch.stack([torch.zeros_like(row_H), row_H])
    check_first_group(model, group, accelerator)
    monkeypatch.setattr("rankwright.model.blocks.rotate", lambda x, cos, sin: x)
    with pytest.raises(UserError, match="away from the plain forward on the first group"):
        check_first_group(model, group, accelerator)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fast_path_that_disagrees_is_refused(
    tiny_qwen3: Path, dtype: torch.dtype, accelerator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = load_tokenizer(str(tiny_qwen3))
    contract = make_contract(tokenizer, mode="portable", max_tokens=160)
    model = load_model(str(tiny_qwen3), contract, tokenizer, dtype=dtype).train()
    group = PromptEncoder(contract, tokenizer).encode(PAIRS[0][0], [d for _, d in PAIRS])
    check_first_group(model, group, accelerator)
    assert model.training and model.attention == "auto"
    # A base whose layers scale their attention in a way of their own, which only transformers' forward would know.
    monkeypatch.setattr("rankwright.model.blocks.rotate", lambda x, cos, sin: x)
    with pytest.raises(UserError, match="away from the plain forward on the first group"):
        check_first_group(model, group, accelerator)
    model.attention = "plain"
    check_first_group(model, group, accelerator)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_first_group_is_compared_in_the_type_of_the_training(
    tmp_path: Path, tiny_qwen3: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    path = jobs.job(tmp_path, tiny_qwen3, train={"precision": "bf16", "max_steps": 1}, model={"method": method})
    recipe = load_recipe(str(path))
    base, tokenizer, contract = recipe_prompt(recipe.recipe)
    group = PromptEncoder(contract, tokenizer).encode(PAIRS[0][0], [d for _, d in PAIRS])
    model = build_trainable(recipe.recipe, base, tokenizer, contract, torch.device("cpu")).train()
    accelerator = make_accelerator(recipe.recipe)
    prepare(model, accelerator)
    scores = []
    with torch.no_grad():
        for model.attention in ("plain", "auto"):
            scores.append(model([group]))
    # How far bf16 differs depends on the CPU.
    assert float((scores[0] - scores[1]).abs().max()) > 1e-4 * float(scores[0].abs().max()), "not equal in fp32's sense"
    check_first_group(model, group, accelerator)
    # The whole training, in one process with the one before, which may have had another precision.
    Pipeline(recipe, progress=False).train()
    assert jobs.metrics(tmp_path / "run")[-1]["step"] == 1
    monkeypatch.setattr("rankwright.model.blocks.rotate", lambda x, cos, sin: x)
    with pytest.raises(UserError, match="away from the plain forward on the first group"):
        check_first_group(model, group, accelerator)


def test_queries_of_a_value_that_is_not_finite_are_written(tmp_path: Path) -> None:
    path = tmp_path / "not_finite.json"
    refuse_not_finite(FINE, 1.0, GROUPS, 3, path, True)
    with pytest.raises(UserError, match=r"step 3: the gradient is not a finite number: lower pretrain\.learning_rate"):
        refuse_not_finite(FINE, float("nan"), [], 3, path, True)
    assert not path.exists()
    with pytest.raises(UserError, match=r"step 3: the gradient .*q0, q1, q2, q3, q4, \.\.\.; all in not_finite"):
        refuse_not_finite(FINE, float("nan"), GROUPS, 3, path, True)
    assert json.loads(path.read_text())["query_ids"] == [g.query_id for g in GROUPS]
    bad = StepSums(float("nan"), 0, 0, stop=False, not_finite=("q5",))
    with pytest.raises(UserError, match="the loss of 1 group is not a finite number"):
        refuse_not_finite(bad, 1.0, GROUPS, 4, path, False)
    assert json.loads(path.read_text())["step"] == 3, "other ranks do not write"


def test_scores_that_collapse_are_said_once() -> None:
    said: list[str] = []
    watch = SpreadWatch(said.append)
    for step in range(WATCHED_STEPS - 1):
        watch.look(0.001, step)
    watch.look(1.0, WATCHED_STEPS)
    assert said == [], "one good step starts the count again"
    for step in range(2 * WATCHED_STEPS):
        watch.look(0.001, step)
    assert len(said) == 1 and "almost equal" in said[0]
    other = SpreadWatch(said.append)
    for step in range(WATCHED_STEPS):
        other.look(100.0, step)
    assert "run away" in said[1]


@pytest.mark.slow
def test_sigterm_saves_exits_with_75_and_the_same_command_continues(tmp_path: Path, tiny_qwen3: Path) -> None:
    recipe = jobs.job(tmp_path, tiny_qwen3, train={"max_steps": 300, "evaluate_every": 1000, "save_every": 1000})
    command = [sys.executable, "-m", "rankwright", "train", str(recipe)]
    process = subprocess.Popen(
        command, env=jobs.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    log = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and not (log.exists() and len(log.read_text().splitlines()) > 3):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 75, errors
    last = int(jobs.metrics(tmp_path / "run")[-1]["step"])
    assert f"stopped. Saved after step {last}: the same command continues" in errors
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == [f"step-{last}"]
    done = jobs.rankwright("train", recipe)
    assert done.returncode == 0, done.stderr
    assert f"continuing after step {last} of" in done.stdout

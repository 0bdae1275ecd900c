"""Weights sharded over processes: one process's gradient and training, and checkpoints that go on anywhere."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jobs
import pytest
import torch
from families import make_base
from safetensors.torch import load_file

from rankwright.common.errors import UserError
from rankwright.model.prompt import EncodedGroup
from rankwright.model.sharding import is_wanted
from rankwright.training.gradients import _idle_passes

SCRIPT = jobs.REPOSITORY / "scripts" / "cluster" / "accelerate" / "fsdp2.yaml"
SHARDED = ["-m", "accelerate.commands.launch", "--config_file", str(SCRIPT), "--num_processes", "2"]
SHARDED += ["--main_process_port", "0"]
# Groups of 114 to 200 tokens. Two groups leave one of three ranks without any.
CASES: tuple[dict[str, Any], ...] = (
    {},
    {"full": True},
    {"full": True, "attention": "plain"},
    {"groups": 2, "checkpointing": True},
    {"full": True, "groups": 2},
    {"budget_tokens": 120, "dropout": 0.2},
    {"full": True, "budget_tokens": 120},
    {"full": True, "budget_tokens": 120, "checkpointing": True, "groups": 2},
)


def gradients(
    folder: Path, base: Path, processes: int, cases: Sequence[dict[str, Any]], *, sharded: bool
) -> list[dict[str, torch.Tensor]]:
    """Of each case: the gradient of one global step, its norm, and the first document's score."""
    outs = [folder / f"{processes}-{sharded}-{number}.safetensors" for number in range(len(cases))]
    common = {"base": str(base), "sharded": sharded}
    arguments = json.dumps([{**common, "out": str(out), **case} for out, case in zip(outs, cases, strict=True)])
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    worker = str(Path(__file__).parents[1] / "support" / "gradient_worker.py")
    command = [sys.executable, *(launcher if processes > 1 else []), worker, arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=jobs.environment(), timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = list(map(load_file, outs))
    assert all(int(one.pop("processes")) == processes for one in found)
    return found


def flat(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensors[name].double().flatten() for name in sorted(tensors)])


def relative_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert {n: t.shape for n, t in a.items()} == {n: t.shape for n, t in b.items()}
    return float((flat(a) - flat(b)).norm() / flat(b).norm())


@pytest.mark.slow
def test_two_and_three_sharded_processes_accumulate_the_gradient_of_one(tmp_path: Path, tiny_qwen3: Path) -> None:
    wanted = gradients(tmp_path, tiny_qwen3, 1, CASES, sharded=False)
    for processes, count in ((2, len(CASES)), (3, 5)):
        cases = CASES[-count:]
        found = gradients(tmp_path, tiny_qwen3, processes, cases, sharded=True)
        for case, ours, theirs in zip(cases, found, wanted[-count:], strict=True):
            assert relative_difference(ours, theirs) < 1e-5, (processes, case)
            assert ours["norm"] == pytest.approx(float(theirs["norm"]), rel=1e-5)
            assert ours["score"] == pytest.approx(float(theirs["score"]), rel=1e-5)
    # The cases are not all one.
    assert relative_difference(wanted[4], wanted[1]) > 1e-2


@pytest.mark.slow
def test_rows_in_transformers_layers_are_sharded_with_the_gradient_of_one(tmp_path: Path, tiny_qwen3: Path) -> None:
    make_base(tmp_path / "base", "gemma3_text", tiny_qwen3)
    cases: list[dict[str, Any]] = [{}, {"full": True, "checkpointing": True}, {"full": True, "budget_tokens": 120}]
    wanted = gradients(tmp_path, tmp_path / "base", 1, cases, sharded=False)
    for sharded in (False, True):
        found = gradients(tmp_path, tmp_path / "base", 2, cases, sharded=sharded)
        for ours, theirs in zip(found, wanted, strict=True):
            assert relative_difference(ours, theirs) < 1e-5
            assert ours["score"] == pytest.approx(float(theirs["score"]), rel=1e-5)
    plain = gradients(tmp_path, tmp_path / "base", 1, [{"attention": "plain"}], sharded=False)
    assert relative_difference(wanted[0], plain[0]) < 1e-5


@pytest.mark.slow
def test_in_bf16_sharding_changes_nothing(tmp_path: Path, tiny_qwen3: Path) -> None:
    cases = [{"bf16": True}, {"bf16": True, "full": True}, {"bf16": True, "full": True, "checkpointing": True}]
    whole = gradients(tmp_path, tiny_qwen3, 2, cases, sharded=False)
    for case, ours, theirs in zip(cases, gradients(tmp_path, tiny_qwen3, 2, cases, sharded=True), whole, strict=True):
        assert relative_difference(ours, theirs) < 1e-6, case


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step-{step}" / "model.safetensors")


def take_back(run: Path) -> dict[str, torch.Tensor]:
    """The weights of step 4, after which the run stands as if it had been stopped after step 2."""
    found = {name: tensor.clone() for name, tensor in weights(run, 4).items()}
    shutil.rmtree(run / "checkpoints" / "step-4")
    (run / "stages" / "train.json").unlink()
    return found


def check_sharded_training(folder: Path, base: Path, method: str) -> None:
    recipes = {}
    for name in ("one", "two"):
        recipes[name] = jobs.job(folder / name, base, model={"method": method})
    one, two = (folder / name / "run" for name in recipes)
    launched = {"launcher": SHARDED, "ACCELERATE_USE_CPU": "true"}
    assert jobs.rankwright("train", recipes["one"]).returncode == 0
    done = jobs.rankwright("train", recipes["two"], **launched)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "sharded over 2 processes" in done.stdout
    for ours, theirs in zip(jobs.metrics(two), jobs.metrics(one), strict=True):
        assert ours.keys() == theirs.keys()
        for key in {"loss", "gradient_norm", "dev_nDCG@10"} & ours.keys():
            assert ours[key] == pytest.approx(theirs[key], rel=1e-4), key
    states = [torch.load(run / "checkpoints" / "step-4" / "optimizer.pt")["state"] for run in (two, one)]
    shapes = [{(i, n): t.shape for i, s in state.items() for n, t in s.items()} for state in states]
    assert shapes[0] == shapes[1]
    # From step 2: what was sharded alone, and what was alone sharded.
    ended = {"two": take_back(two), "one": take_back(one)}
    assert relative_difference(ended["two"], ended["one"]) < 1e-4
    for name, run, options in (("two", two, {}), ("one", one, launched)):
        done = jobs.rankwright("train", recipes[name], **options)
        assert done.returncode == 0, done.stderr[-3000:]
        assert "continuing after step 2" in done.stdout
        assert relative_difference(weights(run, 4), ended[name]) < 1e-4


@pytest.mark.slow
def test_full_training_sharded_is_that_of_one_process_and_continues_either_way(
    tmp_path: Path, tiny_qwen3: Path
) -> None:
    check_sharded_training(tmp_path, tiny_qwen3, "full")


@pytest.mark.slow
def test_lora_training_sharded_is_that_of_one_process_and_continues_either_way(
    tmp_path: Path, tiny_qwen3: Path
) -> None:
    check_sharded_training(tmp_path, tiny_qwen3, "lora")


def test_ranks_with_fewer_passes_are_told_how_many_they_lack() -> None:
    groups: Any = [SimpleNamespace(encoded=EncodedGroup([1] * 2, [[2] * 4] * n, False, 0)) for n in (1, 2, 5)]
    # Ranks with two micro-batches, one (a group of 22 tokens in parts of at most 10: three), and none.
    plan = [[[0], [1]], [[2]], []]
    wanted = [[(3, 2), (0, 0)], [(0, 0), (0, 1)], [(3, 3), (0, 1)]]
    assert [_idle_passes(plan, groups, 10, rank) for rank in range(3)] == wanted


def test_sharding_is_what_the_launcher_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACCELERATE_USE_FSDP", raising=False)
    assert not is_wanted()
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(
        UserError, match=r"^accelerate: fsdp_config: .* set fsdp_version: 2, as scripts/cluster/accelerate/"
    ):
        is_wanted()
    monkeypatch.setenv("FSDP_VERSION", "2")
    assert is_wanted()
    for variable in ("FSDP_OFFLOAD_PARAMS", "FSDP_ACTIVATION_CHECKPOINTING"):
        with monkeypatch.context() as patch:
            patch.setenv(variable, "true")
            with pytest.raises(UserError, match=f"{variable.lower()}: false"):
                is_wanted()

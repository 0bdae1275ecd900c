"""The training loop: exact resume, the same gradient for any number of processes, and loud failures."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jobs
import pytest
import torch
from outside import outside_module
from safetensors.torch import load, load_file

from rankwright.common.errors import Stopped, UserErrors
from rankwright.pipeline.stages import Pipeline
from rankwright.recipe.loading import load_recipe
from rankwright.recipe.schema import Train
from rankwright.training.loop import evaluation_interval
from rankwright.training.losses import LOSSES

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    # Not mapped from the file, which a test may change.
    return load((run / "checkpoints" / f"step-{step}" / "model.safetensors").read_bytes())


def train_until(recipe: Path, run: Path, step: int) -> int:
    """Start training, kill -9 it once `step` is in the log; the last step that was logged."""
    command = [sys.executable, "-m", "rankwright", "train", str(recipe)]
    process = subprocess.Popen(command, env=jobs.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        log = run / "metrics.jsonl"
        # The log starts with step 0, the base.
        if log.exists() and len(log.read_text().splitlines()) > step:
            break
        time.sleep(0.003)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    return int(jobs.metrics(run)[-1]["step"])


# Steps of some tenths of a second, so that a kill can be aimed.
LONG = {"max_steps": 12, "groups_per_step": 24, "evaluate_every": 6, "save_every": 5, "learning_rate": 0.003}


@pytest.mark.parametrize("method", ["lora", pytest.param("full", marks=pytest.mark.slow)])
def test_killed_after_step_7_of_12_and_continued_gives_the_same_bits(
    tmp_path: Path, tiny_qwen3: Path, method: str
) -> None:
    model = {"method": method, "dropout": 0.1 if method == "lora" else 0.0}
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole = jobs.job(tmp_path / "whole", tiny_qwen3, train=LONG, model=model)
    assert jobs.rankwright("train", whole).returncode == 0
    killed = jobs.job(tmp_path / "killed", tiny_qwen3, train=LONG, model=model)
    last = train_until(killed, tmp_path / "killed" / "run", 7)
    assert 7 <= last < 12
    done = jobs.rankwright("train", killed)
    assert done.returncode == 0, done.stderr
    assert "continuing after step" in done.stdout
    ours, theirs = weights(tmp_path / "killed" / "run", 12), weights(tmp_path / "whole" / "run", 12)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    rows = {name: jobs.metrics(tmp_path / name / "run") for name in ("whole", "killed")}
    assert [r["step"] for r in rows["killed"]] == list(range(13))
    same = [(a.get("loss"), a.get("dev_nDCG@10")) for a in rows["whole"]]
    assert same == [(b.get("loss"), b.get("dev_nDCG@10")) for b in rows["killed"]]


@pytest.mark.slow
def test_a_mixture_that_is_killed_and_continued_gives_the_same_bits(tmp_path: Path, tiny_qwen3: Path) -> None:
    """Weights that are no whole numbers and two instructions, over several epochs; and the same counts."""
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        jobs.write_set(tmp_path / name / "sets" / "two", "train", first=100, queries=20)
    train = [{"path": "one", "weight": 0.7, "instruction": "Find the clause."}, {"path": "two", "weight": 1.3}]
    root = {name: str(tmp_path / name / "sets") for name in ("whole", "killed")}
    whole, killed = (
        jobs.job(
            tmp_path / name,
            tiny_qwen3,
            train=LONG,
            data={"root": root[name], "train": train},
            export={"instruction": "Find the clause."},
        )
        for name in ("whole", "killed")
    )
    assert jobs.rankwright("train", whole).returncode == 0
    last = train_until(killed, tmp_path / "killed" / "run", 7)
    assert 7 <= last < 12
    done = jobs.rankwright("train", killed)
    assert done.returncode == 0 and "continuing after step" in done.stdout, done.stderr
    ours, theirs = weights(tmp_path / "killed" / "run", 12), weights(tmp_path / "whole" / "run", 12)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    mixes = [json.loads((tmp_path / name / "run" / "mix.json").read_text()) for name in ("whole", "killed")]
    assert mixes[0] == mixes[1] and mixes[0]["steps"] == 12
    # 288 groups are about seven epochs of 42.3.
    assert sum(found["groups"] for found in mixes[0]["sets"]) == 12 * 24


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_at_twenty_random_moments_gives_the_same_bits(tmp_path: Path, tiny_qwen3: Path) -> None:
    """Whatever the process was doing: reading, tokenising, in a step, writing a checkpoint."""
    steps = {**LONG, "max_steps": 60, "evaluate_every": 7, "save_every": 1}
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole = jobs.job(tmp_path / "whole", tiny_qwen3, train=steps)
    assert jobs.rankwright("train", whole).returncode == 0
    killed = jobs.job(tmp_path / "killed", tiny_qwen3, train=steps)
    command = [sys.executable, "-m", "rankwright", "train", str(killed)]
    chance, log = random.Random(0), tmp_path / "killed" / "run" / "metrics.jsonl"
    for _ in range(20):
        process = subprocess.Popen(
            command, env=jobs.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        before = log.stat().st_mtime_ns if log.exists() else 0
        deadline = time.monotonic() + 60
        # Half of the kills come while steps are made, the others anywhere in the first seconds.
        wait_for_a_step = chance.random() > 0.5
        while wait_for_a_step and time.monotonic() < deadline and process.poll() is None:
            if log.exists() and log.stat().st_mtime_ns != before:
                break
            time.sleep(0.05)
        time.sleep(chance.uniform(0.0, 1.5))
        process.kill()
        process.wait()
    done = jobs.rankwright("train", killed)
    assert done.returncode == 0, done.stderr
    ours, theirs = weights(tmp_path / "killed" / "run", 60), weights(tmp_path / "whole" / "run", 60)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert [r["step"] for r in jobs.metrics(tmp_path / "killed" / "run")] == list(range(61))


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(tmp_path: Path, tiny_qwen3: Path) -> None:
    recipe = jobs.job(tmp_path, tiny_qwen3)
    assert jobs.rankwright("train", recipe).returncode == 0
    before = weights(tmp_path / "run", 4)
    newest = tmp_path / "run" / "checkpoints" / "step-4" / "model.safetensors"
    newest.write_bytes(newest.read_bytes()[:-7])
    (tmp_path / "run" / "stages" / "train.json").unlink()
    done = jobs.rankwright("train", recipe)
    assert done.returncode == 0, done.stderr
    assert (
        "step-4 is damaged" in done.stdout
        and (tmp_path / "run" / "checkpoints" / "damaged-step-4").is_dir()
        and "continuing after step 2" in done.stdout
    )
    assert all(torch.equal(before[n], t) for n, t in weights(tmp_path / "run", 4).items())


def gradients(folder: Path, base: Path, processes: int, **options: Any) -> dict[str, torch.Tensor]:
    """The accumulated gradient of one global step, as `processes` real processes compute it."""
    out = folder / f"gradient-{processes}-{len(list(folder.iterdir()))}.safetensors"
    arguments = json.dumps([{"base": str(base), "out": str(out), **options}])
    launcher = [*TORCHRUN, str(processes)] if processes > 1 else []
    worker = str(Path(__file__).parents[1] / "support" / "gradient_worker.py")
    command = [sys.executable, *launcher, worker, arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=jobs.environment(), timeout=200, check=False)
    # All of it: what a process died of stands far above the last words of the launcher.
    assert done.returncode == 0, done.stderr
    found = load_file(out)
    assert int(found.pop("processes")) == processes
    return {name: gradient for name, gradient in found.items() if name not in ("norm", "score")}


def relative_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    flat_a, flat_b = (torch.cat([g[n].double().flatten() for n in sorted(a)]) for g in (a, b))
    return float((flat_a - flat_b).norm() / flat_b.norm())


@pytest.mark.slow
def test_one_two_and_three_processes_accumulate_the_same_gradient(tmp_path: Path, tiny_qwen3: Path) -> None:
    one = gradients(tmp_path, tiny_qwen3, 1)
    assert max(float(g.abs().max()) for g in one.values()) > 0
    for options in ({}, {"budget_tokens": 200}):
        assert relative_difference(gradients(tmp_path, tiny_qwen3, 2, **options), one) < 1e-5
    # Three processes and two groups: one of them has nothing to do.
    two_groups = gradients(tmp_path, tiny_qwen3, 1, groups=2)
    assert relative_difference(gradients(tmp_path, tiny_qwen3, 3, groups=2), two_groups) < 1e-5
    assert relative_difference(two_groups, one) > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        [*TORCHRUN, "2"],
        pytest.param(
            ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"],
            marks=pytest.mark.slow,
        ),
    ],
    ids=["torchrun", "accelerate"],
)
def test_two_processes_train_like_one(tmp_path: Path, tiny_qwen3: Path, launcher: list[str]) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one = jobs.job(tmp_path / "one", tiny_qwen3)
    two = jobs.job(tmp_path / "two", tiny_qwen3)
    assert jobs.rankwright("train", one).returncode == 0
    done = jobs.rankwright("train", two, launcher=launcher, ACCELERATE_USE_CPU="true")
    # All of it: what a process died of stands far above the last words of the launcher.
    assert done.returncode == 0, done.stderr
    facts = json.loads((tmp_path / "two" / "run" / "stages" / "train.json").read_text())
    assert facts["processes"] == 2
    assert "2 processes" in done.stdout
    for ours, theirs in zip(
        jobs.metrics(tmp_path / "two" / "run"), jobs.metrics(tmp_path / "one" / "run"), strict=True
    ):
        assert ours.keys() == theirs.keys()
        for key in {"loss", "gradient_norm"} & ours.keys():
            assert ours[key] == pytest.approx(theirs[key], rel=1e-4)
        if "dev_nDCG@10" in ours:
            assert ours["dev_nDCG@10"] == pytest.approx(theirs["dev_nDCG@10"], abs=0.02)


def test_a_loss_that_is_not_finite_stops_with_the_queries_and_keeps_checkpoints(
    tmp_path: Path, tiny_qwen3: Path
) -> None:
    # Scores divided by so little are infinite.
    recipe = jobs.job(tmp_path, tiny_qwen3, loss={"name": "listwise_softmax", "options": {"temperature": 1e-300}})
    done = jobs.rankwright("train", recipe)
    assert done.returncode == 2
    assert "not a finite number" in done.stderr or "not finite" in done.stderr
    assert "one/q" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "stages" / "train.json").exists()


@pytest.mark.slow
def test_checkpoints_of_another_recipe_are_set_aside_not_continued(tmp_path: Path, tiny_qwen3: Path) -> None:
    recipe = jobs.job(tmp_path, tiny_qwen3)
    assert jobs.rankwright("train", recipe).returncode == 0
    done = jobs.rankwright("train", recipe, "train.learning_rate=0.001")
    assert done.returncode == 0
    assert "earlier checkpoints are kept in checkpoints-" in done.stdout and "continuing" not in done.stdout
    assert len(list((tmp_path / "run").glob("checkpoints-*"))) == 1


STOPPING = """
import os, signal
from rankwright.training.losses import LOSSES, mean_where, of_relevant, without_padding

sent = []


@LOSSES.register
@of_relevant
def stopping(scores_QD, labels_QD, mask_QD):
    if scores_QD.requires_grad and not sent:
        sent.append(os.kill(os.getpid(), signal.SIGINT))
    scores_QD, labels_QD = without_padding(scores_QD, labels_QD, mask_QD)
    return mean_where(mask_QD & (labels_QD > 0), -scores_QD)
"""


def test_a_stop_in_the_last_step_is_heard(tmp_path: Path, tiny_qwen3: Path) -> None:
    recipe = load_recipe(str(jobs.job(tmp_path, tiny_qwen3, train={"max_steps": 1}, loss={"name": "stopping"})))
    with outside_module(LOSSES, tmp_path, "stopping_loss", STOPPING):
        with pytest.raises(Stopped) as stopped:
            Pipeline(recipe, progress=False).run()
        assert stopped.value.step == 1 and stopped.value.interrupted
        # What follows has not begun, and the same command goes on with it.
        assert not (tmp_path / "run" / "eval").exists()
        assert Pipeline(recipe, progress=False).train()["step"] == 1


@pytest.mark.parametrize(("steps", "interval"), [(4, 1), (9, 1), (10, 2), (499, 99), (500, 100), (10_000, 100)])
def test_dev_is_evaluated_at_least_five_times(steps: int, interval: int) -> None:
    assert evaluation_interval(Train(), steps) == interval
    assert steps < 5 or steps // interval >= 5
    assert evaluation_interval(Train(evaluate_every=30), steps) == 30


@pytest.mark.parametrize("value", ["often", 0, -1, 2.5, True])
def test_an_interval_that_cannot_be(value: object) -> None:
    with pytest.raises(
        UserErrors, match=r"train\.evaluate_every: must be auto, or a whole number from 1 to 1,000,000,000, found "
    ):
        load_recipe("quickstart", [f"train.evaluate_every={json.dumps(value)}"])

"""Evaluation on two processes: the bytes of one, whatever was killed before; a mistake ends both and is said once."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jobs
import pytest

from rankwright.common.errors import PeerFailed
from rankwright.common.processes import Processes

TWO = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture
def again(whole: Path, tmp_path: Path) -> tuple[Path, str]:
    """(a copy of its run, the setting that names it)."""
    shutil.copytree(whole / "run", tmp_path / "run")
    return tmp_path / "run", f"run_dir={tmp_path / 'run'}"


def lines(folder: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("scores-*.jsonl"))


def kill_after(recipe: Path, run: Path, system: str, blocks: int) -> int:
    """Start an evaluation, kill -9 it once so many blocks are kept; the number that is kept then."""
    command = [sys.executable, "-m", "rankwright", "evaluate", str(recipe), f"run_dir={run}", "--only", system]
    process = subprocess.Popen(command, env=jobs.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 100
    while lines(run / "eval" / "held-out" / system) < blocks and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    return lines(run / "eval" / "held-out" / system)


@pytest.mark.slow
def test_killed_and_continued_by_two_processes_gives_the_same_bytes(whole: Path, again: tuple[Path, str]) -> None:
    run, setting = again
    shutil.rmtree(run / "eval" / "held-out" / "base")
    kept = kill_after(whole / "recipe.yaml", run, "base", 3)
    assert 3 <= kept < 12
    # As a kill in the middle of a line would leave it.
    with (run / "eval" / "held-out" / "base" / "scores-0.jsonl").open("a") as file:
        file.write('{"inputs": "')
    done = jobs.rankwright("evaluate", whole / "recipe.yaml", setting, "--only", "base", launcher=TWO)
    assert done.returncode == 0, done.stderr
    assert f"base on held-out: {kept * 16} queries were scored before: continuing" in done.stdout
    assert jobs.evaluation_files(run) == jobs.evaluation_files(whole / "run")
    assert not list((run / "eval" / "held-out" / "base").glob("scores-*.jsonl"))


@pytest.mark.slow
def test_two_processes_give_the_bytes_of_one(whole: Path, again: tuple[Path, str]) -> None:
    run, setting = again
    shutil.rmtree(run / "eval")
    (run / "speed.json").unlink()
    done = jobs.rankwright("evaluate", whole / "recipe.yaml", setting, launcher=TWO)
    assert done.returncode == 0, done.stderr
    assert jobs.evaluation_files(run) == jobs.evaluation_files(whole / "run")
    assert done.stdout.count("held-out tuned: nDCG@10") == 1
    assert json.loads((run / "stages" / "evaluate.json").read_text())["processes"] == 2
    assert (run / "speed.json").is_file()


@pytest.mark.slow
def test_a_mistake_is_said_once_and_ends_all_processes(whole: Path, again: tuple[Path, str]) -> None:
    done = jobs.rankwright("evaluate", whole / "recipe.yaml", again[1], "--only", "bm52", launcher=TWO)
    assert done.returncode != 0
    assert done.stderr.count("--only: unknown system 'bm52', did you mean 'bm25'? (known: ") == 1


@pytest.mark.slow
def test_a_fault_of_the_second_process_is_said_once_and_ends_both(whole: Path, again: tuple[Path, str]) -> None:
    run, setting = again
    shutil.rmtree(run / "eval" / "held-out" / "base")
    # The second process cannot write its scores there.
    (run / "eval" / "held-out" / "base" / "scores-1.jsonl").mkdir(parents=True)
    done = jobs.rankwright("evaluate", whole / "recipe.yaml", setting, "--only", "base", launcher=TWO)
    assert done.returncode != 0
    ours = [line for line in done.stderr.splitlines() if "error: " in line and "scores-1.jsonl" in line]
    assert len(ours) == 1, done.stderr
    # The launcher shows a traceback of its own; ours would name our files.
    assert "train/rankwright/" not in done.stderr


def group(count: int) -> list[Processes]:
    """Processes of one store, for threads of this one."""
    from torch.distributed import HashStore

    store = HashStore()
    return [Processes(rank, count, store) for rank in range(count)]


def test_processes_wait_for_each_other_and_learn_of_a_failure() -> None:
    first, second = group(2)
    met: list[str] = []

    def slow() -> None:
        time.sleep(0.2)
        met.append("second is here")
        second.meet()

    thread = threading.Thread(target=slow)
    thread.start()
    first.meet()
    assert met == ["second is here"]
    thread.join()
    with pytest.raises(ZeroDivisionError), second.together():
        raise ZeroDivisionError
    with pytest.raises(PeerFailed):
        first.look()
    with pytest.raises(PeerFailed):
        first.meet()
    # Whoever fails after the first has nothing to say.
    with pytest.raises(PeerFailed), first.together():
        raise ValueError


def test_one_process_waits_for_nobody() -> None:
    alone = Processes()
    alone.meet()
    alone.look()
    assert alone.is_first
    with pytest.raises(ValueError, match="mine"), alone.together():
        raise ValueError("mine")


EXCHANGE = """
import torch
import torch.distributed as dist
from rankwright.common.processes import Processes

dist.init_process_group("gloo")
processes = Processes.of_group()
# One object counts the meetings, whoever asks for it.
assert Processes.of_group() is processes and processes.count == 2
processes.meet()
Processes.of_group().meet()
assert processes.gather({"rank": processes.rank}) == [{"rank": 0}, {"rank": 1}]
assert processes.from_first(f"name {processes.rank}") == "name 0"
tensor = torch.tensor([1.0, processes.rank])
processes.sum_up(tensor)
assert tensor.tolist() == [2.0, 1.0]
tensor = torch.tensor([float(processes.rank)])
processes.copy_from_first(tensor)
assert tensor.tolist() == [0.0]
processes.meet()
dist.destroy_process_group()
"""


def test_processes_exchange_values_and_tensors(tmp_path: Path) -> None:
    (tmp_path / "exchange.py").write_text(EXCHANGE, encoding="utf-8")
    command = [sys.executable, *TWO, str(tmp_path / "exchange.py")]
    done = subprocess.run(command, env=jobs.environment(), capture_output=True, timeout=240, check=False, text=True)
    assert done.returncode == 0, done.stderr


def test_one_process_exchanges_with_itself() -> None:
    alone = Processes()
    assert alone.gather("value") == ["value"] and alone.from_first("value") == "value"
    alone.sum_up(None)
    alone.copy_from_first(None)

"""Real processes want one folder: the second is refused with the name of the first, and a kill leaves no lock."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import jobs
import pytest

from rankwright.common import folder_lock as module
from rankwright.common.errors import UserError
from rankwright.common.folder_lock import LOCK_FILE, folder_lock

# Takes the lock and forks a child that outlives it; prints once it has it. sys.argv: folder.
HOLDER = """
import os, sys, time
from pathlib import Path
from rankwright.common.folder_lock import folder_lock
with folder_lock(Path(sys.argv[1]), ["rankwright", "train", "a\\nb.yaml"], print):
    if os.fork() == 0:
        time.sleep(60)
        os._exit(0)
    print("held", flush=True)
    sys.stdin.readline()
print("given back", flush=True)
sys.stdin.readline()
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)],
        env=jobs.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def take(folder: Path) -> None:
    with folder_lock(folder, ["rankwright", "run", "mine.yaml"], print):
        pass


def test_the_second_command_reads_who_holds_the_folder(tmp_path: Path) -> None:
    first = holder(tmp_path)
    try:
        with pytest.raises(UserError) as refused:
            take(tmp_path)
        line = str(refused.value)
        assert line.startswith(f"{tmp_path}: in use by `rankwright train a\\nb.yaml` (process {first.pid} on ")
        assert f"on {socket.gethostname()}, since 2" in line and line.endswith("or give this one run_dir=PATH")
        assert first.stdin is not None and first.stdout is not None
        first.stdin.write("\n")
        first.stdin.flush()
        assert first.stdout.readline() == "given back\n"
        # The process and its child live on.
        take(tmp_path)
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_kill_leaves_no_lock_though_a_child_lives_on(tmp_path: Path, how: signal.Signals) -> None:
    first = holder(tmp_path)
    try:
        os.kill(first.pid, how)
        first.wait()
        take(tmp_path)
    finally:
        os.killpg(first.pid, signal.SIGKILL)


def test_inside_itself_the_lock_is_taken_again_and_another_thread_is_refused(tmp_path: Path) -> None:
    refused: list[str] = []

    def other() -> None:
        try:
            take(tmp_path)
        except UserError as error:
            refused.append(str(error))

    with folder_lock(tmp_path, ["one"], print):
        take(tmp_path)
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        # Neither gave the lock back.
        code = "import sys; from pathlib import Path; from rankwright.common.folder_lock import folder_lock\n"
        code += "with folder_lock(Path(sys.argv[1]), ['two'], print): pass"
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], env=jobs.environment(), capture_output=True, text=True
        )
    assert len(refused) == 1 and "in use by another thread of this process" in refused[0]
    assert f"in use by `one` (process {os.getpid()} on" in done.stderr
    take(tmp_path)


def test_a_lock_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / LOCK_FILE).mkdir()
    with pytest.raises(UserError, match=r"\.lock: cannot be locked \(Is a directory\): delete it"):
        take(tmp_path)


def test_without_locks_it_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As on a system without POSIX's locks.
    monkeypatch.setattr(module, "fcntl", None)
    said: list[str] = []
    for _ in range(2):
        with folder_lock(tmp_path, ["one"], said.append):
            pass
    assert said == [f"{tmp_path}: its file system keeps no locks: give one command at a time for this folder"]


def start(recipe: Path, *arguments: str, launcher: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    command = [sys.executable, *launcher, "-m", "rankwright", *arguments[:1], str(recipe), *arguments[1:]]
    return subprocess.Popen(command, env=jobs.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_two_seeds_in_one_folder_give_the_numbers_of_the_one_that_ran(tmp_path: Path, tiny_qwen3: Path) -> None:
    recipe = jobs.job(tmp_path, tiny_qwen3)
    both = [start(recipe, "run", f"seed={seed}") for seed in (1, 2)]
    outputs = [process.communicate(timeout=300) for process in both]
    codes = [process.returncode for process in both]
    assert sorted(codes) == [0, 2], outputs
    lost = codes.index(2)
    line = outputs[lost][1].strip()
    assert re.fullmatch(
        rf"error: .*run: in use by `rankwright run .* seed={2 - lost}` \(process {both[1 - lost].pid} .*", line
    )
    alone = jobs.rankwright("run", recipe, f"seed={2 - lost}", f"run_dir={tmp_path / 'alone'}")
    assert alone.returncode == 0, alone.stderr
    assert jobs.evaluation_files(tmp_path / "run") == jobs.evaluation_files(tmp_path / "alone")


@pytest.mark.slow
def test_a_launched_command_holds_the_folder_once_and_is_refused_once(tmp_path: Path, tiny_qwen3: Path) -> None:
    two = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    recipe = jobs.job(tmp_path, tiny_qwen3)
    # Long enough to be asked for while it runs.
    first = start(
        recipe, "train", "train.max_steps=50000", "train.evaluate_every=50000", "train.epochs=9999", launcher=two
    )
    deadline = time.monotonic() + 100
    while not (tmp_path / "run" / "metrics.jsonl").is_file() and time.monotonic() < deadline:
        assert first.poll() is None, first.communicate()
        time.sleep(0.05)
    try:
        others = [start(recipe, "evaluate", launcher=launcher) for launcher in ((), two)]
        for refused in others:
            error = refused.communicate(timeout=100)[1]
            assert refused.returncode != 0
            assert error.count("in use by `rankwright train ") == 1, error
    finally:
        first.send_signal(signal.SIGTERM)
        first.communicate(timeout=100)

"""The Slurm script starts a process a task, and puts the job back into the queue when it was stopped in time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jobs
import pytest

SCRIPT = jobs.REPOSITORY / "scripts" / "cluster" / "slurm" / "train.sbatch"
# Slurm's own commands as far as the script needs them: tasks with their numbers, one exit code, a queue.
SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
pids=()
for ((task = 0; task < SLURM_NTASKS; task++)); do
    SLURM_PROCID=$task SLURM_LOCALID=$task "$@" &
    pids+=($!)
done
printf '%s\\n' "${pids[@]}" > "$FAKE_SLURM/pids"
highest=0
for pid in "${pids[@]}"; do
    wait "$pid"
    code=$?
    ((code > highest)) && highest=$code
done
exit "$highest"
"""
SCONTROL = """#!/usr/bin/env bash
case $1 in
    show) echo 127.0.0.1 ;;
    requeue) echo "$2" >> "$FAKE_SLURM/requeued" ;;
esac
"""


def environment(folder: Path, port: int) -> dict[str, str]:
    """Two tasks on this machine, with this checkout's package and this Python."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        path = folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    python = folder / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True, exist_ok=True)
    if not python.exists():
        python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        python.chmod(0o755)
    return jobs.environment(
        PATH=f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
        FAKE_SLURM=str(folder),
        RANKWRIGHT_ROOT=str(folder),
        SLURM_SUBMIT_DIR=str(folder),
        SLURM_JOB_ID="17",
        SLURM_JOB_NODELIST="here",
        SLURM_NTASKS="2",
        MASTER_PORT=str(port),
        ACCELERATE_USE_CPU="true",
    )


def free_port() -> int:
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.mark.slow
def test_a_job_that_is_stopped_in_time_is_requeued_and_continues(tmp_path: Path, tiny_qwen3: Path) -> None:
    recipe = jobs.job(tmp_path, tiny_qwen3, train={"max_steps": 60, "evaluate_every": 1000, "save_every": 1000})
    command = ["bash", str(SCRIPT), str(recipe)]
    process = subprocess.Popen(
        command, env=environment(tmp_path, free_port()), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    log = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 150
    while time.monotonic() < deadline and not (log.exists() and len(log.read_text().splitlines()) > 3):
        time.sleep(0.02)
    # As Slurm does: to the tasks, not to the script.
    for pid in (tmp_path / "pids").read_text().split():
        os.kill(int(pid), signal.SIGTERM)
    output, errors = process.communicate(timeout=100)
    assert process.returncode == 75, errors
    assert (tmp_path / "requeued").read_text() == "17\n"
    assert "put back into the queue" in output
    (saved,) = (tmp_path / "run" / "checkpoints").iterdir()
    again = subprocess.run(
        command,
        env=environment(tmp_path, free_port()),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert again.returncode == 0, again.stderr
    assert f"continuing after step {saved.name[5:]} of 60" in again.stdout
    assert "2 processes" in again.stdout
    assert (tmp_path / "requeued").read_text() == "17\n", "a job that ends is not put back"


@pytest.mark.parametrize("script", sorted(SCRIPT.parent.glob("*.sbatch")), ids=lambda path: path.stem)
def test_without_a_recipe_it_says_how(tmp_path: Path, script: Path) -> None:
    done = subprocess.run(
        ["bash", str(script)], env=environment(tmp_path, 1), capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "usage: sbatch" in done.stderr

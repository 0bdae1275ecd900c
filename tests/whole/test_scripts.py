"""The shell scripts parse, can be run, and install the versions they promise."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jobs
import pytest

ROOT = Path(__file__).resolve().parents[2]
SHELL_SCRIPTS = [
    *sorted((ROOT / "scripts").rglob("*.sh")),
    *(ROOT / "scripts" / "cluster" / "slurm").iterdir(),
    ROOT / ".ci" / "run",
]
ENTRY_POINTS = {"setup.sh", "quickstart.sh", "test.sh", "check.sh", "run"}
PIN = re.compile(r"[a-z0-9-]+==[0-9][0-9a-z.]*")

needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins() -> dict[str, str]:
    lines = (ROOT / "scripts" / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def test_entry_points_are_there() -> None:
    assert {path.name for path in SHELL_SCRIPTS} >= ENTRY_POINTS


@needs_bash
@pytest.mark.parametrize("script", SHELL_SCRIPTS, ids=lambda path: path.name)
def test_script_parses_and_stops_at_errors(script: Path) -> None:
    answer = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    text = script.read_text(encoding="utf-8")
    assert text.startswith("#!"), "no `#!` line"
    # The Slurm script looks at exit codes itself.
    wanted = r"^set -uo pipefail$" if script.suffix == ".sbatch" else r"^set -euo pipefail$"
    assert re.search(wanted, text, re.MULTILINE), "goes on after an error"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no executable bit")
@pytest.mark.parametrize("script", SHELL_SCRIPTS, ids=lambda path: path.name)
def test_script_is_executable(script: Path) -> None:
    assert os.access(script, os.X_OK)


def test_pins_are_pins() -> None:
    lines = (ROOT / "scripts" / "constraints.txt").read_text(encoding="utf-8").splitlines()
    body = [line for line in lines if not line.startswith("#")]
    assert [line for line in body if not PIN.fullmatch(line)] == []
    assert body == sorted(set(body)), "sorted, each package once"


def test_torch_is_pinned_without_a_local_label() -> None:
    assert pins()["torch"] == "2.13.0"


def test_every_direct_dependency_is_pinned_within_its_range() -> None:
    import tomllib

    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
    pinned = pins()
    for requirement in map(Requirement, wanted):
        version = pinned.get(normal(requirement.name))
        assert version is not None, f"{requirement.name} is not in scripts/constraints.txt"
        assert requirement.specifier.contains(version, prereleases=True), f"{requirement} is pinned to {version}"


@needs_bash
def test_setup_refuses_an_old_python(tmp_path: Path) -> None:
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    shutil.copy(ROOT / "scripts" / "setup.sh", scripts)
    old = tmp_path / "python3.9"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.1 || exit 1\n', encoding="utf-8")
    old.chmod(0o755)
    answer = subprocess.run(
        ["bash", str(scripts / "setup.sh")],
        env={**os.environ, "PYTHON": str(old)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 1
    assert "older than 3.11 (version: Python 3.9.1)" in answer.stderr
    assert not (tmp_path / ".venv").exists()


@pytest.mark.parametrize(
    "path", sorted((ROOT / "scripts" / "cluster" / "accelerate").iterdir()), ids=lambda path: path.name
)
def test_accelerate_reads_the_configs(path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    sharded = path.stem == "fsdp2"
    assert config.distributed_type == ("FSDP" if sharded else "MULTI_GPU") and not config.use_cpu
    assert config.fsdp_config == ({"fsdp_version": 2} if sharded else {})
    # The recipe's train.precision decides.
    assert config.mixed_precision == "no"


@pytest.mark.slow
def test_the_gpu_check_runs_as_far_as_a_cpu_lets_it(tmp_path: Path) -> None:
    found = tmp_path / "found.json"
    command = [sys.executable, str(ROOT / "scripts" / "cluster" / "gpu_check.py"), "--device", "cpu", "--shape", "tiny"]
    done = subprocess.run(
        [*command, "--json", str(found)], env=jobs.environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    routes = json.loads(found.read_text())["float32"]
    assert routes["documents"]["d_score"] < 1e-5
    # What it could not check it says, in the table and on the screen.
    assert "left_out" in routes["varlen"] and "varlen: left out" in done.stdout


def test_the_mining_benchmark_says_time_and_memory(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "bench" / "mining.py"), "--passages", "300", "--queries", "20"]
    command += ["--only", "bm25, five filters", "--json", str(tmp_path / "out.json")]
    done = subprocess.run(command, capture_output=True, text=True, env=jobs.environment(), check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    [row] = json.loads((tmp_path / "out.json").read_text())
    assert row["stage"] == "bm25, five filters" and row["seconds"] > 0 and 0 < row["peak_gib"] < 4
    assert row["passages"] == 300 and row["kept"] > 0
    assert "GiB" in done.stdout.splitlines()[-1]

"""scripts/Dockerfile fits the repository: Python, pins, extras, every file that it copies, and what stays out."""

from __future__ import annotations

import fnmatch
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from rankwright import __version__

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CONSTRAINTS = "scripts/constraints.txt"


def instructions() -> list[tuple[str, str]]:
    """(keyword, the rest) in their order, without comments, continued lines joined."""
    lines = (ROOT / "scripts" / "Dockerfile").read_text(encoding="utf-8").splitlines()
    text = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
    joined = re.sub(r"\\\n\s*", " ", text)
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def arguments() -> dict[str, str]:
    """ARG -> its default."""
    return dict(rest.split("=", 1) for word, rest in instructions() if word == "ARG" and "=" in rest)


def environment() -> dict[str, str]:
    """ENV of all stages."""
    parts = [part for word, rest in instructions() if word == "ENV" for part in shlex.split(rest)]
    return dict(part.split("=", 1) for part in parts)


def copied() -> list[str]:
    """What comes from the repository."""
    found = [rest.split() for word, rest in instructions() if word == "COPY" and not rest.startswith("--from")]
    return [source for sources in found for source in sources[:-1]]


def runs() -> list[str]:
    """The commands of RUN, without its mounts."""
    return [re.sub(r"--mount=\S+ ", "", rest) for word, rest in instructions() if word == "RUN"]


def is_left_out(path: str) -> bool:
    """Whether .dockerignore leaves a path out: the last pattern counts that matches it or a folder above it."""
    rules = [line for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[:1] not in "#"]
    places = [path, *map(str, Path(path).parents)][: -1 if "/" in path else None]
    out = False
    for rule in rules:
        pattern = rule.removeprefix("!")
        deep = pattern.removeprefix("**/")
        tried = [Path(place).name for place in places] if deep != pattern else places
        hit = any(fnmatch.fnmatch(one, deep) for one in tried if deep != "*" or "/" not in one)
        out = not rule.startswith("!") if hit else out
    return out


def test_its_python_is_that_of_the_pins() -> None:
    text = (ROOT / CONSTRAINTS).read_text(encoding="utf-8")
    frozen = re.search(r"frozen under Python (\S+)\)", text)
    assert frozen is not None and arguments()["PYTHON"] == frozen[1]
    assert SpecifierSet(PROJECT["project"]["requires-python"]).contains(f"{frozen[1]}.0")
    assert [rest.split()[0] for word, rest in instructions() if word == "FROM"] == [
        "python:${PYTHON}-slim-bookworm"
    ] * 2


def test_everything_that_it_copies_is_there_and_let_in() -> None:
    assert CONSTRAINTS in copied()
    for source in copied():
        assert (ROOT / source).exists(), source
        assert not is_left_out(source), source


def test_everything_that_the_package_is_built_from_is_copied() -> None:
    build = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = ["pyproject.toml", PROJECT["project"]["readme"], *PROJECT["project"]["license-files"]]
    needed += [*build["force-include"], *(package.split("/")[0] for package in build["packages"])]
    assert set(needed) | {CONSTRAINTS} == set(copied())
    files = [path for name in copied() for path in [ROOT / name, *(ROOT / name).rglob("*.*")] if path.is_file()]
    kept = [path.relative_to(ROOT).as_posix() for path in files if path.suffix not in (".pyc", ".pyo")]
    assert len(kept) > 200 and [name for name in kept if is_left_out(name)] == []


SECRET = ".env .git/config runs/mine/report.html mine.jsonl scripts/test.sh .venv/bin/python tests wandb/run/files/a"
BYPRODUCTS = "train/rankwright/__pycache__/x.cpython-311.pyc data/.ruff_cache/x"


@pytest.mark.parametrize("path", f"{SECRET} {BYPRODUCTS}".split())
def test_nothing_else_is_let_in(path: str) -> None:
    assert is_left_out(path)


def test_every_install_follows_the_pins() -> None:
    workdir = next(rest for word, rest in instructions() if word == "WORKDIR")
    assert environment()["PIP_CONSTRAINT"] == f"{workdir}/{CONSTRAINTS}"
    order = [rest for _, rest in instructions()]
    installs = [n for n, rest in enumerate(order) if "pip install" in rest]
    assert len(installs) == 2 and order.index(f"{CONSTRAINTS} {CONSTRAINTS}") < installs[0]
    assert all(f"--mount=type=cache,target={environment()['PIP_CACHE_DIR']} " in order[n] for n in installs)
    # mteb brings many packages that only its own command needs.
    optional = set(PROJECT["project"]["optional-dependencies"]) - {"dev", "mteb"}
    assert set(arguments()["EXTRAS"].split(",")) == optional


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_its_commands_parse_and_find_torch_in_the_pins() -> None:
    for command in runs():
        done = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    [line] = [command.partition(";")[0] for command in runs() if "torch=$(" in command]
    done = subprocess.run(["bash", "-c", f"{line}; echo $torch"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert f"torch=={done.stdout.strip()}" in (ROOT / CONSTRAINTS).read_text(encoding="utf-8").splitlines()


def test_it_does_not_run_as_root_and_says_what_it_is() -> None:
    words = [word for word, _ in instructions()]
    last_user = max(n for n, word in enumerate(words) if word == "USER")
    assert instructions()[last_user][1] not in ("root", "0") and words.index("ENTRYPOINT") > last_user
    assert arguments()["VERSION"] == __version__ == PROJECT["project"]["version"]
    labels = " ".join(rest for word, rest in instructions() if word == "LABEL")
    assert all(name in labels for name in ('licenses="Apache-2.0"', "version=", "revision=", "title="))
    [volume] = [rest for word, rest in instructions() if word == "VOLUME"]
    # Models of the hub outlive the container.
    assert environment()["HF_HOME"].startswith(volume.strip('["]') + "/")


def test_the_documented_commands_name_what_it_has() -> None:
    text = (ROOT / "scripts" / "README.md").read_text(encoding="utf-8")
    commands = [line.split() for line in text.splitlines() if line.startswith("    docker build")]
    assert len(commands) >= 2
    named = {part.split("=")[0] for command in commands for part in command if re.match(r"[A-Z_]+=", part)}
    assert named and named <= set(arguments())
    assert all("scripts/Dockerfile" in command for command in commands)

"""sdist -> wheel -> fresh environment: recipes, cards and fixtures travel; the command line needs no torch."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import time
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HELP_SECONDS = 2.0


@dataclass(frozen=True)
class Installed:
    """What was built, and where it was installed."""

    sdist: Path
    wheel: Path
    bin: Path
    environment: dict[str, str]

    def run(self, command: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
        """Runs a program of the fresh environment, e.g. ["rankwright", "recipes"]."""
        program = [str(self.bin / command[0]), *command[1:]]
        return subprocess.run(
            program, cwd=cwd, env=self.environment, capture_output=True, text=True, check=True, timeout=120
        )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    dist = tmp_path_factory.mktemp("dist")
    # `build` makes the wheel from the sdist: what the sdist lacks, the wheel lacks.
    _run([sys.executable, "-m", "build", "--no-isolation", "--outdir", str(dist), str(ROOT)])
    [sdist], [wheel] = dist.glob("*.tar.gz"), dist.glob("*.whl")

    home = tmp_path_factory.mktemp("fresh")
    venv.create(home, with_pip=False, symlinks=os.name != "nt")
    paths = {"base": str(home), "platbase": str(home)}
    site = Path(sysconfig.get_path("purelib", "venv", paths))
    # The packages of the environment the tests run in, after our own; a path added by a .pth file does not
    # run the .pth files there, so an editable rankwright stays out of sight.
    ours = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site / "test_environment.pth").write_text("\n".join(sorted(ours)) + "\n", encoding="utf-8")
    programs = Path(sysconfig.get_path("scripts", "venv", paths))
    python = str(programs / "python")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "--quiet"]
    _run([*pip, "--ignore-installed", "--disable-pip-version-check", str(wheel)])

    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    environment |= {"HF_HUB_OFFLINE": "1", "COLUMNS": "200", "NO_COLOR": "1"}
    return Installed(sdist, wheel, programs, environment)


def _run(command: list[str]) -> None:
    answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert answer.returncode == 0, f"{command}\n{answer.stdout[-2000:]}\n{answer.stderr[-2000:]}"


def files_of(folder: str) -> set[str]:
    """Files below a folder of the checkout, as paths inside it."""
    return {
        path.relative_to(ROOT / folder).as_posix()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
    }


def recipe_names() -> set[str]:
    return {name.removesuffix(".yaml") for name in files_of("recipes") if name.endswith(".yaml")}


def test_wheel_holds_recipes_cards_and_fixtures(installed: Installed) -> None:
    with zipfile.ZipFile(installed.wheel) as wheel:
        names = set(wheel.namelist())
    for folder, inside in (("recipes", "rankwright/_recipes"), ("data", "rankwright/_data")):
        assert files_of(folder), f"{folder}/ is empty"
        assert {f"{inside}/{name}" for name in files_of(folder)} - names == set()
    assert "rankwright/py.typed" in names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_wheel_holds_one_package(installed: Installed) -> None:
    with zipfile.ZipFile(installed.wheel) as wheel:
        top = {name.split("/")[0] for name in wheel.namelist()}
    assert {name for name in top if not name.endswith(".dist-info")} == {"rankwright"}


def test_sdist_holds_what_a_user_needs(installed: Installed) -> None:
    with tarfile.open(installed.sdist) as sdist:
        names = {name.split("/", 1)[1] for name in sdist.getnames() if "/" in name}
    assert {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "scripts/constraints.txt"} <= names
    assert {f"tests/whole/{Path(__file__).name}", "scripts/setup.sh", "train/rankwright/__init__.py"} <= names


def test_fresh_environment_uses_the_wheel(installed: Installed, tmp_path: Path) -> None:
    code = "import rankwright, torch; print(rankwright.__file__)"
    where = Path(installed.run(["python", "-c", code], tmp_path).stdout.strip())
    assert where.is_relative_to(installed.bin.parent)


@pytest.mark.parametrize("name", ["train", "data", "recipes"])
def test_our_folders_are_no_packages(installed: Installed, tmp_path: Path, name: str) -> None:
    code = f"import importlib.util; print(importlib.util.find_spec({name!r}))"
    assert installed.run(["python", "-c", code], tmp_path).stdout.strip() == "None"


def test_recipes_are_listed_from_an_empty_folder(installed: Installed, tmp_path: Path) -> None:
    words = set(installed.run(["rankwright", "recipes"], tmp_path).stdout.split())
    assert "quickstart" in words
    assert recipe_names() - words == set()


def test_help_is_quick_and_without_torch(installed: Installed, tmp_path: Path) -> None:
    seconds = []
    for _ in range(3):  # the best of three: the first has no bytecode yet, and the machine may be busy
        start = time.perf_counter()
        shown = installed.run(["rankwright", "--help"], tmp_path).stdout
        seconds.append(time.perf_counter() - start)
    assert "run" in shown
    assert min(seconds) < HELP_SECONDS, seconds

    command = ["python", "-X", "importtime", "-m", "rankwright", "--help"]
    imported = {line.split("|")[-1].strip() for line in installed.run(command, tmp_path).stderr.splitlines()}
    assert "rankwright.cli.main" in imported
    heavy = {"torch", "transformers", "peft", "datasets", "accelerate", "wandb", "scipy", "matplotlib"}
    assert imported & heavy == set()

"""scripts/check_layout.py passes on this repository and finds each fault that is planted in a small one."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts" / "check_layout.py"


def _load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_layout", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # typing.NamedTuple looks its module up
    spec.loader.exec_module(module)
    return module


check_layout = _load_script()

CLEAN = {
    "pyproject.toml": "[project]\n",
    "README.md": "# A small tree\n",
    ".gitignore": "/runs/\n",
    "recipes/quickstart.yaml": "model: {}\n",
    "recipes/README.md": "Results.\n",
    "recipes/reports/quickstart.html": "<p>fine</p>\n",
    "data/card.yaml": "name: card\n",
    "scripts/bench.py": '#!/usr/bin/env python3\n"""Times things."""\n',
    "tests/test_errors.py": "",
    "train/rankwright/__init__.py": '"""The package."""\n',
    "train/rankwright/__main__.py": '"""The entrance."""\n\nfrom rankwright.cli import main\n',
    "train/rankwright/cli.py": '"""The command line."""\n\nfrom rankwright.pipeline import run\n',
    "train/rankwright/errors.py": '"""Errors."""\n\nclass UserError(ValueError): ...\n',
    "train/rankwright/losses.py": '"""Losses."""\n\nfrom rankwright.errors import UserError\n',
    "train/rankwright/pipeline.py": '"""Stages."""\n\nfrom rankwright import __version__, errors\n',
    "train/rankwright/py.typed": "",
}
SLASH = "/"  # apart, so that this file passes the check too
LONG_FUNCTION = '"""Long."""\n\ndef f():\n' + "    x = 1\n" * 60
LONG_FIT = '"""Loop."""\n\ndef fit():\n' + "    x = 1\n" * 90

# name -> (path, text, line, words of the rule)
FAULTS: dict[str, tuple[str, str, int, str]] = {
    "stray top level": ("notes.txt", "", 1, "top level: `notes.txt`"),
    "train is a package": ("train/__init__.py", '"""No."""\n', 1, "train/ holds only"),
    "second package": ("train/other/a.py", '"""No."""\n', 1, "train/ holds only"),
    "python in data": ("data/make.py", '"""No."""\n', 1, "data/ holds no Python"),
    "python in recipes": ("recipes/make.py", '"""No."""\n', 1, "recipes/ holds YAML"),
    "html beside recipes": ("recipes/report.html", "<p>no</p>\n", 1, "recipes/ holds YAML"),
    "long file": ("scripts/bench.py", '"""Long."""\n' + "x = 1\n" * 300, 301, "301 lines, at most 300"),
    "first line is code": ("train/rankwright/losses.py", "import os\n", 1, "first line"),
    "empty docstring line": ("train/rankwright/losses.py", '"""\nLate.\n"""\n', 1, "first line"),
    "only a shebang": ("scripts/bench.py", "#!/usr/bin/env python3\nimport os\n", 1, "first line"),
    "empty package file": ("train/rankwright/__init__.py", "", 1, "first line"),
    "long function": ("train/rankwright/losses.py", LONG_FUNCTION, 3, "function f: 61 lines, at most 60"),
    "long fit": ("train/rankwright/loop.py", LONG_FIT, 3, "function fit: 91 lines, at most 90"),
    "upwards": (
        "train/rankwright/losses.py",
        '"""Up."""\n\nfrom rankwright.cli import main\n',
        3,
        "imports upwards: losses",
    ),
    "upwards, relative": (
        "train/rankwright/losses.py",
        '"""Up."""\nfrom .cli import main\n',
        2,
        "imports upwards",
    ),
    "upwards, inside a function": (
        "train/rankwright/losses.py",
        '"""Up."""\n\ndef f():\n    import rankwright.cli\n',
        4,
        "imports upwards",
    ),
    "upwards, from the package": (
        "train/rankwright/errors.py",
        '"""Up."""\nfrom rankwright import losses\n',
        2,
        "imports upwards",
    ),
    "sideways": (
        "train/rankwright/losses.py",
        '"""Side."""\nfrom rankwright.metrics import ndcg\n',
        2,
        "imports sideways: losses",
    ),
    "unplaced module": ("train/rankwright/novelty.py", '"""New."""\n', 1, "module novelty has no rung"),
    "machine path": ("README.md", f"See\n{SLASH}work/main\n", 2, "absolute path of one machine"),
    "home path": (
        "scripts/bench.py",
        f'"""B."""\nX = "{SLASH}home/me/x"\n',
        2,
        "absolute path of one machine",
    ),
    "registry host": ("README.md", "https://py" + "pi.org/simple\n", 1, "address of a package registry"),
    "index option": (
        "scripts/setup.sh",
        "pip install --index-" + "url x\n",
        1,
        "address of a package registry",
    ),
    "unfinished": ("train/rankwright/losses.py", '"""L."""\n# TO' + "DO: more\n", 2, "unfinished work"),
    "not Python": ("train/rankwright/losses.py", '"""L."""\ndef\n', 2, "not Python"),
}


def plant(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def test_this_repository_passes() -> None:
    assert [str(finding) for finding in check_layout.check(ROOT)] == []


def test_a_clean_tree_passes(tmp_path: Path) -> None:
    plant(tmp_path, CLEAN)
    assert check_layout.check(tmp_path) == []


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(tmp_path: Path, name: str) -> None:
    path, text, line, rule = FAULTS[name]
    plant(tmp_path, {**CLEAN, path: text})
    [finding] = check_layout.check(tmp_path)
    assert (finding.path, finding.line) == (path, line)
    assert rule in finding.rule


def test_words_that_only_look_forbidden(tmp_path: Path) -> None:
    text = "https://example.org/work/a ~/work/b data/home/c $HOME/work/d /tmp/words\n"
    plant(tmp_path, {**CLEAN, "README.md": text})
    assert check_layout.check(tmp_path) == []


def test_a_folder_is_one_module(tmp_path: Path) -> None:
    inside = {
        "train/rankwright/losses/__init__.py": '"""Losses."""\nfrom rankwright.losses.pairwise import loss\n',
        "train/rankwright/losses/pairwise.py": '"""Pairs."""\nfrom ..cli import main\n',
    }
    tree = {name: text for name, text in CLEAN.items() if name != "train/rankwright/losses.py"}
    plant(tmp_path, {**tree, **inside})
    [finding] = check_layout.check(tmp_path)
    assert str(finding).startswith("train/rankwright/losses/pairwise.py:2: imports upwards: losses")


def test_git_leaves_ignored_files_out(tmp_path: Path) -> None:
    plant(tmp_path, {**CLEAN, "runs/quickstart/notes.txt": f"{SLASH}work/x\n", "new.txt": ""})
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    [finding] = check_layout.check(tmp_path)
    assert finding.path == "new.txt"


def test_command_prints_and_exits_with_one(tmp_path: Path) -> None:
    plant(tmp_path, CLEAN)
    command = [sys.executable, str(SCRIPT), str(tmp_path)]
    assert subprocess.run(command, check=False, capture_output=True).returncode == 0
    plant(tmp_path, {"notes.txt": ""})
    answer = subprocess.run(command, check=False, capture_output=True, text=True)
    assert answer.returncode == 1
    assert answer.stdout.startswith("notes.txt:1: top level")


def test_every_module_is_placed_once() -> None:
    placed = " ".join(check_layout.LADDER).split()
    assert len(placed) == len(set(placed))
    assert {m for family in check_layout.FAMILIES for m in family.split()} <= set(placed)

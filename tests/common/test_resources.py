"""What paths, names and bases in a recipe mean, from a checkout and from an installed wheel."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankwright.common import resources
from rankwright.common.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory that is not the checkout."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_checkout_folders() -> None:
    assert resources.recipes_dir() == ROOT / "recipes"
    assert resources.data_dir() == ROOT / "data"


def test_installed_folders(tmp_path: Path) -> None:
    package = tmp_path / "site" / "rankwright"
    source = ROOT / "train" / "rankwright"
    shutil.copytree(source / "common", package / "common", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(source / "__init__.py", package)
    (package / "_recipes" / "offline").mkdir(parents=True)
    (package / "_recipes" / "offline" / "a.yaml").write_text("name: a\n")
    code = "from rankwright.common.resources import *; print(recipes_dir()); print(data_dir()); print(*recipe_files())"
    answer = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(tmp_path / "site")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout.split() == [str(package / "_recipes"), str(package / "_data"), "offline/a"]


def test_absolute_path_stays(tmp_path: Path) -> None:
    assert resources.resolve_path(str(tmp_path), root="elsewhere") == tmp_path


def test_fixtures_are_embedded_whatever_the_root() -> None:
    assert resources.resolve_path("fixtures/legal", root="nowhere") == ROOT / "data" / "fixtures" / "legal"


def test_relative_path_starts_at_root_or_working_directory(tmp_path: Path) -> None:
    (tmp_path / "sets" / "finance").mkdir(parents=True)
    assert resources.resolve_path("finance", root="sets") == Path("sets/finance")
    assert resources.resolve_path("sets/finance", root=None) == Path("sets/finance")


def test_missing_path_names_the_full_path_the_near_name_and_the_root(tmp_path: Path) -> None:
    (tmp_path / "sets" / "finance" / "tatqa").mkdir(parents=True)
    with pytest.raises(UserError) as caught:
        resources.resolve_path("finance/tatq", root="sets")
    message = str(caught.value)
    assert f"{tmp_path}/sets/finance/tatq: no such file or folder, did you mean 'tatqa'?" in message
    assert "data.root, which is 'sets'" in message
    with pytest.raises(UserError, match=r"set/finance: .*did you mean 'sets'\?.*data.root=FOLDER"):
        resources.resolve_path("set/finance", root=None)


def test_missing_path_without_a_near_name_lists_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "alpha").mkdir()
    with pytest.raises(UserError, match=r"holds alpha\)"):
        resources.resolve_path("zzz", root=None)


@given(st.text(max_size=300))
def test_any_path_gives_a_path_or_a_user_error(text: str) -> None:
    for question in (lambda: resources.resolve_path(text, root=None), lambda: resources.resolve_base(text)):
        with contextlib.suppress(UserError):
            question()


def test_base_is_a_folder_or_a_hub_id(tmp_path: Path) -> None:
    (tmp_path / "models" / "qwen").mkdir(parents=True)
    assert resources.resolve_base("models/qwen") == "models/qwen"
    assert resources.resolve_base(str(tmp_path / "models")) == str(tmp_path / "models")
    assert resources.resolve_base("Qwen/Qwen3-Reranker-0.6B") == "Qwen/Qwen3-Reranker-0.6B"
    assert resources.resolve_base("fixtures/legal") == str(ROOT / "data" / "fixtures" / "legal")


@pytest.mark.parametrize("base", ["./models/qwem", "models/qwem", "models/qwem/step-1"])
def test_base_that_looks_like_a_path_must_exist(tmp_path: Path, base: str) -> None:
    (tmp_path / "models" / "qwen").mkdir(parents=True)
    with pytest.raises(UserError, match=r"model.base: .*no such folder, did you mean 'qwen'\?"):
        resources.resolve_base(base)


def test_base_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="is a file, must be a folder"):
        resources.resolve_base("config.json")


def test_unknown_fixture_names_the_near_one() -> None:
    with pytest.raises(UserError, match="did you mean 'legal'"):
        resources.resolve_path("fixtures/lega", root=None)


def test_find_yaml(tmp_path: Path) -> None:
    known = {"quickstart": tmp_path / "q.yaml", "offline/finance": tmp_path / "f.yaml"}
    (tmp_path / "mine.yaml").write_text("name: mine\n")
    find = lambda text: resources.find_yaml(text, known, kind="recipe")  # noqa: E731
    assert find("quickstart") == tmp_path / "q.yaml"
    assert find("mine.yaml") == Path("mine.yaml")
    with pytest.raises(UserError, match=r"unknown recipe 'quikstart', did you mean 'quickstart'\? \(known"):
        find("quikstart")
    with pytest.raises(UserError, match="did you mean 'offline/finance'"):
        find("finance")
    with pytest.raises(UserError, match=r"to use the file mine.yaml, write its suffix"):
        find("mine")
    with pytest.raises(UserError, match=r"no such file mime.yaml, did you mean 'mine.yaml'\?"):
        find("mime.yaml")

"""What a run folder remembers of its stages, and the hashes that decide whether a stage runs again."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import rankwright
from rankwright.common.errors import UserError
from rankwright.common.files import write_text_atomic
from rankwright.common.hashing import content_hash, files_hash
from rankwright.common.run_folder import STAGES, RunFolder, code_version, git_commit, provenance


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "runs" / "job")
    folder.create()
    return folder


def test_a_stage_is_done_for_its_inputs_only(run: RunFolder) -> None:
    assert not run.is_done("data", "a")
    assert run.facts("data") == {}
    run.finish("data", "a", seconds=1.26, queries=3)
    again = RunFolder(run.path)
    assert again.is_done("data", "a")
    assert not again.is_done("data", "b")
    assert not again.is_done("mine", "a")
    facts = again.facts("data")
    assert (facts["inputs"], facts["seconds"], facts["queries"]) == ("a", 1.3, 3)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", facts["finished"])


def test_finishing_again_replaces_and_forgetting_removes(run: RunFolder) -> None:
    run.finish("train", "a", seconds=1, steps=3)
    run.finish("train", "b", seconds=2)
    assert not run.is_done("train", "a")
    assert run.is_done("train", "b")
    assert "steps" not in run.facts("train")
    run.forget("train")
    assert not run.is_done("train", "b")
    run.forget("train")


def test_a_damaged_record_is_no_record(run: RunFolder) -> None:
    run.finish("mine", "a", seconds=1)
    path = run.path / "stages" / "mine.json"
    path.write_text(path.read_text()[:-5])
    assert not run.is_done("mine", "a")
    assert run.facts("mine") == {}


def test_an_unknown_stage_is_our_mistake(run: RunFolder) -> None:
    assert "evaluate" in STAGES
    with pytest.raises(AssertionError, match="evalaute"):
        run.is_done("evalaute", "a")


def test_create_leaves_nothing_and_can_be_repeated(run: RunFolder) -> None:
    run.create()
    assert list(run.path.iterdir()) == []


@pytest.mark.parametrize("inside", ["", "run"])
def test_a_folder_that_cannot_be_written_is_an_error_for_the_user(tmp_path: Path, inside: str) -> None:
    # A file in its place; taking permissions away would not stop root.
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"run_dir: cannot write to .*file.*give another one"):
        RunFolder(tmp_path / "file" / inside).create()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(UserError, match=r"run_dir: cannot write to .*Permission denied"):
            RunFolder(tmp_path).create()
    finally:
        tmp_path.chmod(0o700)


def test_json_files_are_whole_and_readable(run: RunFolder) -> None:
    run.write_json(run.path / "report/data.json", {"name": "Zürich", "value": 1 / 3})
    text = (run.path / "report" / "data.json").read_text(encoding="utf-8")
    assert "Zürich" in text
    assert json.loads(text) == {"name": "Zürich", "value": 1 / 3}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(), max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(JSON, JSON)
def test_equal_hashes_mean_equal_content(one: object, two: object) -> None:
    assert re.fullmatch("[0-9a-f]{16}", content_hash(one))
    same = json.dumps(one, sort_keys=True) == json.dumps(two, sort_keys=True)
    assert (content_hash(one) == content_hash(two)) == same


def test_content_hash_is_stable() -> None:
    assert content_hash({"b": 1, "a": 2}) == content_hash({"a": 2, "b": 1})
    assert content_hash("a", "b") != content_hash(["a", "b"]) != content_hash("ab")
    # Half of a surrogate pair, which JSON can spell and UTF-8 cannot.
    assert content_hash("\ud800") != content_hash("\ud801")
    # Kept: another value would run every stage of every run again.
    text = '["é", {"a": null, "b": [1, 2.5]}]'
    assert content_hash("é", {"b": [1, 2.5], "a": None}) == hashlib.sha256(text.encode()).hexdigest()[:16]


def folder_of(path: Path, **files: str) -> Path:
    for name, text in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text)
    return path


def test_files_hash_depends_on_names_and_contents_not_on_the_place(tmp_path: Path) -> None:
    one = folder_of(tmp_path / "one", corpus="a", **{"qrels/test": "b"})
    moved = folder_of(tmp_path / "elsewhere" / "two", corpus="a", **{"qrels/test": "b"})
    assert files_hash([one]) == files_hash([moved])
    assert files_hash([one / "corpus"]) == files_hash([moved / "corpus"])
    before = files_hash([one])
    (one / "qrels" / "test").rename(one / "qrels" / "train")
    assert files_hash([one]) != before
    changed = folder_of(tmp_path / "three", corpus="a", **{"qrels/test": "c"})
    assert files_hash([changed]) != before
    (moved / "more").write_text("")
    assert files_hash([moved]) != before


def test_swapped_sets_have_another_hash(tmp_path: Path) -> None:
    paths = [folder_of(tmp_path / name, corpus=name) for name in ("a", "b")]
    before = files_hash(paths)
    for name, text in (("a", "b"), ("b", "a")):
        (tmp_path / name / "corpus").write_text(text)
    assert files_hash(paths) != before


def test_code_version_names_the_release() -> None:
    assert re.fullmatch(re.escape(rankwright.__version__) + r"\+[0-9a-f]{12}", code_version())


def test_provenance_says_what_a_reader_needs() -> None:
    facts = provenance(7, iter(["rankwright", "run"]))
    assert facts["seed"] == 7
    assert facts["command"] == ["rankwright", "run"]
    assert facts["rankwright"] == code_version()
    assert {"torch", "transformers"} <= set(facts["packages"])
    assert json.loads(json.dumps(facts)) == facts


def copy_package(folder: Path) -> Path:
    """The files of this package that git_commit needs, in `folder`/rankwright."""
    source = Path(rankwright.__file__).parent
    shutil.copytree(source / "common", folder / "rankwright" / "common", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(source / "__init__.py", folder / "rankwright")
    return folder


def commit_of(path: Path) -> str:
    """What git_commit says when the package is imported from `path`."""
    code = "from rankwright.common.run_folder import git_commit; print(git_commit())"
    # -B: the copy stays as it was committed.
    command = [sys.executable, "-B", "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    return done.stdout.strip()


def git(folder: Path, *arguments: str) -> str:
    settings = ["-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *settings, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_commit_of_a_checkout(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    package = copy_package(checkout / "train")
    assert commit_of(package) == "None"
    git(tmp_path, "init", "--quiet", "checkout")
    assert commit_of(package) == "None"
    git(checkout, "add", ".")
    git(checkout, "commit", "--quiet", "-m", "first")
    head = git(checkout, "rev-parse", "HEAD")
    assert commit_of(package) == head
    # Files beside the code do not count as changes of it.
    (checkout / "notes.txt").write_text("")
    assert commit_of(package) == head
    with (package / "rankwright" / "common" / "errors.py").open("a") as file:
        file.write("# changed\n")
    assert commit_of(package) == f"{head}-dirty"
    link = tmp_path / "link"
    link.symlink_to(checkout)
    assert commit_of(link / "train") == f"{head}-dirty"


def test_a_copy_inside_another_repository_is_none_of_its_commits(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet", ".")
    package = copy_package(tmp_path / "venv" / "site-packages")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "theirs")
    assert commit_of(package) == "None"


def test_commit_of_this_package_is_a_commit_or_none() -> None:
    commit = git_commit()
    assert commit is None or re.fullmatch("[0-9a-f]{40}(-dirty)?", commit)


def test_a_stage_of_another_run_is_taken_whole_or_not_at_all(tmp_path: Path) -> None:
    done, other = RunFolder(tmp_path / "done"), RunFolder(tmp_path / "other")
    for run in (done, other):
        run.create()
    done.data.mkdir()
    done.split("train").write_text("rows")
    done.finish("data", "abc", seconds=1.0, outputs=[done.data], corpora=["x"])
    assert not other.adopt("data", "other inputs", done) and not other.split("train").exists()
    assert other.adopt("data", "abc", done)
    assert other.is_done("data", "abc") and other.changed("data", verify=True) == {}
    assert other.facts("data") == done.facts("data") and other.split("train").samefile(done.split("train"))
    # Written again as a whole, it is the run's own.
    write_text_atomic(other.split("train"), "mine")
    assert done.split("train").read_text() == "rows" and done.changed("data", verify=True) == {}
    done.split("train").write_text("touched")
    third = RunFolder(tmp_path / "third")
    assert not third.adopt("data", "abc", done), "its files are no longer those of the record"

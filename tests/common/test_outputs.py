"""Records that notice a change of what they were written for, whatever is changed."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import jobs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankwright.common.errors import UserError
from rankwright.common.files import read_kept, write_kept, write_text_atomic
from rankwright.common.outputs import (
    SEAL,
    changed_outputs,
    content_of,
    outputs_of,
    put_aside,
    right_places,
    sealed,
    unsealed,
)
from rankwright.common.run_folder import RunFolder

VALUES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4)


@given(st.dictionaries(st.text(max_size=3), VALUES | st.lists(VALUES, max_size=3), max_size=4), st.text(max_size=3))
def test_a_seal_fits_these_values_only(values: dict[str, object], key: str) -> None:
    values.pop(SEAL, None)
    assert unsealed(sealed(values)) == values
    other = {**sealed(values), key: "something else"}
    with pytest.raises(ValueError, match="not as it was written"):
        unsealed(other)
    with pytest.raises(ValueError, match="not as it was written"):
        unsealed(values)


def test_what_differs_is_found_by_size_by_time_and_then_by_content(tmp_path: Path) -> None:
    names = ["a", "b", "deep/c", "deep/d"]
    for name in names:
        write_text_atomic(tmp_path / name, f"text of {name}")
    outputs = outputs_of(tmp_path, [tmp_path / "a", tmp_path / "b", tmp_path / "deep", tmp_path / "missing"])
    assert list(outputs) == names and changed_outputs(tmp_path, outputs, verify=True) == {}
    # Another time alone is no change, and is kept.
    os.utime(tmp_path / "a", ns=(5, 5))
    assert changed_outputs(tmp_path, outputs) == {} and outputs["a"]["mtime_ns"] == 5
    # The same time and size: only the content shows it.
    (tmp_path / "a").write_text("TEXT of a")
    os.utime(tmp_path / "a", ns=(5, 5))
    assert changed_outputs(tmp_path, outputs) == {}
    assert changed_outputs(tmp_path, outputs, verify=True) == {"a": "changed"}
    (tmp_path / "b").write_text("text of B")
    (tmp_path / "deep" / "c").unlink()
    (tmp_path / "deep" / "d").rename(tmp_path / "moved")
    (tmp_path / "deep" / "d").symlink_to(tmp_path / "moved")
    # A file that was moved to another disk, with a link in its place, is the same file.
    assert changed_outputs(tmp_path, outputs) == {"b": "changed", "deep/c": "gone"}


def test_a_file_that_the_disk_does_not_give_is_not_taken_for_a_damaged_one(tmp_path: Path) -> None:
    # A user without rights, since root may read anything.
    (tmp_path / "a").write_text("x")
    code = (
        "import os, sys; from pathlib import Path\n"
        "from rankwright.common.errors import UserError\n"
        "from rankwright.common.outputs import changed_outputs, content_of, outputs_of\n"
        "folder = Path(sys.argv[1]); outputs = outputs_of(folder, [folder / 'a'])\n"
        "outputs['a']['mtime_ns'] = 1; (folder / 'a').chmod(0); os.getuid() or os.setuid(65534)\n"
        "for ask in (lambda: changed_outputs(folder, outputs), lambda: content_of(folder / 'a')):\n"
        "    try: print(ask())\n"
        "    except UserError as error: print(error)\n"
    )
    for folder in (tmp_path, *tmp_path.parents[:-2]):
        folder.chmod(0o755)
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, env=jobs.environment(), capture_output=True, text=True, check=False)
    expected = f"{tmp_path / 'a'}: cannot be read (Permission denied): make it readable, or delete it"
    assert done.stdout.splitlines() == [expected] * 2, done.stderr


def test_only_a_missing_file_has_no_content(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_text("")
    for name in ("pipe", "loop", "nowhere", "file/below", "."):
        assert content_of(tmp_path / name) is None
    assert content_of(tmp_path / "file") is not None


def test_what_is_put_aside_replaces_what_was(tmp_path: Path) -> None:
    assert put_aside(tmp_path / "a") is None
    for content in ("one", "two"):
        (tmp_path / "a").write_text(content)
        assert put_aside(tmp_path / "a") == tmp_path / "a.changed"
    assert (tmp_path / "a.changed").read_text() == "two"
    (tmp_path / "a").mkdir()
    put_aside(tmp_path / "a")
    assert (tmp_path / "a.changed").is_dir() and not (tmp_path / "a").exists()


def test_an_error_about_a_place_names_the_first_thing_that_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "eval").write_text("x")
    wrong = r"/eval: is not a folder, which belongs there: move it away or delete it$"
    with pytest.raises(UserError, match=wrong), right_places(tmp_path):
        (tmp_path / "eval" / "set" / "a.json").read_text()
    wrong = r": a folder is where a file belongs: move it away or delete it$"
    with pytest.raises(UserError, match=wrong), right_places(tmp_path):
        raise OSError(errno.EISDIR, "Is a directory", str(tmp_path))
    for error in (OSError(errno.EIO, "broken"), OSError(errno.ENOTDIR, "x", "/elsewhere/x")):
        with pytest.raises(OSError, match=r"broken|elsewhere"), right_places(tmp_path):
            raise error


def test_a_record_keeps_times_and_is_no_record_once_it_is_changed(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    write_text_atomic(run.negatives, "x")
    run.finish("mine", "a", seconds=1, outputs=[run.negatives], queries=3)
    assert run.is_done("mine", "a") and run.changed("mine") == {}
    assert set(run.facts("mine")) == {"inputs", "seconds", "finished", "queries"}
    write_text_atomic(run.negatives, "y")
    assert run.changed("mine") == {"negatives.jsonl": "changed"}
    run.bind("mine", run.negatives)
    assert run.changed("mine", verify=True) == {} and run.facts("mine")["queries"] == 3
    record = tmp_path / "stages" / "mine.json"
    record.write_text(record.read_text().replace('"queries": 3', '"queries": 4'))
    assert not run.is_done("mine", "a") and run.changed("mine") == {}


def test_a_kept_array_is_read_only_as_it_was_written(tmp_path: Path) -> None:
    rows, said = np.arange(9, dtype="<f8"), list[str]()
    path = write_kept(tmp_path, [b"one", b"two"], rows)
    assert write_kept(tmp_path, [b"one", b"two"], rows) == path and len(list(tmp_path.iterdir())) == 1
    content = path.read_bytes()
    read = read_kept(path, lambda p: np.load(p).tolist(), said.append, "made again")
    assert read == rows.tolist() and not said
    for place in (0, 9, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        assert read_kept(path, lambda p: np.load(p).tolist(), said.append, "made again") is None
        assert said.pop() == f"{path}: damaged (not as it was written): removed, made again" and not path.exists()

"""Files and folders appear whole or not at all, and a failure leaves what was there."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from rankwright.common.errors import UserError
from rankwright.common.files import (
    atomic_folder,
    read_json_object,
    read_jsonl,
    read_jsonl_places,
    write_lines_atomic,
    write_text_atomic,
)
from rankwright.common.hashing import file_sha256


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_text_is_replaced_and_nothing_is_left_beside(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.json"
    write_text_atomic(path, "one\r\ntwo é\n")
    write_text_atomic(path, "three é\n")
    assert path.read_bytes() == "three é\n".encode()
    assert names(path.parent) == ["a.json"]


def test_newlines_are_written_as_given(tmp_path: Path) -> None:
    write_text_atomic(tmp_path / "a", "one\r\ntwo\n")
    assert (tmp_path / "a").read_bytes() == b"one\r\ntwo\n"


def test_lines_that_fail_leave_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_lines_atomic(path, ["old"])

    def lines() -> Iterator[str]:
        yield "new"
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_lines_atomic(path, lines())
    assert path.read_text() == "old\n"
    assert names(tmp_path) == ["rows.jsonl"]


def test_no_lines_make_an_empty_file(tmp_path: Path) -> None:
    write_lines_atomic(tmp_path / "a", [])
    assert (tmp_path / "a").read_bytes() == b""


@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")
def test_files_get_the_permissions_of_the_umask(tmp_path: Path) -> None:
    write_text_atomic(tmp_path / "ours", "")
    (tmp_path / "plain").write_text("")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("ours", "plain")}
    assert len(modes) == 1


def test_folder_replaces_the_old_one_whole(tmp_path: Path) -> None:
    path = tmp_path / "step-1"
    for name in ("a", "b"):
        with atomic_folder(path) as draft:
            assert draft.parent == path.parent
            (draft / name).write_text(name)
            assert not (path / name).exists()
    assert names(path) == ["b"]
    assert names(tmp_path) == ["step-1"]


def test_folder_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "step-1"
    with atomic_folder(path) as draft:
        (draft / "a").write_text("a")
    with pytest.raises(KeyboardInterrupt), atomic_folder(path) as draft:
        (draft / "b").write_text("b")
        raise KeyboardInterrupt
    assert names(path) == ["a"]
    assert names(tmp_path) == ["step-1"]


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / ".step-1.tmp"
    left.mkdir()
    (left / "half").write_text("half")
    with atomic_folder(tmp_path / "step-1") as draft:
        (draft / "a").write_text("a")
    assert names(tmp_path / "step-1") == ["a"]
    assert names(tmp_path) == ["step-1"]


def test_old_folder_of_a_writer_killed_between_the_renames_comes_back(tmp_path: Path) -> None:
    old = tmp_path / ".step-1.old"
    old.mkdir()
    (old / "a").write_text("a")
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "step-1"):
        raise RuntimeError
    assert names(tmp_path / "step-1") == ["a"]
    assert names(tmp_path) == ["step-1"]


def test_sha256_of_a_known_file(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert file_sha256(tmp_path / "abc") == hashlib.sha256(b"abc").hexdigest()
    assert file_sha256(tmp_path / "abc").startswith("ba7816bf8f01cfea")


def test_read_json_object_is_none_for_all_but_an_object(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    assert read_json_object(path) is None
    for text in ("", "{", "[1]", "null", '"text"'):
        path.write_text(text)
        assert read_json_object(path) is None
    path.write_bytes(b'{"a": "\xff"}')
    assert read_json_object(path) is None
    path.write_text('{"a": 1}')
    assert read_json_object(path) == {"a": 1}


def test_rows_of_jsonl_have_their_places_and_a_damaged_one_its_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes('{"n": 1, "t": "é"}\n{"n": 2}\n{"m": 3}\n'.encode())
    content = path.read_bytes()
    rows = read_jsonl_places(path, lambda row: row["n"], "a row of n: count again")
    found = [(content[start:].decode()[:7], n) for start, n in (next(rows), next(rows))]
    assert found == [('{"n": 1', 1), ('{"n": 2', 2)]
    with pytest.raises(UserError, match=r"rows\.jsonl:3: not a row of n: count again \(KeyError: 'n'\)"):
        next(rows)
    with pytest.raises(UserError, match=r"rows\.jsonl:3"):
        list(read_jsonl(path, lambda row: row["n"], "a row of n"))

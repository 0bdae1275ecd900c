"""What a folder holds beside sets: every file that is not read is named, with the reason."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from rankwright.cli.data_check import check_path
from rankwright.common.errors import UserError
from rankwright.data.discovery import find_sets, unread

ROWS = "query,answer\nwho pays,the buyer\n"
OTHERS: dict[str, tuple[bytes, str]] = {
    "contract.pdf": (b"%PDF-1.7\n", "a PDF document"),
    "notes.docx": (b"PK\x03\x04rest", "a Word document"),
    "photo.png": (b"\x89PNG\r\n", "an image"),
    "data.db": (b"SQLite format 3\0rest", "a SQLite database"),
    "locked.xlsx": (b"\xd0\xcf\x11\xe0\xa1\xb1" + bytes(600), "with a password"),
    "broken.xlsx": (b"no workbook", "damaged Excel workbook"),
    "empty.csv": (b"", "no header in the first line, or the file is empty"),
    "nothing.txt": (b"", "empty"),
    "program": (b"\x7fELF\0\0", "a binary file of an unknown kind"),
    "README.md": (b"# Ours", "not a file of rows by its name"),
    "about.json": (b"{}", "beside other files"),
    "cut.jsonl.gz": (b"\x1f\x8b\x08\0rest", "damaged gzip file"),
    "half.jsonl": (b"{\nquery", "no row can be read, first: 1: not JSON"),
    "deep/er/and/deep/er.csv": (ROWS.encode(), "more than 3 folders down"),
}


def written(folder: Path) -> Path:
    (folder / "good.csv").write_text(ROWS)
    for name, (content, _) in OTHERS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / ".DS_Store").write_bytes(b"\0")
    return folder


def test_every_file_that_is_not_read_is_named_and_the_rest_is_used(tmp_path: Path) -> None:
    found = find_sets(written(tmp_path))
    assert [one.path.name for one in found] == ["good.csv"]
    why = unread(tmp_path, found)
    assert why.pop(tmp_path) == "1 hidden file left out"
    assert {path.relative_to(tmp_path).as_posix() for path in why} == set(OTHERS)
    for name, (_, words) in OTHERS.items():
        assert words in why[tmp_path / name] and "\n" not in why[tmp_path / name], (name, why[tmp_path / name])
    check = check_path(tmp_path, None, None)
    named = {problem.set: problem for problem in check.problems if problem.kind == "not read"}
    assert len(named) == len(OTHERS) + 1 and check.count("error") == 0
    assert {Path(name).name for name, problem in named.items() if problem.level == "warning"} == {
        *("locked.xlsx", "broken.xlsx", "empty.csv", "about.json", "cut.jsonl.gz", "half.jsonl", "er.csv")
    }


@pytest.mark.parametrize("name", ["contract.pdf", "notes.docx", "photo.png", "data.db", "locked.xlsx", "broken.xlsx"])
def test_a_file_that_the_user_names_is_refused_with_the_reason(tmp_path: Path, name: str) -> None:
    written(tmp_path)
    check = check_path(tmp_path / name, None, None)
    assert [OTHERS[name][1] in problem.what for problem in check.problems if problem.level == "error"] == [True]


def test_a_broken_file_of_a_split_is_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "test.csv").write_text(ROWS)
    (tmp_path / "train.xlsx").write_bytes(b"no workbook")
    assert {one.split for one in find_sets(tmp_path)} == {"train", "test"}


def test_a_folder_without_any_set_names_what_is_wrong_with_its_files(tmp_path: Path) -> None:
    (tmp_path / "a.xlsx").write_bytes(b"no workbook")
    assert [one.path.name for one in find_sets(tmp_path)] == ["a.xlsx"]
    (tmp_path / "a.xlsx").unlink()
    (tmp_path / "a.pdf").write_bytes(b"%PDF")
    with pytest.raises(UserError, match=r"no data found: .*a\.pdf \(a PDF document"):
        find_sets(tmp_path)


def test_tables_that_a_joined_set_does_not_need_are_named(tmp_path: Path) -> None:
    for name, text in (("queries", "id,query\n1,a\n"), ("documents", "id,text\n1,b\n"), ("users", "id,name\n1,c\n")):
        (tmp_path / f"{name}.csv").write_text(text)
    (tmp_path / "labels.csv").write_text("query_id,doc_id,label\n1,1,1\n")
    found = find_sets(tmp_path)
    assert unread(tmp_path, found) == {tmp_path / "users.csv": "not needed for the sets beside it"}


def test_a_zip_archive_under_the_name_of_a_table_is_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.csv", "w") as archive:
        archive.writestr("x", "y")
    check = check_path(tmp_path / "a.csv", None, None)
    assert any("a zip archive: unpack it" in problem.what for problem in check.problems)

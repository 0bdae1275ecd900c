"""Broken files of every format: an error with its place, never a traceback, and never a row that vanishes."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from format_fixtures import CONTAINERS, ROWS, content, packed, write_beir, write_rows, write_trec
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from rankwright.common.errors import UserError
from rankwright.data.formats.read import read_path
from rankwright.data.formats.reading import Faults, Reading

# A place, `file:line:` or `file: row N:`; what follows the faults; and mistakes about all of a file's columns.
PLACED = re.compile(r".*(?::\d+: |: row \d+: |: the columns |: no column )|and \d+ more faults")
QUICK = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that hypothesis may use for all its examples."""
    path = Path(tempfile.mkdtemp())
    yield path
    shutil.rmtree(path)


def read(path: Path, on_fault: Any = "stop", format: str | None = None) -> tuple[Reading, list[str]]:
    """What was counted, and the messages of an error."""
    reading = Reading("set", "test", Faults(on_fault), lambda line: None)
    try:
        read_path(path, format, reading)
    except UserError as error:
        lines = str(error).splitlines()
        assert lines and all(PLACED.match(line) for line in lines), lines
        return reading, lines
    return reading, []


def check_counts(path: Path, rows: int, format: str | None = None) -> None:
    """Stopping: an error, or every row taken. Dropping: rows in = rows taken + rows dropped, or an error."""
    reading, messages = read(path, format=format)
    assert messages or reading.taken == rows
    reading, messages = read(path, "drop", format)
    assert messages or reading.taken + reading.faults.rows_dropped == rows, (reading, reading.faults.dropped)


odd = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(["", " ", "\0", "\ud83d", "1e999", "[", "[1]", "{}"]),
    st.lists(st.one_of(st.none(), st.integers(), st.text(max_size=3), st.dictionaries(st.text(max_size=3), st.none()))),
    st.dictionaries(st.sampled_from(["text", "id", "label", "a"]), st.one_of(st.none(), st.text(max_size=3))),
)
BROKEN_LINES = [
    b"{",
    b'{"query": ',
    b"[1]",
    b"null",
    b"12",
    b'"text"',
    b"\xff\xfe\xfa",
    b'{"query": "a\0b"}',
    b'{"query": "\\ud83d"}',
    b'{"query": "a", "query": "b"}',
    b"{}",
    b'{"query": 1e999}',
    b"[" * 100_000,
    b'{"query": ' + b"9" * 5000 + b"}",
]


@pytest.mark.parametrize("name", ROWS)
def test_lines_that_are_no_rows(folder: Path, name: str) -> None:
    good = content(ROWS[name](), "jsonl").splitlines()
    path = folder / "set.jsonl"

    @QUICK
    @given(
        broken=st.lists(st.tuples(st.integers(0, len(good)), st.sampled_from(BROKEN_LINES)), max_size=4),
        end=st.sampled_from([b"\n", b"\r\n", b"\n\n \r\n"]),
        bom=st.booleans(),
    )
    def check(broken: list[tuple[int, bytes]], end: bytes, bom: bool) -> None:
        lines = list(good)
        for place, line in broken:
            lines.insert(place, line)
        path.write_bytes(b"\xef\xbb\xbf" * bom + b"".join(line + end for line in lines))
        check_counts(path, len(lines), name)
        _, messages = read(path, format=name)
        assert bool(messages) == bool(broken)

    check()


@pytest.mark.parametrize("name", ROWS)
def test_cells_of_another_type(folder: Path, name: str) -> None:
    rows = ROWS[name]()

    @settings(QUICK, max_examples=25)
    @given(
        end=st.sampled_from(["jsonl", "json", "csv"]),
        changes=st.lists(
            st.tuples(st.integers(0, len(rows) - 1), st.sampled_from(sorted(rows[0])), odd), min_size=1, max_size=3
        ),
    )
    def check(end: str, changes: list[tuple[int, str, Any]]) -> None:
        path = folder / f"set.{end}"
        changed = [dict(row) for row in rows]
        for place, column, value in changes:
            changed[place][column] = value
        try:
            text = json.dumps(changed) if end == "json" else None
            data = text.encode() if text is not None else content(changed, end)
        except UnicodeEncodeError:
            data = "".join(json.dumps(row) + "\n" for row in changed).encode()
            if end == "csv":
                return
        path.write_bytes(data)
        check_counts(path, len(changed), name)

    check()


@pytest.mark.parametrize("end", CONTAINERS)
def test_files_that_are_cut_off(folder: Path, end: str) -> None:
    plain = content(ROWS["groups"](), end)
    datas = {packing: packed(plain, packing) for packing in ("", ".gz", ".zst")}

    @QUICK
    @given(packing=st.sampled_from(sorted(datas)), place=st.floats(0, 1, exclude_max=True))
    @example(packing="", place=0.9999)
    @example(packing=".gz", place=0.9999)
    @example(packing=".zst", place=0.9999)
    def check(packing: str, place: float) -> None:
        data = datas[packing]
        kept, path = int(place * len(data)), folder / f"set.{end}{packing}"
        path.write_bytes(data[:kept])
        _, messages = read(path)
        # Whether text ends early cannot be told where a line ends; all else says where it ends.
        if packing or end in ("json", "parquet", "arrow", "stream.arrow"):
            assert messages or (end == "json" and not packing and data[kept:].strip() == b"")

    check()


STARTS = [b"", b"{", b"[", b"PAR1", b"ARROW1\0\0", b"\xff\xff\xff\xff", b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"a,b\n"]


NAMES = [*(f"set.{end}" for end in CONTAINERS), "set", "set.jsonl.gz", "set.csv.zst"]


def test_bytes_of_anything(folder: Path) -> None:
    @settings(QUICK, max_examples=150)
    @given(name=st.sampled_from(NAMES), start=st.sampled_from(STARTS), data=st.binary(max_size=100))
    def check(name: str, start: bytes, data: bytes) -> None:
        path = folder / name
        path.write_bytes(start + data)
        _, messages = read(path)
        assert messages

    check()


@pytest.mark.parametrize("end", ["jsonl", "json", "csv", "tsv", "parquet"])
def test_a_text_of_two_megabytes(folder: Path, end: str) -> None:
    rows = [{"query": "one", "positive": "long " * 400_000}, {"query": "two", "positive": "short"}]
    check_counts(write_rows(folder / f"set.{end}", rows), 2)
    reading, messages = read(folder / f"set.{end}")
    assert (reading.taken, messages) == (2, [])
    if end == "jsonl":
        (folder / "set.jsonl").write_bytes(b'{"query": "' + b"x" * 2_000_000 + b"\n" + content(rows, "jsonl"))
        reading, messages = read(folder / "set.jsonl", "drop")
        assert (reading.taken, reading.faults.rows_dropped, messages) == (2, 1, [])


CSV = {
    'query,answer\n"one\ntwo",a\nthree,"b\n': ":4: a quote that opens here is never closed",
    'query,answer\n"one\n\ntwo",a\n"three"x,b\n': ":5: not CSV (",
    "query,answer\none\n": ":2: 1 cell, the header has 2 columns",
    "query,query\none,two\n": ":1: two columns are named 'query'",
    "\nquery,answer\n": ":1: no header in the first line",
    "query,answer\n": "",
    "": ":1: no header in the first line",
    "query,answer\n,a\n": ":2: `query` is null",
    "query,answer\none,\0\n": ":2: `answer` holds a NUL character",
}


@pytest.mark.parametrize("text", CSV)
def test_faults_of_csv_have_the_line_where_the_record_starts(folder: Path, text: str) -> None:
    (folder / "set.csv").write_text(text)
    _, messages = read(folder / "set.csv")
    assert CSV[text] in messages[0]


def test_csv_as_spreadsheets_write_it(folder: Path) -> None:
    text = '\ufeffquestion;answer;\r\n"one; ""two""";"a\r\nb";\r\n\r\nthree;c;x\r\n'
    (folder / "set.csv").write_bytes(text.encode())
    collection = read_path(folder / "set.csv", None, Reading("set"))
    assert list(collection.queries.values()) == ['one; "two"', "three"]
    assert list(collection.corpus.values()) == ["a\r\nb", "c"]
    (folder / "set.csv").write_bytes(text[1:].encode("utf-16"))
    assert read(folder / "set.csv")[1] == []
    (folder / "set.csv").write_bytes(text.replace(";c;", ";\xfc;").encode().replace(b"three", b"thr\xe9e"))
    assert ":5: not UTF-8" in read(folder / "set.csv")[1][0]


def test_places_in_a_json_array(folder: Path) -> None:
    path = folder / "set.json"
    path.write_text('[\n {"query": "a", "pos": ["b"]},\n\n 7,\n {"query": "", "pos": []}\n]\n')
    _, messages = read(path)
    assert [line.split(": ")[0] for line in messages] == [f"{path}:4", f"{path}:5"]
    assert [line.split(": ")[1] for line in messages] == [f"element {n} (counted from 1)" for n in (2, 3)]
    path.write_text('[\n {"query": "a", "pos": ["b"]},\n {"query": "c" "pos": []}\n]\n')
    assert read(path)[1][0].startswith(f"{path}:3: not JSON")
    # Across the pieces in which it is read.
    rows = [{"query": f"q{n}", "pos": ["ü" * n], "neg": [None]} for n in range(700)]
    path.write_text(json.dumps(rows, indent=1, ensure_ascii=False))
    reading, messages = read(path, "drop")
    assert reading.faults.rows_dropped == 700
    lines = [int(line.split(":")[1]) for row in reading.faults.dropped for line in row.examples]
    assert lines == [2 + 9 * n for n in range(5)]


@pytest.mark.parametrize("kind", ["beir", "trec", "trec-sgml"])
def test_folders_with_damaged_files(folder: Path, kind: str) -> None:
    def make() -> Path:
        shutil.rmtree(folder / "set", ignore_errors=True)
        if kind == "beir":
            return write_beir(folder / "set")
        sgml = kind == "trec-sgml"
        return write_trec(folder / "set", topics="top" if sgml else "tsv", corpus="doc" if sgml else "jsonl")

    names = sorted(p.relative_to(folder / "set") for p in make().rglob("*") if p.is_file())
    contents = {name: (folder / "set" / name).read_bytes() for name in names}

    @settings(QUICK, max_examples=40)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(names))
        whole, path = contents[name], folder / "set" / name
        start = data.draw(st.integers(0, len(whole)))
        stop = data.draw(st.integers(start, min(len(whole), start + 40)))
        junk = data.draw(st.sampled_from([b"", b"\0", b"\xff", b"<top>", b"</DOC>", b"\t", b"\n", b"{", b"x" * 1000]))
        path.write_bytes(whole[:start] + junk + whole[stop:])
        read(folder / "set")
        read(folder / "set", "drop")
        path.write_bytes(whole)

    check()

"""Files in other encodings than UTF-8: every encoding in every format gives the rows of the UTF-8 file, and says so."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankwright import read_collection
from rankwright.common.errors import UserError
from rankwright.data.collection import Collection
from rankwright.data.formats.encodings import open_text
from rankwright.data.formats.reading import Faults, Reading

TEXTS = [("Was kostet ein Käufer?", "Der Käufer zahlt 5 €."), ("Où est l'été?", "À côté, « ici »."), ("plain", "text")]
TABLE = "".join(f"{q}\t{d}\n" for q, d in [("query", "answer"), *TEXTS])
# Name of the file that is written -> its content, and its folder's other files.
FORMATS: dict[str, dict[str, str]] = {
    "CSV": {"set.csv": "query,answer\r\n" + "".join(f'"{q}","{d}"\r\n' for q, d in TEXTS)},
    "CSV with semicolons": {"set.csv": "query;answer\r\n" + "".join(f'"{q}";{d}\r\n' for q, d in TEXTS)},
    "CSV with Excel's first line": {"set.csv": "sep=;\r\nquery;answer\r\n" + "".join(f"{q};{d}\r\n" for q, d in TEXTS)},
    "TSV": {"set.tsv": TABLE},
    "Unicode text of Excel": {"set.txt": TABLE.replace("\n", "\r\n")},
    "JSONL": {"set.jsonl": "".join(json.dumps({"query": q, "pos": [d]}, ensure_ascii=False) + "\n" for q, d in TEXTS)},
    "JSON": {"set.json": json.dumps([{"query": q, "pos": [d]} for q, d in TEXTS], ensure_ascii=False, indent=1)},
    "TREC": {
        "topics.tsv": "".join(f"q{n}\t{q}\n" for n, (q, _) in enumerate(TEXTS)),
        "docs.trec": "".join(
            f"<DOC>\n<DOCNO>d{n}</DOCNO>\n<TEXT>{d}</TEXT>\n</DOC>\n" for n, (_, d) in enumerate(TEXTS)
        ),
        "qrels.txt": "".join(f"q{n} 0 d{n} 1\n" for n in range(3)),
    },
    "BEIR": {
        "queries.jsonl": "".join(
            json.dumps({"_id": f"q{n}", "text": q}, ensure_ascii=False) + "\n" for n, (q, _) in enumerate(TEXTS)
        ),
        "corpus.jsonl": "".join(
            json.dumps({"_id": f"d{n}", "text": d}, ensure_ascii=False) + "\n" for n, (_, d) in enumerate(TEXTS)
        ),
        "qrels/test.tsv": "".join(f"q{n}\td{n}\t1\n" for n in range(3)),
    },
}


def written(folder: Path, files: dict[str, str], encoding: str, pack: str = "") -> Path:
    for name, text in files.items():
        data = text.encode(encoding)
        path = folder / f"{name}{pack}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if pack == ".zst":
            data = pyarrow.compress(data, codec="zstd", asbytes=True)
        path.write_bytes(gzip.compress(data) if pack == ".gz" else data)
    return folder if len(files) > 1 else folder / f"{next(iter(files))}{pack}"


def read(path: Path, encoding: str | None = None) -> tuple[Collection, list[str]]:
    said: list[str] = []
    return read_collection(path, name="set", split="test", say=said.append, encoding=encoding), said


def as_pairs(read: Collection) -> list[tuple[str, str]]:
    return sorted((read.queries[q], read.corpus[d]) for q, judged in read.qrels.items() for d in judged)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
def test_every_format_in_every_encoding(tmp_path: Path, form: str, encoding: str) -> None:
    files = FORMATS[form]
    path = written(tmp_path / encoding, files, encoding)
    found, said = read(path)
    assert as_pairs(found) == sorted(TEXTS)
    reports = [line for line in said if "read as" in line]
    # Once for each file that has such bytes.
    shown = 0 if "utf-8" in encoding else sum(encoding != "cp1252" or not text.isascii() for text in files.values())
    assert len(reports) == shown
    assert all(("a guess: byte 0x" in line) == (encoding == "cp1252") for line in reports)
    given, said = read(path, encoding if encoding != "utf-8-sig" else "utf-8")
    assert as_pairs(given) == sorted(TEXTS) and not [line for line in said if "read as" in line]


@pytest.mark.parametrize("pack", [".gz", ".zst"])
@pytest.mark.parametrize("encoding", ["utf-16", "cp1252"])
def test_packed_files(tmp_path: Path, pack: str, encoding: str) -> None:
    assert as_pairs(read(written(tmp_path, FORMATS["CSV"], encoding, pack))[0]) == sorted(TEXTS)


def test_the_guess_names_its_first_place_and_how_it_reads(tmp_path: Path) -> None:
    path = written(tmp_path, FORMATS["CSV"], "cp1252")
    assert f"{path}: read as cp1252, a guess: byte 0xE4 in line 2 is not UTF-8, and reads 'Käufer'" in read(path)[1][0]


@pytest.mark.parametrize(
    ("name", "encoding"),
    [
        ("Стоимость договора", "cp1251"),
        ("契約の値段は、いくら", "shift_jis"),
        ("合同的价格是多少", "gb18030"),
        ("계약 가격", "euc-kr"),
    ],
)
def test_other_alphabets_are_not_guessed_and_can_be_named(tmp_path: Path, name: str, encoding: str) -> None:
    path = written(tmp_path, {"set.csv": f"query,answer\n{name},{name} 2\n"}, encoding)
    with pytest.raises(UserError, match=r"set\.csv:2: not UTF-8: save the file as UTF-8, or give `encoding: NAME`"):
        read(path)
    assert as_pairs(read(path, encoding)[0]) == [(name, f"{name} 2")]


@pytest.mark.parametrize(
    ("form", "encoding", "given", "message"),
    [
        ("CSV", "utf-8", "cp1252", "set.csv:2: is UTF-8 here, and not cp1252: leave `encoding` out"),
        ("CSV", "utf-8", "latin-1", "set.csv:2: is UTF-8 here, and not iso8859-1: leave `encoding` out"),
        ("JSONL", "utf-8", "utf-16", "set.jsonl:1: encoding: utf-16: it has no bytes of 0, as utf-16 has"),
        ("JSON", "utf-16", "cp1252", "set.json:1: encoding: cp1252: it starts with the mark of utf-16: leave"),
        ("CSV", "cp1252", "utf-8", "set.csv:2: not UTF-8: save the file as UTF-8"),
        ("CSV", "utf-8", "ascii", "set.csv:2: is UTF-8 here, and not ascii"),
        ("CSV", "cp1252", "ascii", "set.csv:2: not ascii: save the file as UTF-8"),
        ("CSV", "utf-8", "cp12552", "encoding: unknown encoding 'cp12552', did you mean 'cp1252'?"),
        ("CSV", "utf-8", "base64", "encoding: unknown encoding 'base64'"),
        ("CSV", "utf-8", "unicode_escape", "encoding: unknown encoding 'unicode_escape'"),
    ],
)
def test_a_wrong_encoding_is_one_line(tmp_path: Path, form: str, encoding: str, given: str, message: str) -> None:
    path = written(tmp_path, FORMATS[form], encoding)
    with pytest.raises(UserError) as caught:
        read(path, given)
    assert message in str(caught.value).splitlines()[0]


def test_an_encoding_is_for_texts(tmp_path: Path) -> None:
    import pyarrow.parquet

    table: Any = pyarrow.table({"query": ["a"], "answer": ["b"]})
    pyarrow.parquet.write_table(table, tmp_path / "set.parquet")
    with pytest.raises(UserError, match="encoding: cp1252: this is not a text file: leave `encoding` out"):
        read(tmp_path / "set.parquet", "cp1252")


def test_a_guess_that_later_lines_contradict_stops(tmp_path: Path) -> None:
    start = "query,answer\nGrüße,b\n".encode("cp1252") + b"a,b\n" * 60_000
    (tmp_path / "set.csv").write_bytes(start + "Käufer über Straße,b\n".encode())
    with pytest.raises(UserError, match=r"set\.csv:60003: is UTF-8 here, and not cp1252: lines before it are not"):
        read(tmp_path / "set.csv")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text(st.characters(codec="cp1252", exclude_characters="\0")), max_size=30),
    st.sampled_from(["utf-8", "utf-16", "utf-32-be", "cp1252"]),
    st.integers(0, 70_000),
)
def test_a_stated_encoding_gives_the_text(tmp_path_factory: Any, lines: list[str], encoding: str, before: int) -> None:
    # Across the pieces in which a file is read.
    text = "a" * before + "\n" + "\n".join(lines)
    path = tmp_path_factory.mktemp("x") / "f"
    path.write_bytes(text.encode(encoding))
    try:
        with open_text(path, Reading("set", faults=Faults(), encoding=encoding)) as file:
            assert file.read().decode() == text.removeprefix("\ufeff")
    except UserError as error:
        # Texts that happen to be those of UTF-8.
        assert encoding == "cp1252" and "is UTF-8 here" in str(error)

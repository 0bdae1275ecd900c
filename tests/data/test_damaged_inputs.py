"""Damaged and hostile files of every known format: one line with the place of the fault, or the right rows; no hang."""

from __future__ import annotations

import gzip
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rankwright import read_collection
from rankwright.cli.data_check import check_path
from rankwright.common import console
from rankwright.common.errors import UserError
from rankwright.data.formats.reading import Faults
from rankwright.data.sources import locate, locate_all, read
from rankwright.data.statistics import share_of_code
from rankwright.recipe.sources import Data, Source

ROW = '{"query": "q", "pos": ["p"], "neg": ["n"]}\n'
BIG = 40 << 20
CORPUS, QUERIES = '{"_id": "d", "text": "x"}\n', '{"_id": "q", "text": "y"}\n'
# Name of a file -> its content; the folder is read, and DIR stands for it in messages.
Files = dict[str, str | bytes]


def beir(**files: str) -> Files:
    return {"corpus.jsonl": CORPUS, "queries.jsonl": QUERIES, "qrels/train.tsv": "q\td\t1\n"} | {
        {"qrels": "qrels/train.tsv"}.get(name, f"{name}.jsonl"): text for name, text in files.items()
    }


def saved(state: str = "", **splits: Any) -> Files:
    return {"dataset_dict.json": json.dumps(splits)} if splits else {"state.json": state}


def bomb(start: bytes, fill: bytes) -> bytes:
    return gzip.compress(start + fill * BIG, 6)


# What the folder holds, and the start of the only line, or the queries and documents that are read.
DAMAGED: dict[str, tuple[Files, str | tuple[int, int]]] = {
    "JSON, nested lists": ({"a.jsonl": "[" * 100_000}, "DIR/a.jsonl:1: not JSON (nested too deeply)"),
    "JSON, nested objects": ({"a.jsonl": '{"a":' * 50_000}, "DIR/a.jsonl:1: not JSON (nested too deeply)"),
    "JSON, nested in a column": (
        {"a.jsonl": '{"query": "q", "pos": ' + "[" * 50_000 + "]" * 50_000 + "}"},
        "DIR/a.jsonl:1: not JSON (nested too deeply)",
    ),
    "JSON, a number of 5,000 digits": (
        {"a.jsonl": '{"query": "q", "document": "d", "label": ' + "9" * 5000 + "}"},
        "DIR/a.jsonl:1: not JSON (a number of more than 4,300 digits)",
    ),
    "JSON, infinity": (
        {"a.jsonl": '{"query": "q", "document": "d", "label": 1e999}'},
        "DIR/a.jsonl:1: the label of document is inf, needs a number",
    ),
    "JSON, NaN": (
        {"a.jsonl": '{"query": "q", "document": "d", "label": NaN}'},
        "DIR/a.jsonl:1: the label of document is nan, needs a number",
    ),
    "JSON, a score of NaN": (
        {"a.jsonl": '{"query": "q", "pos": ["p"], "pos_scores": [NaN]}'},
        "DIR/a.jsonl:1: the score of pos[0] is nan",
    ),
    "JSON, a lone surrogate": (
        {"a.jsonl": r'{"query": "\ud83d", "pos": ["p"]}'},
        "DIR/a.jsonl:1: `query` holds half of a character",
    ),
    "JSON, a lone surrogate in an id": (
        {"a.jsonl": r'{"query": "q", "query_id": "\udc00", "pos": ["p"]}'},
        "DIR/a.jsonl:1: `query_id` holds half of a character",
    ),
    "JSON, a lone surrogate in a name": ({"a.jsonl": r'{"query": "q", "pos": ["p"], "\ud83d": 1}'}, (1, 1)),
    "JSON, an escaped NUL": (
        {"a.jsonl": r'{"query": "q\u0000", "pos": ["p"]}'},
        "DIR/a.jsonl:1: `query` holds a NUL character",
    ),
    "JSON, a NUL byte": ({"a.jsonl": ROW.replace("q", "q\0")}, "DIR/a.jsonl:1: not JSON (Invalid control character"),
    "JSON, a key twice": (
        {"a.jsonl": '{"query": "q", "query": "r", "pos": ["p"]}'},
        "DIR/a.jsonl:1: not JSON (the key 'query' stands twice",
    ),
    "JSON, thousands of keys twice": (
        {"a.jsonl": '{"query": "q", "pos": ["p"]' + "".join(f', "k{n % 9000}": 1' for n in range(18_000)) + "}"},
        "DIR/a.jsonl:1: not JSON (the key 'k0' stands twice",
    ),
    "JSON, a scalar": ({"a.jsonl": "3\n"}, "DIR/a.jsonl:1: a JSON int, needs an object"),
    "JSON, a query that is a number": ({"a.jsonl": ROW.replace('"q"', "1")}, "DIR/a.jsonl:1: `query` has type int"),
    "JSON, a query that is a list": ({"a.jsonl": ROW.replace('"q"', "[]")}, "DIR/a.jsonl:1: `query` has type list"),
    "JSON, a query that is null": ({"a.jsonl": ROW.replace('"q"', "null")}, "DIR/a.jsonl:1: `query` is null"),
    "JSON, positives that are a number": ({"a.jsonl": ROW.replace('["p"]', "3")}, "DIR/a.jsonl:1: `pos` has type int"),
    "JSON, positives that are true": ({"a.jsonl": ROW.replace('"p"', "true")}, "DIR/a.jsonl:1: pos[0] has type bool"),
    "JSON, positives in two lists": ({"a.jsonl": ROW.replace('"p"', '["p"]')}, "DIR/a.jsonl:1: pos[0] has type list"),
    "JSON, no positive": ({"a.jsonl": ROW.replace('"p"', "")}, "DIR/a.jsonl:1: no query has a relevant document"),
    "JSON, a weight that is a text": (
        {"a.jsonl": ROW.replace("}", ', "weight": "x"}')},
        "DIR/a.jsonl:1: `weight` is 'x', needs a number above 0",
    ),
    "JSON, a weight beyond all": (
        {"a.jsonl": ROW.replace("}", ', "weight": 1e400}')},
        "DIR/a.jsonl:1: `weight` is inf",
    ),
    "JSON, scores of another length": (
        {"a.jsonl": ROW.replace("}", ', "pos_scores": [1, 2]}')},
        "DIR/a.jsonl:1: 1 pos but 2 pos_scores",
    ),
    "JSON, a column with 5,000 digits": (
        {"a.jsonl": json.dumps({"query": "q", "positive": "p", "neg" + "9" * 5000: "n"})},
        (1, 2),
    ),
    "JSON, 3,000 columns": (
        {"a.jsonl": json.dumps({"query": "q", "pos": ["p"]} | {f"column_{n}": "x" for n in range(3000)})},
        (1, 1),
    ),
    "an array that is cut off": ({"a.json": f"[{ROW}"}, "DIR/a.json:2: the array is not closed"),
    "an array with more behind it": ({"a.json": f"[{ROW}] x"}, "DIR/a.json:2: there is more after the end"),
    "an array of lists": (
        {"a.json": "[[1]]"},
        "DIR/a.json:1: element 1 (counted from 1): a JSON list, needs an object",
    ),
    "an object, not rows": (
        {"a.json": '{"query": "q"}'},
        "DIR/a.json: the columns query (text) are those of no format",
    ),
    "UTF-16": ({"a.jsonl": ROW.encode("utf-16")}, (1, 2)),
    "UTF-16 without a mark": ({"a.jsonl": ROW.encode("utf-16-be")}, (1, 2)),
    "UTF-16, cut off": ({"a.jsonl": ROW.encode("utf-16")[:-1]}, "DIR/a.jsonl:1: not utf-16-le (truncated data)"),
    "UTF-16, half a character": (
        {"a.jsonl": (ROW * 2).encode("utf-16").replace(b'p\0"', b'\0\xd8"', 1)},
        "DIR/a.jsonl:1: not utf-16-le",
    ),
    "UTF-32": ({"a.jsonl": ROW.encode("utf-32")}, (1, 2)),
    "Latin-1": ({"a.jsonl": ROW.replace('"q"', '"é"').encode("latin-1")}, (1, 2)),
    "Latin-1 in CSV": ({"a.csv": "query,positive\né,p\n".encode("latin-1")}, (1, 1)),
    "Latin-1 and UTF-8": (
        {"a.jsonl": (ROW * 3).replace('"q"', '"é"').encode() + ROW.replace('"q"', '"ü"').encode("latin-1")},
        "DIR/a.jsonl:4: not UTF-8 at byte",
    ),
    "a byte order mark": ({"a.jsonl": "\ufeff" + ROW}, (1, 2)),
    "two byte order marks": ({"a.jsonl": "\ufeff\ufeff" + ROW}, "DIR/a.jsonl:1: not JSON"),
    "a byte order mark in CSV": ({"a.csv": "\ufeffquery,positive\nq,p\n"}, (1, 1)),
    "all bytes": ({"a.jsonl": bytes(byte for byte in range(256) if byte != 10) * 9}, "DIR/a.jsonl:1: not"),
    "nothing but NUL": ({"a.jsonl": b"\0" * 999}, "DIR/a.jsonl:1: not JSON"),
    "an empty file": ({"a.jsonl": ""}, "DIR/a.jsonl:1: the file is empty"),
    "an empty CSV file": ({"a.csv": ""}, "DIR/a.csv:1: no header in the first line"),
    "an empty TSV file": ({"a.tsv": "\n\n"}, "DIR/a.tsv:1: no header in the first line"),
    "an empty Parquet file": ({"a.parquet": ""}, "DIR/a.parquet:1: its bytes are not those of"),
    "an empty packed file": ({"a.jsonl.gz": ""}, "DIR/a.jsonl.gz:1: the file is empty"),
    "a web page": ({"a.jsonl": "<!DOCTYPE html>"}, "DIR/a.jsonl:1: not JSON"),
    "an Excel workbook": ({"a.csv": b"PK\x03\x04aaaa"}, "DIR/a.csv:1: a zip archive: unpack it"),
    "a pointer of Git LFS": (
        {"a.parquet": "version https://git-lfs.github.com/spec/v1\n"},
        "DIR/a.parquet:1: its bytes are not",
    ),
    "gzip, cut off": ({"a.jsonl.gz": gzip.compress(ROW.encode() * 99)[:-20]}, "DIR/a.jsonl.gz:1: damaged gzip file"),
    "gzip, another checksum": (
        {"a.jsonl.gz": gzip.compress(ROW.encode() * 99)[:-8] + b"12345678"},
        "DIR/a.jsonl.gz:1: damaged gzip file (CRC check failed",
    ),
    "gzip, more behind it": (
        {"a.jsonl.gz": gzip.compress(ROW.encode()) + b"more"},
        "DIR/a.jsonl.gz:1: damaged gzip file",
    ),
    "gzip by its name only": ({"a.jsonl.gz": ROW}, "DIR/a.jsonl.gz:1: damaged gzip file (its name ends in .gz"),
    "zstd, damaged": ({"a.jsonl.zst": b"\x28\xb5\x2f\xfd" + b"x" * 30}, "DIR/a.jsonl.zst:1: damaged zstd file"),
    "a bomb of one line": ({"a.jsonl.gz": bomb(b"", b"\0")}, "DIR/a.jsonl.gz: unpacks to more than 200 times its size"),
    "a bomb of blank lines": (
        {"a.jsonl.gz": bomb(b"", b"\n")},
        "DIR/a.jsonl.gz:1048577: more than a million blank lines",
    ),
    "a bomb in a CSV cell": ({"a.csv.gz": bomb(b"a,b\nx", b"x")}, "DIR/a.csv.gz: unpacks to more than 200 times"),
    "a bomb in an array": ({"a.json.gz": bomb(b'[{"query": "', b"x")}, "DIR/a.json.gz: unpacks to more than 200 times"),
    "a bomb as Parquet": ({"a.parquet.gz": bomb(b"PAR1", b"x")}, "DIR/a.parquet.gz: unpacks to more than 200 times"),
    "CSV, a name twice": ({"a.csv": "query,query\na,b\n"}, "DIR/a.csv:1: two columns are named 'query'"),
    "CSV, cells missing": ({"a.csv": "query,positive\na\n"}, "DIR/a.csv:2: 1 cell, the header has 2 columns"),
    "CSV, an open quote": ({"a.csv": 'query,positive\na,"b\n'}, "DIR/a.csv:2: a quote that opens here is never closed"),
    "CSV, a NUL byte": ({"a.csv": "query,positive\na\0,b\n"}, "DIR/a.csv:2: `query` holds a NUL character"),
    "CSV, a header alone": ({"a.csv": "query,positive\n"}, "DIR/a.csv:1: holds no rows: give a file"),
    "CSV, 20,000 columns": (
        {"a.csv": ",".join(f"c{n}" for n in range(20_000)) + "\n" + "x," * 19_999 + "x\n"},
        "DIR/a.csv: the columns c0 (text), c1 (text)",
    ),
    "TSV, quotes": ({"a.tsv": 'query\tpositive\nsay "hi" now\tp\n'}, (1, 1)),
    "Parquet, damaged": (
        {"a.parquet": b"PAR1" + bytes(range(256)) * 9 + b"PAR1"},
        "DIR/a.parquet: row 1: damaged Parquet",
    ),
    "Arrow, damaged": (
        {"a.arrow": b"ARROW1\0\0" + bytes(byte for byte in range(256) if byte != 10) * 9},
        "DIR/a.arrow: row 1: damaged Arrow file",
    ),
    "Arrow stream, damaged": (
        {"a.arrow": b"\xff\xff\xff\xff" + bytes(range(256))},
        "DIR/a.arrow: row 1: damaged Arrow file",
    ),
    **{
        f"save_to_disk, state.json {text[:24]}": (saved(text), "DIR/state.json: not the JSON that save_to_disk writes")
        for text in (
            *("null", "[]", "", "{", '{"_data_files": 3}', '{"_data_files": null}', '{"_data_files": [3]}'),
            *('{"_data_files": [{}]}', '{"_data_files": [{"filename": []}]}', "[" * 100_000),
            '{"_data_files": [{"filename": "../../etc/passwd"}]}',
        )
    },
    "save_to_disk, no file": (saved("{}"), "DIR/state.json: no such data file"),
    **{
        f"save_to_disk, splits {splits}": (
            saved(splits=splits),
            "DIR/dataset_dict.json: not the JSON that save_to_disk writes",
        )
        for splits in (3, [3], None, {"train": 1}, ["../../x"], [".."])
    },
    "save_to_disk, a split that is gone": (saved(splits=["train"]), "DIR/train/state.json: no such data file"),
    "BEIR, other columns": (beir(qrels="a\tb\tc\n"), "DIR/qrels/train.tsv:1: no column `query-id`"),
    "BEIR, NaN": (beir(qrels="q\td\t1\nq\td\tnan\n"), "DIR/qrels/train.tsv:2: score 'nan' is not a number"),
    "BEIR, an id that is a list": (beir(corpus='{"_id": [], "text": "x"}'), "DIR/corpus.jsonl:1: `_id` is []"),
    "BEIR, a text that is an object": (
        beir(corpus='{"_id": "d", "text": {}}'),
        "DIR/corpus.jsonl:1: `text` has type dict",
    ),
    "BEIR, no judgement": (beir(qrels=""), "DIR/qrels/train.tsv:1: the file is empty"),
    "TREC, not closed": (
        {"topics.txt": "<top>\n<num> 1\n<title> x\n", "qrels.txt": "1 0 d 1\n", "corpus.tsv": "d\tx\n"},
        "DIR/topics.txt:1: <top> is never closed",
    ),
    "Tevatron, no text": (
        {"a.jsonl": '{"query": "q", "positive_passages": [{"docid": "d"}]}'},
        "DIR/a.jsonl:1: positive_passages[0] has no `text`",
    ),
    "lists, a label that is a text": (
        {"a.jsonl": '{"query": "q", "docs": ["a"], "labels": ["x"]}'},
        "DIR/a.jsonl:1: the label of docs[0] is 'x'",
    ),
}


def outcome(path: Path) -> str | tuple[int, int]:
    """The message, or how many queries and documents are read; `data check` of the path must end too."""
    with console.silence():
        try:
            check_path(path, None, None)
        except UserError as error:
            assert len(str(error).splitlines()) == 1
    try:
        found = read(locate(Source(path=str(path)), root=None, split="train"), lambda line: None, Faults())
    except UserError as error:
        return str(error)
    return len(found.queries), len(found.corpus)


@pytest.mark.timeout(30)
@pytest.mark.parametrize(("files", "expected"), DAMAGED.values(), ids=DAMAGED)
def test_damaged_files(tmp_path: Path, files: Files, expected: str | tuple[int, int]) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    found = outcome(tmp_path)
    if isinstance(found, str):
        assert len(found.splitlines()) == 1
        assert isinstance(expected, str) and found.startswith(expected.replace("DIR", str(tmp_path))), found
    else:
        assert found == expected


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "a.jsonl")
    return folder / "a.jsonl"


def link(target: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / "a.jsonl").symlink_to(target)
        return folder / "a.jsonl"

    return make


def folder_of(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).mkdir()
        return folder / name

    return make


PLACES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a pipe": (pipe, "is a pipe or a device: give a file or a folder"),
    "a device that never ends": (lambda folder: Path("/dev/zero"), "is a pipe or a device: give a file or a folder"),
    "a device without bytes": (lambda folder: Path("/dev/null"), "is a pipe or a device: give a file or a folder"),
    "a file of the kernel that waits": (lambda folder: Path("/proc/kmsg"), "is a file of the kernel"),
    "a folder of the kernel": (lambda folder: Path("/proc/self"), "is a file of the kernel"),
    "a link to the kernel": (link("/proc/kmsg"), "is a file of the kernel"),
    "links in a circle": (link("a.jsonl"), "no such file or folder (it is a link that leads nowhere)"),
    "a link to nothing": (link("missing"), "no such file or folder (it is a link that leads nowhere)"),
    "a folder named like a file": (folder_of("a.jsonl"), "neither a BEIR layout"),
    "a name that no file can have": (lambda folder: folder / ("x" * 300), "no such file or folder"),
}


@pytest.mark.timeout(30)
@pytest.mark.parametrize(("make", "expected"), PLACES.values(), ids=PLACES)
def test_odd_places(tmp_path: Path, make: Callable[[Path], Path], expected: str) -> None:
    path = make(tmp_path)
    found = outcome(path)
    assert isinstance(found, str) and len(found.splitlines()) == 1
    assert found.startswith(str(path)) and expected in found, found


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b"], ids=["too long", "a NUL"])
def test_paths_that_no_file_can_have(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError) as caught:
        read_collection(tmp_path / name, name="s")
    assert len(str(caught.value).splitlines()) == 1
    assert re.search("no such file or folder|a character that no path has", str(caught.value))


def test_a_long_name_and_a_missing_root(tmp_path: Path) -> None:
    (tmp_path / ("x" * 245 + ".jsonl")).write_text(ROW)
    with pytest.raises(UserError, match=r"which is longer than 200 bytes: give it another `name`"):
        locate(Source(path=str(tmp_path / ("x" * 245 + ".jsonl"))), root=None, split="train")
    with pytest.raises(
        UserError, match=r"no such file or folder.*relative paths start at data\.root, which is"
    ) as caught:
        locate(Source(path="set"), root=str(tmp_path / "missing"), split="train")
    assert len(str(caught.value).splitlines()) == 1


def test_a_missing_root_is_one_line_for_all_sets(tmp_path: Path) -> None:
    data = Data(root=str(tmp_path / "missing"), train=(Source(path="a"), Source(path="b")), test=(Source(path="c"),))
    with pytest.raises(UserError, match=r"^data\.root: .*missing: no such folder") as caught:
        locate_all(data)
    assert len(str(caught.value).splitlines()) == 1


def test_texts_that_expressions_could_search_forever(tmp_path: Path) -> None:
    """Quadratic searches of these would take minutes."""
    assert share_of_code(["\n" * 300_000, "}" + " " * 300_000]) == 0
    files = {"topics.tsv": "q\tx\n", "qrels.txt": "q 0 d 1\n", "corpus.txt": "<DOC>" + "<a" * 200_000 + "\n</DOC>\n"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    found = outcome(tmp_path)
    assert isinstance(found, str) and "a document without <DOCNO>" in found


def test_a_folder_with_a_link_to_itself_is_read_once(tmp_path: Path) -> None:
    (tmp_path / "inside").symlink_to(tmp_path)
    (tmp_path / "a.jsonl").write_text(ROW)
    assert outcome(tmp_path) == (1, 2)

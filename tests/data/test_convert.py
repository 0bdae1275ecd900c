"""Sets written in another format: everything that both formats hold comes back, and what is lost is counted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import format_fixtures as fixtures
import pytest
from format_fixtures import ROWS, expected, plain, write_beir, write_rows, write_trec

from rankwright.common.errors import UserError
from rankwright.data.formats.convert import convert
from rankwright.data.formats.read import read_collection

FOLDERS = ("beir", "trec")
FORMATS = (*ROWS, *FOLDERS)
# The writer of TREC has no place for group keys, that of BEIR has `metadata.group`.
GROUP_KEY = {"beir": "metadata.group"}


def source_of(folder: Path, name: str) -> Path:
    if name == "beir":
        return write_beir(folder / "source")
    if name == "trec":
        return write_trec(folder / "source")
    return write_rows(folder / "source.jsonl", ROWS[name]())


def converted(
    folder: Path, source: Path, first: str, to: str, end: str = ".jsonl", **options: Any
) -> tuple[Path, list[str]]:
    said: list[str] = []
    target = folder / f"to-{to}{'' if to in FOLDERS else end}"
    convert(source, target, to=to, say=said.append, group_key=GROUP_KEY.get(first), **options)
    return target, said


@pytest.mark.parametrize(("first", "second"), list(product(FORMATS, FORMATS)))
def test_every_format_to_every_other(tmp_path: Path, first: str, second: str) -> None:
    source = source_of(tmp_path, first)
    if (first, second) == ("pairs", "triplets"):
        with pytest.raises(UserError, match="nothing of the set can be written as triplets"):
            converted(tmp_path, source, first, second)
        return
    target, said = converted(tmp_path, source, first, second)
    read = read_collection(target, name="set", group_key=GROUP_KEY.get(second) if first in ("groups", "beir") else None)
    assert plain(read) == expected(first, second)
    assert said[-1].startswith(f"{target}: ")


@pytest.mark.parametrize("end", [".jsonl.gz", ".jsonl.zst", ".csv", ".csv.gz", ".tsv.zst", ".parquet"])
@pytest.mark.parametrize("to", ROWS)
def test_every_container(tmp_path: Path, to: str, end: str) -> None:
    target, _ = converted(tmp_path, source_of(tmp_path, "groups"), "groups", to, end)
    assert plain(read_collection(target, name="set")) == expected("groups", to)


# Graded: d1 of q1 has label 3, d3 and d2 of q2 have 2.
LOST: dict[str, dict[str, int]] = {
    "groups": {},
    "flagembedding": {"graded labels": 3, "weights of queries": 2, "group keys": 8},
    "tevatron": {"graded labels": 3, "weights of queries": 2, "group keys": 8, "teacher scores": 7, "instruction": 1},
    "ms-swift": {"graded labels": 3, "weights of queries": 2, "group keys": 8, "teacher scores": 7, "ids": 13},
    "beir": {"weights of queries": 2, "teacher scores": 7, "instruction": 1},
    "trec": {"weights of queries": 2, "group keys": 8, "teacher scores": 7, "instruction": 1, "queries with line": 1},
    "pairs": {
        "graded labels": 3,
        "documents judged not relevant": 7,
        "teacher scores": 7,
        "weights of queries": 2,
        "group keys": 8,
        "instruction": 1,
        "queries without a relevant document": 1,
        "ids": 13,
    },
}


@pytest.mark.parametrize("to", LOST)
def test_what_is_lost_is_counted(tmp_path: Path, to: str) -> None:
    _, said = converted(tmp_path, source_of(tmp_path, "groups"), "groups", to)
    start = f"not held by {to}: "
    found = {
        line.removeprefix(start).split(" ", 1)[1]: line.removeprefix(start).split()[0]
        for line in said
        if line.startswith(start)
    }
    assert len(found) == len(LOST[to]), found
    for words, count in LOST[to].items():
        assert [int(n) for what, n in found.items() if what.startswith(words)] == [count], (words, found)
    assert ("groups holds all of it" in said) == (to == "groups")


def test_titles_empty_documents_and_equal_texts(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    (folder / "qrels").mkdir(parents=True)
    corpus = [("a", "T", "x"), ("b", "", "T\nx"), ("c", "", ""), ("d", "", "alone")]
    (folder / "corpus.jsonl").write_text(
        "".join(json.dumps({"_id": d, "title": title, "text": text}) + "\n" for d, title, text in corpus)
    )
    (folder / "queries.jsonl").write_text('{"_id": "1", "text": "one"}\n{"_id": "2", "text": "one"}\n')
    (folder / "qrels" / "test.tsv").write_text("1\ta\t2\n1\tb\t0\n1\tc\t0\n2\td\t1\n")
    target, said = converted(tmp_path, folder, "trec", "scored-pairs", ".csv")
    read = read_collection(target, name="set")
    judged = {read.corpus[d]: label for d, label in read.qrels[fixtures.hashed("one")].items()}
    assert judged == {"T\nx": 2.0, "alone": 1.0}
    lines = "\n".join(said)
    for words in (
        "1 titles apart from their texts",
        "1 judgements of documents with the text of another: the higher label is written",
        "1 queries with the text of another",
        "1 judgements of empty documents, which CSV cannot distinguish from missing ones",
    ):
        assert words in lines


def test_partial_scores_do_not_go_to_flagembedding(tmp_path: Path) -> None:
    row = {"query": "q", "positives": [{"text": "a", "score": 1.5}], "negatives": ["b"]}
    target, said = converted(tmp_path, write_rows(tmp_path / "s.jsonl", [row]), "groups", "flagembedding")
    assert "not held by flagembedding: 1 teacher scores of queries with documents that have none" in said
    assert "pos_scores" not in json.loads(target.read_text())


def test_what_cannot_be_written(tmp_path: Path) -> None:
    source = source_of(tmp_path, "groups")
    cases: list[tuple[dict[str, Any], Path, str]] = [
        ({"to": "pairs"}, source, "is there already"),
        ({"to": "pairs"}, tmp_path / "x.txt", "must end in .jsonl, .csv"),
        ({"to": "pairs"}, tmp_path / "x.parquet.gz", "leave .gz out"),
        ({"to": "beir"}, tmp_path / "x.jsonl", "format beir is a folder"),
        ({"to": "pair"}, tmp_path / "x.jsonl", "unknown format 'pair', did you mean 'pairs'"),
    ]
    for options, target, words in cases:
        with pytest.raises(UserError) as caught:
            convert(source, target, say=print, **options)
        assert words in str(caught.value)
    rows = [{"query_id": "a\tb", "query": "q", "positives": ["x"]}]
    bad = write_rows(tmp_path / "ids.jsonl", rows)
    with pytest.raises(UserError, match=r"id 'a\\tb': trec cannot hold"):
        convert(bad, tmp_path / "trec", to="trec", say=print)
    # What reads TREC files splits them at any white space.
    spaced = write_rows(tmp_path / "ids.jsonl", [{"query_id": "a b", "query": "q", "positives": ["x"]}])
    with pytest.raises(UserError, match=r"id 'a b': trec cannot hold white space"):
        convert(spaced, tmp_path / "trec", to="trec", say=print)
    with pytest.raises(UserError):
        convert(
            write_rows(tmp_path / "no.jsonl", [{"query": "q", "positives": 5}]),
            tmp_path / "n.csv",
            to="pairs",
            say=print,
        )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ids.jsonl", "no.jsonl", "source.jsonl"]


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    source = source_of(tmp_path, "groups")
    for end in (".jsonl.gz", ".parquet"):
        for name in ("a", "b"):
            convert(source, tmp_path / f"{name}{end}", to="groups", say=print)
        assert (tmp_path / f"a{end}").read_bytes() == (tmp_path / f"b{end}").read_bytes()


def test_the_command(tmp_path: Path) -> None:
    write_rows(tmp_path / "in.csv", [{"question": "one", "answer": "a, b"}])
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "train")}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "rankwright", "data", "convert", "in.csv", "out.jsonl", *words]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    done = run("--to", "flagembedding", "--columns", "query=question", "--columns", "positives=answer")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out.jsonl").read_text())["pos"] == ["a, b"]
    assert "out.jsonl: 1 row" in done.stdout
    again = run("--to", "flagembedding")
    assert again.returncode == 2 and "is there already" in again.stderr
    assert "must be OURS=THEIRS" in run("--to", "pairs", "--columns", "query").stderr
    assert "--columns query: given twice" in run("--columns", "query=a", "--columns", "query=b", "--to", "pairs").stderr

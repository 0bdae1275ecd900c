"""Every layout that can be read, and every mistake in it as file:line: what, how to fix it."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from rankwright.common.errors import UserError, UserErrors
from rankwright.data.formats.read import read_collection
from rankwright.data.formats.reading import Faults, choose_split

DATA = Path(os.environ.get("RANKWRIGHT_DATA", Path(__file__).parents[3] / "shared/data"))
CORPUS = [
    {"_id": "d1", "title": "Alpha", "text": "first"},
    {"_id": "d2", "title": None, "text": "second"},
    {"_id": 3, "text": " third "},
]
QUERIES = [{"_id": "q1", "text": "one"}, {"_id": "q2", "text": "two"}, {"_id": "q3", "text": "three"}]
QRELS = "query-id\tcorpus-id\tscore\nq1\td1\t1\nq1\td2\t0\nq2\t3\t2\n"


def write(path: Path, rows: Iterable[Any] | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = rows if isinstance(rows, str) else "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def beir(folder: Path, **changed: Iterable[Any] | str) -> Path:
    files: dict[str, Iterable[Any] | str] = {"corpus.jsonl": CORPUS, "queries.jsonl": QUERIES}
    files["qrels/test.tsv"] = QRELS
    for name, rows in files.items():
        write(folder / name, changed.get(name.split(".")[0].split("/")[0], rows))
    return folder


def messages(path: Path, split: str | None = "test") -> list[str]:
    with pytest.raises(UserError) as caught:
        read_collection(path, name="set", split=split)
    return [line.replace(str(path) + "/", "") for line in str(caught.value).splitlines()]


def test_layout_of_beir_keeps_the_queries_of_the_split_and_counts_the_rest(tmp_path: Path) -> None:
    said: list[str] = []
    read = read_collection(beir(tmp_path), name="set", split="test", say=said.append)
    assert read.corpus == {"d1": "Alpha\nfirst", "d2": "second", "3": "third"}
    assert read.queries == {"q1": "one", "q2": "two"}
    assert read.qrels == {"q1": {"d1": 1.0, "d2": 0.0}, "q2": {"3": 2.0}}
    assert read.name == "set"
    assert [line.split(": ", 1)[1] for line in said] == ["1 of 3 queries is judged in no split: left out"]
    write(tmp_path / "qrels" / "train.tsv", QRELS.replace("q1", "q3").replace("q2", "q3"))
    said.clear()
    assert len(read_collection(tmp_path, name="set", split="test", say=said.append).queries) == 2 and not said


@pytest.mark.parametrize("end", ["", ".gz"])
def test_flat_layout_keeps_all_queries_of_its_file(tmp_path: Path, end: str) -> None:
    write(tmp_path / f"corpus.jsonl{end}", CORPUS)
    write(tmp_path / f"queries_dev.jsonl{end}", QUERIES)
    write(tmp_path / f"qrels_dev.tsv{end}", QRELS)
    said: list[str] = []
    read = read_collection(tmp_path, name="set", split="dev", say=said.append)
    assert list(read.queries) == ["q1", "q2", "q3"]
    assert read.qrels == {"q1": {"d1": 1.0, "d2": 0.0}, "q2": {"3": 2.0}}
    assert [line.split(": ", 1)[1] for line in said] == ["1 of 3 queries without a judgement"]


@pytest.mark.parametrize(
    "qrels",
    [
        "q1\td1\t1\nq1\td2\t0\nq2\t3\t2\n",
        "q1 0 d1 1\nq1 0 d2 0\nq2 0 3 2\n",
        "q1\tQ0\td1\t1\r\nq1\tQ0\td2\t0\r\nq2\tQ0\t3\t2\r\n",
        "\ufeffscore\tcorpus-id\tquery-id\n1\td1\tq1\n\n0\td2\tq1\n2.0\t3\tq2",
    ],
)
def test_forms_of_judgements(tmp_path: Path, qrels: str) -> None:
    read = read_collection(beir(tmp_path, qrels=qrels), name="set", split="test")
    assert read.qrels == {"q1": {"d1": 1.0, "d2": 0.0}, "q2": {"3": 2.0}}


def test_the_only_split_needs_no_name_and_several_do(tmp_path: Path) -> None:
    assert read_collection(beir(tmp_path), name="set").qrels
    write(tmp_path / "qrels_train.tsv", QRELS)
    [message] = messages(tmp_path, None)
    assert "say which split to read: give split: NAME" in message and message.endswith("(known: test, train)")
    [message] = messages(tmp_path, "tain")
    assert "unknown split 'tain', did you mean 'train'? (known: test, train): give split: NAME, or add" in message


def test_several_faults_at_once_each_with_its_line(tmp_path: Path) -> None:
    corpus = json.dumps(CORPUS[0]) + '\n{"_id": "d2"\n[1]\n{"_id": "d3", "text": 5}\n{"_id": "d1", "text": "x"}\n'
    queries = [{"_id": "q1", "text": " "}, {"_id": None, "text": "x"}, {"_id": [], "text": "x"}]
    found = messages(beir(tmp_path, corpus=corpus, queries=queries, qrels="q1\td1\tyes\nq1\td1\t1\t2\t3\n"))
    assert [line.split(": ")[0] for line in found] == [
        *("corpus.jsonl:2", "corpus.jsonl:3", "corpus.jsonl:4", "corpus.jsonl:5"),
        *("queries.jsonl:1", "queries.jsonl:2", "queries.jsonl:3", "qrels/test.tsv:1"),
    ]
    assert "not JSON" in found[0] and "a JSON list" in found[1] and "`text` has type int, needs a text" in found[2]
    assert "id 'd1' appears a second time" in found[3]
    assert "query 'q1' is empty" in found[4] and "`_id` is null" in found[5] and "`_id` is []" in found[6]
    assert "no column `query-id`, `corpus-id`, `score`; columns found: q1, d1, yes" in found[7]


def test_half_a_character_is_a_fault(tmp_path: Path) -> None:
    # Written by json.dumps of a text that was cut inside an emoji.
    found = messages(beir(tmp_path, corpus='{"_id": "d1", "text": "cut \\ud83d"}\n{"_id": "d\\ud83d", "text": ""}\n'))
    assert found[0] == "corpus.jsonl:1: `text` holds half of a character (\\ud83d): remove it, or write both halves"
    assert found[1].startswith("corpus.jsonl:2: `_id` holds half of a character")


def test_labels_that_are_no_numbers(tmp_path: Path) -> None:
    qrels = "query-id\tcorpus-id\tscore\nq1\td1\tyes\nq1\td2\tnan\nq2\t3\n"
    found = messages(beir(tmp_path, qrels=qrels))
    assert found[0].startswith("qrels/test.tsv:2: score 'yes' is not a number")
    assert found[1].startswith("qrels/test.tsv:3: score 'nan' is not a number")
    assert found[2].startswith("qrels/test.tsv:4: 2 columns, needs 3: query-id, corpus-id, score")


def test_missing_columns_name_those_that_are_there_once(tmp_path: Path) -> None:
    found = messages(beir(tmp_path, corpus=[{"_id": str(i), "texts": "x", "url": ""} for i in range(50)]))
    assert found == [
        "corpus.jsonl:1: no column `text`, did you mean 'texts'?; columns found: _id, texts, url "
        "(50 lines like this: 1, 2, 3, 4, 5, ...)"
    ]


def test_a_header_with_other_names(tmp_path: Path) -> None:
    found = messages(beir(tmp_path, qrels="query_id\tcorpus-id\tlabel\nq1\td1\t1\n"))
    assert found == [
        "qrels/test.tsv:1: no column `query-id`, did you mean 'query_id'?, `score`; "
        "columns found: query_id, corpus-id, label"
    ]


def test_faults_of_one_kind_take_one_message_and_the_rest_is_counted(tmp_path: Path) -> None:
    found = messages(beir(tmp_path, corpus="{\n" * 45))
    assert len(found) == 1 and found[0].startswith("corpus.jsonl:1: not JSON")
    assert found[0].endswith("(45 lines like this: 1, 2, 3, 4, 5, ...)")
    # Three have a message each.
    found = messages(beir(tmp_path, corpus="{\n" * 3))
    assert [line.split(": ")[0] for line in found] == [f"corpus.jsonl:{n}" for n in (1, 2, 3)]
    # Kinds of their own.
    faults = Faults()
    for n in range(45):
        faults.add("a", n, f"{'x' * n} is wrong")
    with pytest.raises(UserErrors) as caught:
        faults.check()
    assert len(caught.value.messages) == 21 and caught.value.messages[-1] == "and 25 more faults"


def test_judgements_of_what_is_not_there_are_fatal(tmp_path: Path) -> None:
    rows = "".join(f"q1\tx{i}\t1\n" for i in range(7))
    found = messages(beir(tmp_path, qrels=QRELS + rows + "q9\td1\t1\n"))
    assert found == [
        "qrels/test.tsv:5: 7 judgements name a document that is not in the corpus: 'x0', 'x1', 'x2', 'x3', 'x4' "
        "and 2 more. Add the missing rows to the corpus, or remove the judgements",
        "qrels/test.tsv:12: 1 judgement names a query that is not in the queries: 'q9'. Add the missing rows to "
        "the queries, or remove the judgements",
    ]


def test_judgements_that_disagree_and_repeat(tmp_path: Path) -> None:
    found = messages(beir(tmp_path, qrels=QRELS + "q1\td1\t2\n"))
    assert found == [
        "qrels/test.tsv:5: query 'q1' and document 'd1' are judged 2 here and 1 before: keep one of the two"
    ]
    said: list[str] = []
    read_collection(beir(tmp_path, qrels=QRELS + "q1\td1\t1\n"), name="set", split="test", say=said.append)
    assert "1 repeated judgement read once" in said[0]


def test_no_relevant_document(tmp_path: Path) -> None:
    [message] = messages(beir(tmp_path, qrels="query-id\tcorpus-id\tscore\nq1\td1\t0\n"))
    assert message.startswith("qrels/test.tsv:1: no query has a relevant document")


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_empty_files(tmp_path: Path, text: str) -> None:
    found = messages(beir(tmp_path, corpus=text, queries=text, qrels=text))
    assert [line.split(": ")[0] for line in found] == ["corpus.jsonl:1", "queries.jsonl:1", "qrels/test.tsv:1"]
    assert all("the file is empty" in line for line in found)


def test_missing_files_and_near_names(tmp_path: Path) -> None:
    beir(tmp_path)
    (tmp_path / "corpus.jsonl").rename(tmp_path / "corpu.jsonl")
    (tmp_path / "queries.jsonl").unlink()
    found = messages(tmp_path)
    assert "no file corpus.jsonl(.gz); near names in the folder: corpu.jsonl" in found[0]
    assert "no file queries_test.jsonl(.gz) or queries.jsonl(.gz)" in found[1]


def test_a_file_twice(tmp_path: Path) -> None:
    write(beir(tmp_path) / "corpus.jsonl.gz", CORPUS)
    assert messages(tmp_path) == ["corpus.jsonl.gz:1: there is a corpus.jsonl too: remove one of the two"]


def test_not_utf8_and_damaged_gzip(tmp_path: Path) -> None:
    beir(tmp_path)
    (tmp_path / "corpus.jsonl").write_bytes(b'{"_id": "d1", "text": "\xc3\xa9"}\n{"_id": "d2", "text": "caf\xe9"}\n')
    (tmp_path / "queries.jsonl").unlink()
    (tmp_path / "queries.jsonl.gz").write_bytes(gzip.compress(b'{"_id": "q1", "text": "a"}\n' * 9)[:-9])
    found = messages(tmp_path)
    assert found[0].startswith(
        "corpus.jsonl:2: not UTF-8 at byte 26 of the line: save the file as UTF-8, or give `encoding:"
    )
    assert any(line.startswith("queries.jsonl.gz:") and "damaged gzip" in line for line in found)


def test_line_separators_inside_a_text_do_not_end_the_line(tmp_path: Path) -> None:
    corpus = [*CORPUS, {"_id": "d4", "text": "a\u2028b\x85c\r\nd"}]
    read = read_collection(beir(tmp_path, corpus=corpus), name="set", split="test")
    assert read.corpus["d4"] == "a\u2028b\x85c\r\nd"


def test_paths_that_are_not_there_or_not_a_format(tmp_path: Path) -> None:
    write(tmp_path / "groups.jsonl", "")
    with pytest.raises(UserError, match=r"no such file or folder, did you mean 'groups\.jsonl'"):
        read_collection(tmp_path / "group.jsonl", name="set")
    with pytest.raises(UserError, match=r"no such file or folder \("):
        read_collection(tmp_path / "no" / "way", name="set")
    (tmp_path / "notes.txt").write_text("a b\n")
    with pytest.raises(UserError, match=r"notes\.txt:1: no rows that can be read"):
        read_collection(tmp_path / "notes.txt", name="set")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"neither a BEIR layout.*found: nothing"):
        read_collection(tmp_path / "empty", name="set")


@pytest.mark.parametrize("folder", ["code/cosqa", "code/nl2bash", "finance/tatqa", "legal/obliqa"])
def test_shared_sets_have_the_counts_of_their_source(folder: str) -> None:
    if not (DATA / folder).is_dir():
        pytest.skip("the shared sets are not here")
    stats = json.loads((DATA / folder / "SOURCE.json").read_text())["stats"]
    for split, counts in stats["splits"].items():
        read = read_collection(DATA / folder, name="set", split=split)
        assert len(read.corpus) == stats["corpus"]
        assert len(read.queries) == counts["queries"]
        assert sum(map(len, read.qrels.values())) == counts["judgements"]
        assert sum(len(read.positives(q)) for q in read.queries) == counts["positives"]


def test_fixtures_are_read() -> None:
    root = Path(__file__).parents[2] / "data" / "fixtures"
    folders = sorted({p.parent for p in root.rglob("corpus.jsonl")})
    for folder in folders:
        assert read_collection(folder, name="set", split=folder.name).queries


def test_a_split_is_the_given_one_or_the_only_one() -> None:
    assert choose_split("set", None, ["test"]) == choose_split("set", "test", ["train", "test"]) == "test"
    with pytest.raises(UserError, match=r"^set: say which split to read: give split: NAME \(known: train, test\)$"):
        choose_split("set", None, ["train", "test"])
    with pytest.raises(UserError, match=r"^set: unknown split 'tset', did you mean 'test'\?"):
        choose_split("set", "tset", ["train", "test"])

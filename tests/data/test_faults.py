"""data.on_fault: what stops, what is dropped, that every row is kept or counted, and where a run says so."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import jobs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankwright.common.errors import UserError, UserErrors
from rankwright.common.run_folder import RunFolder
from rankwright.data.formats.read import read_collection
from rankwright.data.formats.reading import Faults, kind_of
from rankwright.data.sources import Located, read_all
from rankwright.pipeline.stages import Pipeline
from rankwright.recipe.loading import load_recipe
from rankwright.recipe.sources import Source

GOOD_CORPUS = ['{"_id": "d", "text": "good"}', '{"_id": "e", "text": "also good"}']
GOOD_QUERIES = ['{"_id": "q", "text": "good?"}']
GOOD_QRELS = ["q\td\t1"]


def beir(folder: Path, corpus: list[str], queries: list[str], qrels: list[str]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "corpus.jsonl").write_text("\n".join(corpus))
    (folder / "queries_train.jsonl").write_text("\n".join(queries))
    (folder / "qrels_train.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *qrels]))
    return folder


def test_a_row_with_several_faults_is_one_dropped_row() -> None:
    faults = Faults("drop")
    for line, text in [
        (3, "`_id` is null, needs a value"),
        (3, "`text` has type int, needs a text"),
        (7, "not JSON (x)"),
    ]:
        faults.add("a.jsonl", line, text)
    faults.add("b.jsonl", 3, "not JSON (y): each line must be one JSON object")
    faults.check()
    assert (faults.count, faults.noted, faults.rows_dropped) == (0, 4, 3)
    assert [(d.file, d.kind, d.count) for d in faults.dropped] == [
        ("a.jsonl", "`_id` is null", 1),
        ("a.jsonl", "not JSON", 1),
        ("b.jsonl", "not JSON", 1),
    ]
    assert faults.dropped[0].examples == ("a.jsonl:3: `_id` is null, needs a value",)


def test_faults_of_whole_files_stop_and_say_what_was_dropped() -> None:
    faults = Faults("drop")
    for line in range(9):
        faults.add("a.jsonl", line, f"id {line} appears a second time: give every row an id of its own")
    faults.add("a.jsonl", 1, "holds no documents", whole=True)
    with pytest.raises(UserErrors) as caught:
        faults.check()
    assert caught.value.messages[0] == "a.jsonl:1: holds no documents"
    assert "(9 rows like this were dropped)" in caught.value.messages[1]
    assert len(faults.dropped[0].examples) == 5


def test_kinds_have_no_values_of_rows() -> None:
    for text, kind in [
        ("id 'd1' appears a second time: give every row an id of its own", "id ... appears a second time"),
        ("`_id` is [], needs a text or a whole number", "`_id` is []"),
        ("2 columns, needs 3: query-id, corpus-id", "... columns"),
        ('query "it\'s" is empty: give it a text', "query ... is empty"),
        ("no column `text`, did you mean 'texts'?; columns found: a, b", "no column `text`"),
        ("positives[12] has label 0: move it to negatives", "positives[...] has label ..."),
    ]:
        assert kind_of(text) == kind


def test_many_kinds_in_one_file_stay_few() -> None:
    faults = Faults("drop")
    for line in range(200):
        faults.add("a", line, "fault " + "x" * line)
    assert len(faults.dropped) == 51 and faults.rows_dropped == 200
    assert sum(d.count for d in faults.dropped) == 200


DAMAGE = st.sampled_from(
    [
        "{",
        "[1]",
        "7",
        '{"_id": "d", "text": "again"}',
        '{"_id": "q", "text": "again"}',
        '{"_id": null, "text": "x"}',
        '{"_id": "n", "text": 5}',
        '{"_id": "t", "text": "x", "title": 5}',
        '{"_id": "s", "text": "\\ud83d"}',
        '{"text": "no id"}',
        "   ",
    ]
)
JUDGEMENTS = st.tuples(
    st.sampled_from(["q", "q0", "q1", "nobody"]),
    st.sampled_from(["d", "e", "d0", "d1", "nothing"]),
    st.sampled_from(["1", "0", "2", "nan", "high", "1\t1", ""]),
).map("\t".join)


def rows_of(prefix: str) -> st.SearchStrategy[list[str]]:
    good = st.integers(0, 3).map(lambda i: json.dumps({"_id": f"{prefix}{i}", "text": f"text {i}"}))
    return st.lists(st.one_of(good, DAMAGE), max_size=8)


@settings(max_examples=120, deadline=None)
@given(rows_of("d"), rows_of("q"), st.lists(JUDGEMENTS, max_size=10))
def test_beir_rows_in_are_rows_kept_and_rows_dropped(corpus: list[str], queries: list[str], qrels: list[str]) -> None:
    files = ([*GOOD_CORPUS, *corpus], [*GOOD_QUERIES, *queries], [*GOOD_QRELS, *qrels])
    rows_in = sum(bool(row.strip()) for rows in files for row in rows)
    said: list[str] = []
    faults = Faults("drop")
    with tempfile.TemporaryDirectory() as root:
        folder = beir(Path(root) / "set", *files)
        read = read_collection(folder, name="set", split="train", say=said.append, faults=faults)
        repeats = sum(int(line.split(": ")[1].split()[0]) for line in said if "repeated judgement" in line)
        kept = len(read.corpus) + len(read.queries) + sum(map(len, read.qrels.values())) + repeats
        assert rows_in == kept + faults.rows_dropped
        assert faults.rows_dropped == sum(d.count for d in faults.dropped)
        assert all(d in read.corpus for row in read.qrels.values() for d in row)
        assert set(read.qrels) <= set(read.queries)
        # Stopping and dropping agree on whether there is a fault, and on the content where there is none.
        if faults.rows_dropped:
            with pytest.raises(UserError):
                read_collection(folder, name="set", split="train", say=said.append)
        else:
            assert read_collection(folder, name="set", split="train", say=said.append) == read


@st.composite
def group_rows(draw: st.DrawFn) -> list[str]:
    rows = []
    for i in range(draw(st.integers(0, 8))):
        elements: list[Any] = [f"d{i}-{j}" for j in range(draw(st.integers(1, 3)))]
        row: dict[str, Any] = {"query": f"q{i}", "positives": elements, "negatives": [{"text": f"n{i}", "score": 1}]}
        damage = draw(st.integers(0, 9))
        if damage == 0:
            elements.append(5)
        elif damage == 1:
            row["negatives"].append(f"d{i}-0")
        elif damage == 2:
            row["weight"] = -1
        elif damage == 3:
            row["query"] = " "
        elif damage == 4:
            row["negatives"] = "text"
        rows.append("{" if damage == 5 else json.dumps(row))
    return rows


@settings(max_examples=80, deadline=None)
@given(group_rows())
def test_lines_of_groups_are_kept_whole_or_dropped_whole(rows: list[str]) -> None:
    rows = [json.dumps({"query": "good", "positives": ["good document"]}), *rows]
    faults = Faults("drop")
    with tempfile.TemporaryDirectory() as root:
        path = Path(root) / "groups.jsonl"
        path.write_text("\n".join(rows))
        read = read_collection(path, name="set", say=lambda line: None, faults=faults)
    assert len(rows) == len(read.queries) + faults.rows_dropped
    kept = {text.removeprefix("q") for text in read.queries.values()}
    # Of a dropped line no document stays, of a kept one each does.
    judged = {d for row in read.qrels.values() for d in row}
    assert judged == set(read.corpus)
    for text in read.corpus.values():
        assert text == "good document" or text.lstrip("dn").split("-")[0] in kept
    for number, row in enumerate(rows[1:]):
        if str(number) in kept:
            assert set(json.loads(row)["positives"]) <= set(read.corpus.values())
    assert set(read.teacher_scores) <= set(read.queries)


def located(path: Path) -> Located:
    return Located(Source(path=str(path)), "set", "train", path, None, None, None)


def test_what_is_dropped_is_said_and_recorded_by_file_and_kind(tmp_path: Path) -> None:
    beir(tmp_path, [*GOOD_CORPUS, "{", "{"], GOOD_QUERIES, [*GOOD_QRELS, "q\tx\t1"])
    said: list[str] = []
    dropped: list[dict[str, Any]] = []
    [read] = read_all([located(tmp_path)], said.append, on_fault="drop", dropped=dropped)
    assert read.qrels == {"q": {"d": 1.0}}
    assert [(row["set"], row["split"], Path(row["file"]).name, row["kind"], row["count"]) for row in dropped] == [
        ("set", "train", "corpus.jsonl", "not JSON", 2),
        ("set", "train", "qrels_train.tsv", "the judgement names a document that is not in the corpus", 1),
    ]
    assert dropped[0]["examples"][0].startswith(f"{tmp_path}/corpus.jsonl:3: not JSON")
    assert f"{tmp_path}/corpus.jsonl: 2 rows dropped, not JSON; first: {tmp_path}/corpus.jsonl:3" in said[0]
    assert said[-1].endswith("1 query, 1 judgement, 3 rows with faults dropped")
    with pytest.raises(UserErrors, match=r"corpus\.jsonl:3"):
        read_all([located(tmp_path)], said.append)


@pytest.mark.parametrize(
    ("corpus", "queries", "qrels", "words"),
    [
        (GOOD_CORPUS, ["{"], GOOD_QRELS, "holds no queries"),
        (["{"], GOOD_QUERIES, GOOD_QRELS, "holds no documents"),
        (GOOD_CORPUS, GOOD_QUERIES, ["q\td\thigh"], "no query has a relevant document"),
        ([], GOOD_QUERIES, GOOD_QRELS, "the file is empty"),
    ],
)
def test_dropping_all_stops(
    tmp_path: Path, corpus: list[str], queries: list[str], qrels: list[str], words: str
) -> None:
    beir(tmp_path, corpus, queries, qrels)
    with pytest.raises(UserErrors) as caught:
        read_all([located(tmp_path)], lambda line: None, on_fault="drop")
    assert words in str(caught.value)


def test_a_missing_file_stops(tmp_path: Path) -> None:
    beir(tmp_path, GOOD_CORPUS, GOOD_QUERIES, GOOD_QRELS)
    (tmp_path / "corpus.jsonl").unlink()
    with pytest.raises(UserErrors, match="no file corpus"):
        read_all([located(tmp_path)], lambda line: None, on_fault="drop")


def mine(recipe: Path, *overrides: str) -> RunFolder:
    pipeline = Pipeline(load_recipe(str(recipe), overrides))
    pipeline.start()
    pipeline.mine()
    return pipeline.folder


def test_a_run_drops_counts_and_goes_back_to_stopping(
    tmp_path: Path, tiny_qwen3: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = jobs.job(tmp_path, tiny_qwen3)
    corpus = tmp_path / "sets" / "one" / "corpus.jsonl"
    corpus.write_text(corpus.read_text() + "{\n")
    with pytest.raises(UserError, match=r"corpus\.jsonl:31: not JSON"):
        mine(recipe)
    run = mine(recipe, "data.on_fault=drop")
    assert "1 row dropped, not JSON" in capsys.readouterr().out
    report = json.loads((run.path / "data_report.json").read_text())
    [row] = report["dropped"]
    assert (row["set"], row["split"], row["kind"], row["count"]) == ("one", "train", "not JSON", 1)
    train = report["splits"]["train"][0]
    assert train["documents"] == 30 and train["tokens"]["queries"]["max"] >= train["tokens"]["queries"]["p50"] > 0
    with pytest.raises(UserError, match=r"corpus\.jsonl:31: not JSON"):
        mine(recipe)
    corpus.write_text(corpus.read_text().removesuffix("{\n"))
    mine(recipe)
    capsys.readouterr()
    # The data stage is done again, and what comes after it is not: the same files give the same rows.
    mine(recipe, "data.on_fault=drop")
    assert capsys.readouterr().out.count("unchanged, skipped") == 1


def test_another_prompt_reads_no_set_again_and_counts_tokens_anew(
    tmp_path: Path, tiny_qwen3: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = jobs.job(tmp_path, tiny_qwen3)
    mine(recipe)
    capsys.readouterr()
    run = mine(recipe, "prompt.max_tokens=96", "prompt.query_tokens=8")
    out = capsys.readouterr().out
    assert out.count("unchanged, skipped") == 2 and "cut to 8" in out
    tokens = json.loads((run.path / "data_report.json").read_text())["splits"]["train"][0]["tokens"]
    assert tokens["queries"]["budget"] == 8 and tokens["judged_pairs"]["budget"] == 96

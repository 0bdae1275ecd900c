"""The files under runs/NAME/data give back what was written, and say what is missing."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankwright.common.errors import UserError
from rankwright.data.collection import Collection
from rankwright.data.split_files import qualified, read_split, write_split
from rankwright.data.store import rows as row_file
from rankwright.data.store import texts as text_store
from rankwright.data.store.texts import TextStore

CORPUS = {"d1": "One\nwith a title", "d2": "zwei → ü\u2028next", "d3": ""}
ONE = Collection(
    "one",
    CORPUS,
    {"q1": "what?", "q2": "who?", "nobody": "unjudged"},
    {"q1": {"d1": 2.0, "d2": 0.0}, "q2": {"d3": 0.5}, "nobody": {}},
    {"q1": {"d1": 1 / 3, "d2": -7.25}},
    {"q2": 0.1},
)

IDS = st.text(min_size=1, max_size=4)


def judgements(queries: list[str], documents: list[str]) -> st.SearchStrategy[dict[str, dict[str, float]]]:
    row = st.dictionaries(st.sampled_from(documents), st.floats(-3, 3)) if documents else st.just({})
    return st.fixed_dictionaries(dict.fromkeys(queries, row))


@st.composite
def collections(draw: st.DrawFn, name: str) -> Collection:
    corpus = draw(st.dictionaries(IDS, st.text(max_size=6), max_size=4))
    queries = draw(st.dictionaries(IDS, st.text(max_size=6), max_size=4))
    qrels = draw(judgements(list(queries), list(corpus)))
    some = draw(st.lists(st.sampled_from(list(queries)), unique=True)) if queries else []
    teacher_scores = draw(judgements(some, list(corpus)))
    weight = st.floats(0, exclude_min=True, allow_infinity=False).filter(lambda w: w != 1)
    return Collection(name, corpus, queries, qrels, teacher_scores, {q: draw(weight) for q in some})


@settings(deadline=None, max_examples=40)
@given(collections("one"), collections("two"), st.booleans())
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, one: Collection, two: Collection, large: bool) -> None:
    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        if large:
            leave_in_files(patch)
        write_split(folder, "train", [two, one])
        read = read_split(folder, "train")
    assert read == [two, one]
    assert [list(c.queries) for c in read] == [list(two.queries), list(one.queries)]
    assert [type(c.corpus) is TextStore for c in read] == [large, large]
    assert [type(c.queries) is dict for c in read] == [not large, not large]
    for was, now in zip([two, one], map(qualified, read), strict=True):
        assert now == plainly_qualified(was)
        assert list(now.qrels.items()) == [(q, plainly_qualified(was).qrels[q]) for q in now.queries]
        assert list(now.qrels.values()) == [row for _, row in now.qrels.items()]
        for query_id in (f"{was.name}/{q}" for q in was.queries):
            assert now.positives(query_id) == plainly_qualified(was).positives(query_id)
            assert now.weight(query_id) == plainly_qualified(was).weight(query_id)
    copy = pickle.loads(pickle.dumps(read))
    assert copy == read


def leave_in_files(patch: pytest.MonkeyPatch) -> None:
    for module in (text_store, row_file):
        patch.setattr(module, "IN_MEMORY_BYTES", -1)


def plainly_qualified(collection: Collection) -> Collection:
    prefix = f"{collection.name}/"

    def renamed(values: Any) -> Any:
        return {prefix + k: renamed(v) if isinstance(v, dict) else v for k, v in values.items()}

    return Collection(
        collection.name,
        *(renamed(getattr(collection, f)) for f in ("corpus", "queries", "qrels", "teacher_scores", "weights")),
    )


def test_the_rows_are_as_documented(tmp_path: Path) -> None:
    write_split(tmp_path, "dev", [ONE])
    rows = [json.loads(line) for line in (tmp_path / "dev.jsonl").read_text("utf-8").split("\n")[:-1]]
    corpus = rows[0]["corpus"]
    assert rows[0] == {
        "set": "one",
        "corpus": corpus,
        "query_id": "q1",
        "query": "what?",
        "judgements": {"d1": 2.0, "d2": 0.0},
        "teacher_scores": {"d1": 1 / 3, "d2": -7.25},
    }
    assert rows[1]["weight"] == 0.1
    assert rows[2] == {
        "set": "one",
        "corpus": corpus,
        "query_id": "nobody",
        "query": "unjudged",
        "judgements": {},
    }
    # As anybody reads them who has the library of the field and not ours.
    texts = datasets.Dataset.from_file(str(tmp_path / "corpora" / f"{corpus}.arrow"))
    assert list(texts) == [{"_id": d, "text": text} for d, text in CORPUS.items()]


def test_a_query_nobody_judged_has_an_empty_row(tmp_path: Path) -> None:
    bare = Collection("bare", CORPUS, {"q": "what?"}, {"of another split": {"d1": 1.0}})
    write_split(tmp_path, "test", [bare])
    assert read_split(tmp_path, "test") == [Collection("bare", CORPUS, {"q": "what?"}, {"q": {}})]


def test_sets_without_queries_stay_in_their_place(tmp_path: Path) -> None:
    empty = [Collection(name, CORPUS, {}, {}) for name in ("a", "z")]
    write_split(tmp_path, "dev", [empty[0], ONE, empty[1]])
    assert read_split(tmp_path, "dev") == [empty[0], ONE, empty[1]]
    write_split(tmp_path, "dev", [])
    assert read_split(tmp_path, "dev") == []


def test_a_shared_corpus_is_stored_and_read_once(tmp_path: Path) -> None:
    # The order of the documents is not part of a corpus.
    other = Collection("other", dict(reversed(CORPUS.items())), {"q": "?"}, {"q": {"d1": 1.0}})
    write_split(tmp_path, "train", [ONE, other])
    write_split(tmp_path, "test", [other])
    assert len(list((tmp_path / "corpora").glob("*.arrow"))) == 1
    first, second = read_split(tmp_path, "train")
    assert (first, second) == (ONE, other)
    assert first.corpus is second.corpus


def test_another_corpus_is_another_file(tmp_path: Path) -> None:
    changed = Collection("changed", {**CORPUS, "d1": "changed"}, {"q": "?"}, {"q": {"d1": 1.0}})
    write_split(tmp_path, "train", [ONE, changed])
    assert read_split(tmp_path, "train") == [ONE, changed]
    assert len(list((tmp_path / "corpora").glob("*.arrow"))) == 2


def test_two_sets_of_one_name_are_our_mistake(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="two sets of one name"):
        write_split(tmp_path, "train", [ONE, ONE])


def test_lone_surrogates_of_a_query_come_back(tmp_path: Path) -> None:
    # JSON can spell them, so a caller can have them.
    odd = Collection("odd", {"d": "whole \U0001f600"}, {"q": "\udc00"}, {"q": {"d": 1.0}})
    write_split(tmp_path, "train", [odd])
    assert read_split(tmp_path, "train") == [odd]


def test_lone_surrogates_of_a_document_are_refused(tmp_path: Path) -> None:
    # Readers refuse them with their line.
    odd = Collection("odd", {"d": "half \ud83d"}, {"q": "?"}, {"q": {"d": 1.0}})
    with pytest.raises(UserError, match=r"set 'odd': document 'd' holds half of a character \(\\ud83d\)"):
        write_split(tmp_path, "train", [odd])
    assert not list(tmp_path.rglob("*.arrow"))


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.jsonl: no such file: run the data stage first"):
        read_split(tmp_path, "train")
    write_split(tmp_path, "train", [ONE])
    next((tmp_path / "corpora").iterdir()).unlink()
    with pytest.raises(UserError, match=r"corpora.*no such file: run the data stage first"):
        read_split(tmp_path, "train")


@pytest.mark.parametrize("line", ['{"set": "one", "cor', '{"set": "one"}', "[]"])
def test_a_damaged_file_is_named_with_its_line(tmp_path: Path, line: str) -> None:
    write_split(tmp_path, "train", [ONE])
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write(line)
    with pytest.raises(UserError, match=r"train\.jsonl:4: not a row of train"):
        read_split(tmp_path, "train")


def test_qualified_ids() -> None:
    own = qualified(ONE)
    assert own == Collection(
        "one",
        {f"one/{d}": text for d, text in CORPUS.items()},
        {"one/q1": "what?", "one/q2": "who?", "one/nobody": "unjudged"},
        {"one/q1": {"one/d1": 2.0, "one/d2": 0.0}, "one/q2": {"one/d3": 0.5}, "one/nobody": {}},
        {"one/q1": {"one/d1": 1 / 3, "one/d2": -7.25}},
        {"one/q2": 0.1},
    )
    assert ONE.positives("q1") == {"d1": 2.0}
    assert own.positives("one/q1") == {"one/d1": 2.0}

"""Leaks planted in train, dev and test are found, dropped from the right side, and gone; real ones are as known."""

from __future__ import annotations

import json
import os
import random
from dataclasses import replace
from pathlib import Path

import jobs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankwright.common import console
from rankwright.common.errors import UserErrors
from rankwright.common.resources import recipe_files
from rankwright.common.run_folder import RunFolder
from rankwright.data import leakage
from rankwright.data.collection import Collection
from rankwright.data.formats.read import read_collection
from rankwright.data.leakage import LEAST_WORDS, QueriesInTexts, drop_leaks, find_leaks, keep_apart, take_out
from rankwright.data.shingles import words
from rankwright.data.sources import locate_all
from rankwright.data.splits import overlap
from rankwright.pipeline.data import prepare_data
from rankwright.pipeline.inputs import StageInputs
from rankwright.recipe.loading import load_recipe
from rankwright.recipe.schema import Recipe

DATA = Path(os.environ.get("RANKWRIGHT_DATA", Path(__file__).parents[3] / "shared/data"))
FIXTURES = Path(__file__).parents[2] / "data/fixtures"
LONG = (
    "Which obligations does an authorised person have when a client of its branch abroad asks for a written report "
    "of all fees"
)


def one_set(name: str, queries: dict[str, str], prefix: str = "d", **fields: object) -> Collection:
    """A document of its own for every query."""
    return Collection(
        name,
        {f"{prefix}{q}": f"{prefix} text of {q}" for q in queries},
        queries,
        {q: {f"{prefix}{q}": 1.0} for q in queries},
        **fields,  # type: ignore[arg-type]
    )


def kinds(ours: list[Collection], theirs: list[Collection]) -> dict[str, dict[str, str]]:
    return {leak.kind: dict(leak.ours) for leak in find_leaks(ours, theirs)}


def test_planted_leaks_are_found() -> None:
    queries = {
        "case": "what is a BOND?",
        "space": " What  is a\tloan? ",
        "end": "What is a lease",
        "swapped": LONG.replace("obligations", "duties"),
        "fine": "What is a share in 2018?",
    }
    held = {
        "1": "What is a bond?",
        "2": "What is a loan?",
        "3": "What is a lease?",
        "4": LONG,
        "5": "What is a share in 2019?",
    }
    train, test = one_set("train", queries, "a"), one_set("test", held, "b")
    found = kinds([train], [test])
    assert found == {
        "same query": {"train/case": "test/1", "train/space": "test/2"},
        "near-duplicate query": {"train/end": "test/3", "train/swapped": "test/4"},
    }
    assert {leak.kind: leak.theirs for leak in find_leaks([train], [test])} == {
        "same query": {"test/1", "test/2"},
        "near-duplicate query": {"test/3", "test/4"},
    }


def test_the_same_pair_under_other_ids() -> None:
    train = Collection(
        "train", {"x": "Alpha  Beta", "y": "Other"}, {"1": "Q one", "2": "q two"}, {"1": {"x": 1}, "2": {"y": 1}}
    )
    test = Collection(
        "test", {"v": "alpha beta", "w": "other"}, {"p": "q ONE", "q": "q two"}, {"p": {"v": 2}, "q": {"w": 0}}
    )
    found = kinds([train], [test])
    assert found["same pair"] == {"train/1": "test/p"}
    assert found["same query"] == {"train/1": "test/p", "train/2": "test/q"}


def test_a_shared_passage_is_reported_only() -> None:
    corpus = {"d": "One passage"}
    train = Collection("train", corpus, {"1": "what is it?"}, {"1": {"d": 1}})
    test = Collection("test", corpus, {"2": "where is it?"}, {"2": {"d": 1}})
    assert find_leaks([train], [test]) == []
    assert overlap(train, test).queries_with_seen_positive == 1


def test_group_keys_of_queries_and_of_relevant_documents() -> None:
    train = one_set(
        "train", {"1": "one", "2": "two", "3": "three"}, query_groups={"1": "A"}, document_groups={"d1": "Z", "d2": "B"}
    )
    test = one_set(
        "test",
        {"4": "four", "5": "five", "6": "six"},
        "t",
        query_groups={"4": "A", "5": "Z"},
        document_groups={"t6": "B"},
    )
    assert kinds([train], [test]) == {"same group": {"train/1": "test/4", "train/2": "test/6"}}
    (leak,) = find_leaks([train], [test])
    assert leak.theirs == {"test/4", "test/6"}
    assert leak.example("train/2") == "train/2 = test/6 (group 'B')"


TEXTS = st.sampled_from(
    [
        "q one",
        "Q  ONE",
        "q one?",
        "the q one",
        "q two",
        LONG,
        LONG.replace("fees", "costs"),
        LONG + " 2018",
        "q 3",
        "q 4",
    ]
)
SIDES = st.lists(st.tuples(TEXTS, st.sampled_from("ABCDE")), min_size=1, max_size=6)


def side(name: str, rows: list[tuple[str, str]]) -> list[Collection]:
    """Two sets of the rows in turn, with their groups on every second query."""
    sets = []
    for number in (0, 1):
        own = {f"{n}": text for n, (text, _) in enumerate(rows) if n % 2 == number}
        groups = {f"{n}": f"{name if group == 'E' else ''}{group}" for n, (_, group) in enumerate(rows) if n % 3 == 0}
        sets.append(one_set(f"{name}{number}", own, query_groups={q: g for q, g in groups.items() if q in own}))
    return sets


def queries_of(sets: list[Collection]) -> set[tuple[str, str]]:
    return {(c.name, q) for c in sets for q in c.queries}


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES, SIDES, st.randoms(use_true_random=False))
def test_dropping_leaves_no_leak_and_only_removes(
    a: list[tuple[str, str]], b: list[tuple[str, str]], c: list[tuple[str, str]], random_: random.Random
) -> None:
    train, dev, test = side("train", a), side("dev", b), side("test", c)
    try:
        kept, kept_dev, rows = keep_apart(train, dev, test, on_leak="drop", say=lambda line: None)
    except UserErrors:
        return
    for ours, theirs in ((kept, kept_dev), (kept, test), (kept_dev, test)):
        assert find_leaks(ours, theirs) == []
    assert queries_of(kept) <= queries_of(train) and queries_of(kept_dev) <= queries_of(dev)
    gone = sum(row["leaking"] for row in rows)
    assert gone == len(queries_of(train) - queries_of(kept)) + len(queries_of(dev) - queries_of(kept_dev))
    # Once more: nothing is left to do. In stop mode: an error where something was dropped.
    assert keep_apart(kept, kept_dev, test, on_leak="stop", say=lambda line: None)[2] == []
    if gone:
        with pytest.raises(UserErrors, match="on_leak: drop"):
            keep_apart(train, dev, test, on_leak="stop", say=lambda line: None)
    # In another order the same.
    shuffled = [replace(s, queries=dict(random_.sample(list(s.queries.items()), len(s.queries)))) for s in train[::-1]]
    again = keep_apart(shuffled, dev[::-1], test[::-1], on_leak="drop", say=lambda line: None)
    assert queries_of(again[0]) == queries_of(kept) and again[2] == rows


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES)
def test_leaks_are_symmetric(a: list[tuple[str, str]], b: list[tuple[str, str]]) -> None:
    ours, theirs = side("train", a), side("test", b)
    there = {leak.kind: (set(leak.ours), set(leak.theirs)) for leak in find_leaks(ours, theirs)}
    back = {leak.kind: (set(leak.theirs), set(leak.ours)) for leak in find_leaks(theirs, ours)}
    assert there == back


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(TEXTS, st.sampled_from("ABCDE")), min_size=4, max_size=14), st.integers(0, 3))
def test_dev_out_of_train_leaks_nothing(rows: list[tuple[str, str]], seed: int) -> None:
    train = side("train", rows)
    try:
        kept, dev = take_out("dev", train, fraction=0.3, seed=seed, say=lambda line: None)
    except ValueError:
        return
    assert find_leaks(kept, dev) == []
    assert queries_of(kept) | queries_of(dev) == queries_of(train)


WORDS = st.lists(st.sampled_from("a bond of the court 2023 東京 Straße".split()), min_size=1, max_size=14)


@given(WORDS, st.lists(WORDS, min_size=1, max_size=5))
def test_a_query_inside_a_text_is_found_word_by_word(text: list[str], queries: list[list[str]]) -> None:
    joined = [" ".join(query) for query in queries]
    found = QueriesInTexts(joined)
    own = [words(query) for query in joined]
    there = words(" ".join(text))

    def inside(query: list[str]) -> bool:
        return any(there[start : start + len(query)] == query for start in range(len(there)))

    assert found.within(" ".join(text)) == {" ".join(q) for q in own if len(q) >= LEAST_WORDS and inside(q)}
    assert found.too_short == len({tuple(q) for q in own if len(q) < LEAST_WORDS})


def test_case_punctuation_and_lines_do_not_hide_a_query() -> None:
    found = QueriesInTexts(["What is the FEE of a \u201cbranch\u201d abroad?"])
    assert found.within('They asked: what is\nthe fee, of a "Branch" abroad')
    assert not found.within("What is the fee of a branch at home?")
    assert not found.within("What is the fee of another branch abroad?")


@given(st.lists(WORDS, min_size=1, max_size=6), st.lists(WORDS, min_size=1, max_size=3))
def test_what_is_left_of_a_text_holds_no_query_and_nothing_is_added(
    paragraphs: list[list[str]], queries: list[list[str]]
) -> None:
    removal = QueriesInTexts(" ".join(q) for q in queries).removal()
    pieces = [" ".join(p) for p in paragraphs]
    text = "\n\n".join(pieces)
    rest = removal.of(text)
    assert not QueriesInTexts(" ".join(q) for q in queries).within(rest)
    kept = rest.split("\n\n") if rest else []
    assert removal.paragraphs == len(pieces) - len(kept)
    left = iter(pieces)
    assert all(piece in left for piece in kept)
    assert (rest == text) == (not removal.queries) == (not removal.told())


def test_what_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    train = [one_set("mine", {"1": "same", "2": "other", "3": "What is it?"})]
    test = [one_set("held", {"8": "SAME", "9": "what is it"}, "t")]
    with pytest.raises(UserErrors) as error:
        keep_apart(train, [], test, on_leak="stop", say=console.say)
    assert error.value.messages == [
        "data.train: 2 of 3 queries are in test too: same query 1 (mine/1 = held/8), near-duplicate query 1 "
        "(mine/3 = held/9); they meet 2 of 2 test queries: set data.on_leak: drop to leave them out of train, or give "
        "other splits"
    ]
    keep_apart(train, [], test, on_leak="drop", say=console.say)
    assert "leakage: 2 of 3 train queries dropped: same query 1 (mine/1 = held/8)" in capsys.readouterr().out
    with pytest.raises(UserErrors, match="set 'mine': its only query is in test too"):
        keep_apart([one_set("mine", {"1": "same"})], [], test, on_leak="drop", say=console.say)


def recipe_of(folder: Path) -> Recipe:
    return load_recipe(str(jobs.job(folder, "not-needed"))).recipe


def test_the_data_stage_stops_or_drops_and_reports(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    queries = tmp_path / "sets/one/queries.jsonl"
    held = json.loads((tmp_path / "sets/held-out/queries.jsonl").read_text().splitlines()[0])["text"]
    rows = [json.loads(line) for line in queries.read_text().splitlines()]
    rows[3]["text"] = held.upper()
    queries.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = RunFolder(tmp_path / "run")
    run.create()
    with pytest.raises(UserErrors, match=r"same query 1 \(one/q3 = held-out/q40\)"):
        prepare_data(recipe, run)
    assert not (tmp_path / "run/data_report.json").exists()
    drop = recipe.model_copy(update={"data": recipe.data.model_copy(update={"on_leak": "drop"})})
    counts = prepare_data(drop, run)
    assert counts["train"] + counts["dev"] == 29 and counts["test"] == 12
    (row,) = json.loads((tmp_path / "run/data_report.json").read_text())["leakage"]
    assert (row["split"], row["held_out"], row["leaking"], row["held_out_leaking"]) == ("train", "test", 1, 1)
    assert row["kinds"]["same query"]["examples"] == ["one/q3 = held-out/q40"]
    assert 'q3"' not in (tmp_path / "run/data/train.jsonl").read_text() + (tmp_path / "run/data/dev.jsonl").read_text()
    # The stages depend on the choice; what is dropped from train depends on the test sets.
    located = locate_all(recipe.data)
    assert StageInputs(recipe, located).data != StageInputs(drop, located).data
    without = {**located, "test": []}
    assert StageInputs(recipe, located).mine == StageInputs(recipe, without).mine
    assert StageInputs(drop, located).mine != StageInputs(drop, without).mine


@pytest.mark.parametrize("name", ["finance", "legal", "code"])
def test_the_fixtures_leak_nothing(name: str) -> None:
    train, test = (
        read_collection(FIXTURES / name / split, name=name, split=split, say=lambda line: None)
        for split in ("train", "test")
    )
    assert find_leaks([train], [test]) == []


def test_quickstart_and_its_ablations_pass() -> None:
    recipes = Path(__file__).parents[2] / "recipes"
    ablations = [path for name, path in recipe_files().items() if name.startswith("ablations/")]
    for path in [recipes / "quickstart.yaml", *ablations]:
        recipe = load_recipe(str(path)).recipe
        assert {s.path for s in recipe.data.test} == {f"fixtures/{n}/test" for n in ("finance", "legal", "code")}, path
        assert recipe.data.on_leak == "stop"


@pytest.mark.parametrize("name", sorted(p.stem for p in (Path(__file__).parents[2] / "recipes/offline").glob("*.yaml")))
def test_offline_recipes_say_that_they_drop(name: str) -> None:
    assert load_recipe(f"offline/{name}", ["data.root=anywhere"]).recipe.data.on_leak == "drop"


# The leaks that the notes of the sets state (same queries), and what is found beside them: the only difference of the
# near pairs are articles, punctuation or one word of a long query.
@pytest.mark.parametrize(
    ("folder", "same", "near", "seen", "unseen"),
    [
        ("code/cosqa", 0, 1, 99, 401),
        ("code/nl2bash", 1, 8, None, None),
        ("finance/tatqa", 21, 1, None, None),
        ("legal/obliqa", 0, 1, 1860, 926),
    ],
)
def test_known_leaks(folder: str, same: int, near: int, seen: int | None, unseen: int | None) -> None:
    if not (DATA / folder).is_dir():
        pytest.skip("the shared sets are not here")
    train, test = (
        read_collection(DATA / folder, name="set", split=split, say=lambda line: None) for split in ("train", "test")
    )
    found = {leak.kind: leak for leak in find_leaks([train], [test])}
    none = leakage.Leak("", {}, frozenset())
    assert len(found.get("same query", none).theirs) == same
    assert len(found.get("near-duplicate query", none).theirs) == near
    if seen is not None:
        report = overlap(train, test)
        assert report.queries_with_seen_positive == seen
        assert len(test.queries) - report.queries_with_seen_positive == unseen
    if folder == "finance/tatqa":
        assert find_leaks(drop_leaks([train], found.values()), [test]) == []

"""Exact and near duplicates: against brute force on plain sets of shingles, and by hand for code and queries."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankwright.data.collection import join_title
from rankwright.data.duplicates import NEAR, QUERY, TEXT, find_duplicates, find_shared
from rankwright.data.normalisation import normalised
from rankwright.data.shingles import code_tokens, query_words, same_question, words

DATA = Path(os.environ.get("RANKWRIGHT_DATA", Path(__file__).parents[3] / "shared/data"))


@cache
def plain_shingles(text: str) -> frozenset[tuple[str, ...]]:
    """Five-word shingles as Python's own sets of tuples."""
    found = re.findall(r"\w+", text.lower())
    return frozenset(tuple(found[i : i + 5]) for i in range(len(found) - 4))


def plain_jaccard(one: str, other: str) -> float:
    a, b = plain_shingles(one), plain_shingles(other)
    return len(a & b) / len(a | b)


def made_texts(count: int, seed: int) -> dict[str, str]:
    """Texts of 10 to 90 words, half of them edits of others at all similarities."""
    random_ = random.Random(seed)
    known = [f"w{n}" for n in range(400)]
    texts: list[list[str]] = []
    for _ in range(count):
        if texts and random_.random() < 0.5:
            text = list(random_.choice(texts))
            for _ in range(random_.randint(0, 2)):
                text[random_.randrange(len(text))] = random_.choice(known)
        else:
            text = random_.choices(known, k=random_.randint(10, 90))
        texts.append(text)
    return {f"t{n}": " ".join(text) for n, text in enumerate(texts)}


@pytest.mark.parametrize("seed", [0, 1])
def test_recall_and_precision_against_brute_force(seed: int) -> None:
    texts = made_texts(300, seed)
    found = find_duplicates(texts, code=False)
    first = {i: ids[0] for ids in found.exact for i in ids}
    place = {i: n for n, ids in enumerate(found.near) for i in ids}
    true = {
        (a, b)
        for a, b in itertools.combinations(texts, 2)
        if texts[a] != texts[b] and plain_jaccard(texts[a], texts[b]) >= NEAR
    }
    assert len(true) > 50
    together = [place.get(first.get(a, a), -1) == place.get(first.get(b, b), -2) for a, b in true]
    assert sum(together) / len(true) >= 0.99
    for ids in found.near:
        for i in ids:
            assert any(plain_jaccard(texts[i], texts[j]) >= NEAR for j in ids if j != i)


def test_shared_pairs_against_brute_force() -> None:
    texts = made_texts(300, 2)
    ours, theirs = dict(list(texts.items())[:150]), dict(list(texts.items())[150:])
    found = find_shared(ours, theirs, kind=TEXT)
    true = {(a, b) for a, b in itertools.product(ours, theirs) if plain_jaccard(texts[a], texts[b]) >= NEAR}
    pairs = {*found.exact, *found.near}
    assert len(true) > 20 and pairs <= true and len(pairs) >= 0.99 * len(true)
    assert set(found.exact) == {(a, b) for a, b in true if texts[a] == texts[b]}
    turned = find_shared(theirs, ours, kind=TEXT)
    assert sorted((b, a) for a, b in turned.near) == found.near
    assert sorted((b, a) for a, b in turned.exact) == found.exact


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.text(alphabet="ab c\n.,A\u00e9\u4e2d0", max_size=25), max_size=12), st.randoms(use_true_random=False)
)
def test_the_order_of_the_texts_does_not_matter(texts: list[str], random_: random.Random) -> None:
    by_id = {f"t{n}": text for n, text in enumerate(texts)}
    shuffled = list(by_id.items())
    random_.shuffle(shuffled)
    found = find_duplicates(by_id, code=False)
    assert found == find_duplicates(dict(shuffled), code=False)
    # A text is in no more than one group of each list.
    for groups in (found.exact, found.near):
        members = [i for ids in groups for i in ids]
        assert len(members) == len(set(members)) and all(len(ids) > 1 for ids in groups)


def test_exact_and_short_texts_by_hand() -> None:
    texts = {
        "a": "Net income\tROSE in the year",
        "b": "net  income rose in the YEAR ",
        "c": "Net income rose, in the year.",
        "d": "see note four",
        "e": "note four: see!",
        "f": "see note five",
        "g": "",
        "h": "  ",
        "i": "???",
        "j": "\u7b2c\u4e00\u6761 \u672c\u6cd5\u6240\u79f0\u7684\u516c\u53f8",
        "k": "\u7b2c\u4e00\u6761\u672c\u6cd5\u6240\u79f0\u7684\u516c\u53f8\u3002",
    }
    found = find_duplicates(texts, code=False)
    assert found.exact == [("a", "b")]
    assert found.near == [("a", "c"), ("d", "e"), ("j", "k")]


def test_large_families_of_boilerplate_are_not_duplicates() -> None:
    common = " ".join(f"b{n}" for n in range(60))
    texts = {f"t{n}": common + " " + " ".join(f"own{n}-{k}" for k in range(30)) for n in range(300)}
    assert find_duplicates(texts, code=False).near == []


def test_a_large_family_of_near_duplicates_is_one_group() -> None:
    common = " ".join(f"b{n}" for n in range(60))
    texts = {f"t{n:03}": f"{common} number {n}" for n in range(300)}
    assert find_duplicates(texts, code=False).near == [tuple(texts)]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("x = 1  # one\n", "x=1", True),
        ("int f() { return 1; } // one", "int f() {\n  /* a\n comment */ return 1; }", True),
        ("find . -name '*.py'", "find  .  -name  '*.py'", True),
        ("#!/bin/bash\nls -l", "ls -l", True),
        ("-- all\nSELECT a FROM t", "SELECT a FROM t", True),
        # What looks like a comment and is none.
        ("y = a // b", "y = a // c", False),
        ("curl http://one.org/a", "curl http://two.org/a", False),
        ("ls /tmp/* /var/*/x", "ls /tmp/*/x", False),
        ("echo '# a'", "echo '# b'", False),
        ("echo ${#a} b", "echo ${#a} c", False),
        ("cmd --long x", "cmd --short x", False),
        # Upper and lower case are two things.
        ("ls -s", "ls -S", False),
        ("x = Path(a)", "x = path(a)", False),
    ],
)
def test_code(one: str, other: str, same: bool) -> None:
    found = find_duplicates({"a": one, "b": other}, code=True)
    assert found.exact == ([("a", "b")] if same else [])
    assert not found.near


def test_near_duplicates_of_code() -> None:
    body = "\n".join(f"    total += compute(values[{n}], rate)" for n in range(20))
    one, other = (f"def sum_{name}(values, rate):\n    total = 0\n{body}\n    return total" for name in ("a", "b"))
    assert find_duplicates({"a": one, "b": other}, code=True).near == [("a", "b")]
    assert code_tokens("a.b('x y')") == ["a", ".", "b", "(", "'", "x", "y", "'", ")"]


LONG = (
    "Which obligations does an authorised person have when a client of its branch abroad asks for a written report "
    "of all fees"
)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What was the revenue in 2018?", "what was  THE revenue in 2018"),
        ("What was the revenue in 2018 ?", "What was revenue in 2018?"),
        ("Gets the IP address of eth0.", "Gets IP address of 'eth0'"),
        ("What is the company\u2019s debt\u200b", "what is the company's debt"),
        (LONG, LONG.replace("obligations", "duties")),
        (LONG, LONG.replace("written report", "report written")),
        (LONG, LONG.replace("a written", "a short written")),
        (LONG, LONG.replace("does", "did")),
    ],
)
def test_the_same_query(one: str, other: str) -> None:
    found = find_shared({"a": one}, {"b": other}, kind=QUERY)
    assert [*found.exact, *found.near] == [("a", "b")]
    assert same_question(one, other) and same_question(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What was revenue in 2018?", "What was revenue in 2019?"),
        ("What was the change in total revenue?", "What was the change in total sales?"),
        ("What was the change in Apple's revenue?", "What was the change in Google's revenue?"),
        ("sort a list in c++", "sort a list in c#"),
        ("list .txt files", "list .csv files"),
        ("change of revenue from 2018 to 2019", "change of revenue from 2019 to 2018"),
        (LONG, LONG.replace("client", "Client of Acme")),
        (LONG + " since 2018", LONG + " since 2019"),
        (LONG, LONG.replace("when", "unless")),
        (LONG, LONG.replace("all", "12")),
        (LONG, LONG.replace("an authorised person", "Acme")),
        (LONG + ' called "x"', LONG + ' called "y"'),
        (LONG, LONG.replace("written report", "spoken summary").replace("branch", "bank")),
        (LONG + " after 2017 and before 2019", LONG + " before 2017 and after 2019"),
    ],
)
def test_another_query(one: str, other: str) -> None:
    found = find_shared({"a": one}, {"b": other}, kind=QUERY)
    assert [*found.exact, *found.near] == []


def test_words() -> None:
    assert words("The Net-income of \u201cAcme\u201d, 2018\u200b.") == ["the", "net", "income", "of", "acme", "2018"]
    fixed = [w for w, is_fixed in query_words('Did Apple sell "red shoes" to a friend in May 2019?') if is_fixed]
    assert fixed == ["apple", "sell", "red", "shoes", "to", "in", "may", "2019"]
    # Nothing but what is otherwise left out.
    assert query_words("?") == [("?", True)] and query_words("The") == [("the", True)]


# What the notes of the sets say: texts (without titles) that another passage has too, upper and lower case apart.
@pytest.mark.parametrize(("folder", "repeated", "with_titles"), [("finance/tatqa", 97, 111), ("legal/obliqa", 190, 23)])
def test_known_duplicates(folder: str, repeated: int, with_titles: int) -> None:
    if not (DATA / folder).is_dir():
        pytest.skip("the shared sets are not here")
    rows = [json.loads(line) for line in (DATA / folder / "corpus.jsonl").read_text().splitlines()]
    by_text: dict[str, list[str]] = {}
    for row in rows:
        by_text.setdefault(row["text"], []).append(row["_id"])
    groups = [ids for ids in by_text.values() if len(ids) > 1]
    assert sum(len(ids) - 1 for ids in groups) == repeated
    # All of those, and a part of the others, for the time it takes.
    wanted = {i for ids in groups for i in ids} | {row["_id"] for row in rows[::4]}
    found = find_duplicates({row["_id"]: row["text"] for row in rows if row["_id"] in wanted}, code=False)
    in_group = {i: n for n, ids in enumerate(found.exact) for i in ids}
    assert all(len({in_group[i] for i in ids}) == 1 for ids in groups)
    # As they are read: more without case, white space and kinds of quotes and dashes; in obliqa the title, a rule's
    # number, keeps most apart.
    whole = Counter(normalised(join_title(row.get("title", ""), row["text"])) for row in rows)
    assert sum(whole.values()) - len(whole) == with_titles

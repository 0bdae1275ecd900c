"""Numbers with their nouns, in every message."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankwright.common.plurals import counted

# From a dictionary, not from the rule.
NOUNS = {
    "query": "queries",
    "entry": "entries",
    "key": "keys",
    "row": "rows",
    "file": "files",
    "process": "processes",
    "batch": "batches",
    "box": "boxes",
    "more fault": "more faults",
}


@given(st.integers(-(10**12), 10**12), st.sampled_from(sorted(NOUNS)))
def test_the_noun_is_singular_for_one_alone(number: int, noun: str) -> None:
    found, _, word = counted(number, noun).partition(" ")
    assert word == (noun if number == 1 else NOUNS[noun])
    assert int(found.replace(",", "")) == number and all(len(part) == 3 for part in found.split(",")[1:])


@pytest.mark.parametrize(("number", "expected"), [(0, "0 queries are"), (1, "1 query is"), (1200, "1,200 queries are")])
def test_a_verb_agrees(number: int, expected: str) -> None:
    assert counted(number, "query is", "queries are") == expected

"""Values from a user's program: right whatever holds them, or one line that names the place and the way out."""

from __future__ import annotations

from collections import UserDict, deque
from pathlib import Path
from typing import Any

import datasets
import numpy
import pandas
import pyarrow
import pytest
import torch

from rankwright.common.errors import UserError
from rankwright.common.values import finite_number, list_of_paths, list_of_texts, one_text, path_text, whole_number

TEXTS = ["c", "a", "été 東京", "", "b"]
FRAME = pandas.DataFrame({"text": TEXTS, "place": range(5)})


class Shouted(str):
    def __str__(self) -> str:
        return self.upper()


HOLDERS: dict[str, Any] = {
    "list": TEXTS,
    "tuple": tuple(TEXTS),
    "deque": deque(TEXTS),
    "generator": (text for text in TEXTS),
    "map": map(str, TEXTS),
    "values of a dict": dict(enumerate(TEXTS)).values(),
    "keys of a dict": dict.fromkeys(TEXTS).keys(),
    "keys of a mapping": UserDict(dict.fromkeys(TEXTS)).keys(),
    "pandas": FRAME["text"],
    "pandas, other labels": FRAME.set_index(pandas.Index([4, 3, 2, 1, 0]))["text"],
    "pandas, labels of text": FRAME.set_index(pandas.Index(list("vwxyz")))["text"],
    "pandas, labels twice": FRAME.set_index(pandas.Index([0, 0, 0, 0, 0]))["text"],
    "pandas, sorted": FRAME.sort_values("text").sort_values("place")["text"],
    "pandas, part": pandas.concat([FRAME.tail(2), FRAME])["text"].iloc[2:],
    "pandas string": FRAME["text"].astype("string"),
    "pandas category": FRAME["text"].astype("category"),
    "pandas index": pandas.Index(TEXTS),
    "numpy": numpy.array(TEXTS),
    "numpy object": numpy.array(TEXTS, dtype=object),
    "arrow": pyarrow.array(TEXTS),
    "arrow in chunks": pyarrow.chunked_array([TEXTS[:2], TEXTS[2:]]),
    "arrow dictionary": pyarrow.array(TEXTS).dictionary_encode(),
    "datasets": datasets.Dataset.from_dict({"text": TEXTS})["text"],
    "datasets, shuffled": datasets.Dataset.from_dict({"text": TEXTS[::-1]}).select([4, 3, 2, 1, 0])["text"],
}
REFUSED: dict[str, tuple[Any, str]] = {
    "one text": ("one text", r"^d: must be a list of texts, found one text: put it in \[ \]$"),
    "numpy text": (numpy.str_("one"), "found one text"),
    "none": (None, "^d: must be a list of texts, found None$"),
    "a number": (3, "found int$"),
    "a path": (Path("docs.txt"), "found a path: read the file"),
    "bytes": (b"abc", "found bytes: decode it"),
    "a mapping": ({"a": "b"}, "found a mapping"),
    "a set": ({"a", "b"}, "a set, which has no order"),
    "a frozen set": (frozenset("ab"), "a set, which has no order"),
    "a data frame": (FRAME, "a DataFrame of 2 dimensions: give one column"),
    "two dimensions": (numpy.array([["a"], ["b"]]), "a ndarray of 2 dimensions"),
    "no dimension": (numpy.array("a"), "a ndarray of 0 dimensions"),
    "a set of the hub": (datasets.Dataset.from_dict({"text": TEXTS}), r"d\[0\]: must be text, found dict: give the fi"),
    "a table": (pyarrow.table({"text": TEXTS}), r"d\[0\]: must be text, found ChunkedArray: give one list"),
    "none inside": (["a", None], r"^d\[1\]: must be text, found None: leave it out, or give ''$"),
    "nan": ([float("nan")], r"d\[0\]: must be text, found NaN: leave it out"),
    "nan of pandas": (pandas.Series(["a", numpy.nan]), r"d\[1\]: must be text, found NaN: leave it out"),
    "na of pandas": (pandas.Series(["a", None], dtype="string"), r"d\[1\]: must be text, found \w+: leave it out"),
    "null of arrow": (pyarrow.array(["a", None]), r"d\[1\]: must be text, found None"),
    "paths": ([Path("a.txt")], r"d\[0\]: must be text, found PosixPath: read the file"),
    "bytes inside": ([b"a"], r"d\[0\]: must be text, found bytes: decode it"),
    "bytes of numpy": (numpy.array([b"a"]), r"d\[0\]: must be text, found bytes_: decode it"),
    "numbers": ([1.5], r"d\[0\]: must be text, found float: give str"),
    "lists": ([["a"]], r"d\[0\]: must be text, found list: give one list"),
    "half a pair": (["a", "b\ud800"], r"d\[1\]: holds half of a surrogate pair"),
    "a tensor": (torch.zeros(2), r"d\[0\]: must be text, found Tensor"),
}


@pytest.mark.parametrize("name", HOLDERS)
def test_texts_are_taken_in_their_order(name: str) -> None:
    taken = list_of_texts("d", HOLDERS[name])
    assert taken == TEXTS and all(type(text) is str for text in taken)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_a_list_of_texts_is_one_line(name: str) -> None:
    value, words = REFUSED[name]
    with pytest.raises(UserError, match=words) as caught:
        list_of_texts("d", value)
    assert "\n" not in str(caught.value)


def test_a_subclass_of_text_is_its_characters() -> None:
    assert one_text("q", Shouted("a loan")) == "a loan"


@pytest.mark.parametrize("value", [1, 7, numpy.int64(3), numpy.array(2)])
def test_whole_numbers(value: Any) -> None:
    assert whole_number("top_k", value) == int(value) and type(whole_number("top_k", value)) is int


@pytest.mark.parametrize(
    "value", [0, -1, True, 1.0, 2.5, "3", None, float("nan"), float("inf"), numpy.float64(2), [1], "two\nlines"]
)
def test_other_numbers_are_one_line(value: Any) -> None:
    with pytest.raises(UserError, match=r"^top_k: must be (a whole number|at least 1), found ") as caught:
        whole_number("top_k", value)
    assert "\n" not in str(caught.value)


def test_finite_numbers() -> None:
    assert finite_number("s", numpy.float32(0.1)) == float(numpy.float32(0.1))
    assert finite_number("s", 2) == 2.0
    for value in (float("nan"), numpy.inf, None, "1", True, torch.tensor(1.0)):
        with pytest.raises(UserError, match=r"^s: must be a "):
            finite_number("s", value)


def test_paths() -> None:
    assert path_text("p", Path("a/b")) == path_text("p", "a/b") == "a/b"
    assert list_of_paths("r", ["a", Path("b")]) == list_of_paths("r", (Path(p) for p in "ab")) == [Path("a"), Path("b")]
    bad = (None, 3, "", " ", b"a", "a\0b")
    for value in bad:
        with pytest.raises(UserError, match=r"^p: "):
            path_text("p", value)
    for paths in ("runs/a", Path("runs/a"), None, 3, {"a": 1}, *([value] for value in bad)):
        with pytest.raises(UserError, match=r"^r"):
            list_of_paths("r", paths)

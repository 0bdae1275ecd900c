"""Sets as people have them, by names of files and columns, labels and cells: what is read, or the one line about it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rankwright.common.errors import UserError
from rankwright.data.formats.reading import Faults
from rankwright.data.sources import locate, read, read_all
from rankwright.data.statistics import findings, text_facts
from rankwright.recipe.sources import Source

# Queries, judged relevant, judged not relevant.
Counts = tuple[int, int, int]


def lines(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def numbered(count: int, start: int = 0, **columns: Any) -> str:
    """Rows whose query, and every text of `columns`, has the row's number in place of #."""

    def of(value: Any, n: int) -> Any:
        return [of(v, n) for v in value] if isinstance(value, list) else str(value).replace("#", str(n))

    return lines(*({k: of(v, n) for k, v in columns.items()} for n in range(start, start + count)))


PAIR = {"query": "q #", "positive": "p #"}
TRAIN, TEST = numbered(3, **PAIR), numbered(2, 3, **PAIR)
SPLITS = {
    f"split {pattern}": ({pattern.format("train"): TRAIN, pattern.format("test"): TEST}, {"split": split}, expected)
    for pattern in (
        *("{}.jsonl", "{}-0.jsonl", "{}_a.jsonl", "{}2.jsonl"),
        *("shop_{}.jsonl", "shop-{}.jsonl", "shop.{}.jsonl", "shop {}.jsonl", "shopX_{}_v2.jsonl", "shop-{}1.jsonl"),
    )
    for split, expected in (("train", (3, 3, 0)), ("test", (2, 2, 0)))
}
NEGATIVES = {
    f"{name} as {'a list' if more > 1 else 'a text'}": (
        {
            "a.jsonl": numbered(
                3, query="q #", response="p #", **{name: [f"n # {i}" for i in range(more)] if more > 1 else "n #"}
            )
        },
        {},
        (3, 3, 3 * more),
    )
    for name in ("negative", "negatives", "neg", "hard_negatives", "hardNegative", "rejected_response", "rejected")
    for more in (1, 2)
}
LABELS = [1, 2, 4]
GRADED = lines(*({"query": "a", "document": f"d{x}", "label": x} for x in LABELS))
CSV = "question,answer\n"
TURN = [{"role": "user", "content": "hello"}]
# What is in the folder, keys of the entry, and what is read, or a pattern of the only line.
SETS: dict[str, tuple[dict[str, str], dict[str, Any], Counts | str]] = {
    **SPLITS,
    **NEGATIVES,
    "a split in camel case": ({"shopTrain.jsonl": TRAIN, "shopTest.jsonl": TEST}, {"split": "test"}, (2, 2, 0)),
    "a split by another name": (
        {"a_training.jsonl": TRAIN, "a_testing.jsonl": TEST},
        {},
        r"no file for split 'train'\. Splits by file name: testing, training\. Give split: NAME",
    ),
    "splits written in one word": (
        {"shoptrain.jsonl": TRAIN, "shoptest.jsonl": TEST},
        {},
        r"shoptest\.jsonl and shoptrain\.jsonl seem to be two splits: put a dash",
    ),
    "a name with two splits": (
        {"a_train_test.jsonl": TRAIN, "b_train.jsonl": TEST},
        {},
        r"a_train_test\.jsonl: its name has the splits test, train: rename it",
    ),
    "latest is no split": ({"latest.jsonl": TRAIN, "contest.jsonl": TEST}, {}, (5, 5, 0)),
    "negatives with numbers": (
        {"a.jsonl": numbered(3, anchor="q #", positive="p #", negative_10="n #", hard_negative_2="m #")},
        {},
        (3, 3, 6),
    ),
    "scores are no negatives": (
        {"a.jsonl": lines({"query": "q", "positive": "p", "negative_scores": [0.1]})},
        {},
        (1, 1, 0),
    ),
    "negatives beside positives of another name": (
        {"a.jsonl": lines({"query": "q", "positives": ["p"], "rejected_response": "n"})},
        {},
        r":1: column 'rejected_response' holds judged negatives, which would be lost: give `columns: \{negatives",
    ),
    "a list only later": (
        {
            "a.jsonl": numbered(55, **PAIR, negative="n #")
            + lines({"query": "z", "positive": "p", "negative": ["a", "b"]})
        },
        {},
        r":56: 3 documents, this format has 2: give `format: n-tuple`",
    ),
    "a text where a list must be": (
        {"a.jsonl": lines(*[{"query": "q", "positives": "p", "negatives": ["n"]}] * 30)},
        {},
        r":1: `positives` has type str, needs a list: `columns: \{positives: positives\}` .* \(30 lines like this: ",
    ),
    "the same, by that advice": (
        {"a.jsonl": lines({"query": "q", "positives": "p", "negatives": ["n"]})},
        {"columns": {"positives": "positives"}},
        (1, 1, 1),
    ),
    "judged negatives alone, ms-swift": (
        {
            "a.jsonl": lines({"messages": TURN, "negative_messages": [TURN, [{"role": "a", "content": "x"}]]})
            + lines({"messages": [{"role": "user", "content": "b"}], "positive_messages": [TURN]})
        },
        {},
        (2, 1, 2),
    ),
    "judged negatives alone, FlagEmbedding": (
        {"a.jsonl": lines({"query": "q", "pos": ["p"], "neg": []}, {"query": "r", "neg": ["n", "m"]})},
        {},
        (2, 1, 2),
    ),
    "neither side": (
        {"a.jsonl": lines({"query": "q", "pos": ["p"]}, {"query": "r", "prompt": "x"})},
        {},
        r":2: no column `pos`; columns found: query, prompt",
    ),
    "JSON lists in cells": (
        {"a.csv": CSV + 'q,"[""a"", ""b""]"\nr,c\n'},
        {"columns": {"query": "question", "positives": "answer"}},
        (2, 3, 0),
    ),
    "JSON lists in later cells": ({"a.csv": CSV + 'q,c\nr,"[""a"", ""b""]"\n'}, {}, (2, 3, 0)),
    "a list as Python writes it": (
        {"a.csv": CSV + "".join(f"q{n},\"['a', 'b']\"\n" for n in range(30))},
        {},
        r":2: `answer` holds a list as Python writes it: write lists as JSON.*\(30 lines like this: ",
    ),
    "a document that looks like one": (
        {"a.csv": CSV + 'q,"[""[\'a\']""]"\nr,x\n'},
        {"columns": {"query": "question", "positives": "answer"}},
        (2, 2, 0),
    ),
    "brackets that are no list": ({"a.csv": CSV + "q,[1] the first note\n"}, {}, (1, 1, 0)),
    "an underscore in a label": (
        {"a.jsonl": lines({"query": "q", "document": "d", "label": "1_0"})},
        {},
        r":1: the label of document is '1_0', needs a number",
    ),
    "an underscore in qrels": (
        {
            "corpus.jsonl": lines({"_id": "d", "text": "x"}),
            "queries.jsonl": lines({"_id": "q", "text": "y"}),
            "qrels/train.tsv": "query-id\tcorpus-id\tscore\nq\td\t1_0\n",
        },
        {},
        r"train\.tsv:2: score '1_0' is not a number",
    ),
    "a query that nobody sees": (
        {"a.jsonl": lines({"query": "\u200b\ufeff", "pos": ["p"], "neg": []})},
        {},
        r":1: the query is empty: give it a text or remove the line",
    ),
    "a query that nobody sees, BEIR": (
        {
            "corpus.jsonl": lines({"_id": "d", "text": "x"}),
            "queries.jsonl": lines({"_id": "q", "text": "\u3164"}),
            "qrels/train.tsv": "q\td\t1\n",
        },
        {},
        r"queries\.jsonl:1: query 'q' is empty: give it a text or remove it",
    ),
    "a query that nobody sees, ms-swift": (
        {"a.jsonl": lines({"messages": [{"role": "user", "content": "\u2060"}], "positive_messages": [TURN]})},
        {},
        r":1: the query is empty",
    ),
    "a TSV file without a header": (
        {"a.tsv": "how do i clean it?\tTo clean it, use a cloth.\tBuy one.\nand then?\tDry it.\tSell it.\n"},
        {"format": "triplets"},
        (2, 2, 2),
    ),
    "a CSV file without a header, Chinese": (
        {"a.csv": "怎样清洗水壶,用湿布擦拭再用温水冲洗。\n怎样修理梯子,更换零件。\n"},
        {"format": "pairs"},
        (2, 2, 0),
    ),
    "a header of long names": (
        {"a.tsv": "the text of the question\tanswer\nq\ta\n"},
        {"columns": {"query": "the text of the question"}},
        (1, 1, 0),
    ),
    "a header of one word each": ({"a.tsv": "frage\tantwort\nq\ta\n"}, {"format": "pairs"}, (1, 1, 0)),
    "a file without a header or a format": (
        {"a.tsv": "how do i clean it?\tTo clean it, use a cloth.\nx\ty\n"},
        {},
        r"the columns column 1 \(text\), column 2 \(text\) are those of no format",
    ),
    "grades as they are": ({"a.jsonl": GRADED}, {}, (1, 3, 0)),
    "grades from 2 on": ({"a.jsonl": GRADED}, {"relevant_from": 2}, (1, 2, 1)),
    "grades from 5 on": (
        {"a.jsonl": GRADED},
        {"relevant_from": 5},
        r"relevant_from: 5: the labels are 1, 2, 4, so that",
    ),
}


@pytest.mark.parametrize(("files", "entry", "expected"), SETS.values(), ids=SETS)
def test_sets(tmp_path: Path, files: dict[str, str], entry: dict[str, Any], expected: Counts | str) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    faults = Faults()
    located = locate(Source(path=str(tmp_path), **entry), root=None, split="train")
    if isinstance(expected, str):
        with pytest.raises(UserError, match=expected) as caught:
            read(located, lambda line: None, faults)
        assert len(str(caught.value).splitlines()) == 1
        return
    found = read(located, lambda line: None, faults)
    labels = [label for judged in found.qrels.values() for label in judged.values()]
    assert (len(found.queries), sum(x > 0 for x in labels), sum(x <= 0 for x in labels)) == expected


def test_a_first_line_that_is_read_as_a_row_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text("how do i clean it?\tTo clean it, use a cloth.\nx\ty\n", encoding="utf-8")
    said: list[str] = []
    found = read(locate(Source(path=str(path), format="pairs"), root=None, split="train"), said.append, Faults())
    assert sorted(found.queries.values()) == ["how do i clean it?", "x"]
    assert any("line 1 is read as a row" in line for line in said)


def test_labels_that_are_all_above_zero(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(GRADED)
    said: list[str] = []
    located = locate(Source(path=str(path)), root=None, split="test")
    [found] = read_all([located], said.append)
    [warning] = [line for line in said if "WARNING" in line]
    assert "if 1 means not relevant, give the set `relevant_from: 2`" in warning
    facts = text_facts({}, queries=True, code=False)
    [finding] = [f for f in findings(found, facts, facts) if f.kind == "no label at or below 0"]
    assert finding.level == "warning" and [found.qrels[q][d] for q, d in finding.ids] == [1.0]
    mended = read(locate(Source(path=str(path), relevant_from=2), root=None, split="test"), said.append, Faults())
    assert sorted(mended.qrels[next(iter(mended.queries))].values()) == [0.0, 1.0, 3.0]
    assert not [f for f in findings(mended, facts, facts) if f.kind == "no label at or below 0"]

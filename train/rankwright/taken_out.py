"""A set without a test split: test queries taken out of it, and both sides written as files of their own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rankwright.atomic import atomic_folder, write_lines_atomic
from rankwright.errors import UserError
from rankwright.examples import Collection
from rankwright.leakage import split_apart
from rankwright.row_writers import fits_a_table


def take_test(whole: Collection, *, fraction: float, seed: int) -> tuple[Collection, Collection]:
    """(the rest, test) by query; near duplicates, and queries of one group, stay on one side (see leakage, splits)."""
    try:
        [parts] = split_apart([whole], fraction=fraction, seed=seed)
    except UserError as error:
        raise UserError(f"no test set can be taken out: {error} (a test set of your own is told by its name)") from None
    return parts


def write_taken(folder: Path, rest: Collection, test: Collection) -> tuple[str, str]:
    """Write both sides; returns the paths of train and test relative to `folder`, which must not be there yet.

    A BEIR folder holds both, with the whole corpus for either. Where queries have weights, groups or a teacher's
    scores, which BEIR has no place for, train is a file of groups; of test they are not used. Ids with a tab or
    spaces around them make files of groups of both.
    """
    tabs = not all(fits_a_table(i) for i in (*rest.queries, *test.queries, *rest.corpus))
    more = bool(rest.weights or rest.teacher_scores or rest.query_groups)
    in_groups = {"train": tabs or more, "test": tabs}
    with atomic_folder(folder) as draft:
        _lines(draft / "corpus.jsonl", ({"_id": d, "text": text} for d, text in rest.corpus.items()))
        for split, side in (("train", rest), ("test", test)):
            if in_groups[split]:
                _lines(draft / split / f"{split}.jsonl", _groups(side))
                continue
            _lines(draft / f"queries_{split}.jsonl", ({"_id": q, "text": text} for q, text in side.queries.items()))
            judged = (f"{q}\t{d}\t{label:g}" for q, row in side.qrels.items() for d, label in row.items())
            write_lines_atomic(draft / f"qrels_{split}.tsv", ["query-id\tcorpus-id\tscore", *judged])
    train, test_path = (f"{split}/{split}.jsonl" if alone else "." for split, alone in in_groups.items())
    return train, test_path


def _lines(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    write_lines_atomic(path, (json.dumps(row, ensure_ascii=False) for row in rows))


def _groups(side: Collection) -> Iterator[dict[str, Any]]:
    for query_id, query in side.queries.items():
        scores = side.teacher_scores.get(query_id, {})
        documents: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
        for document_id, label in side.qrels.get(query_id, {}).items():
            element = {"id": document_id, "text": side.corpus[document_id], "label": label}
            if document_id in scores:
                element["score"] = scores[document_id]
            documents[label > 0].append(element)
        row: dict[str, Any] = {"query_id": query_id, "query": query}
        row |= {"positives": documents[True], "negatives": documents[False]}
        if side.weight(query_id) != 1:
            row["weight"] = side.weight(query_id)
        if query_id in side.query_groups:
            row["group"] = side.query_groups[query_id]
        yield row

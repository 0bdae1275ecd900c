"""The data stage: sets read and split, overlap reported."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rankwright import console, run_file, splits
from rankwright.data_files import read_split, write_split
from rankwright.errors import UserError, UserErrors
from rankwright.evaluate import choose_queries
from rankwright.examples import Collection
from rankwright.recipe import DevFromTrain, Recipe
from rankwright.run_folder import RunFolder
from rankwright.sources import locate_all, read_all


def prepare_data(recipe: Recipe, run: RunFolder) -> dict[str, Any]:
    """Write data/{train,dev,test}.jsonl, data/corpora and data_report.json; returns queries a split, and corpora."""
    entries = locate_all(recipe.data)
    console.say("train")
    train = read_all(entries["train"], console.say)
    if isinstance(recipe.data.dev, DevFromTrain):
        fraction = recipe.data.dev.fraction
        parts = [splits.split_dev(c, fraction=fraction, seed=recipe.seed) for c in train]
        train, dev = [t for t, _ in parts], [d for _, d in parts]
        console.say(f"dev: {sum(len(d.queries) for d in dev):,} queries taken out of train (fraction {fraction:g})")
    else:
        console.say("dev")
        dev = read_all(entries["dev"], console.say)
    console.say("test")
    test = read_all(entries["test"], console.say)
    _require_positives(train, "train")
    _require_positives(dev, "dev")
    _require_positives(test, "test")
    for collection in test:
        # The run files of its evaluation are read again, after training.
        for ids in (collection.queries, collection.corpus):
            run_file.spelled(ids, f"set {collection.name!r}")
    _require_whole_labels([*dev, *test])
    by_split = {"train": train, "dev": dev, "test": test}
    corpora = {file for split, found in by_split.items() for file in write_split(run.path / "data", split, found)}
    counts = {split: [_counts(c) for c in collections] for split, collections in by_split.items()}
    overlaps = _overlaps(train, {"dev": dev, "test": test})
    run.write_json("data_report.json", {"splits": counts, "overlap_with_train": overlaps})
    queries = {split: sum(row["queries"] for row in rows) for split, rows in counts.items()}
    return {**queries, "corpora": sorted(corpora)}


def check_run_files(recipe: Recipe, run: RunFolder, run_files: Mapping[str, Path | None]) -> None:
    """Read the run files of test sets now. Raises UserErrors: hours of training later is too late."""
    if not any(run_files.values()):
        return
    faults = []
    for collection in read_split(run.path / "data", "test"):
        path = run_files.get(collection.name)
        if path is None:
            continue
        chosen = choose_queries(collection, limit=recipe.evaluate.limit_queries, seed=recipe.seed)
        queries = {q: collection.queries[q] for q in chosen.query_ids}
        try:
            run_file.read_lists(path, collection.corpus, queries, recipe.evaluate.depth)
        except UserError as error:
            faults.append(str(error))
    if faults:
        raise UserErrors(faults)


def _require_positives(collections: Sequence[Collection], split: str) -> None:
    if not any(c.positives(q) for c in collections for q in c.queries):
        raise UserError(f"data.{split}: no query has a relevant document: give judgements with a score above 0")


def _require_whole_labels(collections: Sequence[Collection]) -> None:
    """Measures need whole labels; said before hours of training, not after."""
    for collection in collections:
        for query_id, judged in collection.qrels.items():
            for document_id, label in judged.items():
                if label != int(label):
                    raise UserError(
                        f"set {collection.name!r}: query {query_id!r}, document {document_id!r}: the label {label} is "
                        "no whole number, which nDCG@10 needs on dev and test: use 0, 1, 2, ..."
                    )


def _counts(collection: Collection) -> dict[str, Any]:
    relevant = [len(collection.positives(q)) for q in collection.queries]
    return {
        "set": collection.name,
        "documents": len(collection.corpus),
        "queries": len(collection.queries),
        "judgements": sum(map(len, collection.qrels.values())),
        "positives": sum(relevant),
        "queries_without_positive": sum(n == 0 for n in relevant),
        "empty_documents": sum(not text.strip() for text in collection.corpus.values()),
    }


def _overlaps(train: Sequence[Collection], held_out: Mapping[str, Sequence[Collection]]) -> list[dict[str, Any]]:
    """What train shares with dev and test; said, so that nobody takes memory for skill."""
    rows = []
    for ours in train:
        for split, theirs in ((split, c) for split, collections in held_out.items() for c in collections):
            report = dataclasses.asdict(splits.overlap(ours, theirs))
            counts = {k.replace("_", " "): v for k, v in report.items() if isinstance(v, int) and v}
            if counts:
                rows.append({"train": ours.name, "split": split, "held_out": theirs.name, **report})
                shown = ", ".join(f"{name} {count}" for name, count in counts.items())
                console.say(f"shared between train {ours.name} and {split} {theirs.name}: {shown}")
    return rows

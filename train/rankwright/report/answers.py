"""The answers that audit.html saves, as judgements of the training sets that its texts come from."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rankwright.common.errors import UserError, one_line
from rankwright.common.files import read_json_object
from rankwright.common.hashing import content_hash
from rankwright.common.run_folder import RunFolder
from rankwright.data.cards import load_card
from rankwright.data.collection import Collection
from rankwright.data.judgements import Judgement, judgements_card, read_judgements, united, write_judgements
from rankwright.data.split_files import read_split
from rankwright.recipe.schema import Recipe
from rankwright.report import gather

RELEVANT, NOT_RELEVANT, UNSURE = "relevant", "not relevant", "unsure"
LABELS = {RELEVANT: 1.0, NOT_RELEVANT: 0.0}
# What an answer must have, all texts.
KEYS = ("query_id", "document_id", "answer", "note", "texts")


@dataclass(frozen=True, slots=True)
class Written:
    """A file of judgements that was written; new: how many of them it did not have before."""

    set_name: str
    path: Path
    card: Path
    relevant: int
    not_relevant: int
    new: int


@dataclass(slots=True)
class Answers:
    """The content of one saved file. name: how messages call the file; audit, recipe: what the page was of."""

    name: str
    audit: str
    recipe: str
    by: str
    rows: list[dict[str, str]] = field(default_factory=list)


def texts_hash(query: str, document: str) -> str:
    """What shows that an answer is about these texts."""
    return content_hash(query, document)


def read_answers(path: Path) -> Answers:
    """Raises UserError for a file that the page did not save."""
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        why = one_line(error.strerror or str(error) if isinstance(error, OSError) else str(error))
        raise UserError(
            f"{path}: cannot be read ({why}): give the file that `Save answers` of audit.html wrote"
        ) from None
    rows = found.get("answers") if isinstance(found, dict) else None
    whole = isinstance(rows, list) and all(isinstance(found.get(key), str) for key in ("audit", "recipe", "by"))
    if not whole or not all(_is_answer(row) for row in rows or ()):
        raise UserError(f"{path}: is not what audit.html saves: give the file that its button `Save answers` wrote")
    return Answers(path.name, found["audit"], found["recipe"], found["by"], rows or [])


def _is_answer(row: Any) -> bool:
    if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in KEYS):
        return False
    return row["answer"] in (*LABELS, UNSURE)


def write_answers(run: RunFolder, files: Sequence[Answers], folder: Path) -> tuple[list[Written], int]:
    """(files of judgements in `folder`, one per training set; answers that are unsure, which are left out).

    What an earlier call wrote there stays. Raises UserError for answers about another run or other texts, for those
    that differ, and where nothing was judged.
    """
    recipe = gather.read_recipe(run.path)
    train = {collection.name: collection for collection in read_split(run.data, "train")}
    by_set: dict[str, list[tuple[str, Judgement]]] = {}
    unsure: Counter[str] = Counter()
    for answers in files:
        if answers.recipe != recipe.name:
            raise UserError(
                f"{answers.name}: is of an audit of {answers.recipe!r}, and {run.path} is a run of {recipe.name!r}: "
                "give that run's folder with --run"
            )
        for set_name, one in _judgements(answers, train, unsure):
            by_set.setdefault(set_name, []).append((answers.name, one))
    if not by_set:
        raise UserError(f"{', '.join(a.name for a in files)}: nothing is judged there ({unsure.total()} unsure)")
    plans = []
    for set_name, new in sorted(by_set.items()):
        path = folder / f"{set_name}-judgements.jsonl"
        before = [(path.name, one) for _, one in read_judgements(path)] if path.exists() else []
        plans.append((set_name, path, united([*before, *new]), len(before)))
    return [_write(recipe, run, *plan) for plan in plans], unsure.total()


def _judgements(
    answers: Answers, train: Mapping[str, Collection], unsure: Counter[str]
) -> Iterator[tuple[str, Judgement]]:
    """(set, judgement) of each answer that is not unsure. Raises UserError for pairs that the run does not have."""
    for row in answers.rows:
        # Ids are SET/ID, and a set's name has no slash.
        set_name, _, query_id = row["query_id"].partition("/")
        document_id = row["document_id"].partition("/")[2]
        where = f"{answers.name}: query {row['query_id']!r}, document {row['document_id']!r}"
        found = train.get(set_name)
        if found is None or query_id not in found.queries or document_id not in found.corpus:
            raise UserError(f"{where}: the run has no such pair: the answers are of another run: name it with --run")
        query, document = found.queries[query_id], found.corpus[document_id]
        if row["texts"] != texts_hash(query, document):
            raise UserError(
                f"{where}: the run has other texts than the page showed: give `rankwright mine --audit` again"
            )
        if row["answer"] == UNSURE:
            unsure[set_name] += 1
            continue
        by = answers.by.strip() or Path(answers.name).stem
        yield (
            set_name,
            Judgement(query_id, query, document_id, document, LABELS[row["answer"]], by, row["note"], answers.audit),
        )


def _write(
    recipe: Recipe, run: RunFolder, set_name: str, path: Path, found: Sequence[Judgement], before: int
) -> Written:
    inputs = (read_json_object(run.licences) or {}).get("inputs", ())
    licence = next((row for row in inputs if row["kind"] == "data set" and row["input"] == set_name), None)
    card = write_judgements(path, found, judgements_card(path, set_name, found, licence, _domain(recipe, set_name)))
    relevant = sum(one.label > 0 for one in found)
    return Written(set_name, path, card, relevant, len(found) - relevant, len(found) - before)


def _domain(recipe: Recipe, set_name: str) -> str:
    """That of the set's card; `general` for a set without one."""
    for source in recipe.data.train:
        if source.card is not None:
            try:
                card = load_card(source.card)
            except UserError:
                continue
            if set_name in (source.name, card.name):
                return card.domain
    return "general"

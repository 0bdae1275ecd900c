"""Judgements of people about pairs of a set, in a file of their own that is laid over the set when it is read.

A file has one row per pair, with both texts, and is a set in rows by itself: `query_id, query, document_id, document,
label` (1 relevant, 0 not relevant), `by` (who judged), `note` and `audit` (where). A card of the same name lies beside.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rankwright.common.errors import UserError, one_line
from rankwright.common.files import json_line, write_lines_atomic, write_text_atomic
from rankwright.common.plurals import counted
from rankwright.data.cards import load_card
from rankwright.data.collection import Collection
from rankwright.data.formats.reading import Faults, Say
from rankwright.data.licences.terms import UNKNOWN

NAMES = {0.0: "not relevant", 1.0: "relevant"}
# Pairs that a message names.
MOST_NAMED = 3


@dataclass(frozen=True, slots=True)
class Judgement:
    """What one person decided about one pair; label: 1 relevant, 0 not relevant. Ids are those of the set's files."""

    query_id: str
    query: str
    document_id: str
    document: str
    label: float
    by: str = ""
    note: str = ""
    audit: str = ""

    @property
    def pair(self) -> tuple[str, str]:
        return self.query_id, self.document_id


def read_judgements(path: Path) -> list[tuple[int, Judgement]]:
    """(line, judgement) of each row. Raises UserErrors with file and line of every fault."""
    found: list[tuple[int, Judgement]] = []
    lines: dict[tuple[str, str], int] = {}
    faults = Faults()
    try:
        # Not splitlines: a text may hold a line separator of its own.
        rows = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"judgements: {path}: cannot be read: {one_line(str(error))}") from None
    for line, text in enumerate(rows, start=1):
        if not text.strip():
            continue
        try:
            one = _judgement(json.loads(text))
        except (ValueError, RecursionError) as error:
            why = "not JSON" if isinstance(error, json.JSONDecodeError) else str(error)
            faults.add(path, line, f"is not a judgement ({why}): take the file that `rankwright audit read` wrote")
            continue
        if one.pair in lines:
            faults.add(path, line, f"judges the pair of line {lines[one.pair]} again: keep one of them", kind="twice")
            continue
        lines[one.pair] = line
        found.append((line, one))
    faults.check()
    if not found:
        raise UserError(f"judgements: {path}: holds no judgement: leave `judgements` out")
    return found


def _judgement(row: Any) -> Judgement:
    if not isinstance(row, dict):
        raise ValueError("must be a mapping")
    names = [field.name for field in dataclasses.fields(Judgement)]
    for name in names:
        if name != "label" and not isinstance(row.get(name, "" if name in ("by", "note", "audit") else None), str):
            raise ValueError(f"{name} must be text")
    if row.get("label") not in (0, 1) or isinstance(row["label"], bool):
        raise ValueError(f"label must be 0 or 1, found {row.get('label')!r}")
    values = {name: row[name] for name in names if name in row}
    return Judgement(**{**values, "label": float(row["label"])})


def judged(collection: Collection, path: Path, say: Say, faults: Faults) -> Collection:
    """The set with the judgements of a file: relevant ones get label 1, or keep a higher one; the others label 0.

    A pair whose query or document the set does not have, or has with another text, is a fault of its line.
    """
    qrels = {query_id: dict(labels) for query_id, labels in collection.qrels.items()}
    counts: Counter[str] = Counter()
    for line, one in read_judgements(path):
        kind = _stranger(collection, one)
        if kind is not None:
            advice = "judge again with `rankwright mine --audit`, or remove the line"
            faults.add(path, line, f"query {one.query_id!r}, document {one.document_id!r}: {kind}: {advice}", kind=kind)
            continue
        labels = qrels.setdefault(one.query_id, {})
        before = labels.get(one.document_id)
        labels[one.document_id] = max(before or 0.0, 1.0) if one.label else 0.0
        counts[NAMES[one.label]] += 1
        counts["changed"] += before is not None and before != labels[one.document_id]
    faults.check()
    changed = f"; {counts['changed']:,} of them change a label of the set" if counts["changed"] else ""
    say(
        f"  {collection.name}: judgements of {path.name}: {counts['relevant']:,} relevant, "
        f"{counts['not relevant']:,} not relevant{changed}"
    )
    return dataclasses.replace(collection, qrels=qrels)


def _stranger(collection: Collection, one: Judgement) -> str | None:
    """Why a judgement is not about a pair of the set."""
    for what, texts, key, text in (
        ("query", collection.queries, one.query_id, one.query),
        ("document", collection.corpus, one.document_id, one.document),
    ):
        if key not in texts:
            return f"set {collection.name!r} has no such {what}"
        if texts[key] != text:
            return f"set {collection.name!r} has another text of the {what}"
    return None


def counts_of(path: Path) -> dict[str, Any]:
    """A file in numbers, for data_report.json: `relevant`, `not_relevant`, and `by`: person -> judgements."""
    found = [one for _, one in read_judgements(path)]
    relevant = sum(one.label > 0 for one in found)
    by = Counter(one.by for one in found)
    return {"relevant": relevant, "not_relevant": len(found) - relevant, "by": dict(sorted(by.items()))}


def united(found: Iterable[tuple[str, Judgement]]) -> list[Judgement]:
    """One judgement per pair, by query and document, of several files. Raises UserError where two differ.

    found: (the name of the file, judgement).
    """
    kept: dict[tuple[str, str], tuple[str, Judgement]] = {}
    differ: list[str] = []
    for name, one in found:
        other_name, other = kept.setdefault(one.pair, (name, one))
        if other.label != one.label:
            pair = f"query {one.query_id!r}, document {one.document_id!r}"
            differ.append(f"{pair}: {NAMES[other.label]} in {other_name}, {NAMES[one.label]} in {name}")
    if differ:
        more = f"; and {len(differ) - MOST_NAMED:,} more" if len(differ) > MOST_NAMED else ""
        raise UserError(
            f"{len(differ):,} answers differ: {'; '.join(differ[:MOST_NAMED])}{more}: agree on one answer, and mark "
            "the others as unsure"
        )
    return [one for _, (_, one) in sorted(kept.items())]


def write_judgements(path: Path, found: Sequence[Judgement], card: Mapping[str, Any]) -> Path:
    """Write `path` (`.jsonl`) and its card beside it; returns the card's path. card: see judgements_card."""
    write_lines_atomic(path, (json_line(dataclasses.asdict(one)) for one in found))
    beside = path.with_suffix(".yaml")
    write_text_atomic(beside, yaml.safe_dump(dict(card), sort_keys=False, allow_unicode=True, width=110))
    load_card(str(beside.absolute()))
    return beside


def judgements_card(
    path: Path, set_name: str, found: Sequence[Judgement], licence: Mapping[str, Any] | None, domain: str
) -> dict[str, Any]:
    """The card of a file of judgements: its licence is that of the set, whose texts it holds.

    licence: the set's row of licences.json, None where there is none.
    """
    today = time.strftime("%Y-%m-%d")
    row = licence or {}
    said = [
        {"name": s["licence"], "commercial": s["commercial"], "source": s["source"], "date": s["date"] or today}
        for s in row.get("statements", ())
    ]
    first = said[0] if said else _nothing_stated(set_name, today)
    by = ", ".join(sorted({one.by for one in found if one.by})) or "not stated"
    audits = ", ".join(sorted({one.audit for one in found if one.audit}))
    relevant = sum(one.label > 0 for one in found)
    return {
        "name": path.stem,
        "title": f"Judgements of pairs of {set_name}",
        "domain": domain,
        "description": f"{counted(len(found), 'pair')} of a query and a document of {set_name}, judged by people: "
        f"{relevant:,} relevant, {len(found) - relevant:,} not relevant.",
        "path": path.name,
        "splits": {"train": "train"},
        "licence": {**first, **({"others": said[1:]} if len(said) > 1 else {})},
        "citation": str(row.get("credit") or set_name),
        "notes": f"Written by `rankwright audit read`, last on {today}. Judged by: {by}. Pages: {audits}."
        f" The licence is that of {set_name}, whose texts this file holds.",
    }


def _nothing_stated(set_name: str, today: str) -> dict[str, Any]:
    return {"name": UNKNOWN, "commercial": UNKNOWN, "source": f"no licence is stated for {set_name}", "date": today}

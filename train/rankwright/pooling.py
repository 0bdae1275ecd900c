"""Queries of several test sets together, each counted once."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from rankwright.splits import normalised

# Set -> query id -> SET/ID of an earlier set's query of the same text.
Repeated = Mapping[str, Mapping[str, str]]


def repeated_queries(run: Path, evaluated: Mapping[str, Iterable[str]]) -> dict[str, dict[str, str]]:
    """Of each set (in this order, with its evaluated queries) those whose text an earlier set has, where there are any.

    A part of a set that is also reported apart repeats queries of the whole: counted twice, they would narrow every
    interval, which takes queries for independent. run: its folder; without a data/test.jsonl nothing is known.
    """
    texts = _texts(run / "data" / "test.jsonl")
    first: dict[str, str] = {}
    repeated = {}
    for name, query_ids in evaluated.items():
        own = {q: texts[name, q] for q in sorted(query_ids) if (name, q) in texts}
        if found := {q: first[text] for q, text in own.items() if text in first}:
            repeated[name] = found
        for q, text in own.items():
            first.setdefault(text, f"{name}/{q}")
    return repeated


def _texts(path: Path) -> dict[tuple[str, str], str]:
    """(set, query id) -> normalised text."""
    try:
        with path.open(encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        return {(row["set"], row["query_id"]): normalised(row["query"]) for row in rows if "query_id" in row}
    except (OSError, ValueError, LookupError, TypeError):
        return {}


def pool(values: Mapping[str, Mapping[str, float]], repeated: Repeated) -> dict[str, float]:
    """SET/ID -> value for the queries of all sets; a repeated one counts as the mean of its values, under its first."""
    found: dict[str, list[float]] = {}
    for name, of_set in values.items():
        first = repeated.get(name, {})
        for q, value in of_set.items():
            found.setdefault(first.get(q, f"{name}/{q}"), []).append(value)
    return {key: sum(several) / len(several) for key, several in found.items()}


def count_repeated(repeated: Repeated) -> int:
    """How many queries an earlier set has too."""
    return sum(map(len, repeated.values()))

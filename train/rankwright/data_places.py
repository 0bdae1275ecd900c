"""Where in the user's files a text, an id or a judgement stands: looked up afterwards, for what is worth showing."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwright.rows import Faults, text_lines

# Compressed ones have a further suffix. Tables without lines (Parquet, Arrow) are not looked into.
SUFFIXES = (".jsonl", ".ndjson", ".tsv", ".csv")
PACKED = (".gz", ".zst")


@dataclass(frozen=True, slots=True)
class Wanted:
    """Something to be found: the first line that has all strings of a way; better ways come first."""

    ways: tuple[frozenset[str], ...]


def wanted_text(key: str, text: str) -> Wanted:
    """A document or query: the line with its id and its text, or else with its text."""
    # A title was joined to the text: in the file each stands alone.
    forms = [text.strip(), *([text.split("\n", 1)[1].strip()] if "\n" in text.strip() else [])]
    return Wanted((*(frozenset({key, form}) for form in forms), *(frozenset({form}) for form in forms if form)))


def wanted_judgement(pair: tuple[str, str], texts: tuple[str, str]) -> Wanted:
    """A judgement: the line with both ids, or with both texts."""
    return Wanted((frozenset(pair), frozenset(text.strip() for text in texts)))


def locate(wanted: Sequence[Wanted], path: Path, split: str | None) -> dict[int, str]:
    """Place in `wanted` -> `file:line`, for those that are found; files named after the split are searched first."""
    index: dict[str, list[tuple[int, int]]] = {}
    for number, one in enumerate(wanted):
        for rank, way in enumerate(one.ways):
            # The longest string is the one that fewest lines have.
            index.setdefault(max(way, key=len), []).append((number, rank))
    best: dict[int, tuple[int, str]] = {}
    if not wanted:
        return {}
    for file in data_files(path, split):
        for line, strings in _lines(file):
            for string in strings & index.keys():
                for number, rank in index[string]:
                    if rank < best.get(number, (len(wanted[number].ways), ""))[0] and (
                        wanted[number].ways[rank] <= strings
                    ):
                        best[number] = (rank, f"{file}:{line}")
    return {number: place for number, (_, place) in best.items()}


def data_files(path: Path, split: str | None) -> list[Path]:
    """The files with lines under a path, those of the split first."""
    if path.is_file():
        return [path] if _has_lines(path) else []
    files = [p for p in sorted(path.rglob("*")) if p.is_file() and _has_lines(p)]
    return sorted(files, key=lambda p: split is None or split not in p.relative_to(path).as_posix())


def _has_lines(path: Path) -> bool:
    name = path.name
    for packed in PACKED:
        name = name.removesuffix(packed)
    return name.endswith(SUFFIXES)


def _lines(path: Path) -> Iterator[tuple[int, set[str]]]:
    """(number, all strings and whole numbers in it) of each line that can be read."""
    delimiter = "," if ".csv" in path.suffixes else "\t"
    # What cannot be read has been said by the reader.
    for number, text in text_lines(path, Faults("drop")):
        if text.lstrip().startswith("{"):
            try:
                yield number, set(_strings(json.loads(text)))
            except (ValueError, RecursionError):
                continue
        elif len(text) < csv.field_size_limit():
            yield number, {cell.strip() for cell in next(csv.reader([text], delimiter=delimiter), [])}


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value.strip()
    elif isinstance(value, int) and not isinstance(value, bool):
        yield str(value)
    elif value is None:
        yield ""
    elif isinstance(value, Mapping | list):
        inner: Iterable[Any] = value.values() if isinstance(value, Mapping) else value
        for one in inner:
            yield from _strings(one)

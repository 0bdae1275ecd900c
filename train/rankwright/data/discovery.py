"""The sets in a user's files and folders: their splits and formats, a test set taken out of them, lines of texts."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rankwright.common.errors import UserError
from rankwright.common.files import atomic_folder, write_lines_atomic
from rankwright.common.resources import is_there, nearby
from rankwright.data.collection import Collection
from rankwright.data.formats.beir import available_splits, is_beir
from rankwright.data.formats.compression import check_place, plain_name
from rankwright.data.formats.reading import SPLITS, Faults, split_words
from rankwright.data.formats.tables import SUFFIXES, is_saved, is_table, saved_splits
from rankwright.data.formats.text_rows import LINES, text_lines
from rankwright.data.formats.trec import is_trec
from rankwright.data.formats.writers import WRITERS, beir_qrels, beir_texts, fits_a_table, json_row
from rankwright.data.leakage import split_apart

# A set may lie in SPLIT/ below DOMAIN/ below the folder that was given; deeper folders hold other things.
MOST_FOLDERS_DOWN = 3


@dataclass(frozen=True, slots=True)
class FoundSet:
    """One split of one set. split: train, dev, test, or None when no name shows it; upstream: its name in a folder."""

    name: str
    path: Path
    split: str | None
    upstream: str | None


def our_split(name: str) -> str | None:
    """train, dev or test, by a word of a file's or folder's name: `my-valid.jsonl.gz` is dev."""
    found = split_words(name)
    return SPLITS[found[-1]] if found else None


def find_sets(path: Path) -> list[FoundSet]:
    """All sets at a path: a file, a folder with splits, or a folder of such folders. Raises UserError for none."""
    if not is_there(path):
        raise UserError(f"{path}: no such file or folder{nearby(path)}")
    check_place(path, folder=True)
    found = [FoundSet(_name(path), path, our_split(path.name), None)] if path.is_file() else list(_walk(path, 0))
    if not found:
        names = ", ".join(sorted(p.name for p in path.iterdir())[:10]) or "nothing"
        raise UserError(
            f"{path}: no data found: give a folder in BEIR layout (corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv), or "
            f"files of rows ({', '.join(SUFFIXES)}); found: {names}"
        )
    return found


def _walk(folder: Path, depth: int) -> Iterator[FoundSet]:
    upstreams: list[str | None]
    if is_beir(folder):
        for split in available_splits(folder):
            yield FoundSet(_name(folder), folder, our_split(split), split)
        return
    if is_trec(folder):
        names = [path.name for path in folder.iterdir() if "qrels" in path.name.lower()]
        words = {word for name in names for word in split_words(name)}
        upstreams = [*sorted(words)] or [None]
        for word in upstreams:
            yield FoundSet(_name(folder), folder, SPLITS[word] if word else None, word)
        return
    if is_saved(folder):
        try:
            upstreams = [*saved_splits(folder)] or [None]
        except UserError:
            # The reader reports it.
            upstreams = [None]
        for upstream in upstreams:
            yield FoundSet(_name(folder), folder, our_split(upstream or folder.name), upstream)
        return
    yield from _of_files(folder, sorted(p for p in folder.iterdir() if p.is_file() and is_data(p)))
    if depth < MOST_FOLDERS_DOWN:
        for inner in sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")):
            yield from _walk(inner, depth + 1)


def _of_files(folder: Path, files: list[Path]) -> Iterator[FoundSet]:
    by_split: dict[str | None, list[Path]] = {}
    # The folder's name counts only where no file names a split: in `test/` with train.jsonl, notes.jsonl is neither.
    of_folder = None if any(our_split(file.name) for file in files) else our_split(folder.name)
    for file in files:
        by_split.setdefault(our_split(file.name) or of_folder, []).append(file)
    for split, parts in by_split.items():
        # The readers take all files of a folder that begin with the split's name.
        starts = {match[0] if (match := re.match(r"[A-Za-z]+", part.name)) else "" for part in parts}
        if len(parts) > 1 and len(starts) == 1 and our_split(min(starts)) == split is not None:
            yield FoundSet(_name(folder), folder, split, min(starts))
        else:
            for part in parts:
                yield FoundSet(_name(folder) if len(parts) == 1 and split else _name(part), part, split, None)


def is_data(path: Path) -> bool:
    # A .json file beside others mostly describes them; a .json file that the user names is read.
    return is_table(path) and ".json" not in path.suffixes and not path.name.startswith(".")


def _name(path: Path) -> str:
    """A set's name: the name of the file or folder without the split, or else that of the folder above."""
    path = path.resolve()
    stem = path.name.split(".")[0] if path.is_file() else path.name
    words = [word for word in re.split(r"[^A-Za-z0-9]+", stem) if word and word.lower() not in SPLITS]
    if not any(re.search("[A-Za-z]", word) for word in words):
        return _name(path.parent) if path.parent != path else "data"
    return "-".join(words)


def take_test(whole: Collection, *, fraction: float, seed: int) -> tuple[Collection, Collection]:
    """(the rest, test) by query; near duplicates, and queries of one group, stay on one side (see leakage, splits)."""
    try:
        [parts] = split_apart([whole], fraction=fraction, seed=seed)
    except UserError as error:
        raise UserError(
            f"no test set can be taken out: {error} (a test set of your own is recognised by its name)"
        ) from None
    return parts


def write_taken(folder: Path, rest: Collection, test: Collection) -> tuple[str, str]:
    """Write both sides; returns the paths of train and test relative to `folder`, which must not be there yet.

    A BEIR folder holds both, with the whole corpus for either. BEIR has no place for weights, groups and a teacher's
    scores: train is a file of groups where its queries have any; testing does not use them. When an id has a tab or
    spaces around it, both sides are files of groups.
    """
    tabs = not all(fits_a_table(i) for i in (*rest.queries, *test.queries, *rest.corpus))
    more = bool(rest.weights or rest.teacher_scores or rest.query_groups)
    in_groups = {"train": tabs or more, "test": tabs}
    with atomic_folder(folder) as draft:
        write_lines_atomic(draft / "corpus.jsonl", beir_texts(rest.corpus, {}))
        for split, side in (("train", rest), ("test", test)):
            if in_groups[split]:
                rows = WRITERS["groups"](replace(side, instruction=None, document_groups={}))
                write_lines_atomic(draft / split / f"{split}.jsonl", map(json_row, rows))
            else:
                write_lines_atomic(draft / f"queries_{split}.jsonl", beir_texts(side.queries, {}))
                write_lines_atomic(draft / f"qrels_{split}.tsv", beir_qrels(side))
    train, test_path = (f"{split}/{split}.jsonl" if alone else "." for split, alone in in_groups.items())
    return train, test_path


# What find_lines() looks for: the first line that has all strings of a way; better ways come first.
Wanted = tuple[frozenset[str], ...]


def wanted_text(key: str, text: str) -> Wanted:
    """A document or query: the line with its id and its text, or else with its text."""
    # The title was joined to the text; in the file they are separate.
    forms = [text.strip(), *([text.split("\n", 1)[1].strip()] if "\n" in text.strip() else [])]
    return (*(frozenset({key, form}) for form in forms), *(frozenset({form}) for form in forms if form))


def wanted_judgement(pair: tuple[str, str], texts: tuple[str, str]) -> Wanted:
    """A judgement: the line with both ids, or with both texts."""
    return frozenset(pair), frozenset(text.strip() for text in texts)


def find_lines(wanted: Sequence[Wanted], path: Path, split: str | None) -> dict[int, str]:
    """Place in `wanted` -> `file:line`, for those that are found; files named after the split are searched first."""
    index: dict[str, list[tuple[int, int]]] = {}
    for number, ways in enumerate(wanted):
        for rank, way in enumerate(ways):
            # The longest string is in the fewest lines.
            index.setdefault(max(way, key=len), []).append((number, rank))
    best: dict[int, tuple[int, str]] = {}
    if not wanted:
        return {}
    for file in data_files(path, split):
        for line, strings in _row_strings(file):
            for string in strings & index.keys():
                for number, rank in index[string]:
                    ways = wanted[number]
                    if rank < best.get(number, (len(ways), ""))[0] and ways[rank] <= strings:
                        best[number] = (rank, f"{file}:{line}")
    return {number: place for number, (_, place) in best.items()}


def data_files(path: Path, split: str | None) -> list[Path]:
    """The files with lines under a path, those of the split first."""
    if path.is_file():
        return [path] if plain_name(path).endswith(LINES) else []
    files = [p for p in sorted(path.rglob("*")) if p.is_file() and plain_name(p).endswith(LINES)]
    return sorted(files, key=lambda p: split is None or split not in p.relative_to(path).as_posix())


def _row_strings(path: Path) -> Iterator[tuple[int, set[str]]]:
    """(number, all strings and whole numbers in it) of each line that can be read."""
    delimiter = "," if ".csv" in path.suffixes else "\t"
    # The reader has reported what cannot be read.
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

"""The sets in a user's files and folders: which split each is, by the names that people give, and its format."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rankwright.arrow_rows import is_saved, saved_splits
from rankwright.beir import available_splits, is_beir
from rankwright.containers import SUFFIXES, is_table, table_rows
from rankwright.errors import UserError, nearest
from rankwright.formats import SAMPLE_ROWS, choose, kinds_of
from rankwright.rows import Faults
from rankwright.trec import is_trec
from rankwright.tuple_formats import is_judgement, roles_by_name, words_of

# A set may lie in SPLIT/ below DOMAIN/ below what was named; further down are other things.
MOST_FOLDERS_DOWN = 3
_OURS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("dev", "devel", "development", "valid", "validation", "val"), "dev"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation", "heldout"), "test"),
}


@dataclass(frozen=True, slots=True)
class FoundSet:
    """One split of one set. split: ours (train, dev, test), None when no name tells; upstream: its name in a folder."""

    name: str
    path: Path
    split: str | None
    upstream: str | None


def our_split(name: str) -> str | None:
    """train, dev or test when a word of a file's or folder's name says so: `my-valid.jsonl.gz` is dev."""
    found = [_OURS[word] for word in _words(name) if word in _OURS]
    return found[-1] if found else None


def _words(name: str) -> list[str]:
    return re.split(r"[^a-z]+", name.lower())


def _saved_splits(folder: Path) -> list[str | None]:
    """The splits of a folder that `datasets` saved, None for a single table or where they cannot be read."""
    try:
        return [*saved_splits(folder)] or [None]
    except UserError:
        # The reader tells it.
        return [None]


def find_sets(path: Path) -> list[FoundSet]:
    """All sets at a path: a file, a folder with splits in it, or a folder of such. Raises UserError when none is."""
    if not path.exists():
        near = nearest(path.name, (p.name for p in path.parent.iterdir()), 3) if path.parent.is_dir() else []
        raise UserError(f"{path}: no such file or folder" + (f"; near names: {', '.join(near)}" if near else ""))
    found = [FoundSet(_name(path), path, our_split(path.name), None)] if path.is_file() else list(_walk(path, 0))
    if not found:
        names = ", ".join(sorted(p.name for p in path.iterdir())[:10]) or "nothing"
        raise UserError(
            f"{path}: no data found: give a folder in BEIR layout (corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv), or "
            f"files of rows ({', '.join(SUFFIXES)}); found: {names}"
        )
    return found


def _walk(folder: Path, depth: int) -> Iterator[FoundSet]:
    if is_beir(folder):
        for split in available_splits(folder):
            yield FoundSet(_name(folder), folder, our_split(split), split)
        return
    if is_trec(folder):
        names = [path.name for path in folder.iterdir() if "qrels" in path.name.lower()]
        words = {word for name in names for word in _words(name) if word in _OURS}
        upstreams: list[str | None] = [*sorted(words)] or [None]
        for word in upstreams:
            yield FoundSet(_name(folder), folder, _OURS[word] if word else None, word)
        return
    if is_saved(folder):
        for upstream in _saved_splits(folder):
            yield FoundSet(_name(folder), folder, our_split(upstream or folder.name), upstream)
        return
    yield from _of_files(folder, sorted(p for p in folder.iterdir() if p.is_file() and _is_data(p)))
    if depth < MOST_FOLDERS_DOWN:
        for inner in sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")):
            yield from _walk(inner, depth + 1)


def _of_files(folder: Path, files: list[Path]) -> Iterator[FoundSet]:
    by_split: dict[str | None, list[Path]] = {}
    # The folder's name counts where no file's does: in a folder `test` with train.jsonl, notes.jsonl is neither.
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


def _is_data(path: Path) -> bool:
    # A .json beside other files is most often a note about them; one that is named is read.
    return is_table(path.name) and ".json" not in path.suffixes and not path.name.startswith(".")


@dataclass(frozen=True, slots=True)
class Format:
    """How a set is told to be read. columns: our name -> the file's, guessed where its names say nothing to us."""

    name: str
    columns: Mapping[str, str]


def format_of(one: FoundSet) -> Format:
    """The format of a found set by its content. Raises UserError when none fits, and nothing can be guessed."""
    path = one.path
    if path.is_dir():
        if is_beir(path) or is_trec(path):
            return Format("beir" if is_beir(path) else "trec", {})
        if is_saved(path):
            return Format("rows saved by datasets", {})
        path = next(p for p in sorted(path.iterdir()) if _is_data(p) and our_split(p.name) == one.split)
    # Its faults are the reader's to tell.
    rows = itertools.islice(table_rows(path, Faults("drop")), SAMPLE_ROWS)
    kinds = kinds_of(row for _, row in rows)
    if not kinds:
        return Format("rows", {})
    try:
        return Format(choose(kinds, None, path)[0], {})
    except UserError:
        columns = guess_columns(kinds)
        if "document" not in columns and "label" not in columns:
            raise
        ours = {theirs: our for our, theirs in columns.items()}
        return Format(choose({ours.get(name, name): kind for name, kind in kinds.items()}, None, path)[0], columns)


_GUESSES = {
    "query": set("query question search ask claim anchor prompt problem request".split()),
    "document": set("document doc passage paragraph answer context content chunk code snippet".split()),
}


def guess_columns(kinds: Mapping[str, str]) -> dict[str, str]:
    """Our name -> the one text column whose name has such a word; a number with a word of judgement is the label."""
    found: dict[str, str] = {}
    numbers = [n for n, kind in kinds.items() if kind == "number" and is_judgement(n, kind)]
    if roles_by_name(kinds) is not None and len(numbers) == 1:
        # The others have names that say what they are.
        return {"label": numbers[0]}
    for ours, words in _GUESSES.items():
        columns = [n for n, kind in kinds.items() if kind == "text"]
        names = [n for n in columns if words & words_of(n) and "id" not in words_of(n)]
        if len(names) == 1:
            found[ours] = names[0]
    if len(found) == 2 and len(numbers) == 1:
        found["label"] = numbers[0]
    return found


def _name(path: Path) -> str:
    """A set's name: what is left of the file's or folder's name without the split, or that of the folder above."""
    path = path.resolve()
    stem = path.name.split(".")[0] if path.is_file() else path.name
    words = [word for word in re.split(r"[^A-Za-z0-9]+", stem) if word and word.lower() not in _OURS]
    if not any(re.search("[A-Za-z]", word) for word in words):
        return _name(path.parent) if path.parent != path else "data"
    return "-".join(words)

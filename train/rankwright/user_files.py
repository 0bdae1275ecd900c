"""The sets in a user's files and folders, and which split each is, by the names that people give them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rankwright.beir import available_splits, is_beir
from rankwright.errors import UserError, nearest

DATA_SUFFIXES = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow")
PACKED = ("", ".gz", ".zst")
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
    found = [_OURS[word] for word in re.split(r"[^a-z]+", name.lower()) if word in _OURS]
    return found[-1] if found else None


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
            f"files of {', '.join(DATA_SUFFIXES)}; found: {names}"
        )
    return found


def _walk(folder: Path, depth: int) -> Iterator[FoundSet]:
    if is_beir(folder):
        for split in available_splits(folder):
            yield FoundSet(_name(folder), folder, our_split(split), split)
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
    return path.name.endswith(tuple(suffix + packed for suffix in DATA_SUFFIXES for packed in PACKED))


def _name(path: Path) -> str:
    """A set's name: what is left of the file's or folder's name without the split, or that of the folder above."""
    path = path.resolve()
    stem = path.name.split(".")[0] if path.is_file() else path.name
    words = [word for word in re.split(r"[^A-Za-z0-9]+", stem) if word and word.lower() not in _OURS]
    if not any(re.search("[A-Za-z]", word) for word in words):
        return _name(path.parent) if path.parent != path else "data"
    return "-".join(words)

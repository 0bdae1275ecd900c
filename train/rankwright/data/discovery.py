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
from rankwright.common.plurals import counted
from rankwright.common.resources import is_there, nearby
from rankwright.data.collection import Collection
from rankwright.data.formats.beir import available_splits, is_beir
from rankwright.data.formats.compression import check_place, plain_name
from rankwright.data.formats.joined import joined_splits, roles_of
from rankwright.data.formats.read import folder_kind
from rankwright.data.formats.reading import SPLITS, quiet, split_words
from rankwright.data.formats.tables import SUFFIXES, foreign, is_saved, is_table, saved_splits, why_unreadable
from rankwright.data.formats.text_rows import LINES, delimiter_of, text_lines
from rankwright.data.formats.trec import is_trec, is_trec_name, trec_splits
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


def find_sets(path: Path, encoding: str | None = None) -> list[FoundSet]:
    """All sets at a path: a file, a folder with splits, or a folder of such folders. Raises UserError for none.

    Files of a folder in which no row can be read are left out, see unread(), unless there are no others.
    """
    if not is_there(path):
        raise UserError(f"{path}: no such file or folder{nearby(path)}")
    check_place(path, folder=True)
    if path.is_file():
        return [FoundSet(_name(path), path, our_split(path.name), None)]
    found = [*_walk(path, 0, whole=False, encoding=encoding)] or [*_walk(path, 0, whole=True, encoding=encoding)]
    if not found:
        names = ", ".join(
            f"{p.name} ({_why_unread(p, deep=False)})" if p.is_file() and not is_table(p) else p.name
            for p in sorted(path.iterdir())[:10]
        )
        names = names or "nothing"
        raise UserError(
            f"{path}: no data found: give a folder in BEIR layout (corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv), or "
            f"files of rows ({', '.join(SUFFIXES)}); found: {names}"
        )
    return found


def _walk(folder: Path, depth: int, *, whole: bool, encoding: str | None) -> Iterator[FoundSet]:
    if (upstreams := _upstreams(folder)) is not None:
        of_folder = our_split(folder.name) if is_saved(folder) else None
        for name in upstreams:
            yield FoundSet(_name(folder), folder, our_split(name) if name else of_folder, name)
        return
    files = sorted(p for p in folder.iterdir() if p.is_file() and is_data(p))
    # A broken file that a split needs is kept: its reader stops, and no other set takes its place silently.
    kept = [p for p in files if whole or our_split(p.name) or why_unreadable(p, encoding) is None]
    yield from _of_files(folder, kept)
    if depth < MOST_FOLDERS_DOWN:
        for inner in sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")):
            yield from _walk(inner, depth + 1, whole=whole, encoding=encoding)


def _kind(folder: Path) -> str | None:
    """As folder_kind; BEIR where both fit, which the reader then refuses."""
    return "beir" if is_beir(folder) and is_trec(folder) else folder_kind(folder)


def _upstreams(folder: Path) -> Sequence[str | None] | None:
    """The splits of a folder that is one set, [None] where it has one without a name; None for files of rows."""
    kind = _kind(folder)
    if kind == "beir":
        return available_splits(folder)
    if kind == "joined":
        return joined_splits(folder) or [None]
    if kind == "trec":
        return trec_splits(folder) or [None]
    if not is_saved(folder):
        return None
    try:
        return saved_splits(folder) or [None]
    except UserError:
        # The reader reports it.
        return [None]


def unread(path: Path, found: Sequence[FoundSet]) -> dict[Path, str]:
    """The files of a folder that no set is read from -> why, in words; hidden ones under their folder, with a count."""
    if not path.is_dir():
        return {}
    files = {one.path for one in found if one.path.is_file()}
    folders = [one for one in found if one.path.is_dir()]
    why: dict[Path, str] = {}
    hidden = 0
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        inner = file.relative_to(path).parts
        in_set = any(file.is_relative_to(one.path) and _is_part(file, one) for one in folders)
        if any(part.startswith(".") for part in inner):
            hidden += 1
        elif file not in files and not in_set:
            why[file] = _why_unread(file, deep=len(inner) > MOST_FOLDERS_DOWN + 1)
    if hidden:
        why[path] = f"{counted(hidden, 'hidden file')} left out"
    return why


def _is_part(file: Path, one: FoundSet) -> bool:
    """Whether a file of a folder is read for a set of that folder, by its name."""
    if is_saved(one.path):
        return True
    kind = _kind(one.path)
    if kind in ("beir", "trec"):
        return is_trec_name(file.name) or file.name.startswith(("queries", "qrels")) or file.parent.name == "qrels"
    if kind == "joined":
        return any(file in paths for paths in roles_of(one.path).values())
    return is_table(file) and file.name.startswith(one.upstream or "")


def _why_unread(file: Path, *, deep: bool) -> str:
    if deep and is_table(file):
        return f"more than {MOST_FOLDERS_DOWN} folders down: name its folder to have it read"
    if is_data(file):
        return why_unreadable(file) or "not needed for the sets beside it"
    with file.open("rb") as opened:
        head = opened.read(1 << 12)
    if not head:
        return "empty"
    if (what := foreign(head, file)) is not None:
        return what
    if ".json" in file.suffixes:
        return "beside other files, where .json mostly describes them: name it to have it read"
    if b"\0" in head and not head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "a binary file of an unknown kind"
    return f"not a file of rows by its name ({', '.join(SUFFIXES)}): name it to have it read"


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


def find_lines(wanted: Sequence[Wanted], path: Path, split: str | None, encoding: str | None = None) -> dict[int, str]:
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
        for line, strings in _row_strings(file, encoding):
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


def _row_strings(path: Path, encoding: str | None) -> Iterator[tuple[int, set[str]]]:
    """(number, all strings and whole numbers in it) of each line that can be read."""
    delimiter = "\t"
    # The reader has reported what cannot be read.
    for number, text in text_lines(path, quiet(encoding)):
        if number == 1 and ".csv" in path.suffixes:
            delimiter = delimiter_of(text)
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

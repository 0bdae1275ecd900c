"""Sets on the disk: the format of a path, and the reader for it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Unpack

from rankwright.common.errors import UserError
from rankwright.common.plurals import counted
from rankwright.common.resources import is_there, nearby
from rankwright.common.values import one_text, path_text
from rankwright.data.collection import Collection
from rankwright.data.formats.beir import available_splits, is_beir, read_beir
from rankwright.data.formats.compression import check_place
from rankwright.data.formats.detect import FOLDERS, check_format, read_tables
from rankwright.data.formats.encodings import check_encoding
from rankwright.data.formats.joined import is_joined, read_joined
from rankwright.data.formats.reading import (
    SPLITS,
    Faults,
    Options,
    Reading,
    Say,
    check_columns,
    log_say,
    split_words,
)
from rankwright.data.formats.tables import SUFFIXES, is_saved, is_table, saved_files, table_rows
from rankwright.data.formats.trec import is_trec, read_trec

_AT_AN_END = re.compile(rf"(?P<word>{'|'.join(SPLITS)})(?P<rest>.+)|(?P<start>.+)(?P<last>{'|'.join(SPLITS)})")


def read_collection(
    path: str | Path,
    *,
    name: str,
    split: str | None = None,
    say: Say = log_say,
    faults: Faults | None = None,
    **options: Unpack[Options],
) -> Collection:
    """Read one split of a set: a folder in BEIR or TREC layout, a file of rows, or a folder of such files.

    The content decides the format unless `format` is given; see detect.FORMS, beir.read_beir, trec.read_trec.
    options: `format`, `columns`, `labels`, `group_key`, `encoding`, see reading.Options.
    A single file is read whole, whatever `split` is; in a folder of files with splits in their names (`train.jsonl`,
    `shop_test-0.parquet`) only those of `split` are.
    `say` receives a line for everything that is left out.
    Raises UserErrors, `file:line: what, how to fix it`, with the first 20 faults and the number of the others. With
    faults=Faults("drop") faulty rows are left out and counted in `faults`.
    """
    one_text("name", name)
    if split is not None:
        one_text("split", split)
    reading = reading_of(name, split, say, options, Faults() if faults is None else faults)
    return read_path(Path(path_text("path", path)), options.get("format"), reading)


def reading_of(name: str, split: str | None, say: Say, options: Options, faults: Faults) -> Reading:
    """The Reading of a set with `options`. Raises UserError for values of another type."""
    if unknown := options.keys() - Options.__optional_keys__:
        raise TypeError(f"unknown option {min(unknown)!r} (known: {', '.join(sorted(Options.__optional_keys__))})")
    for option, value in options.items():
        if option in ("columns", "labels"):
            if value is not None and not isinstance(value, Mapping):
                raise UserError(f"{option}: must be a mapping, such as {{'query': 'question'}} or {{'yes': 1}}")
        elif value is not None:
            one_text(option, value)
    key, encoding = options.get("group_key"), options.get("encoding")
    return Reading(name, split, faults, say, options.get("columns") or {}, key, options.get("labels") or {}, encoding)


def read_path(path: Path, format: str | None, reading: Reading) -> Collection:
    """As read_collection, with its other arguments in one object."""
    check_format(format)
    check_columns(reading.columns)
    check_encoding(reading.encoding)
    if not is_there(path):
        raise UserError(f"{path}: no such file or folder{nearby(path)}")
    check_place(path, folder=True)
    if path.is_dir():
        kind = format if format in FOLDERS else folder_kind(path) if format is None else None
        if kind is not None:
            return {"beir": read_beir, "trec": read_trec, "joined": read_joined}[kind](path, reading)
        files = saved_files(path, reading.split) if is_saved(path) else _row_files(path, reading)
    elif format in FOLDERS:
        raise UserError(f"{path}: format {format} is a folder, and this is a file: give the folder, or another format")
    else:
        files = [path]
    return read_tables([(file, table_rows(file, reading)) for file in files], format, reading)


def folder_kind(folder: Path) -> str | None:
    """The format of a folder of several parts: beir, trec or joined; None for one of rows. Raises UserError for two."""
    found = [name for name, test in (("beir", is_beir), ("trec", is_trec)) if test(folder)]
    # A folder may have only some files of BEIR: labels decide.
    if is_joined(folder) and (not found or (found == ["beir"] and not available_splits(folder))):
        return "joined"
    if len(found) > 1:
        raise UserError(
            f"{folder}: holds files of BEIR (queries.jsonl) and of TREC (topics): give `format: beir` or `format: trec`"
        )
    return found[0] if found else None


def _row_files(folder: Path, reading: Reading) -> list[Path]:
    """The files of rows, those of the split where they are named after splits."""
    split = reading.split
    files = _tables(folder) or (_tables(folder / "data") if (folder / "data").is_dir() else [])
    if not files:
        found = ", ".join(sorted(p.name for p in folder.iterdir())[:10]) or "nothing"
        raise UserError(
            f"{folder}: neither a BEIR layout (corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv), nor TREC files (topics, "
            f"qrels, corpus), nor files of rows ({', '.join(SUFFIXES)}); found: {found}"
        )
    if split is None:
        return files
    # A split may have any name, at the start of the file's; names of ours are found wherever they stand.
    start = re.compile(rf"{re.escape(split)}(?![A-Za-z0-9])")
    chosen = [p for p in files if start.match(p.name) or split in split_words(p.name)]
    named = {word for p in files for word in split_words(p.name)}
    if not chosen and named:
        raise UserError(
            f"{folder}: no file for split {split!r}. Splits by file name: {', '.join(sorted(named))}. "
            f"Give split: NAME, or add {split}.jsonl"
        )
    for path in chosen:
        others = {
            word for word in split_words(path.name) if word in SPLITS and SPLITS[word] != SPLITS.get(split, split)
        }
        if others and not start.match(path.name):
            raise UserError(
                f"{path}: its name has the splits {', '.join(sorted({split, *others}))}: rename it, or give `path` the "
                "file itself"
            )
    if not chosen:
        _refuse_joined(files)
        if len(files) > 1:
            reading.say(
                f"{folder}: no file name has a split: {counted(len(files), 'file is', 'files are')} read as one set"
            )
    if chosen and len(chosen) < len(files):
        left = len(files) - len(chosen)
        reading.say(f"{folder}: {counted(len(chosen), 'file')} of split {split!r} read, {left} of other names left out")
    return chosen or files


def _refuse_joined(files: Sequence[Path]) -> None:
    """Raise UserError for names that differ only in a split written in one word with them: shoptrain, shoptest."""
    found = []
    for path in files:
        name = path.name.split(".")[0].lower()
        if match := _AT_AN_END.fullmatch(name):
            word, rest = (match["word"], match["rest"]) if match["word"] else (match["last"], match["start"])
            found.append((path, SPLITS[word], rest))
    for (one, split, rest), (other, second, same) in itertools.combinations(found, 2):
        if split != second and rest == same:
            raise UserError(
                f"{one.parent}: {one.name} and {other.name} seem to be two splits: put a dash before and after the "
                "split's name in them, or give `path` the file itself"
            )


def _tables(folder: Path) -> list[Path]:
    files = sorted(p for p in folder.iterdir() if p.is_file() and is_table(p) and not p.name.startswith("."))
    # A .json file beside other tables mostly describes them, as dataset_info.json does.
    return [p for p in files if ".json" not in p.suffixes] or files

"""Sets on the disk: the format of a path, and the reader for it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from rankwright.common.errors import UserError
from rankwright.common.resources import nearby
from rankwright.common.values import one_text, path_text
from rankwright.data.collection import Collection
from rankwright.data.formats.beir import is_beir, read_beir
from rankwright.data.formats.detect import FOLDERS, check_format, read_tables
from rankwright.data.formats.reading import SPLIT_NAMES, Faults, Reading, Say, check_columns, log_say
from rankwright.data.formats.tables import SUFFIXES, is_saved, is_table, saved_files, table_rows
from rankwright.data.formats.trec import is_trec, read_trec

_SPLIT_NAMES = re.compile(rf"({'|'.join(SPLIT_NAMES)})\b")


def read_collection(
    path: str | Path,
    *,
    name: str,
    split: str | None = None,
    say: Say = log_say,
    faults: Faults | None = None,
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
    group_key: str | None = None,
) -> Collection:
    """Read one split of a set: a folder in BEIR or TREC layout, a file of rows, or a folder of such files.

    The content decides the format unless `format` is given; see detect.FORMS, beir.read_beir, trec.read_trec.
    columns: our name of a column -> the file's. A single file is read whole, whatever `split` is; in a folder of
    files named after splits (`train.jsonl`, `test-0.parquet`) only those of `split` are.
    `say` receives a line for everything that is left out.
    Raises UserErrors, `file:line: what, how to fix it`, with the first 20 faults and the number of the others. With
    faults=Faults("drop") faulty rows are left out and counted in `faults`.
    """
    one_text("name", name)
    for option, value in (("split", split), ("format", format), ("group_key", group_key)):
        if value is not None:
            one_text(option, value)
    if columns is not None and not isinstance(columns, Mapping):
        raise UserError("columns: must be a mapping: our name of a column -> the file's")
    reading = Reading(name, split, Faults() if faults is None else faults, say, columns or {}, group_key)
    return read_path(Path(path_text("path", path)), format, reading)


def read_path(path: Path, format: str | None, reading: Reading) -> Collection:
    """As read_collection, with its other arguments in one object."""
    check_format(format)
    check_columns(reading.columns)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder{nearby(path)}")
    if path.is_dir():
        kind = format if format in FOLDERS else _folder_kind(path) if format is None else None
        if kind == "beir":
            return read_beir(path, reading)
        if kind == "trec":
            return read_trec(path, reading)
        files = saved_files(path, reading.split) if is_saved(path) else _row_files(path, reading)
    elif format in FOLDERS:
        raise UserError(f"{path}: format {format} is a folder, and this is a file: give the folder, or another format")
    else:
        files = [path]
    return read_tables([(file, table_rows(file, reading.faults)) for file in files], format, reading)


def _folder_kind(folder: Path) -> str | None:
    found = [name for name, test in (("beir", is_beir), ("trec", is_trec)) if test(folder)]
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
    chosen = [p for p in files if re.match(rf"{re.escape(split)}(?![A-Za-z0-9])", p.name)]
    named = {match[1] for p in files if (match := _SPLIT_NAMES.match(p.name))}
    if not chosen and named:
        raise UserError(
            f"{folder}: no file for split {split!r}. Splits by file name: {', '.join(sorted(named))}. "
            f"Give split: NAME, or add {split}.jsonl"
        )
    if chosen and len(chosen) < len(files):
        left = len(files) - len(chosen)
        reading.say(f"{folder}: {len(chosen)} file(s) of split {split!r} read, {left} of other names left out")
    return chosen or files


def _tables(folder: Path) -> list[Path]:
    files = sorted(p for p in folder.iterdir() if p.is_file() and is_table(p) and not p.name.startswith("."))
    # A .json file beside other tables mostly describes them, as dataset_info.json does.
    return [p for p in files if ".json" not in p.suffixes] or files

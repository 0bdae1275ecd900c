"""Sets on disk: which format a path is, and the reader for it."""

from __future__ import annotations

import re
from pathlib import Path

from rankwright.beir import is_beir, read_beir
from rankwright.errors import UserError, nearest
from rankwright.examples import Collection
from rankwright.jsonl_groups import read_groups
from rankwright.rows import Faults, Say, log_say

SUFFIXES = (".jsonl", ".jsonl.gz")
_SPLIT_NAMES = re.compile(r"(train|dev|valid|validation|val|test|eval)\b")


def read_collection(
    path: Path, *, name: str, split: str | None = None, say: Say = log_say, faults: Faults | None = None
) -> Collection:
    """Read one split of a set: a folder in BEIR layout, or a .jsonl(.gz) file, or a folder of them, with groups.

    See beir.read_beir and jsonl_groups.read_groups for the columns. A single file is read whole, whatever
    `split` is; in a folder of files named after splits (`train.jsonl`, `test-0.jsonl.gz`) those of `split` are.
    `say` receives a line for everything that is left out.
    Raises UserErrors, `file:line: what, how to fix it`; the first 20 faults, and how many more there are. With
    faults=Faults("drop") rows that have one are left out, and counted in `faults`.
    """
    faults = Faults() if faults is None else faults
    if path.is_dir():
        if is_beir(path):
            return read_beir(path, name=name, split=split, say=say, faults=faults)
        return read_groups(_group_files(path, split, say), name=name, say=say, faults=faults)
    if not path.exists():
        folder = path.parent
        near = nearest(path.name, (p.name for p in folder.iterdir()), count=3) if folder.is_dir() else []
        hint = f"near names in {folder}: {', '.join(near)}" if near else f"look into {folder}"
        raise UserError(f"{path}: no such file or folder; {hint}")
    if not path.name.endswith(SUFFIXES):
        raise UserError(
            f"{path}: not a format that can be read: give a .jsonl or .jsonl.gz file of groups "
            "(query, positives, negatives), or a folder in BEIR layout (corpus.jsonl, queries, qrels)"
        )
    return read_groups([path], name=name, say=say, faults=faults)


def _group_files(folder: Path, split: str | None, say: Say) -> list[Path]:
    files = sorted(p for p in folder.iterdir() if p.name.endswith(SUFFIXES) and p.is_file())
    if not files:
        found = ", ".join(sorted(p.name for p in folder.iterdir())[:10]) or "nothing"
        raise UserError(
            f"{folder}: neither a BEIR layout (corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv) nor .jsonl files "
            f"of groups; found: {found}"
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
        say(f"{folder}: {len(chosen)} file(s) of split {split!r} read, {left} of other names left out")
    return chosen or files

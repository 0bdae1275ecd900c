"""Files and folders that appear whole or not at all, our JSON and JSONL files, and the folder of caches."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from rankwright.common.disk import room_for
from rankwright.common.errors import UserError
from rankwright.common.hashing import file_sha256

T = TypeVar("T")
# The names of files and folders that are not complete, also those of RunFolder.create and of token stores.
DRAFT = re.compile(r"\..+\.tmp|\.write-test-\d+")
DAY_S = 86400.0


def write_text_atomic(path: Path, text: str) -> None:
    """Write `text` in UTF-8; a reader sees the old file or the new one, never a part. Makes parent folders."""
    with atomic_file(path) as draft:
        draft.write_text(text, encoding="utf-8", newline="")


def write_lines_atomic(path: Path, lines: Iterable[str]) -> None:
    """Write each line with a newline after it, streaming. When `lines` raises, the old file stays as it was."""
    with lines_atomic(path) as write:
        for line in lines:
            write(line)


@contextlib.contextmanager
def lines_atomic(path: Path) -> Iterator[Callable[[str], object]]:
    """Yields write(line); the file appears when the block ends, and stays as it was when the block fails."""
    with atomic_file(path) as draft, draft.open("x", encoding="utf-8", newline="") as file:
        yield lambda line: file.write(line + "\n")


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A name beside `path` for a file that replaces it when the block succeeds, and is removed when it fails.

    Raises UserError where a folder is in its place.
    """
    if path.is_dir():
        raise UserError(f"{path}: a folder is where a file belongs: move it away or delete it")
    path.parent.mkdir(parents=True, exist_ok=True)
    # Unlike tempfile's, this file gets the permissions that the user's umask gives to any other file.
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with room_for(path, draft=draft):
            yield draft
            with draft.open("rb+") as file:
                os.fsync(file.fileno())
            draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def atomic_folder(path: Path, needed_bytes: int | None = None) -> Iterator[Path]:
    """A temporary folder beside `path`; it replaces `path` when the block succeeds and is removed when it fails.

    needed_bytes: how much its files take, for the message when there is no room for them.
    Only one process may write to a path; it removes what a killed one left behind. A process that is killed
    between the two renames of a replacement leaves the old folder as `.NAME.old`; the next writer puts it back.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft, old = path.with_name(f".{path.name}.tmp"), path.with_name(f".{path.name}.old")
    if old.exists() and not path.exists():
        old.rename(path)
    for left in (draft, old):
        if left.exists():
            shutil.rmtree(left)
    try:
        with room_for(path, needed_bytes, draft=draft):
            draft.mkdir()
            yield draft
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    if path.exists():
        path.rename(old)
    draft.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def remove_drafts(folder: Path, *, older_than_s: float = 0) -> int:
    """Remove what killed writers left in a folder and below it; returns how many files and folders.

    older_than_s: where other processes may be writing at this moment.
    """
    latest = time.time() - older_than_s
    drafts = [path for path in folder.rglob(".*") if DRAFT.fullmatch(path.name)]
    drafts = [path for path in drafts if not older_than_s or path.lstat().st_mtime < latest]
    for path in drafts:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return len(drafts)


def link_or_copy(source: Path, target: Path) -> None:
    """A second name for a file that is only replaced as a whole; a copy with its time where there are no links."""
    try:
        os.link(source, target)
    except OSError:
        with room_for(target, source.stat().st_size):
            shutil.copy2(source, target)


def json_line(row: Mapping[str, Any]) -> str:
    """One row of a JSONL file. Raises ValueError for numbers that JSON does not have."""
    return json.dumps(row, ensure_ascii=False, allow_nan=False)


def read_jsonl(path: Path, convert: Callable[[dict[str, Any]], T], what: str) -> Iterator[T]:
    """convert(row) of each row of a JSONL file that we wrote, streaming.

    what: a row, and what to do about a damaged one, as in `a row of scores: mine again`.
    Raises UserError with file and line for a row that is damaged or that convert does not take (ValueError, TypeError,
    KeyError).
    """
    return (value for _, value in read_jsonl_places(path, convert, what))


def read_jsonl_places(path: Path, convert: Callable[[dict[str, Any]], T], what: str) -> Iterator[tuple[int, T]]:
    """(byte at which the row starts, convert(row)), as read_jsonl."""
    start = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield start, convert(json.loads(line))
            except (ValueError, TypeError, KeyError) as error:
                raise UserError(f"{path}:{number}: not {what} ({type(error).__name__}: {error})") from None
            start += len(line)


def append_lines(path: Path, lines: Iterable[str]) -> None:
    """Add lines of ASCII text, which are on the disk when this returns.

    After a line that a kill cut short they begin on a line of their own.
    """
    with room_for(path), path.open("a+b") as file:
        cut = False
        if file.tell():
            file.seek(-1, os.SEEK_END)
            cut = file.read(1) != b"\n"
        file.write(b"\n" * cut + "".join(line + "\n" for line in lines).encode("ascii"))
        file.flush()
        os.fsync(file.fileno())


def read_json_object(path: Path) -> dict[str, Any] | None:
    """A record that we wrote, or None when it is missing or damaged: the caller then writes it again."""
    try:
        # A pipe in its place would never end.
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def cache_folder() -> Path:
    """RANKWRIGHT_CACHE, or rankwright/ in the user's cache folder."""
    own = os.environ.get("RANKWRIGHT_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rankwright"


def make_cache_folder(folder: Path, what: str) -> None:
    """Make the folder of a cache. Raises UserError when `what` cannot be kept there."""
    try:
        root = cache_folder()
        if not os.environ.get("RANKWRIGHT_CACHE") and folder.is_relative_to(root):
            # Scores and vectors of private texts, in a place that others of this machine may read.
            root.parent.mkdir(parents=True, exist_ok=True)
            root.mkdir(mode=0o700, exist_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        remove_drafts(folder, older_than_s=DAY_S)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot keep {what} there ({error.strerror}): set RANKWRIGHT_CACHE to a folder of yours"
        ) from None


def write_kept(folder: Path, keys: Iterable[bytes], rows: Any) -> Path:
    """Keep an array as folder/KEYS-CONTENT.npy, named by the hashes of its keys and of its bytes, for read_kept."""
    import numpy as np

    content = io.BytesIO()
    np.save(content, rows)
    names = [hashlib.sha256(part).hexdigest()[:32] for part in (b"".join(keys), content.getvalue())]
    path = folder / f"{'-'.join(names)}.npy"
    with atomic_file(path) as draft:
        draft.write_bytes(content.getvalue())
    return path


def read_kept(path: Path, read: Callable[[Path], T], say: Callable[[str], None], again: str) -> T | None:
    """read(path) of a file of write_kept, or None for a damaged one, which is reported and removed.

    again: what follows from that, such as `its texts are encoded again`. Raises UserError when the disk does not give
    the file: it may be whole, and its content may have been paid for.
    """
    try:
        if not path.name.endswith(f"-{file_sha256(path)[:32]}.npy"):
            raise ValueError("not as it was written")
        return read(path)
    except FileNotFoundError:
        # Another process found it damaged.
        return None
    except OSError as error:
        said = error.strerror or error
        raise UserError(f"{path}: cannot be read ({said}): make it readable, or remove it") from None
    except (ValueError, IndexError, EOFError) as error:
        say(f"{path}: damaged ({error}): removed, {again}")
        path.unlink(missing_ok=True)
        return None

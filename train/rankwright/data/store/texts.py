"""Texts by id that need not fit into memory: a read-only mapping over a memory-mapped file, and its builder."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import uuid
import weakref
from bisect import bisect_right
from collections.abc import ItemsView, Iterator, Mapping, Sequence, ValuesView
from contextvars import ContextVar
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, TypeGuard, TypeVar

from rankwright.common.errors import UserError
from rankwright.data.store.arrow_files import Content, TextWriter, content_of, index_path, open_files
from rankwright.data.store.views import StreamedItems, StreamedValues

T = TypeVar("T")
# Memory that a set's texts may take as Python objects; a larger set lies in a file.
IN_MEMORY_BYTES = 64 * 2**20
# Two objects and a place in a dict, in addition to the texts themselves.
ENTRY_BYTES = 200
PREFIX = ".texts-"
_parent: ContextVar[Path | None] = ContextVar("_parent", default=None)
# Splits of one set read the same corpus again: they share one file.
_stores: weakref.WeakValueDictionary[tuple[int, int], TextStore] = weakref.WeakValueDictionary()


class TextStore(Mapping[str, str]):
    """id -> text over NAME.arrow and NAME.index.npy, in the order of the file; texts are read when asked for.

    Iterating streams. May be pickled (the other process opens the files) and used on both sides of a fork.
    Raises UserError for files that are missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content: Content | None = None
        table, self._index = open_files(path)
        names = table.column_names
        self._ids: list[Any] = table.column("_id").chunks
        self._texts: list[Any] = table.column("text").chunks
        self._groups: list[Any] | None = table.column("group").chunks if "group" in names else None
        self._starts = [*accumulate(map(len, self._ids), initial=0)]

    def __reduce__(self) -> tuple[Any, ...]:
        return TextStore, (self.path,)

    def _damaged(self, error: Exception | str) -> UserError:
        return UserError(f"{self.path}: damaged ({error}): delete it and run the data stage again")

    def _find(self, identifier: object) -> tuple[int, int] | None:
        """(batch, place in it)"""
        if not isinstance(identifier, str):
            return None
        for row in self._index.find(identifier):
            if row >= self._starts[-1]:
                raise self._damaged("its index names rows that it lacks")
            batch = bisect_right(self._starts, row) - 1
            place = row - self._starts[batch]
            if self._value(self._ids, batch, place) == identifier:
                return batch, place
        return None

    def _value(self, column: list[Any], batch: int, place: int) -> Any:
        try:
            return column[batch][place].as_py()
        except ValueError as error:
            raise self._damaged(error) from None

    def __getitem__(self, identifier: str) -> str:
        found = self._find(identifier)
        if found is None:
            raise KeyError(identifier)
        text: str = self._value(self._texts, *found)
        return text

    def __contains__(self, identifier: object) -> bool:
        return self._find(identifier) is not None

    def __len__(self) -> int:
        return self._starts[-1]

    def __iter__(self) -> Iterator[str]:
        return self._stream(self._ids)

    def _stream(self, column: list[Any]) -> Iterator[Any]:
        for values in column:
            # Some thousand at a time: a batch of short texts has many.
            for start in range(0, len(values), 4096):
                try:
                    yield from values.slice(start, 4096).to_pylist()
                except ValueError as error:
                    raise self._damaged(error) from None

    def items(self) -> ItemsView[str, str]:
        """(id, text), streaming."""
        return StreamedItems(self, lambda: ((identifier, text) for identifier, text, _ in self.rows()))

    def values(self) -> ValuesView[str]:
        """The texts, streaming."""
        return StreamedValues(self, lambda: self._stream(self._texts))

    def get_many(self, identifiers: Sequence[str]) -> list[str]:
        """The texts of these ids, in their order, read in the order of the file. Raises KeyError for an unknown id."""
        places = [self._find(identifier) for identifier in identifiers]
        texts = [""] * len(places)
        for number in sorted(range(len(places)), key=lambda n: places[n] or (0, 0)):
            found = places[number]
            if found is None:
                raise KeyError(identifiers[number])
            texts[number] = self._value(self._texts, *found)
        return texts

    def group_of(self, identifier: object) -> str | None:
        """The value of the set's group key for a document, or None."""
        found = self._find(identifier)
        return None if found is None or self._groups is None else self._value(self._groups, *found)

    def rows(self) -> Iterator[tuple[str, str, str | None]]:
        """(id, text, group), streaming."""
        groups = iter(()) if self._groups is None else self._stream(self._groups)
        for identifier, text in zip(self._stream(self._ids), self._stream(self._texts), strict=True):
            yield identifier, text, next(groups, None)

    @property
    def groups(self) -> Mapping[str, str]:
        """Id -> group of the documents that have one; empty where the file has no groups."""
        return {} if self._groups is None else StoredGroups(self)

    @property
    def grouped(self) -> int:
        """How many documents have a group."""
        return sum(len(values) - values.null_count for values in self._groups or ())


class StoredGroups(Mapping[str, str]):
    """id -> group of a TextStore whose file has groups."""

    def __init__(self, store: TextStore) -> None:
        self.store = store

    def __getitem__(self, identifier: str) -> str:
        group = self.store.group_of(identifier)
        if group is None:
            raise KeyError(identifier)
        return group

    def __iter__(self) -> Iterator[str]:
        return (identifier for identifier, _, group in self.store.rows() if group is not None)

    def __len__(self) -> int:
        return self.store.grouped


class TextBuilder:
    """Collects texts by id while a set is read: add() each, finish() once.

    Its files are removed with the TextStore that finish() gives, or with the builder when reading fails.
    """

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}
        self._bytes = 0
        self._writer: TextWriter | None = None

    def __len__(self) -> int:
        return len(self._texts) if self._writer is None else self._writer.content.rows

    def get(self, identifier: str, default: T) -> str | T:
        """The text that was added under an id."""
        held = self._texts.get(identifier) if self._writer is None else self._writer.get(identifier)
        return default if held is None else held

    def add(self, identifier: str, text: str) -> Literal["new", "same", "other"]:
        """Keep a text under a new id; for a known id, return whether it has the same text."""
        held = self.get(identifier, None)
        if held is not None:
            return "same" if held == text else "other"
        if self._writer is not None:
            self._writer.add(identifier, text)
            return "new"
        self._texts[identifier] = text
        self._bytes += sys.getsizeof(text) + ENTRY_BYTES
        if self._bytes > IN_MEMORY_BYTES:
            self._spill()
        return "new"

    def _spill(self) -> None:
        folder = make_folder()
        self._remove = remove_with(self, folder)
        self._writer = TextWriter(folder / "texts.arrow")
        for identifier, text in self._texts.items():
            self._writer.add(identifier, text)
        self._texts = {}

    def finish(self) -> Mapping[str, str]:
        """A dict, or beyond IN_MEMORY_BYTES a TextStore."""
        if self._writer is None:
            return self._texts
        self._writer.close()
        content = self._writer.content
        known = _stores.get((content.rows, content.total))
        if known is not None:
            self._remove()
            return known
        store = TextStore(self._writer.path)
        store.content = content
        self._remove.detach()
        remove_with(store, store.path.parent)
        _stores[content.rows, content.total] = store
        return store


def content(texts: Mapping[str, str], groups: Mapping[str, str]) -> Content:
    """A summary of the texts and groups of a corpus in any order."""
    if isinstance(texts, TextStore) and texts.content is not None and not groups:
        return texts.content
    return content_of(_rows(texts, groups))


def _rows(texts: Mapping[str, str], groups: Mapping[str, str]) -> Iterator[tuple[str, str, str | None]]:
    if _is_file_of(texts, groups):
        return texts.rows()
    return ((identifier, text, groups.get(identifier)) for identifier, text in texts.items())


def _is_file_of(texts: Mapping[str, str], groups: Mapping[str, str]) -> TypeGuard[TextStore]:
    """Whether the texts' file holds just these groups."""
    if not isinstance(texts, TextStore):
        return False
    return groups.store is texts if isinstance(groups, StoredGroups) else not groups and not texts.grouped


def write_texts(path: Path, texts: Mapping[str, str], groups: Mapping[str, str]) -> None:
    """Write `path` (NAME.arrow) and its index; each appears whole or not at all, `path` last."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = make_folder(path.parent)
    try:
        whole = draft / path.name
        if _is_file_of(texts, groups):
            _link(texts.path, whole)
            _link(index_path(texts.path), index_path(whole))
        else:
            writer = TextWriter(whole, grouped=bool(groups))
            for row in _rows(texts, groups):
                writer.add(*row)
            writer.close()
        index_path(whole).replace(index_path(path))
        whole.replace(path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _link(old: Path, new: Path) -> None:
    """The same file under another name, a copy where the two are on different disks."""
    try:
        os.link(old, new)
    except OSError:
        shutil.copyfile(old, new)
        with new.open("rb") as file:
            os.fsync(file.fileno())


def read_texts(path: Path) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """(id -> text, id -> group) of what write_texts wrote; in memory where that takes at most IN_MEMORY_BYTES."""
    store = TextStore(path)
    if path.stat().st_size + ENTRY_BYTES * len(store) > IN_MEMORY_BYTES:
        return store, store.groups
    rows = list(store.rows())
    texts = {identifier: text for identifier, text, _ in rows}
    return texts, {identifier: group for identifier, _, group in rows if group is not None}


def make_folder(parent: Path | None = None) -> Path:
    """A new folder under `parent`, by default that of spilling_to(), else TMPDIR's. Raises UserError without room."""
    parent = parent or _parent.get() or Path(tempfile.gettempdir())
    folder = parent / f"{PREFIX}{os.getpid()}-{uuid.uuid4().hex}"
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise UserError(
            f"{parent}: cannot write texts there ({error.strerror}): give another place, run_dir=PATH "
            "(outside of a run: TMPDIR=PATH)"
        ) from None
    return folder


def remove_with(owner: object, folder: Path) -> weakref.finalize[..., Any]:
    """Have `folder` removed when `owner` is gone or the process ends; detach() of the returned object cancels that."""
    return weakref.finalize(owner, _remove, folder, os.getpid())


def _remove(folder: Path, process: int) -> None:
    # A fork has the same objects, and its end is not that of the files.
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def spilling_to(folder: Path) -> Iterator[None]:
    """Inside, make_folder() makes folders under `folder`; leftovers of killed processes are removed first."""
    for path in (*folder.glob(f"{PREFIX}*"), *(folder / "corpora").glob(f"{PREFIX}*")):
        process = path.name.removeprefix(PREFIX).split("-")[0]
        if process.isdigit() and not _is_running(int(process)):
            shutil.rmtree(path, ignore_errors=True)
    token = _parent.set(folder)
    try:
        yield
    finally:
        _parent.reset(token)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True

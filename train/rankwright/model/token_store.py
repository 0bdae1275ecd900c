"""Every text tokenised once: token ids in one memory-mapped file, named by the hash of what they depend on."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
import shutil
import uuid
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from rankwright.common import console
from rankwright.common.disk import room_for
from rankwright.common.files import write_text_atomic
from rankwright.common.hashing import text_key
from rankwright.common.outputs import content_of, read_sealed, remove, sealed
from rankwright.data.store.views import KeyedTexts
from rankwright.model.prompt import PROBES, EncodedGroup, PromptContract, PromptEncoder

BATCH = 1024
# Token ids (int32), where each text ends, and the key of each text.
IDS, ENDS, KEYS = "ids.bin", "ends.npy", "keys.npy"
# The hashes of these files.
HASHES = "sha256.json"
Advance = Callable[..., None]
# The encoder of each instruction, with the queries that are read under it.
Heads = Sequence[tuple[PromptEncoder, KeyedTexts]]


class Stored:
    """The memory-mapped files of a store: the heads of each contract's queries, then the documents.

    counts: contract -> number of its heads, in their order.
    """

    def __init__(self, folder: Path, counts: Mapping[PromptContract, int]) -> None:
        flat = folder / IDS
        # An empty file cannot be mapped.
        self._flat = np.memmap(flat, dtype="<i4", mode="r") if flat.stat().st_size else np.empty(0, dtype=np.int32)
        self._ends = np.asarray(np.load(folder / ENDS, mmap_mode="r"))
        keys = np.asarray(np.load(folder / KEYS, mmap_mode="r"))
        self.heads: dict[PromptContract, _Keys] = {}
        first = 0
        for contract, count in counts.items():
            self.heads[contract] = _Keys(keys[:, first : first + count], first)
            first += count
        self.documents = _Keys(keys[:, first:], first)

    def row(self, place: int) -> list[int]:
        """The ids at a place."""
        start = int(self._ends[place - 1]) if place else 0
        found: list[int] = self._flat[start : int(self._ends[place])].tolist()
        return found


class TokenStore(PromptEncoder):
    """A PromptEncoder that already has the ids of its texts; it tokenises any other text.

    It holds no memory per text: everything is memory-mapped.
    """

    def __init__(self, encoder: PromptEncoder, stored: Stored) -> None:
        super().__init__(encoder.contract, encoder.tokenizer)
        self._of = stored
        self._heads = stored.heads.get(encoder.contract)

    def under(self, instruction: str | None) -> PromptEncoder:
        """The store under another instruction; documents have the same ids under all."""
        encoder = super().under(instruction)
        return self if encoder is self else TokenStore(encoder, self._of)

    def encode(self, query: str, documents: Sequence[str], *, cut: bool = True) -> EncodedGroup:
        """Token ids of one query with its documents (raw user texts), as PromptEncoder.encode gives them."""
        if not cut:
            return super().encode(query, documents, cut=False)
        return self.fitted(query, documents, *self._ids_of(query, documents))

    def encode_scored(self, query: str, documents: Sequence[str]) -> EncodedGroup:
        """As PromptEncoder.encode_scored gives them."""
        return self.fitted(query, documents, *self._ids_of(query, documents), every=True)

    def _ids_of(self, query: str, documents: Sequence[str]) -> tuple[tuple[list[int], bool], list[list[int]]]:
        """The head and the documents; what is not stored is tokenised."""
        rows = [self._row(document) for document in documents]
        missing = [document for document, row in zip(documents, rows, strict=True) if row is None]
        fresh = iter(self.encode_documents(missing) if missing else ())
        place = self._heads.find(query) if self._heads is not None else None
        if place is None:
            head = self.encode_head(query)
        else:
            flag, *ids = self._of.row(place)
            head = ids, bool(flag)
        return head, [next(fresh) if row is None else row for row in rows]

    def _row(self, document: str) -> list[int] | None:
        """The ids of a document; one with a first stage's level is the line's and its own, one after the other."""
        line, own = self.contract.split_level(document)
        if line and not (own and self._is_separable):
            return None
        place = self._of.documents.find(own)
        if place is None:
            return None
        return [*self.tokens(line).ids, *self._of.row(place)] if line else self._of.row(place)

    @functools.cached_property
    def _is_separable(self) -> bool:
        """Whether this tokenizer gives a line and a document the same ids together and apart, on probe texts."""
        texts = [text for text in itertools.chain(*PROBES) if text.strip()]
        lined = [(self.contract.with_level(text, level), text) for level, text in enumerate(texts, start=5)]
        lines = [self.tokens(self.contract.split_level(together)[0]).ids for together, _ in lined]
        together, apart = (self.encode_documents(column) for column in zip(*lined, strict=True))
        return together == [[*line, *own] for line, own in zip(lines, apart, strict=True)]


class _Keys:
    """Where the row of a text is: sorted text keys, each as two uint64 (first and second half)."""

    def __init__(self, keys: Any, first: int) -> None:
        self._high, self._low = keys
        self._first = first

    def find(self, text: str) -> int | None:
        key = text_key(text)
        high, low = int.from_bytes(key[:8], "big"), int.from_bytes(key[8:], "big")
        # Anything but uint64 would have numpy copy the whole array to a common type.
        place = int(self._high.searchsorted(np.uint64(high)))
        while place < len(self._high) and int(self._high[place]) == high:
            if int(self._low[place]) == low:
                return self._first + place
            place += 1
        return None


def token_store(
    root: Path,
    encoder: PromptEncoder,
    queries: Mapping[str | None, Iterable[str]],
    documents: Iterable[str],
    advance: Advance,
    say: Callable[[str], None] = console.say,
) -> TokenStore:
    """The store of these texts under `root`, made where it is missing; any number of processes may ask at once.

    queries: instruction (None: the encoder's own) -> queries of the sets that are read under it. KeyedTexts are read
    piece by piece, and only where the store is missing or damaged. advance(count) is called as texts are tokenised.
    """
    by_contract: dict[PromptContract, tuple[PromptEncoder, set[str]]] = {}
    for instruction, found in queries.items():
        under = encoder.under(instruction)
        by_contract.setdefault(under.contract, (under, set()))[1].update(found)
    ordered = sorted(by_contract.values(), key=lambda pair: pair[0].contract.instruction)
    heads = [(under, KeyedTexts.of(found)) for under, found in ordered]
    texts = KeyedTexts.of(documents)
    folder = root / _content_hash(encoder, heads, texts)
    if os.path.lexists(folder) and read_sealed(folder / HASHES) != store_hashes(folder):
        say(f"{folder}: damaged: removed, the texts are tokenised again")
        remove(folder)
    if not folder.is_dir():
        keys = [*(part.keys for _, part in heads), texts.keys]
        write_store(folder, keys, _rows(encoder, heads, texts, advance))
    return TokenStore(encoder, Stored(folder, {under.contract: len(part) for under, part in heads}))


def store_hashes(folder: Path) -> dict[str, str | None]:
    """The hash of each file of a store, None for one that is missing; what HASHES holds."""
    return {name: content_of(folder / name) for name in (IDS, ENDS, KEYS)}


def _content_hash(encoder: PromptEncoder, heads: Heads, texts: KeyedTexts) -> str:
    contracts = [asdict(under.contract) for under, _ in heads]
    digest = hashlib.sha256(json.dumps([asdict(encoder.contract), contracts], sort_keys=True).encode())
    digest.update(encoder.tokenizer.backend_tokenizer.to_str().encode())
    for part in (*(queries for _, queries in heads), texts):
        digest.update(b"keys %d:" % len(part))
        for key in part.keys:
            digest.update(key)
    return digest.hexdigest()[:16]


def _rows(encoder: PromptEncoder, heads: Heads, texts: KeyedTexts, advance: Advance) -> Iterable[Sequence[int]]:
    """A row for each head (whether its query was cut, its ids), then one for each document: ids up to the budget."""
    for under, queries in heads:
        for text in queries:
            ids, cut = under.encode_head(text)
            yield [int(cut), *ids]
            advance(1)
    # A text beyond the whole budget is cut in any prompt; one token more shows that it was longer.
    most = encoder.contract.max_tokens + 1
    for start in range(0, len(texts), BATCH):
        part = encoder.encode_documents(texts[start : start + BATCH])
        yield from (ids[:most] for ids in part)
        advance(len(part))


def write_store(folder: Path, keys: Sequence[Sequence[bytes]], rows: Iterable[Sequence[int]]) -> None:
    """Write beside, then rename: every process would write the same, and the first one wins.

    keys: a key for each row, read after the rows are.
    """
    draft = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.tmp")
    draft.mkdir(parents=True)
    ends = array("q")
    try:
        with room_for(folder, draft=draft):
            with (draft / IDS).open("wb") as file:
                end = 0
                for row in rows:
                    file.write(np.asarray(row, dtype="<i4").tobytes())
                    end += len(row)
                    ends.append(end)
            np.save(draft / ENDS, np.frombuffer(ends, dtype=np.int64))
            halves = np.frombuffer(b"".join(itertools.chain.from_iterable(keys)), dtype=">u8").reshape(-1, 2)
            np.save(draft / KEYS, np.ascontiguousarray(halves.T, dtype=np.uint64))
            write_text_atomic(draft / HASHES, json.dumps(sealed(store_hashes(draft))) + "\n")
        draft.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)

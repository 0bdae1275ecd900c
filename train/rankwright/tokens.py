"""Every text tokenised once: token ids in one memory-mapped file, named by the hash of what they depend on."""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from rankwright.keyed_texts import KeyedTexts, text_key
from rankwright.prompts import EncodedGroup, PromptEncoder

BATCH = 1024
# int32 after int32; where each text ends; which text it is.
IDS, ENDS, KEYS = "ids.bin", "ends.npy", "keys.npy"
Advance = Callable[..., None]


class TokenStore(PromptEncoder):
    """A PromptEncoder that knows the ids of its texts already; any other text is tokenised as ever.

    heads: how many of the rows are of queries. Nothing is held a text: all of it is memory-mapped.
    """

    def __init__(self, encoder: PromptEncoder, folder: Path, heads: int) -> None:
        super().__init__(encoder.contract, encoder.tokenizer)
        flat = folder / IDS
        # An empty file cannot be mapped.
        self._flat = np.memmap(flat, dtype="<i4", mode="r") if flat.stat().st_size else np.empty(0, dtype=np.int32)
        self._ends = np.asarray(np.load(folder / ENDS, mmap_mode="r"))
        keys = np.asarray(np.load(folder / KEYS, mmap_mode="r"))
        self._heads = _Keys(keys[:, :heads], 0)
        self._documents = _Keys(keys[:, heads:], heads)

    def encode(self, query: str, documents: Sequence[str], *, cut: bool = True) -> EncodedGroup:
        """Token ids of one query with its documents (raw user texts), as PromptEncoder.encode gives them."""
        places = [self._documents.find(document) for document in documents] if cut else []
        head_place = self._heads.find(query) if cut else None
        if head_place is None or None in places:
            return super().encode(query, documents, cut=cut)
        head = self._stored(head_place)
        return self.assemble(head[1:], bool(head[0]), [self._stored(p) for p in places if p is not None])

    def _stored(self, place: int) -> list[int]:
        start = int(self._ends[place - 1]) if place else 0
        found: list[int] = self._flat[start : int(self._ends[place])].tolist()
        return found


class _Keys:
    """Where the row of a text is: text_keys in ascending order as two uint64 a text, the first half and the second."""

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
    root: Path, encoder: PromptEncoder, queries: Iterable[str], documents: Iterable[str], advance: Advance
) -> TokenStore:
    """The store of these texts under `root`, made where it is missing; any number of processes may ask at once.

    KeyedTexts are read piece by piece, and only where the store is missing. advance(count) is called as texts are
    tokenised.
    """
    heads, texts = KeyedTexts.of(queries), KeyedTexts.of(documents)
    folder = root / _content_hash(encoder, heads, texts)
    if not folder.is_dir():
        _write(folder, [*heads.keys, *texts.keys], _rows(encoder, heads, texts, advance))
    return TokenStore(encoder, folder, len(heads))


def _content_hash(encoder: PromptEncoder, heads: KeyedTexts, texts: KeyedTexts) -> str:
    digest = hashlib.sha256(json.dumps(asdict(encoder.contract), sort_keys=True).encode())
    digest.update(encoder.tokenizer.backend_tokenizer.to_str().encode())
    for part in (heads, texts):
        digest.update(b"keys %d:" % len(part))
        for key in part.keys:
            digest.update(key)
    return digest.hexdigest()[:16]


def _rows(encoder: PromptEncoder, heads: KeyedTexts, texts: KeyedTexts, advance: Advance) -> Iterable[Sequence[int]]:
    """Of each head whether its query was cut and its ids; of each document all its ids, up to the whole budget."""
    for text in heads:
        ids, cut = encoder.encode_head(text)
        yield [int(cut), *ids]
        advance(1)
    # What is longer than the whole budget is cut in any prompt; one token more tells that it was.
    most = encoder.contract.max_tokens + 1
    for start in range(0, len(texts), BATCH):
        part = encoder.encode_documents(texts[start : start + BATCH])
        yield from (ids[:most] for ids in part)
        advance(len(part))


def _write(folder: Path, keys: Sequence[bytes], rows: Iterable[Sequence[int]]) -> None:
    """Write beside, then rename: whoever is first has written what all others would."""
    draft = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.tmp")
    draft.mkdir(parents=True)
    ends = array("q")
    try:
        with (draft / IDS).open("wb") as file:
            end = 0
            for row in rows:
                file.write(np.asarray(row, dtype="<i4").tobytes())
                end += len(row)
                ends.append(end)
        np.save(draft / ENDS, np.frombuffer(ends, dtype=np.int64))
        halves = np.frombuffer(b"".join(keys), dtype=">u8").reshape(-1, 2)
        np.save(draft / KEYS, np.ascontiguousarray(halves.T, dtype=np.uint64))
        draft.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)

"""Every text tokenised once: token ids in one memory-mapped file, named by the hash of what they depend on."""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from rankwright.prompts import EncodedGroup, PromptEncoder

BATCH = 1024
IDS, ENDS = "ids.npy", "ends.npy"
Advance = Callable[..., None]


class TokenStore(PromptEncoder):
    """A PromptEncoder that knows the ids of its texts already; any other text is tokenised as ever."""

    def __init__(self, encoder: PromptEncoder, folder: Path, heads: Sequence[str], documents: Sequence[str]) -> None:
        super().__init__(encoder.contract, encoder.tokenizer)
        self._flat = np.load(folder / IDS, mmap_mode="r")
        self._ends = np.load(folder / ENDS)
        self._head_place = {text: number for number, text in enumerate(heads)}
        self._document_place = {text: number + len(heads) for number, text in enumerate(documents)}

    def encode(self, query: str, documents: Sequence[str], *, cut: bool = True) -> EncodedGroup:
        """Token ids of one query with its documents (raw user texts), as PromptEncoder.encode gives them."""
        places = [self._document_place.get(document) for document in documents]
        if not cut or query not in self._head_place or None in places:
            return super().encode(query, documents, cut=cut)
        head = self._stored(self._head_place[query])
        return self.assemble(head[1:], bool(head[0]), [self._stored(p) for p in places if p is not None])

    def _stored(self, place: int) -> list[int]:
        start = int(self._ends[place - 1]) if place else 0
        found: list[int] = self._flat[start : int(self._ends[place])].tolist()
        return found


def token_store(
    root: Path, encoder: PromptEncoder, queries: Iterable[str], documents: Iterable[str], advance: Advance
) -> TokenStore:
    """The store of these texts under `root`, made where it is missing; any number of processes may ask at once.

    advance(count) is called as texts are tokenised.
    """
    heads, texts = sorted(set(queries)), sorted(set(documents))
    folder = root / _content_hash(encoder, heads, texts)
    if not folder.is_dir():
        _write(folder, _rows(encoder, heads, texts, advance))
    return TokenStore(encoder, folder, heads, texts)


def _content_hash(encoder: PromptEncoder, heads: Sequence[str], texts: Sequence[str]) -> str:
    digest = hashlib.sha256(json.dumps(asdict(encoder.contract), sort_keys=True).encode())
    digest.update(encoder.tokenizer.backend_tokenizer.to_str().encode())
    for part in (heads, texts):
        digest.update(b"%d." % len(part))
        for text in part:
            data = text.encode()
            digest.update(b"%d:" % len(data))
            digest.update(data)
    return digest.hexdigest()[:16]


def _rows(
    encoder: PromptEncoder, heads: Sequence[str], texts: Sequence[str], advance: Advance
) -> Iterable[Sequence[int]]:
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


def _write(folder: Path, rows: Iterable[Sequence[int]]) -> None:
    """Write beside, then rename: whoever is first has written what all others would."""
    draft = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.tmp")
    draft.mkdir(parents=True)
    try:
        arrays = [np.asarray(row, dtype=np.int32) for row in rows]
        ends: Any = np.cumsum([len(a) for a in arrays], dtype=np.int64)
        np.save(draft / IDS, np.concatenate(arrays) if arrays else np.empty(0, dtype=np.int32))
        np.save(draft / ENDS, ends)
        draft.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)

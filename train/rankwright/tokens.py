"""Every text tokenised once: token ids in one memory-mapped file, named by the hash of what they depend on."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from rankwright.prompts import EncodedGroup, PromptContract, PromptEncoder

BATCH = 1024
IDS, ENDS = "ids.npy", "ends.npy"
Advance = Callable[..., None]


# Encoder of an instruction -> the queries that are read under it, sorted.
Heads = Sequence[tuple[PromptEncoder, Sequence[str]]]


class Stored:
    """The files of a store, and the places in them: contract -> query -> place of its head, document -> place."""

    def __init__(self, folder: Path, heads: Heads, documents: Sequence[str]) -> None:
        self.flat = np.load(folder / IDS, mmap_mode="r")
        self.ends = np.load(folder / ENDS)
        self.heads: dict[PromptContract, dict[str, int]] = {}
        place = itertools.count()
        for encoder, queries in heads:
            self.heads[encoder.contract] = dict(zip(queries, place, strict=False))
        self.documents = dict(zip(documents, itertools.count(sum(len(queries) for _, queries in heads)), strict=False))


class TokenStore(PromptEncoder):
    """A PromptEncoder that knows the ids of its texts already; any other text is tokenised as ever."""

    def __init__(self, encoder: PromptEncoder, stored: Stored) -> None:
        super().__init__(encoder.contract, encoder.tokenizer)
        self._of = stored
        self._flat, self._ends, self._document_place = stored.flat, stored.ends, stored.documents
        self._head_place = stored.heads.get(encoder.contract, {})

    def under(self, instruction: str | None) -> PromptEncoder:
        """The store under another instruction; documents have the same ids under all."""
        encoder = super().under(instruction)
        return self if encoder is self else TokenStore(encoder, self._of)

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
    root: Path,
    encoder: PromptEncoder,
    queries: Mapping[str | None, Iterable[str]],
    documents: Iterable[str],
    advance: Advance,
) -> TokenStore:
    """The store of these texts under `root`, made where it is missing; any number of processes may ask at once.

    queries: instruction (None: the encoder's own) -> queries of the sets that are read under it. advance(count) is
    called as texts are tokenised.
    """
    by_contract: dict[PromptContract, tuple[PromptEncoder, set[str]]] = {}
    for instruction, found in queries.items():
        under = encoder.under(instruction)
        by_contract.setdefault(under.contract, (under, set()))[1].update(found)
    ordered = sorted(by_contract.values(), key=lambda pair: pair[0].contract.instruction)
    heads = [(under, sorted(found)) for under, found in ordered]
    texts = sorted(set(documents))
    folder = root / _content_hash(encoder, heads, texts)
    if not folder.is_dir():
        _write(folder, _rows(encoder, heads, texts, advance))
    return TokenStore(encoder, Stored(folder, heads, texts))


def _content_hash(encoder: PromptEncoder, heads: Heads, texts: Sequence[str]) -> str:
    contracts = [asdict(under.contract) for under, _ in heads]
    digest = hashlib.sha256(json.dumps(contracts, sort_keys=True).encode())
    digest.update(encoder.tokenizer.backend_tokenizer.to_str().encode())
    for part in (*(queries for _, queries in heads), texts):
        digest.update(b"%d." % len(part))
        for text in part:
            data = text.encode()
            digest.update(b"%d:" % len(data))
            digest.update(data)
    return digest.hexdigest()[:16]


def _rows(encoder: PromptEncoder, heads: Heads, texts: Sequence[str], advance: Advance) -> Iterable[Sequence[int]]:
    """Of each head whether its query was cut and its ids; of each document all its ids, up to the whole budget."""
    for under, queries in heads:
        for text in queries:
            ids, cut = under.encode_head(text)
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

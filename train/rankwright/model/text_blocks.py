"""Texts for language modelling: tokenised once, kept on the disk by content, and read as blocks of one length."""

from __future__ import annotations

import functools
import hashlib
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rankwright.common.errors import UserError
from rankwright.common.hashing import content_hash, files_hash, stable_hash, text_key
from rankwright.common.outputs import read_sealed, remove
from rankwright.common.plurals import counted
from rankwright.data.blocks import blocks as cut_into_blocks
from rankwright.data.documents import Document, stream_documents
from rankwright.data.formats.reading import Reading
from rankwright.data.leakage import QueriesInTexts, Removal
from rankwright.data.passages import unit_starts
from rankwright.model.control_tokens import control_tokens, neutralise
from rankwright.model.token_store import ENDS, HASHES, IDS, KEYS, Advance, store_hashes, write_store

# Words and signs that are tokenised at once: a document may be as large as a file.
AT_ONCE = 20_000
# What is held out of a text is this share of its tokens, at most so many blocks and at least one.
HELD_OUT, MOST_HELD_OUT = 0.02, 64
Texts = list[list[int]]


class TextTokens:
    """The tokens of a source's documents as one stream, in an order that their contents decide.

    Each document begins with the tokenizer's first token, where it has one, and ends with its last. The order does not
    depend on names of files or places in them, so that any part of the stream is a random sample of the documents.
    """

    def __init__(self, folder: Path) -> None:
        flat = folder / IDS
        self._flat = np.memmap(flat, dtype="<i4", mode="r") if flat.stat().st_size else np.empty(0, dtype=np.int32)
        ends = np.load(folder / ENDS)
        keys = np.load(folder / KEYS)
        order = np.lexsort((keys[1], keys[0]))
        lengths = np.diff(ends, prepend=0)[order]
        self._places = (ends - np.diff(ends, prepend=0))[order]
        # Where each document of the stream ends there.
        self.ends = np.cumsum(lengths)

    @property
    def tokens(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def texts(self, start: int, end: int) -> Texts:
        """Tokens start:end of the stream, those of each document apart."""
        found = []
        document = int(np.searchsorted(self.ends, start, side="right"))
        while start < end:
            stop = min(end, int(self.ends[document]))
            begin = int(self.ends[document - 1]) if document else 0
            place = int(self._places[document]) + start - begin
            found.append(self._flat[place : place + stop - start].tolist())
            start, document = stop, document + 1
        return found


@dataclass(frozen=True, slots=True)
class Blocks(Sequence[Texts]):
    """Parts of streams as blocks of `length` tokens; a block is the texts in it, which must not see each other.

    parts: (stream, its first token, its number of blocks).
    """

    parts: tuple[tuple[TextTokens, int, int], ...]
    length: int

    def __len__(self) -> int:
        return sum(count for _, _, count in self.parts)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        if number < 0:
            raise IndexError(number)
        for stream, first, count in self.parts:
            if number < count:
                start = first + number * self.length
                return stream.texts(start, start + self.length)
            number -= count
        raise IndexError(number)

    def __iter__(self) -> Iterator[Texts]:
        return (self[number] for number in range(len(self)))

    @classmethod
    def joined(cls, several: Sequence[Blocks]) -> Blocks:
        """The blocks of several sources one after the other; all have one length."""
        (length,) = {blocks.length for blocks in several}
        return cls(tuple(part for blocks in several for part in blocks.parts), length)


def read_texts(
    root: Path,
    path: Path,
    tokenizer: Any,
    reading: Reading,
    *,
    held_out: QueriesInTexts,
    advance: Advance = lambda count: None,
) -> TextTokens:
    """The tokens of all documents of a path (see documents.read_documents), from `root` or made there.

    held_out: queries of dev and test: paragraphs that hold one are left out, and reported when the texts are read.
    Any number of processes may ask at once. A damaged store is reported, removed and made again. advance(count) is
    called as documents are tokenised. Raises UserErrors as read_documents does.
    """
    first, last = frame_ids(tokenizer)
    facts = (files_hash([path]), sorted(reading.columns.items()), reading.encoding, held_out.key, first, last, AT_ONCE)
    digest = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()
    folder = root / f"texts-{content_hash(*facts, digest)}"
    if os.path.lexists(folder) and read_sealed(folder / HASHES) != store_hashes(folder):
        reading.say(f"{folder}: damaged: removed, the texts are tokenised again")
        remove(folder)
    if not folder.is_dir():
        keys: list[bytes] = []
        removed = held_out.removal()
        documents = _clean(stream_documents(path, reading), tokenizer, removed, keys, advance)
        # The keys are known once the last row is.
        write_store(folder, [keys], ([*first, *ids, *last] for ids in documents))
        if line := removed.told():
            reading.say(f"{path}: {line}")
    return TextTokens(folder)


def frame_ids(tokenizer: Any) -> tuple[list[int], list[int]]:
    """What stands before and after a document: the first token, where the tokenizer sets one by itself; the last."""
    own = tokenizer("")["input_ids"]
    first = [tokenizer.bos_token_id] if tokenizer.bos_token_id in own else []
    return first, [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]


def _clean(
    documents: Iterable[Document], tokenizer: Any, removal: Removal, keys: list[bytes], advance: Advance
) -> Iterator[list[int]]:
    """The ids of each document with its title, control tokens broken; keys: gets the key of each."""
    control = control_tokens(tokenizer)
    for document in documents:
        whole = "\n\n".join(part for part in (document.title, document.text) if part.strip())
        text = neutralise(removal.of(whole), control).strip()
        if text:
            ids = [
                number for piece in _pieces(text) for number in tokenizer(piece, add_special_tokens=False)["input_ids"]
            ]
            keys.append(text_key(text))
            yield ids
        advance(1)


def _pieces(text: str) -> list[str]:
    """A long text at the ends of its paragraphs, so that the tokenizer's memory is bounded."""
    starts = unit_starts(text)
    return [text] if len(starts) <= AT_ONCE else [text[a:b] for a, b in cut_into_blocks(text, starts, AT_ONCE)]


def split_blocks(
    stream: TextTokens, name: str, *, length: int, tokens: int | None = None, held_out: float = HELD_OUT
) -> tuple[Blocks, Blocks]:
    """(blocks to train on, blocks held out) of a stream; no document has tokens in both, but for a single long one.

    name: the key of the recipe and the path, for messages. tokens: how many are trained on; None: all that are there.
    held_out: the share that is held out, see HELD_OUT. Raises UserError where the stream is too short.
    """
    out = max(1, min(MOST_HELD_OUT, math.floor(held_out * stream.tokens / length)))
    end = _border(stream, stream.tokens - out * length, length)
    there = max(0, end) // length * length
    if tokens is not None and tokens > there:
        raise UserError(
            f"{name}: {tokens:,} tokens asked, {there:,} there ({counted(out, 'block')} of {length:,} held out): "
            "lower `tokens`, or give more text"
        )
    if not there:
        raise UserError(
            f"{name}: {counted(stream.tokens, 'token')}, too few for a block of {length:,} to train on and one held "
            "out: give more text, or shorter blocks"
        )
    count = there // length if tokens is None else max(1, tokens // length)
    # Where a long document ends early, more lies behind its end than is wanted.
    return Blocks(((stream, 0, count),), length), Blocks(((stream, end, out),), length)


def _border(stream: TextTokens, wanted: int, length: int) -> int:
    """The end of a document near the place `wanted`, so that a block at least lies behind it; else that place."""
    ends = stream.ends[stream.ends <= wanted]
    near = int(ends[-1]) if len(ends) else 0
    # A document that is most of the stream lies on both sides.
    return near if near >= length and near >= wanted / 2 else wanted


class Draws:
    """The blocks of each step as a pure function of (seed, step): each block once, then all of them once more, ...

    share: of the blocks are from `replay`, spread evenly. Blocks are drawn in an order of their own for every round.
    """

    def __init__(
        self,
        domain: Sequence[Texts],
        replay: Sequence[Texts] | None = None,
        *,
        share: float = 0.0,
        a_step: int,
        seed: int,
    ) -> None:
        self.domain, self.replay, self.a_step = domain, replay, a_step
        self._share, self._seed = (share if replay is not None else 0.0), seed
        self._order = functools.lru_cache(maxsize=4)(self._ordered)

    def step(self, step: int) -> list[Texts]:
        """The blocks of step `step`, counted from 1."""
        found = []
        for draw in range((step - 1) * self.a_step, step * self.a_step):
            before, after = (math.floor(count * self._share + 1e-9) for count in (draw, draw + 1))
            replayed = self.replay is not None and after > before
            blocks = self.replay if replayed and self.replay is not None else self.domain
            number = before if replayed else draw - before
            place = self._order(replayed, number // len(blocks))[number % len(blocks)]
            found.append(blocks[place])
        return found

    def rounds(self, steps: int) -> float:
        """How often each block of the domain is read in so many steps."""
        drawn = steps * self.a_step
        return (drawn - math.floor(drawn * self._share + 1e-9)) / len(self.domain)

    def _ordered(self, replayed: bool, turn: int) -> list[int]:
        count = len(self.replay if replayed and self.replay is not None else self.domain)
        return sorted(range(count), key=lambda i: (stable_hash("blocks", self._seed, replayed, turn, i), i))

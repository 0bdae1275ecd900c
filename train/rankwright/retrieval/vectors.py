"""Vectors of texts on the disk: encoded once for the same weights, prompt and text, in files that survive a kill."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rankwright.common.errors import UserError
from rankwright.common.files import make_cache_folder, read_kept, write_kept
from rankwright.common.hashing import text_key
from rankwright.data.store.views import KeyedTexts

# Texts that are encoded between two writes: what a kill can lose.
SHARD_TEXTS = 1024
# Vectors that are held at once when they are read again.
CHUNK_TEXTS = 16384

# Texts -> float32 [texts, size], and for each text whether the model read only its start.
Encode = Callable[[Sequence[str]], tuple[Any, Any]]


class VectorStore:
    """A folder of files of write_kept, each with the keys and vectors of up to SHARD_TEXTS texts.

    The folder's name stands for all that decides a vector beside the text. Files appear whole or not at all, and an
    existing one never changes: any number of processes may read and write at once. Texts that two of them encode at
    the same time are kept once or twice, with the same vectors.
    """

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self.folder = folder
        self._say = say
        self._shards: list[Path] = []
        self._place: dict[bytes, tuple[int, int]] = {}
        make_cache_folder(folder, "vectors")
        for path in sorted(folder.glob("*.npy")):
            self._add(path)

    def __contains__(self, text: str) -> bool:
        return text_key(text) in self._place

    def _add(self, path: Path) -> None:
        keys = read_kept(path, _keys_in, self._say, "its texts are encoded again")
        if keys is None:
            return
        self._shards.append(path)
        for row, key in enumerate(keys):
            self._place.setdefault(key, (len(self._shards) - 1, row))

    def encode_missing(
        self, texts: Sequence[str], encode: Encode, advance: Callable[..., None], part: tuple[int, int] = (0, 1)
    ) -> int:
        """Encode the texts that are not there, longest first; returns how many. advance(count) as they are kept.

        part: (number of this process, how many share the work); each file is made by one of them.
        """
        distinct = KeyedTexts.of(texts)
        # Longest first, so that texts too long for the memory fail at the start; then by key, whatever the input order.
        missing = [place for place, key in enumerate(distinct.keys) if key not in self._place]
        missing.sort(key=lambda place: -distinct.lengths[place])
        advance(0)
        own = range(part[0] * SHARD_TEXTS, len(missing), part[1] * SHARD_TEXTS)
        for start in own:
            shard = distinct.take(missing[start : start + SHARD_TEXTS])
            vectors, cut = encode(shard)
            if not np.isfinite(vectors).all():
                bad = shard[int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])]
                raise UserError(
                    f"dense.model gives a vector that is not finite for the text {bad[:60]!r}: it is broken"
                )
            self._add(self._write(shard, np.asarray(vectors, dtype=np.float32), cut))
            advance(len(shard))
        return sum(min(SHARD_TEXTS, len(missing) - start) for start in own)

    def _write(self, texts: Sequence[str], vectors: Any, cut: Any) -> Path:
        kind = np.dtype([("key", "V16"), ("cut", "?"), ("vector", "<f4", (vectors.shape[1],))])
        rows = np.zeros(len(texts), dtype=kind)
        keys = [text_key(text) for text in texts]
        rows["key"] = np.array(keys, dtype="V16")
        rows["cut"], rows["vector"] = cut, vectors
        return write_kept(self.folder, keys, rows)

    def missing(self, texts: KeyedTexts) -> int:
        """How many of these are not there."""
        return sum(key not in self._place for key in texts.keys)

    def read(self, texts: Sequence[str]) -> Any:
        """float32 [texts, size] of texts that are all there."""
        return self._column(_keys(texts), "vector") if texts else np.zeros((0, 0), dtype=np.float32)

    def _column(self, keys: Sequence[bytes], name: str) -> Any:
        # File by file, each closed again: a large corpus has more of them than a process may hold open.
        by_shard: dict[int, list[tuple[int, int]]] = {}
        for number, key in enumerate(keys):
            shard, row = self._place[key]
            by_shard.setdefault(shard, []).append((number, row))
        found: Any = None
        for shard, places in by_shard.items():
            column = _rows(self._shards[shard])[name]
            if found is None:
                found = np.empty((len(keys), *column.shape[1:]), dtype=column.dtype)
            numbers, rows = zip(*places, strict=True)
            found[list(numbers)] = column[list(rows)]
        return found

    def chunks(self, texts: Sequence[str]) -> Iterator[tuple[int, Any]]:
        """(place of the first text, vectors) of one chunk of CHUNK_TEXTS texts after another."""
        keys = _keys(texts)
        for start in range(0, len(keys), CHUNK_TEXTS):
            yield start, self._column(keys[start : start + CHUNK_TEXTS], "vector")

    def cut(self, texts: Sequence[str]) -> int:
        """How many of these texts were too long for the model, which read only their start."""
        return int(self._column(_keys(texts), "cut").sum()) if texts else 0


def _keys(texts: Sequence[str]) -> list[bytes]:
    return texts.keys if isinstance(texts, KeyedTexts) else [text_key(text) for text in texts]


def _rows(path: Path) -> Any:
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _keys_in(path: Path) -> list[bytes]:
    rows = _rows(path)
    # A file without one of the fields is damaged: this raises.
    rows["vector"], rows["cut"]
    return [key.tobytes() for key in rows["key"]]


def store_name(fingerprint: str, settings: Mapping[str, str]) -> str:
    """The folder's name for the content hash of a model and the settings that decide a vector."""
    text = "\x1f".join([fingerprint, *(f"{k}={v}" for k, v in sorted(settings.items()))])
    return text_key(text).hex()

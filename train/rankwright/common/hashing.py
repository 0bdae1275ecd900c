"""Hashes: of files, of records, and the stable pseudo-random numbers drawn from a key."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_hash(*parts: Any) -> str:
    """SHA-256 (16 hex digits) of JSON-able values."""
    return content_id(json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str))


def files_hash(paths: Iterable[Path]) -> str:
    """One hash over names and contents of files; folders count with all files in them, wherever they lie."""
    found = [(f.relative_to(p if p.is_dir() else p.parent), f) for p in paths for f in [p, *p.rglob("*")]]
    return content_hash([(name.as_posix(), file_sha256(f)) for name, f in sorted(found) if f.is_file()])


def stable_hash(*parts: object) -> int:
    """64 bits of SHA-256 over the parts' text: the same on every machine and in every process."""
    return int.from_bytes(text_key("\x1f".join(map(str, parts)))[:8], "big")


def text_key(text: str) -> bytes:
    """16 bytes that stand for a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16]


def content_id(text: str) -> str:
    """The id of a text without one: 64 bits of its SHA-256, in hexadecimal."""
    return text_key(text)[:8].hex()

"""Files as bytes, whether they are plain, gzip or zstd: their first bytes say which."""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path
from typing import IO, Any, cast

PACKED = (".gz", ".zst")
# What reading raises when the rest of a packed file cannot be had.
DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile)
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


def plain_name(path: Path) -> str:
    """The file's name without .gz or .zst."""
    return path.stem if path.suffix in PACKED else path.name


def packing(path: Path) -> str:
    """How messages call the packing that the name states: gzip or zstd."""
    return "zstd" if path.suffix == ".zst" else "gzip"


def is_packed(path: Path) -> bool:
    """Whether a file's bytes are gzip or zstd, or its name claims it."""
    with path.open("rb") as file:
        start = file.read(4)
    return path.suffix in PACKED or start.startswith(_GZIP) or start == _ZSTD


def open_bytes(path: Path) -> IO[bytes]:
    """The unpacked bytes of a file. Reading raises one of DAMAGED where a packed file is cut off or broken."""
    with path.open("rb") as file:
        start = file.read(4)
    if start.startswith(_GZIP):
        return cast("IO[bytes]", gzip.open(path, "rb"))
    if start == _ZSTD:
        return io.BufferedReader(_Zstd(path))
    if path.suffix in PACKED and start:
        raise gzip.BadGzipFile(f"its name ends in {path.suffix}, its bytes are not {packing(path)}")
    return path.open("rb")


class _Zstd(io.RawIOBase):
    """pyarrow unpacks zstd, so no further library is needed; its errors become those of gzip."""

    def __init__(self, path: Path) -> None:
        import pyarrow

        self._stream = pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._stream.read(len(buffer))
        except OSError as error:
            raise EOFError(str(error)) from None
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()

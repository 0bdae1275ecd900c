"""Files of sets, plain or compressed, opened within bounds: regular files, what they unpack to, and lines."""

from __future__ import annotations

import functools
import gzip
import io
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from rankwright.common.errors import UserError

PACKED = (".gz", ".zst")
# Raised by reading when the rest of a packed file is lost.
DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile)
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
# A packed file may unpack to this many times what was read of it, and to so many bytes more: texts shrink to a tenth,
# the same row again and again to a hundredth, and files made to fill the memory to a thousandth.
MOST_TIMES, BYTES_MORE = 200, 32 << 20
CHUNK_BYTES = 1 << 16
# Bytes of a line, and characters of a cell or an element: a longer one is not a row of texts.
LONGEST_ROW = 1 << 28
MOST_BLANK_LINES = 1 << 20
_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}
# Their files are made while they are read, and some never end.
_KERNEL = (Path("/proc"), Path("/sys"))


def plain_name(path: Path) -> str:
    """The file's name without .gz or .zst."""
    return path.stem if path.suffix in PACKED else path.name


def packing(path: Path) -> str:
    """The packing that the file's name states, for messages: gzip or zstd."""
    return "zstd" if path.suffix == ".zst" else "gzip"


def damaged(path: Path, error: Exception) -> str:
    """The fault of a packed file that raised one of DAMAGED."""
    return f"damaged {packing(path)} file ({error}): fetch or compress it again"


def check_place(path: Path, *, folder: bool = False) -> None:
    """Raise UserError unless a path is a regular file (or a folder, where `folder` allows it), which can be read again.

    A pipe would be waited for, and a device or a file of the kernel may never end.
    """
    try:
        mode, place = path.stat().st_mode, path.resolve()
    except (OSError, RuntimeError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UserError(f"{path}: cannot be opened ({why}): give a file that can be read") from None
    kind = stat.S_IFMT(mode)
    if any(place == kernel or kernel in place.parents for kernel in _KERNEL):
        what = "a file of the kernel"
    elif kind == stat.S_IFREG or (folder and kind == stat.S_IFDIR):
        return
    else:
        what = _KINDS.get(kind, "not a regular file")
    raise UserError(f"{path}: is {what}, must be a file that can be read more than once: save its content as a file")


def is_packed(path: Path) -> bool:
    """Whether a file's bytes are gzip or zstd, or its name claims it."""
    start = _start(path)
    return path.suffix in PACKED or start.startswith(_GZIP) or start == _ZSTD


def open_bytes(path: Path) -> IO[bytes]:
    """The unpacked bytes of a file. Raises UserError unless the file is a regular one.

    Reading raises one of DAMAGED where a packed file is cut off or broken, and UserError where it unpacks to far more
    than texts do.
    """
    start = _start(path)
    if start.startswith(_GZIP):
        packed = path.open("rb")
        return io.BufferedReader(_Unpacked(path, gzip.GzipFile(fileobj=packed), packed), CHUNK_BYTES)
    if start == _ZSTD:
        import pyarrow

        # pyarrow unpacks zstd, so no further library is needed.
        file = pyarrow.OSFile(str(path))
        return io.BufferedReader(_Unpacked(path, pyarrow.CompressedInputStream(file, "zstd"), file), CHUNK_BYTES)
    if path.suffix in PACKED and start:
        raise gzip.BadGzipFile(f"its name ends in {path.suffix}, its bytes are not {packing(path)}")
    return path.open("rb")


def _start(path: Path) -> bytes:
    check_place(path)
    try:
        with path.open("rb") as file:
            return file.read(4)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): mend its rights, or give another file") from None


class _Unpacked(io.RawIOBase):
    """The bytes of a packed file, as far as they are in proportion to what was read of it."""

    def __init__(self, path: Path, stream: Any, packed: Any) -> None:
        self._path, self._stream, self._packed = path, stream, packed
        self._bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._stream.read(len(buffer))
        except DAMAGED:
            raise
        except OSError as error:
            # What pyarrow raises.
            raise EOFError(str(error)) from None
        self._bytes += len(data)
        if self._bytes > BYTES_MORE + MOST_TIMES * self._packed.tell():
            raise UserError(
                f"{self._path}: unpacks to more than {MOST_TIMES} times its size, which texts do not: unpack it "
                "yourself if it is a set"
            )
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
            self._packed.close()
        super().close()


def byte_lines(file: IO[bytes], path: Path) -> Iterator[bytes]:
    """The lines of a file, with their ends. Raises UserError for one longer than a row, and for endless blank ones."""
    blank = 0
    # Bytes end a line at \n only; text mode would also cut at \r inside a damaged file.
    for number, line in enumerate(iter(functools.partial(file.readline, LONGEST_ROW), b""), start=1):
        if len(line) == LONGEST_ROW:
            raise UserError(f"{path}:{number}: the line has more than {LONGEST_ROW >> 20} MiB: give one row per line")
        blank = blank + 1 if len(line) < 3 and not line.strip() else 0
        if blank > MOST_BLANK_LINES:
            raise UserError(f"{path}:{number}: more than a million blank lines in a row: remove them")
        yield line

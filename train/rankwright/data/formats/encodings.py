"""Text files whose encoding is given or shown by their bytes, read as UTF-8; nothing is replaced silently."""

from __future__ import annotations

import codecs
import io
import re
from pathlib import Path
from typing import IO, Any, NoReturn

from rankwright.common.errors import UserError, no_such
from rankwright.data.formats.compression import CHUNK_BYTES, open_bytes
from rankwright.data.formats.reading import Reading, give_up

UTF8 = "UTF-8"
# Names for messages; Python knows more.
KNOWN = (
    *("utf-8", "utf-16", "cp1252", "latin-1", "iso-8859-15", "cp1250", "cp1251", "cp1253", "cp1254", "koi8-r"),
    *("mac-roman", "cp437", "cp850", "shift_jis", "euc-jp", "euc-kr", "gb18030", "big5"),
)
ADVICE = "save the file as UTF-8, or give `encoding: NAME` (such as cp1252)"
# UTF-32 first: its mark begins with that of UTF-16.
_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
_WIDE = ("utf-16", "utf-32")
# Encodings of Python that are not those of files.
_NOT_OF_FILES = {"idna", "punycode", "unicode-escape", "raw-unicode-escape", "utf-7", "undefined", "mbcs", "oem"}
# "surrogateescape" makes these of bytes that are not UTF-8.
ESCAPED = re.compile("[\udc80-\udcff]")
_OTHERS = re.compile("[^\x00-\x7f\udc80-\udcff]")
# Bytes beyond ASCII stand alone in Western European texts: this share of them in runs is another alphabet.
_RUNS, _MOST_IN_RUNS = re.compile(b"[\xa1-\xff]{4,}|[\xc0-\xff]{3,}"), 0.2
# Bytes that such texts hardly have; some are not characters of cp1252.
_UNLIKELY = re.compile(b"[\x81\x83\x8d\x8f\x90\x9d\xa4\xff\x00-\x08\x0e-\x1f]")
_WORD_END = re.compile(rb"[^\w\x80-\xff]")
MOST_SHOWN = 30
_SURROGATES = re.compile("[\ud800-\udfff]")
# UTF-8 of Western letters and punctuation starts with these.
_LEADS = re.compile(b"[\xc2\xc3\xe2]")
_TIMES = 10
# Share of the characters that are ASCII, in UTF-16 without a mark.
_MANY = 0.4


def check_encoding(name: str | None) -> str | None:
    """The name as Python writes it. Raises UserError for a name that is not that of an encoding of files."""
    if name is None:
        return None
    try:
        found = codecs.lookup(name)
        if not found._is_text_encoding or found.name.replace("_", "-") in _NOT_OF_FILES:
            raise LookupError
    except (LookupError, ValueError):
        raise UserError(f"encoding: {no_such('encoding', name, KNOWN)}") from None
    return found.name


def open_text(path: Path, reading: Reading) -> TextFile:
    """The unpacked bytes of a text file as UTF-8, without a byte order mark.

    The encoding is `reading.encoding`, or what the bytes show: a byte order mark, the NUL bytes of UTF-16, UTF-8, or
    cp1252 where the first bytes that are not ASCII are not UTF-8 and could be Western European; all but UTF-8 are
    reported. A byte that the encoding does not have stays one that is not UTF-8, so that its line is a fault.
    Raises UserError, `file:line: what`, for an encoding that the bytes contradict, and as open_bytes does.
    """
    return TextFile(_AsUtf8(path, open_bytes(path), reading))


class TextFile(io.BufferedReader):
    """Bytes that are UTF-8 as far as the file can be read."""

    def __init__(self, raw: _AsUtf8) -> None:
        super().__init__(raw, CHUNK_BYTES)
        self._as_utf8 = raw

    @property
    def encoding(self) -> str:
        """The encoding as decided so far, for messages."""
        return self._as_utf8.encoding


class _AsUtf8(io.RawIOBase):
    """Decides at the first bytes that are not ASCII, which are the same in UTF-8, cp1252 and most others.

    decoder: None while, and as long as, the bytes are passed as they are.
    """

    def __init__(self, path: Path, file: IO[bytes], reading: Reading) -> None:
        self._path, self._file, self._faults, self._say = path, file, reading.faults, reading.say
        self._given = check_encoding(reading.encoding)
        self.encoding = UTF8 if self._given in (None, "utf-8") else str(self._given)
        self._decoder: Any = None
        self._decided = False
        self._rest, self._lines, self._ended = b"", 0, False
        self._begin(file.read(CHUNK_BYTES))

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        while not self._rest and not self._ended:
            self._rest = self._as_utf8(self._file.read(CHUNK_BYTES))
        part, self._rest = self._rest[: len(buffer)], self._rest[len(buffer) :]
        buffer[: len(part)] = part
        return len(part)

    def _fail(self, line: int, text: str) -> NoReturn:
        give_up(self._faults, self._path, line, text)

    def _begin(self, head: bytes) -> None:
        """Decide by the first bytes, where they are those of one encoding."""
        given, mark = self._given, next((mark for mark in _MARKS if head.startswith(mark)), b"")
        marked, unmarked = _MARKS.get(mark), _wide(head)
        if marked is not None and given not in (None, marked, marked[:6]):
            self._fail(1, f"encoding: {given}: it starts with the mark of {marked[:6]}: leave `encoding` out")
        if marked is not None and marked != "utf-8":
            if given is None:
                self._say(f"{self._path}: read as {marked[:6]}, by its byte order mark")
            self._decode(marked)
        elif given is None and unmarked is not None:
            self._say(f"{self._path}: read as {unmarked}, by its bytes of 0")
            self._decode(unmarked)
        elif given is not None and given.startswith(_WIDE):
            if head and b"\0" not in head:
                self._fail(1, f"encoding: {given}: it has no bytes of 0, as {given} has: leave `encoding` out")
            self._decode(unmarked if given == "utf-16" and unmarked else given)
        self._rest = self._as_utf8(head.removeprefix(mark))

    def _decode(self, name: str) -> None:
        self.encoding, self._decided = name, True
        errors = "surrogatepass" if name.startswith(_WIDE) else "surrogateescape"
        self._decoder = codecs.getincrementaldecoder(name)(errors)

    def _as_utf8(self, data: bytes) -> bytes:
        self._ended = not data
        if not self._decided and not data.isascii():
            data = self._decide(data)
        if self._decoder is None:
            self._lines += data.count(b"\n")
            return data
        if not self.encoding.startswith(_WIDE):
            self._refuse_utf8(data)
        try:
            text: str = self._decoder.decode(data, final=self._ended)
        except UnicodeDecodeError as error:
            line = self._lines + 1 + error.object[: error.start].decode(self.encoding, "ignore").count("\n")
            self._fail(line, f"not {self.encoding} ({error.reason}): {ADVICE}")
        self._lines += text.count("\n")
        try:
            return text.encode()
        except UnicodeEncodeError:
            # A byte that UTF-8 never has.
            return _SURROGATES.sub("\udcff", text).encode("utf-8", "surrogateescape")

    def _decide(self, data: bytes) -> bytes:
        """Choose between UTF-8 and another encoding by the first bytes that are not ASCII; returns all bytes read."""
        self._decided = True
        more = self._file.read(CHUNK_BYTES)
        data, self._ended = data + more, False
        if self._given is not None:
            if self._given != "utf-8":
                self._decode(self._given)
            return data
        good, bad = _counted(data, whole=not more)
        in_runs = sum(map(len, _RUNS.findall(data)))
        if not bad or bad < _TIMES * good or in_runs > _MOST_IN_RUNS * bad or _UNLIKELY.search(data):
            return data
        at = _first_bad(data)
        line = self._lines + 1 + data.count(b"\n", 0, at)
        word = _WORD_END.split(data[max(0, at - MOST_SHOWN) : at])[-1] + _WORD_END.split(data[at : at + MOST_SHOWN])[0]
        self._say(
            f"{self._path}: read as cp1252, a guess: byte 0x{data[at]:02X} in line {line} is not UTF-8, and reads "
            f"{word.decode('cp1252')!r}. If that is wrong, give `encoding: NAME`"
        )
        self._decode("cp1252")
        return data

    def _refuse_utf8(self, data: bytes) -> None:
        """Raise UserError where bytes are UTF-8 that must be those of an encoding with one byte a character."""
        if data.isascii() or not _single(self.encoding):
            return
        good, bad = _counted(data)
        western = bool(_LEADS.search(data))
        if good > _TIMES * bad and (good > 2 or (western and not bad)):
            at = next(i for i, byte in enumerate(data) if byte > 127)
            line = self._lines + 1 + data.count(b"\n", 0, at)
            how = "leave `encoding` out" if self._given else f"lines before it are not: {ADVICE}"
            self._fail(line, f"is UTF-8 here, and not {self.encoding}: {how}")


def _single(name: str) -> bool:
    return len(bytes(range(128, 256)).decode(name, "replace")) == 128


def _wide(head: bytes) -> str | None:
    """UTF-16 where bytes of 0 stand in every second place alone, and in many, as ASCII characters have them."""
    even, odd = head[::2].count(0), head[1::2].count(0)
    if len(head) < 4 or min(even, odd) or max(even, odd) < _MANY * (len(head) // 2):
        return None
    return "utf-16-le" if odd else "utf-16-be"


def _counted(data: bytes, *, whole: bool = False) -> tuple[int, int]:
    """How many characters of UTF-8 beyond ASCII there are, and how many bytes that are not UTF-8.

    whole: nothing follows; without it the last character may be cut off.
    """
    text = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode(data, final=whole)
    return len(_OTHERS.findall(text)), len(ESCAPED.findall(text))


def _first_bad(data: bytes) -> int:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start
    return len(data)

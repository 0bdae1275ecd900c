"""Searches exported files for secrets, for paths of the trainer's machine and for code.

Every byte is looked at, except tensor data of safetensors; ONNX and GGUF files are read whole.
"""

from __future__ import annotations

import getpass
import itertools
import json
import os
import re
import struct
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from rankwright.common.errors import UserError

BLOCK_BYTES = 1 << 24
# Longer than any path or secret; blocks overlap by it.
OVERLAP_BYTES = 1 << 13
LEAST_SECRET = 8
# Python lies here on any system or in any container, and texts about code hold these paths.
OF_ANY_MACHINE = (Path("/usr"), Path("/usr/local"))
SECRET_NAME = re.compile(r"(^|_)(TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIALS?)(_|$)", re.IGNORECASE)
WORD = rb"[A-Za-z0-9_]"
# (description, bytes that every such secret holds, its form).
TOKENS = (
    ("a Hugging Face token", b"hf_", rb"hf_[A-Za-z0-9]{30,}"),
    ("a wandb key", b"wandb_v1_", rb"wandb_v1_[A-Za-z0-9_]{30,}"),
    ("an API key (sk-...)", b"sk-", rb"sk-[A-Za-z0-9_-]{32,}"),
    *(("a GitHub token", b"gh%b_" % kind, rb"gh%b_[A-Za-z0-9]{36,}" % kind) for kind in (b"p", b"o", b"u", b"s", b"r")),
    ("a GitHub token", b"github_pat_", rb"github_pat_[A-Za-z0-9_]{50,}"),
    ("a GitLab token", b"glpat-", rb"glpat-[A-Za-z0-9_-]{20,}"),
    ("a Slack token", b"xox", rb"xox[abeprs]-[A-Za-z0-9-]{20,}"),
    ("an AWS key", b"AKIA", rb"AKIA[A-Z0-9]{16}(?![A-Za-z0-9])"),
    ("an AWS key", b"ASIA", rb"ASIA[A-Z0-9]{16}(?![A-Za-z0-9])"),
    ("a Google API key", b"AIza", rb"AIza[A-Za-z0-9_-]{35}"),
    ("a private key", b"PRIVATE KEY", rb"-----BEGIN [A-Z ]{0,20}PRIVATE KEY-----"),
    ("a URL with a password", b"://", rb"https?://[^/\s:@\"'<>]{1,80}:[^/\s:@\"'<>]{1,200}@[A-Za-z0-9]"),
)
# In these files a length in front of a string may look like a letter.
BINARY = {".onnx", ".gguf"}
# Loading one of these runs code.
CODE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz", ".h5", ".py", ".so")
CODE_STARTS = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")


@dataclass(frozen=True, slots=True)
class Pattern:
    """what: a description that does not repeat the secret. needle: bytes in everything that form finds.

    before: the same form, where certain bytes must not stand in front.
    """

    what: str
    needle: bytes
    form: re.Pattern[bytes]
    before: re.Pattern[bytes]

    @classmethod
    def of(cls, what: str, needle: bytes, form: bytes, before: bytes = b"") -> Pattern:
        return cls(what, needle, re.compile(form), re.compile((rb"(?<!%b)" % before if before else b"") + form))

    def is_in(self, block: bytes, *, binary: bool) -> bool:
        # Searching for plain bytes is many times faster.
        return self.needle in block and (self.form if binary else self.before).search(block) is not None


@dataclass(frozen=True, slots=True)
class Private:
    """What must not be in a file."""

    patterns: tuple[Pattern, ...]

    @classmethod
    def of_this_machine(cls, *folders: Path) -> Private:
        """Paths of this machine (home, working, temporary and Python's folder, and `folders`), names and secrets.

        Names: the user's, in paths. Secrets: values of environment variables named like HF_TOKEN or WANDB_API_KEY, and
        all that has the form of a token.
        """
        places = {Path.home(): "the home folder", Path.cwd(): "the working folder"}
        if Path(sys.prefix) not in OF_ANY_MACHINE:
            places[Path(sys.prefix)] = "Python's folder"
        places |= {Path(tempfile.gettempdir()): "the folder of temporary files"}
        places |= {folder.expanduser().absolute(): "a folder of this run" for folder in folders}
        places |= {place.resolve(): what for place, what in places.items()}
        found = [pattern for place, what in places.items() for pattern in _place_patterns(place, what)]
        try:
            user = getpass.getuser()
        except (OSError, KeyError):  # a user id without a name, as in some containers
            user = "root"
        for homes, slash in itertools.product(("home", "Users"), ("/", "\\", "\\\\")):
            path = f"{slash}{homes}{slash}{user}".encode()
            found.append(Pattern.of("a user's name in a path", path, re.escape(path) + rb"(?![\w.-])"))
        for name, value in os.environ.items():
            if SECRET_NAME.search(name) and len(value.strip()) >= LEAST_SECRET:
                forms = _forms(value.strip())
                found += [Pattern.of(f"the value of {name}", form, re.escape(form)) for form in forms]
        found += [Pattern.of(*token, before=WORD) for token in TOKENS]
        return cls(tuple(found))

    def first_in(self, blocks: Iterable[bytes], *, binary: bool = False) -> str | None:
        """The description of what is found first, or None."""
        return next((p.what for block in blocks for p in self.patterns if p.is_in(block, binary=binary)), None)

    def in_text(self, *texts: str) -> bool:
        return self.first_in(text.encode("utf-8", "surrogatepass") for text in texts) is not None


def _forms(text: str) -> set[bytes]:
    """The bytes of a text in a file: as it is, in JSON with and without escapes, in a URL."""
    forms = {text, json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1], quote(text)}
    return {form.encode("utf-8", "surrogateescape") for form in forms}


def _place_patterns(place: Path, what: str) -> Iterator[Pattern]:
    """A folder, or anything inside it; nothing for `/`.

    For a folder directly below `/` only what lies inside counts: `/tmp` itself is a token of vocabularies.
    """
    if len(place.parts) < 2:
        return
    for form in _forms(str(place)):
        if len(place.parts) == 2:
            yield Pattern.of(what, form, re.escape(form) + rb"[/\\]{1,2}[\w.~-]", before=rb"[\w.~-]")
        else:
            yield Pattern.of(what, form, re.escape(form) + rb"(?![\w-])")


def scan(folder: Path, private: Private) -> None:
    """Raises UserError naming the first file with something private, or with code, and what it is."""
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        with path.open("rb") as file:
            # The first bytes of safetensors are a length, which may be any number.
            starts_as_code = path.suffix != ".safetensors" and file.read(4).startswith(CODE_STARTS)
        if starts_as_code or path.suffix in CODE_SUFFIXES:
            raise UserError(f"{name}: a pickle or code, which runs when it is loaded: only safetensors are exported")
        blocks = itertools.chain([name.encode("utf-8", "surrogateescape")], _blocks(path))
        what = private.first_in(blocks, binary=path.suffix in BINARY)
        if what is not None:
            raise UserError(
                f"{name} holds {what}: nothing was put in place; what a recipe names (base, sets, instruction, name) "
                "stands in the files: name a base or a set by its hub id, or by a path that starts at data.root"
            )


def _blocks(path: Path) -> Iterator[bytes]:
    """The bytes to be searched, in blocks that overlap."""
    with path.open("rb") as file:
        left = path.stat().st_size
        if path.suffix == ".safetensors":
            left = struct.unpack("<Q", file.read(8))[0]
        tail = b""
        while left > 0 and (block := file.read(min(BLOCK_BYTES, left))):
            left -= len(block)
            yield tail + block
            tail = block[-OVERLAP_BYTES:]

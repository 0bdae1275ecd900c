"""`rankwright score`: what its documents are, whatever holds them, and what it refuses in one line."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jobs
import pandas
import pytest

from rankwright.cli import main as cli
from rankwright.cli.models import read_documents, read_scores
from rankwright.common.errors import UserError

ROWS = [{"text": "first"}, {"title": "T", "text": "body"}, {"title": "", "text": "a[i]"}]
TEXTS = ["first", "T\nbody", "a[i]"]
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
READ: dict[str, tuple[bytes, list[str]]] = {
    "d.jsonl": (JSONL, TEXTS),
    "d.ndjson": (JSONL, TEXTS),
    "d.jsonl.gz": (gzip.compress(JSONL), TEXTS),
    "d.json": (json.dumps(ROWS).encode(), TEXTS),
    "d.csv": (b'title,text\n,first\nT,body\n,"a[i]"\n', TEXTS),
    "d.tsv": (b"title\ttext\n\tfirst\nT\tbody\n\ta[i]\n", TEXTS),
    # Without a name that tells it, the first line does.
    "d.txt": (JSONL, TEXTS),
    "d": (b"\xef\xbb\xbf" + JSONL, TEXTS),
    "lines.txt": (b"first [/b]\n\n  \nsecond //div[/span]\r\n", ["first [/b]", "second //div[/span]"]),
    "mark.txt": (b"\xef\xbb\xbffirst\nsecond", ["first", "second"]),
    "code.txt": (b"x = {\n  [1]\n}\n", ["x = {", "  [1]", "}"]),
    "array.txt": (b'["a", "b"]\n', ['["a", "b"]']),
    "number.txt": (b"1\n2\n", ["1", "2"]),
    "one-line.txt": ("a\u2028b\x0cc\n".encode(), ["a\u2028b\x0cc"]),
    "utf16.txt": ("ab\nç\n".encode("utf-16"), ["ab", "ç"]),
    "empty-text.jsonl": (b'{"text": ""}\n{"text": "x"}\n', ["", "x"]),
}
REFUSED: dict[str, tuple[bytes, str]] = {
    "none.txt": (b"", ":1: the file is empty"),
    "blank.txt": (b"\n \n", ":1: the file is empty"),
    "none.jsonl": (b"", ":1: the file is empty"),
    "header.csv": (b"id,text\n", ": holds no document"),
    "array.json": (b"[]", ": holds no document"),
    "other.csv": (b"id,body\n1,x\n", ":2: no column `text`"),
    "null.jsonl": (b'{"text": null}\n', ":1: `text` is null"),
    "number.jsonl": (b'{"text": 5}\n', ":1: `text` has type int"),
    "line.jsonl": (b'{"text": "a"}\nb\n', ":2: not JSON"),
    "half.jsonl": (b'{"text": "\\ud800"}\n', ":1: `text`"),
    "binary.txt": (b"\x80\x81\xff\n", ":1: not UTF-8"),
    "zip.jsonl": (b"PK\x03\x04rest", ":1: a zip archive"),
    "cut.jsonl.gz": (gzip.compress(JSONL * 50)[:-20], "damaged gzip file"),
}


@pytest.mark.parametrize("name", READ)
def test_documents(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, texts = READ[name]
    (tmp_path / name).write_bytes(data)
    assert read_documents(tmp_path / name) == texts
    if not Path(name).suffix or name.endswith((".txt", ".jsonl")):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
        assert read_documents(Path("-")) == texts
        said = capsys.readouterr().out
        assert ("standard input: read as JSONL" in said) == (texts == TEXTS or "empty-text" in name)


def test_parquet(tmp_path: Path) -> None:
    pandas.DataFrame(ROWS).to_parquet(tmp_path / "d.parquet")
    assert read_documents(tmp_path / "d.parquet") == TEXTS


@pytest.mark.parametrize("name", REFUSED)
def test_faults(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, words = REFUSED[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError) as caught:
        read_documents(tmp_path / name)
    assert f"{tmp_path / name}{words}" in str(caught.value) or words in str(caught.value)
    if name.endswith((".txt", "line.jsonl")):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
        with pytest.raises(UserError, match=r"^standard input:"):
            read_documents(Path("-"))


def test_what_is_not_a_file(tmp_path: Path) -> None:
    """A pipe without a writer would be waited for without an end."""
    os.mkfifo(tmp_path / "pipe")
    for path, words in {
        tmp_path: "is a folder",
        tmp_path / "pipe": "is a pipe or a device",
        Path("/dev/zero"): "is a pipe or a device",
        tmp_path / "documents.txt": "no such file",
        tmp_path / ("a" * 300): "no such file",
    }.items():
        with pytest.raises(UserError, match=f"^--documents: .*{words}"):
            read_documents(path)


@pytest.mark.parametrize(
    ("model", "query", "words"),
    [
        ("file", "q", "model: .* is a file, must be a folder"),
        ("empty", "q", "empty.*config.json"),
        ("nowhere/at/all", "q", "no such folder"),
        ("{base}", " ", "--query: must not be empty"),
        ("{base}", "\udcff", "query: holds half of a surrogate pair"),
        ("", "q", "model: must be a path or a name"),
    ],
)
def test_models_and_queries(
    model: str,
    query: str,
    words: str,
    tiny_qwen3: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("x")
    Path("empty").mkdir()
    Path("d.txt").write_text("x\n")
    command = ["score", model.replace("{base}", str(tiny_qwen3)), "-q", query, "-d", "d.txt", "--mode", "official"]
    monkeypatch.setattr("sys.argv", ["rankwright", *command])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(words, line), line


def test_markup_in_documents_is_shown_as_it_is(tmp_path: Path, tiny_qwen3: Path) -> None:
    """In an encoding that lacks a character too."""
    texts = ["a[i] * b[i]", "//div[/span]", "[bold]x[/bold]", "\x1b[31mred", "été"]
    (tmp_path / "d.txt").write_text("\n".join(texts), encoding="utf-8")
    script = "import sys; from rankwright.cli.main import main; main()"
    command = [sys.executable, "-c", script, "score", str(tiny_qwen3), "--mode", "official", "-q", "[/x]"]
    done = subprocess.run(
        [*command, "-d", str(tmp_path / "d.txt")],
        capture_output=True,
        env={**jobs.environment(), "PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 0, done.stderr
    shown: Any = done.stdout.decode("ascii")
    for text in ("a[i] * b[i]", "//div[/span]", "[bold]x[/bold]", r"\x1b[31mred", r"\xe9t\xe9"):
        assert text in shown


def test_scores_of_the_first_stage(tmp_path: Path) -> None:
    path = tmp_path / "scores.txt"
    path.write_bytes(b"\xef\xbb\xbf12.5\n\n -1e3 \r\n0")
    assert read_scores(path, 4) == [12.5, None, -1000.0, 0.0]
    for text, fault in (
        ("1\n2\n", ": 2 lines for 3 documents: give one for each, empty where the search did not find it"),
        ("1\n2,5\n3\n", ":2: '2,5' is not a finite number"),
        ("1\n2\nnan\n", ":3: 'nan' is not a finite number"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=re.escape(f"--first-stage-scores: {path}{fault}")):
            read_scores(path, 3)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not UTF-8"):
        read_scores(path, 1)
    with pytest.raises(UserError, match="no such file"):
        read_scores(tmp_path / "none", 1)


def test_a_ranking_shows_both_scores_and_what_they_were_combined_by(tiny_qwen3: Path, tmp_path: Path) -> None:
    (tmp_path / "d.txt").write_text("A bond is a loan.\nThe river rises.\nprint(item)\n")
    (tmp_path / "s.txt").write_text("3.5\n\n1.25\n")
    done = jobs.rankwright(
        *("score", tiny_qwen3, "--mode", "portable", "-q", "what is a bond?", "-d", tmp_path / "d.txt"),
        *("--first-stage-scores", tmp_path / "s.txt"),
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"rank +score +probability +first stage +combined +document +text", done.stdout)
    assert "3.5000" in done.stdout and "1.2500" in done.stdout
    assert "combined: this model carries no weight below 1, so its own score decides" in done.stdout

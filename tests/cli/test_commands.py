"""Wrong outputs, places and options of each command: one line, soon, and nothing written."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import jobs
import pytest
from report_runs import make_report_run

from rankwright.cli import main as cli

SECONDS = 60.0
# What is given for a file that a command writes -> how it is refused.
OUTPUTS = {
    ".": r": it is a folder",
    "/": r": it is a folder",
    "": r": it is a folder",
    "..": r": it is a folder",
    "folder": r"to folder: it is a folder",
    "folder/../..": r"folder",
    "pipe": r": it is a pipe or a device",
    "/dev/null/x": r": /dev/null is a pipe or a device",
    "file/x": r"to file/x: file is a file",
    "a" * 300: r": a name in a+ is longer than 255 bytes",
}
WRITING = {
    "compare": ["compare", "run", "--json"],
    "report": ["report", "run", "--output"],
    "report of several": ["report", "run", "other", "--output"],
    "init": ["init", "sets", "--base", "base", "--output"],
    "data check": ["data", "check", "sets/one", "--split", "train", "--json"],
}
PLACES = ["", ".", "nosuch", "file", "folder", "pipe", "/dev/zero", "a" * 300, "~nobody/x", "runs/[/b]", "x\x1b[31m"]
READING = {
    "compare": ["compare", "{}"],
    "compare with another": ["compare", "run", "{}"],
    "report": ["report", "{}"],
    "verify": ["verify", "{}"],
    "push": ["push", "{}", "hf", "o/n", "--dry-run"],
    "check": ["check", "{}"],
    "plan": ["plan", "{}"],
    "mine": ["mine", "{}"],
    "score": ["score", "{}", "-q", "q", "-d", "file"],
    "init": ["init", "sets", "-o", "new.yaml", "--base", "{}/x/y"],
}
MISTAKES: list[tuple[list[str], str]] = [
    (["compare", "run", "--against", "[/b]"], "--against: unknown system"),
    (["compare", "run", "--against", ""], "against: must be a path or a name"),
    (["compare", "run", "run"], "given twice"),
    (["compare"], "Missing argument"),
    (["plan", "recipe.yaml", "--gpus", ""], "--gpus: unknown device"),
    (["plan", "recipe.yaml", "--gpus", "0xh100"], "--gpus: unknown device"),
    (["plan", "recipe.yaml", "--gpus", "9" * 40 + "xh100"], "--gpus: unknown device"),
    (["plan", "recipe.yaml", "--gpus", "cpu", "--fsdp2"], "--fsdp2: one device"),
    (["plan", "recipe.yaml", "--mean-tokens", "100000"], "--mean-tokens: 100000 is more than"),
    (["plan", "recipe.yaml", "--mfu", "nan"], "--mfu"),
    (["evaluate", "recipe.yaml", "--only", " , "], "--only: names no system"),
    (["evaluate", "recipe.yaml", "--only", "nope"], "--only: unknown system 'nope'"),
    (["mine", "recipe.yaml", "--audit", "0"], "--audit"),
    (["export", "recipe.yaml", "--override", "why"], "--override: the recipe has neither `gate` nor a teacher"),
    (["verify", "folder", "--tolerance", "nan"], "--tolerance"),
    (["verify", "folder", "--api", "vllm"], "--api: goes with a server"),
    (["verify", "folder", "--url", "x"], "--url: say which server"),
    (["push", "run", "nope", "o/n", "--dry-run"], "no export 'nope'"),
    (["push", "run", "hf", "bad repo//", "--dry-run"], "must be OWNER/NAME"),
    (["check", "recipe.yaml", "="], "'=' must be KEY=VALUE"),
    (
        ["run", "recipe.yaml", "run_dir=/dev/null/x"],
        "run_dir: cannot write to /dev/null/x: /dev/null is a pipe",
    ),
    (["train", "recipe.yaml", "run_dir=file"], "run_dir: cannot write to file: it is a file"),
    (["recipes", "x"], "No such command"),
    (["nosuch"], "No such command"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_qwen3: Path) -> Path:
    """A working folder with runs, a job, sets, a file, a folder, a pipe and a base."""
    folder = tmp_path_factory.mktemp("place")
    jobs.job(folder, tiny_qwen3)
    for name in ("run", "other"):
        make_report_run(folder / name, tiny_qwen3)
    (folder / "folder").mkdir()
    (folder / "file").write_text("x\n")
    os.mkfifo(folder / "pipe")
    (folder / "base").symlink_to(tiny_qwen3)
    return folder


def files_of(place: Path) -> list[str]:
    """All paths but those of locks, which stay, unlocked."""
    return sorted(str(path) for path in place.rglob("*") if path.name != ".lock")


def refused(
    command: list[str], place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    """What the command writes to standard error; it must be soon, and leave the folder as it was."""
    monkeypatch.chdir(place)
    monkeypatch.setattr("sys.argv", ["rankwright", *command])
    before = files_of(place)
    start = time.monotonic()
    with pytest.raises(SystemExit) as left:
        cli.main()
    shown = capsys.readouterr().err
    assert left.value.code == 2 and "Traceback" not in shown and "\x1b" not in shown
    assert time.monotonic() - start < SECONDS
    assert files_of(place) == before
    return shown


@pytest.mark.parametrize("output", OUTPUTS, ids=lambda text: text[:12] or "empty")
@pytest.mark.parametrize("command", WRITING)
def test_outputs(
    command: str, output: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (line,) = refused([*WRITING[command], output], place, monkeypatch, capsys).splitlines()
    option = WRITING[command][-1]
    assert line.startswith(f"error: {option}") and re.search(OUTPUTS[output], line), line


@pytest.mark.parametrize("command", READING)
def test_places(command: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for text in PLACES:
        words = [word.replace("{}", text) for word in READING[command]]
        (line,) = refused(words, place, monkeypatch, capsys).splitlines()
        assert line.startswith("error: ")


@pytest.mark.parametrize(("command", "words"), MISTAKES, ids=[" ".join(c)[:40] for c, _ in MISTAKES])
def test_mistakes(
    command: list[str],
    words: str,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shown = refused(command, place, monkeypatch, capsys)
    assert words in shown and len(shown.splitlines()) <= 4

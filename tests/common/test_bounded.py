"""Code in a process with bounds: its answer comes back, and what never ends or fills the memory is ended."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from rankwright.common.bounded import OutOfBounds, Refusal, run_bounded


@pytest.mark.parametrize("asked", [None, 3, "é\u2028\ud83d", [1, {"a": ["x"]}]])
def test_the_answer_comes_back(asked: object) -> None:
    assert run_bounded("def ask(asked):\n    return [asked, 1]\n", asked, seconds=30) == [asked, 1]


def test_what_it_raises_is_a_refusal() -> None:
    with pytest.raises(Refusal):
        run_bounded("def ask(asked):\n    raise ValueError(asked)\n", "no", seconds=30)


@pytest.mark.parametrize(
    "line",
    [
        "while True: pass",
        pytest.param("return len('x' * 2**31)", marks=pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS")),
        "import os; os._exit(9)",
    ],
)
def test_bounds(line: str) -> None:
    with pytest.raises(OutOfBounds):
        run_bounded(f"def ask(asked):\n    {line}\n", None, seconds=2)


def test_nothing_of_the_working_directory_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit(9)\n")
    monkeypatch.chdir(tmp_path)
    assert run_bounded("def ask(asked):\n    return asked\n", "here", seconds=30) == "here"

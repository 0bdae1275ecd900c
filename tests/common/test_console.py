"""Progress in lines and on a terminal: what is done, and how long the rest takes."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.table import Table

from rankwright.common import console
from rankwright.common.console import duration


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(console.time, "monotonic", clock)
    return clock


def test_lines_leave_out_what_an_earlier_start_did(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress("steps", 100) as advance:
        # 40 were done before, which took no time here.
        advance(40)
        clock.now += 30
        advance(10, loss=0.5)
        clock.now += 30
        advance(10, loss=0.25)
        clock.now += 30
        advance(10, left=7200, loss=0.1)
    assert capsys.readouterr().out.splitlines() == [
        "steps 50/100, 2 min left loss 0.5",
        "steps 60/100, 2 min left loss 0.25",
        "steps 70/100, 2 h 0 min left loss 0.1",
    ]


def test_nothing_is_said_about_the_rest_before_anything_is_done(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with console.progress("steps", 100) as advance:
        clock.now += 600
        advance(0)
        clock.now += 30
        # The total stays changed.
        advance(0, total=50)
        clock.now += 30
        advance(1, loss=1)
    assert capsys.readouterr().out.splitlines() == [
        "steps 0/100",
        "steps 0/50",
        "steps 1/50, 8 h 59 min left loss 1",
    ]


def test_the_last_step_has_its_line_with_the_final_values(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress("train", 3) as advance:
        for step in range(3):
            clock.now += 1
            advance(1, left=2.0 - step, loss=1 / (1 + step), dev=0.5)
    assert capsys.readouterr().out.splitlines() == ["train 3/3 loss 0.3333  dev 0.5"]
    # What has no values to state ends without one.
    with console.progress("mine queries", 2) as advance:
        advance(2)
    assert capsys.readouterr().out == ""


def test_a_bar_shows_the_rest(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = io.StringIO()
    options: dict[str, Any] = {"highlight": False, "markup": False, "color_system": None}
    terminal = console.VisibleConsole(file=sent, width=80, force_terminal=True, **options)
    monkeypatch.setattr(console, "console", terminal)
    with console.progress("steps", 10) as advance:
        advance(0)
        clock.now += 10
        advance(5, loss=0.5)
    assert "10 s left" in sent.getvalue() and "loss 0.5" in sent.getvalue()


def test_a_table_on_a_narrow_terminal_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    sent, path = io.StringIO(), "/a/folder/with/a/long/name/" * 4
    table = Table("name", "what it does", box=None)
    table.add_row("first", "one word after the other, " * 8)
    table.add_row("second", path)
    options: dict[str, Any] = {"highlight": False, "soft_wrap": True, "color_system": None}
    terminal = console.VisibleConsole(file=sent, width=80, force_terminal=True, **options)
    monkeypatch.setattr(console, "console", terminal)
    console.show(table)
    lines = sent.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert path in "".join(line.strip().removeprefix("second").strip() for line in lines)
    assert " ".join(sent.getvalue().split()).count("one word after the other,") == 8


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0 s"), (89, "89 s"), (90, "2 min"), (5399, "1 h 30 min"), (5400, "1 h 30 min")]
)
def test_a_duration_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words

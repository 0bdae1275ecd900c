"""What the person at the terminal sees: lines, tables and progress, from the first process only.

Texts of others (documents, names, licences, answers of servers) pass through `visible` before they are shown: they are
not markup, and nothing in them moves the cursor, sets a title or turns the direction of what follows.
"""

from __future__ import annotations

import os
import re
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

# Without a terminal (a log file, CI) progress is a plain line every so often, and tables are not folded at 80
# columns, unless COLUMNS asks for that.
LOG_EVERY_S = 15.0
LOG_COLUMNS = 160
# Control characters of C0 and C1 but tab and line feed; marks and overrides of direction; line and paragraph
# separators; annotations; halves of surrogate pairs; tags. Joiners stay: scripts and emoji need them.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)


def visible(text: str) -> str:
    """The text with characters that would act instead of being seen written out: `\\x1b`, `\\u202e`.

    A tab and a line feed stay, as do letters and marks of all scripts. A text that was made visible stays as it is.
    """
    return _HIDDEN.sub(lambda found: ascii(found[0])[1:-1], text)


class VisibleConsole(Console):
    """Prints every text, also titles and cells of tables, as it is and visible; styles are given beside a text."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text), **options)


# Markup and emoji codes off: `a[i]` and an id like `a:b:c` must come out as they are.
console = VisibleConsole(highlight=False, soft_wrap=True, emoji=False, markup=False)
_has_bar = False
if not console.is_terminal and not os.environ.get("COLUMNS", "").isdigit():
    console.width = max(console.width, LOG_COLUMNS)


def is_first_process() -> bool:
    """Whether this is the process that prints; known from the launcher's environment, before torch is imported."""
    return os.environ.get("RANK", "0") == "0"


def say(message: str) -> None:
    """Print one line of information."""
    if is_first_process():
        console.print(message)


def heading(message: str) -> None:
    """Print the start of a stage."""
    if is_first_process():
        console.print(message, style="bold")


def show(renderable: Any) -> None:
    """Print a rich table or panel; long words of a cell, such as paths, go on in the next line."""
    if is_first_process():
        for column in getattr(renderable, "columns", ()):
            # By default a word that is wider than its column is cut.
            column.overflow = "fold"
        console.print(renderable)


def quiet_libraries() -> None:
    """Keep other libraries' notices and bars out of our output; we check what matters and report it ourselves."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    # Its retries, two lines each; what could not be had in the end is an error.
    hub_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()
    logging.disable_progress_bar()


@contextmanager
def silence() -> Iterator[None]:
    """Print nothing inside: no line, no table, no progress."""
    before, console.quiet = console.quiet, True
    try:
        yield
    finally:
        console.quiet = before


@contextmanager
def progress(description: str, total: int) -> Iterator[Callable[..., None]]:
    """Yields advance(count=1, **values): a bar with an ETA on a terminal, lines elsewhere, nothing on other ranks.

    advance(0, total=N) changes the total to N; left=S states the seconds that are left, where the caller knows better
    than the mean so far. Inside another progress it prints lines too: a terminal has one bar.
    """
    global _has_bar
    if not is_first_process():
        yield lambda count=1, **values: None
    elif console.is_terminal and not console.quiet and not _has_bar:
        columns = [TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn()]
        columns += [TextColumn(f"{{task.fields[{name}]}}", markup=False) for name in ("left", "values")]
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(visible(description), total=total, left="", values="")
            rate = _Rate(total)

            def advance(
                count: int = 1, *, total: int | None = None, left: float | None = None, **values: float
            ) -> None:
                words = rate.left(count, total, left, started=not values)
                bar.update(task, advance=count, total=rate.total, left=words, values=_format(values))

            _has_bar = True
            try:
                yield advance
            finally:
                _has_bar = False
    else:
        yield _line_progress(description, total)


class _Rate:
    """How much is done of `total`, and what is left by the mean so far, without what was done before this start."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.started = time.monotonic()
        self.done = self.first = -1

    def left(self, count: int, total: int | None, stated: float | None, *, started: bool) -> str:
        """The time that is left after `count` more, in words; empty before anything is known.

        started: whether the first call may be about an earlier start. stated: seconds that the caller knows.
        """
        if self.done < 0:
            self.first = count if started else 0
        self.done = max(self.done, 0) + count
        self.total = self.total if total is None else total
        here = self.done - self.first
        if self.done >= self.total:
            return ""
        if stated is None and here > 0:
            stated = (time.monotonic() - self.started) / here * (self.total - self.done)
        return "" if stated is None else f"{duration(stated)} left"


def _line_progress(description: str, total: int) -> Callable[..., None]:
    rate = _Rate(total)
    last = rate.started

    def advance(count: int = 1, *, total: int | None = None, left: float | None = None, **values: float) -> None:
        nonlocal last
        words = rate.left(count, total, left, started=not values)
        now = time.monotonic()
        # The last line of what states values has the final ones.
        if (rate.done >= rate.total and values) or (now - last >= LOG_EVERY_S and rate.done < rate.total):
            comma = ", " if words else ""
            say(f"{description} {rate.done}/{rate.total}{comma}{words} {_format(values)}".rstrip())
            last = now

    return advance


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 20 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def _format(values: dict[str, float]) -> str:
    shown = {k: v for k, v in values.items() if v == v and abs(v) != float("inf")}
    return "  ".join(f"{k} {v:.4g}" for k, v in shown.items())

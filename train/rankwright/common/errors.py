"""Errors that the user can mend: each states what is wrong, where, and how to fix it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

# Characters of a wrong name that a message repeats.
LONGEST_QUOTE = 200


class UserError(ValueError):
    """One line for the user: what, where, how to fix. The command line prints it and exits with 2."""


class UserErrors(UserError):
    """Several mistakes found together, so that one run shows them all."""

    def __init__(self, messages: Sequence[str]) -> None:
        self.messages = list(messages)
        super().__init__("\n".join(self.messages))


class Refused(UserError):
    """Everything worked, and the result is not good enough for what was asked; the exit code is 3."""


class Stopped(Exception):
    """Training stopped on request and saved a checkpoint of `step`; interrupted: by Ctrl-C."""

    def __init__(self, step: int, *, interrupted: bool) -> None:
        self.step, self.interrupted = step, interrupted
        super().__init__(f"stopped after step {step}")


class Paused(Exception):
    """Training reached the evaluation at which it was to pause, and saved a checkpoint of `step`."""

    def __init__(self, step: int) -> None:
        self.step = step
        super().__init__(f"paused after step {step}")


class PeerFailed(Exception):
    """Another process of this command failed and reported why: this one ends without a message."""


def one_line(text: str) -> str:
    """A message that quotes a file, with line breaks and all other unprintable characters escaped."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def nearest(word: str, known: Iterable[str], count: int = 1) -> list[str]:
    """The known words most similar to `word`, best first; empty when nothing is near."""
    return difflib.get_close_matches(word, list(known), n=count, cutoff=0.6)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`, did you mean X?` or nothing; append it to a message about an unknown name."""
    near = nearest(word, known)
    return f", did you mean {near[0]!r}?" if near else ""


def no_such(kind: str, name: str, known: Iterable[str], advice: str = "") -> str:
    """`unknown loss 'bec', did you mean 'bce'? (known: bce, mse)`, for all names that a user may choose from."""
    words = sorted(known)
    shown = name if len(name) <= LONGEST_QUOTE else f"{name[:LONGEST_QUOTE]}..."
    found = f"unknown {kind} {shown!r}{did_you_mean(name, words)} (known: {', '.join(words) or 'none'})"
    return f"{found}: {advice}" if advice else found


@contextmanager
def in_one_line(what: str, advice: str) -> Iterator[None]:
    """Inside, an exception of another library becomes `what (its first line): advice`; a UserError passes unchanged."""
    try:
        yield
    except (UserError, Stopped, PeerFailed):
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
        # The first line may only announce the second.
        said = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
        if not said or isinstance(error, LookupError):
            # A bare key explains nothing without the kind of the error.
            said = f"{type(error).__name__} {said}".strip()
        raise UserError(f"{what} ({one_line(said)}): {advice}") from None

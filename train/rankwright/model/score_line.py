"""The first stage's score as a line of text before a document, so that the model reads what the search thought of it.

BM25CAT writes BM25's score as a whole number between query and passage: Askari et al. 2023, arXiv 2301.09728. There the
numbers lie between the lowest and the highest score of a collection, here of the query's own list (levels_of in
rerankers/combination.py), which any caller knows. The line begins the document: what is before it stays one prompt's
beginning for all documents of a query, and every runtime takes it as part of the document's text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

LABEL = "First-stage score:"
MOST_LEVELS = 1000
# In a user's text, whatever its case.
_OF_USERS = re.compile(re.escape(LABEL), re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ScoreLine:
    """levels: the highest level, that of a list's best score; the lowest is 0."""

    levels: int = 50

    def wrong(self) -> str | None:
        """What is wrong with the value; None where nothing is."""
        right = type(self.levels) is int and 2 <= self.levels <= MOST_LEVELS
        return None if right else f"levels must be a whole number from 2 to {MOST_LEVELS}"

    def line(self, level: int) -> str:
        """The line of a level, with its end."""
        return f"{LABEL} {level}\n"

    def before(self, document: str, level: int | None, prefix: str) -> str:
        """A raw document with its line, then the frame's document prefix, as it stands before a document without one.

        level: None for no line. The label in the document itself is broken by a space after its first letter, as
        control tokens are: no text of a user can state a level.
        """
        own = _OF_USERS.sub(lambda match: f"{match[0][0]} {match[0][1:]}", document)
        return own if level is None else f"{self.line(level)}{prefix}{own.strip()}"

    def split(self, text: str, prefix: str) -> tuple[str, str]:
        """(the line, the document) of a text that before() made; ("", the text) where it has no line."""
        match = re.match(rf"({re.escape(LABEL)} \d+\n){re.escape(prefix)}", text)
        return (match[1], text[match.end() :]) if match else ("", text)

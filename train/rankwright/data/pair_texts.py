"""Two documents as the one text that a pairwise student reads: `Document A: ...`, line break, `Document B: ...`.

The marks in the documents themselves are broken by a space after their first letter, so that the first mark of B that
stands in a text is ours, and no text of a user can pass for the other document.
"""

from __future__ import annotations

import re

FIRST, SECOND = "Document A: ", "\nDocument B: "
# Behind the id of a pair: the ids of its two orders, and so of its two "documents".
ORDERS = ("/ab", "/ba")
# In a user's text, whatever its case.
_OF_USERS = re.compile(r"document (?=[ab]:)", re.IGNORECASE)


def pair_text(first: str, second: str) -> str:
    """The text of two raw documents, in the order in which they are shown."""
    return f"{FIRST}{_own(first)}{SECOND}{_own(second)}"


def _own(document: str) -> str:
    return _OF_USERS.sub(lambda match: f"{match[0][0]} {match[0][1:]}", document.strip())


def middle_of(text: str) -> int | None:
    """The place in a text of pair_text at which the mark of the second document begins; None for any other text."""
    middle = text.find(SECOND.rstrip())
    return middle if text.startswith(FIRST.rstrip()) and middle >= 0 else None

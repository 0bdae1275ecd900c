"""Numbers with their nouns: `1 query`, `1,200 queries`."""

from __future__ import annotations

import re


def counted(number: int, one: str, many: str = "") -> str:
    """`1 row`, `1,200 rows`. many: the plural where it is not regular, or where a verb follows (`query is`)."""
    return f"{number:,} {one if number == 1 else many or _plural(one)}"


def _plural(noun: str) -> str:
    """query -> queries, process -> processes, row -> rows."""
    if re.search("[^aeiou]y$", noun):
        return noun[:-1] + "ies"
    return noun + ("es" if re.search("(s|x|ch|sh)$", noun) else "s")

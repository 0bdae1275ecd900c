"""Options of several commands: `--columns`, `--labels` and `--encoding`, by which a user names what is in a file."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rankwright.common.errors import UserError

COLUMNS_HELP = "our name of a column = the file's: --columns query=question document=passage label=clicked"
ENCODING_HELP = "the encoding of the text files, such as cp1252; without it, their bytes show it"
LABELS_HELP = "what the values of the label column mean: --labels 'yes=1,no=0'; above 0 is relevant"


def columns_of(given: Sequence[str], others: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """(our name -> the file's, the other arguments).

    given: the values of --columns, each `OURS=THEIRS` or several of them with commas. others: the arguments, among
    which further ones may stand where --columns is given. Raises UserError for what is not of that form.
    """
    from rankwright.data.formats.reading import COLUMNS

    more = [text for text in others if given and text.partition("=")[0] in COLUMNS and "=" in text]
    pieces = [piece.strip() for text in [*given, *more] for piece in text.split(",")]
    pairs = [piece.partition("=") for piece in pieces if piece]
    wrong = [ours for ours, mark, theirs in pairs if not (ours and mark and theirs)]
    if wrong:
        raise UserError(f"--columns {wrong[0]}: must be OURS=THEIRS, such as query=question")
    names = [ours for ours, *_ in pairs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"--columns {twice[0]}: given twice: each of our columns is one column of the file")
    return {ours: theirs for ours, _, theirs in pairs}, [text for text in others if text not in more]


def labels_of(text: str | None) -> dict[str, float]:
    """Value -> label, of `yes=1,no=0`. Raises UserError for what is not of that form."""
    from rankwright.data.formats.fields import number_of

    found: dict[str, float] = {}
    # A comma between digits may be the decimal comma of a value: `0,5=0.5`.
    for piece in re.findall(r"((?:[^,=]|(?<=\d),(?=\d+\s*=)|=(?![^,=]*(?:,|$)))*(?:=[^,=]*)?)(?:,|$)", text or ""):
        if not piece.strip():
            continue
        value, mark, number = piece.rpartition("=")
        label = number_of(number.strip())
        if not (value.strip() and mark) or label is None:
            raise UserError(f"--labels {piece.strip()}: must be VALUE=NUMBER, such as 'relevant=1,not relevant=0'")
        found[value.strip()] = label
    return found

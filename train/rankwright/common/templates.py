"""Jinja environments for the pages and cards that this package writes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import escape

from rankwright.common.console import visible
from rankwright.common.plurals import counted

# A backslash that would act on the character after it; emphasis, code, a link's end before its address.
_MARKS = re.compile(r"\\(?=[!-/:-@\[-`{-~])|[*`]|~(?=~)|(?<![^\W_])_|_(?![^\W_])|(?<=\])\(")


def template_environment(package: str, *, html: bool, filters: Mapping[str, Callable[..., Any]]) -> Environment:
    """An environment for the folder `templates` of a package, in which an unknown name is an error.

    html: values are escaped; without it they stand in the text as they are, as in Markdown: texts of others pass the
    filters `inline`, `cell` or `code`. Values of both are visible (see console.visible), but those that pass `exact`.
    """
    made = Environment(
        loader=PackageLoader(package, "templates"),
        autoescape=html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=not html,
        # What is marked as safe is ours, or has passed `exact`.
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    made.filters |= {"inline": inline, "cell": cell, "code": code, "counted": counted, "exact": escape, **filters}
    return made


def inline(text: object) -> str:
    """A text of others on one line of Markdown, as it is: no tag, reference, emphasis, code or link begins in it."""
    line = _MARKS.sub(lambda found: f"\\{found[0]}", " ".join(visible(str(text)).split()))
    return re.sub(r"&(?=#?\w+;)", "&amp;", line).replace("<", "&lt;")


def cell(text: object) -> str:
    """As `inline`, in a cell of a table, which a bar would end."""
    return inline(text).replace("|", "\\|")


def code(text: object) -> str:
    """A text of others between backticks, which one of its own would end."""
    return " ".join(visible(str(text)).split()).replace("`", "'")

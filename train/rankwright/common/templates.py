"""Jinja environments for the pages and cards that this package writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def template_environment(package: str, *, html: bool, filters: Mapping[str, Callable[..., Any]]) -> Environment:
    """An environment for the folder `templates` of a package, in which an unknown name is an error.

    html: values are escaped; without it they stand in the text as they are, as in Markdown.
    """
    made = Environment(
        loader=PackageLoader(package, "templates"),
        autoescape=html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=not html,
    )
    made.filters |= filters
    return made

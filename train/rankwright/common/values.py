"""Values that a Python program passes to us: lists of texts, texts, numbers and paths, checked where they enter."""

from __future__ import annotations

import math
import numbers
import operator
import os
from collections.abc import Iterable, Iterator, Mapping, MappingView, Set
from pathlib import Path
from typing import Any

from rankwright.common.errors import UserError, one_line

_READ = "read the file: path.read_text()"
_DECODE = "decode it: .decode('utf-8')"


def list_of_texts(name: str, texts: Iterable[str]) -> list[str]:
    """The texts in their order, by position: of a list, a column (pandas, NumPy, Arrow, datasets) or a generator.

    Raises UserError for one text, whose letters would be taken, for a mapping, a set and a table, which have no order
    of texts, and for an element that is not text; name: what the caller calls the list.
    """
    return [one_text(f"{name}[{place}]", value) for place, value in enumerate(_in_order(name, "texts", texts))]


def list_of_paths(name: str, paths: Iterable[Any]) -> list[Path]:
    """Paths from texts or `pathlib.Path`s. Raises UserError for one in place of a list, and for what is not a path."""
    return [Path(path_text(f"{name}[{place}]", path)) for place, path in enumerate(_in_order(name, "paths", paths))]


def _in_order(name: str, kind: str, values: Any) -> Iterator[Any]:
    """What a list or another ordered holder holds. Raises UserError for what is not one."""
    what = f"{name}: must be a list of {kind}, found"
    if isinstance(values, str):
        raise UserError(f"{what} one text: put it in [ ]")
    if isinstance(values, os.PathLike):
        raise UserError(f"{what} a path: {'put it in [ ]' if kind == 'paths' else _READ}")
    if isinstance(values, bytes | bytearray | memoryview):
        raise UserError(f"{what} bytes: {_DECODE}, and put it in [ ]")
    if isinstance(values, Mapping):
        raise UserError(f"{what} a mapping: give list(mapping.values()), or one column of it")
    # The views of a mapping are sets too, but have its order.
    if isinstance(values, Set) and not isinstance(values, MappingView):
        raise UserError(f"{what} a set, which has no order: give a sorted list")
    dimensions = getattr(values, "ndim", 1)
    if dimensions != 1:
        # Iterating over a data frame gives the names of its columns.
        raise UserError(f"{what} a {type(values).__name__} of {dimensions} dimensions: give one column of it")
    try:
        return iter(values)
    except TypeError:
        raise UserError(f"{what} {_named(values)}") from None


def one_text(name: str, value: Any) -> str:
    """A text as a plain `str`; a scalar of Arrow and a subclass of `str`, such as NumPy's, become one.

    Raises UserError for anything else, and for a text that UTF-8 cannot hold.
    """
    if not isinstance(value, str) and callable(getattr(value, "as_py", None)):
        value = value.as_py()
    if not isinstance(value, str):
        raise UserError(f"{name}: must be text, found {_named(value)}: {_mended(value)}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(
            f"{name}: holds half of a surrogate pair, which is not text: read it as UTF-8, or replace it"
        ) from None
    return str.__str__(value)


def whole_number(name: str, value: Any, *, least: int = 1) -> int:
    """A whole number of at least `least`, also NumPy's. Raises UserError for others: true, 2.0, `2`, NaN."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None:
        raise UserError(f"{name}: must be a whole number, found {_named(value)} {one_line(repr(value)[:60])}")
    if number < least:
        raise UserError(f"{name}: must be at least {least}, found {number}")
    return number


def finite_number(name: str, value: Any) -> float:
    """A finite number as a float, also NumPy's. Raises UserError for others: NaN, infinity, true, text, a tensor."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        advice = ": give .item() of it" if hasattr(value, "item") else ""
        raise UserError(f"{name}: must be a number, found {_named(value)}{advice}")
    if not math.isfinite(value):
        raise UserError(f"{name}: must be a finite number, found {float(value)}")
    return float(value)


def numbers_or_none(name: str, values: Iterable[float | None]) -> list[float | None]:
    """Finite numbers, or None, in their order: of a list, a column (pandas, NumPy, Arrow) or a generator.

    Raises UserError as list_of_texts and finite_number do; name: what the caller calls the list.
    """
    found = (v.as_py() if callable(getattr(v, "as_py", None)) else v for v in _in_order(name, "numbers", values))
    return [None if v is None else finite_number(f"{name}[{place}]", v) for place, v in enumerate(found)]


def path_text(name: str, value: Any) -> str:
    """A path or a hub id as text, from text or a `pathlib.Path`. Raises UserError for others."""
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{name}: must be a path or a name, found {_named(text)}")
    try:
        # The name of a file may be any bytes; Python reads those that are not UTF-8 as surrogates.
        usable = b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        usable = False
    if not usable:
        raise UserError(f"{name}: {one_line(text[:60])}: holds a character that no path has")
    return text


def _named(value: Any) -> str:
    if value is None:
        return "None"
    if isinstance(value, str):
        return "an empty text" if not value.strip() else "text"
    return "NaN" if isinstance(value, float) and value != value else type(value).__name__


def _mended(value: Any) -> str:
    """How to make a text of what is not one."""
    if isinstance(value, os.PathLike):
        return _READ
    if isinstance(value, bytes | bytearray):
        return _DECODE
    if isinstance(value, Mapping):
        return "give the field with the text"
    if isinstance(value, Iterable):
        return "give one list of texts"
    if value is None or type(value).__name__ in ("NAType", "NaTType") or _named(value) == "NaN":
        return "leave it out, or give ''"
    return "give str(...) of it"

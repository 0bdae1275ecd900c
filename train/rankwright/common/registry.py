"""What recipes choose by name: functions, whose keyword-only parameters are recipe keys, and records."""

from __future__ import annotations

import functools
import inspect
import json
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from rankwright.common.errors import UserError, did_you_mean, no_such, one_line

# No option is meant beyond it, and whole numbers of C and floats of 32 bits overflow.
LARGEST = 10**9
LONGEST_MESSAGE = 500


class Named(Protocol):
    """A record: its name is what a recipe writes."""

    @property
    def name(self) -> str: ...


F = TypeVar("F", bound=Callable[..., Any])
R = TypeVar("R", bound=Named)
T = TypeVar("T")


class _Known(Generic[T]):
    """Things by name, in the order they were added; `kind` is the word used in messages ("loss", "export target")."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._known: dict[str, T] = {}
        # Modules outside the package that added something: a fresh process has to import them too.
        self.extensions: list[str] = []

    def _add(self, name: str, thing: T, module: str) -> None:
        assert name not in self._known, f"{self.kind} {name!r} is registered twice"
        self._known[name] = thing
        if not module.startswith("rankwright.") and module not in self.extensions:
            self.extensions.append(module)

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __contains__(self, name: object) -> bool:
        return name in self._known

    def __getitem__(self, name: str) -> T:
        """Raises UserError for an unknown name, with the known ones."""
        if name not in self._known:
            raise UserError(no_such(self.kind, name, self._known))
        return self._known[name]

    def values(self) -> list[T]:
        """What is registered, in the order it was added."""
        return list(self._known.values())


class Registry(_Known[F]):
    """Functions by name.

    hyphens: the names of recipes have hyphens where those of the functions have underscores.
    """

    def __init__(self, kind: str, *, hyphens: bool = False) -> None:
        super().__init__(kind)
        self.hyphens = hyphens

    def register(self, function: F) -> F:
        """Decorator: the function's own name is its recipe name."""
        name = function.__name__.replace("_", "-") if self.hyphens else function.__name__
        self._add(name, function, function.__module__)
        return function

    def bind(self, name: str, options: Mapping[str, Any]) -> Callable[..., Any]:
        """The function with `options` fixed; raises as bind() does."""
        return bind(f"{self.kind} {name!r}", self[name], options)


class Records(_Known[R]):
    """Records by their `name`, each written in one file and found in every table that is derived from them."""

    def add(self, record: R, module: str) -> R:
        """Add a record; module: `__name__` of the file that writes it."""
        self._add(record.name, record, module)
        return record


def parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The keyword-only parameters of a function, which are the keys a recipe may give."""
    signature = inspect.signature(function)
    return {k: p for k, p in signature.parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}


def _validated(model: type[BaseModel], options: Mapping[str, Any]) -> BaseModel:
    try:
        # Through JSON, because a strict tuple is taken only from a JSON array.
        return model.model_validate_json(json.dumps(options))
    except TypeError:
        # Values that no file of a recipe holds, such as the path of a run file.
        return model.model_validate(options)


def bind(what: str, function: Callable[..., Any], options: Mapping[str, Any]) -> functools.partial[Any]:
    """The function with `options` fixed, after checking their names and types; what: as in `loss 'bce'`.

    Raises UserError naming the wrong key, its type and the keys that exist.
    """
    known = parameters(function)
    unknown = [k for k in options if k not in known]
    if unknown:
        raise UserError(
            f"{what} has no parameter {unknown[0]!r}{did_you_mean(unknown[0], known)} "
            f"(parameters: {', '.join(known) or 'none'})"
        )
    hints = typing.get_type_hints(function, include_extras=True)
    fields: dict[str, Any] = {
        k: (hints.get(k, Any), ... if p.default is inspect.Parameter.empty else p.default) for k, p in known.items()
    }
    # Strict, as the recipe's own keys: true is not 1, and '3' is not a number.
    model = create_model(f"{function.__name__}_options", __config__=ConfigDict(extra="forbid", strict=True), **fields)
    try:
        values = _validated(model, options).model_dump()
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        # It may repeat a value of any length.
        message = one_line(first["msg"].removeprefix("Value error, "))
        raise UserError(f"{what}: {key}: {message[:LONGEST_MESSAGE]}") from None
    for key, value in values.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and not -LARGEST <= value <= LARGEST:
            raise UserError(f"{what}: {key}: must be from {-LARGEST:,} to {LARGEST:,}")
    return functools.partial(function, **values)

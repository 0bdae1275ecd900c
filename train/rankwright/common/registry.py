"""name -> function: the function's keyword-only parameters ARE its recipe keys."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from pydantic import ConfigDict, ValidationError, create_model

from rankwright.common.errors import UserError, did_you_mean

F = TypeVar("F", bound=Callable[..., Any])


class Registry(Generic[F]):
    """Functions by name; `kind` is the word used in messages ("loss", "sampler").

    hyphens: the names of recipes have hyphens where those of the functions have underscores.
    """

    def __init__(self, kind: str, *, hyphens: bool = False) -> None:
        self.kind = kind
        self.hyphens = hyphens
        self._functions: dict[str, F] = {}

    def register(self, function: F) -> F:
        """Decorator: the function's own name is its recipe name."""
        name = function.__name__.replace("_", "-") if self.hyphens else function.__name__
        assert name not in self._functions, f"{self.kind} {name!r} is registered twice"
        self._functions[name] = function
        return function

    def __iter__(self) -> Iterator[str]:
        return iter(self._functions)

    def __getitem__(self, name: str) -> F:
        if name not in self._functions:
            known = ", ".join(sorted(self._functions))
            raise UserError(f"unknown {self.kind} {name!r}{did_you_mean(name, self._functions)} (known: {known})")
        return self._functions[name]

    def parameters(self, name: str) -> dict[str, inspect.Parameter]:
        """The keyword-only parameters of `name`, which are the keys a recipe may give."""
        signature = inspect.signature(self[name])
        return {k: p for k, p in signature.parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}

    def bind(self, name: str, options: Mapping[str, Any]) -> Callable[..., Any]:
        """The function with `options` fixed, after checking their names and types.

        Raises UserError naming the wrong key, its type and the keys that exist.
        """
        function = self[name]
        parameters = self.parameters(name)
        unknown = [k for k in options if k not in parameters]
        if unknown:
            known = ", ".join(parameters) or "none"
            raise UserError(
                f"{self.kind} {name!r} has no parameter {unknown[0]!r}"
                f"{did_you_mean(unknown[0], parameters)} (parameters: {known})"
            )
        hints = typing.get_type_hints(function, include_extras=True)
        fields: dict[str, Any] = {
            k: (hints.get(k, Any), ... if p.default is inspect.Parameter.empty else p.default)
            for k, p in parameters.items()
        }
        model = create_model(f"{name}_options", __config__=ConfigDict(extra="forbid"), **fields)
        try:
            values = model(**options).model_dump()
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            raise UserError(f"{self.kind} {name!r}: {key}: {first['msg']}") from None
        return functools.partial(function, **values)

"""The base of every section of a recipe, and kinds of values: bounded numbers, texts that are safe to print."""

from __future__ import annotations

import re
from collections.abc import Container
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, WithJsonSchema

from rankwright.common.console import visible

MOST = 10**9
# Every number has a smallest and a largest value: what lies beyond them fails late, or never ends.
Positive = Annotated[int, Field(gt=0, le=MOST)]
Tokens = Annotated[int, Field(gt=0, le=10**6)]
Documents = Annotated[int, Field(gt=0, le=10**6)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
Weight = Annotated[float, Field(gt=0, le=1000)]
LONGEST_NAME, LONGEST_LINE, LONGEST_TEXT = 100, 4096, 20_000


def _one_line(text: str) -> str:
    """Names, paths and ids: an empty one would mean the working folder, a hidden character another place."""
    if not text.strip():
        raise ValueError(f"must not be empty, found text {text!r}")
    if visible(text) != text or "\n" in text or "\t" in text:
        raise ValueError("must be one line without control characters")
    return text


def _no_control(text: str) -> str:
    if found := re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", text):
        raise ValueError(f"holds the control character {found[0]!a}: leave it out")
    return text


# A name, a path or an id; a text that a model or a person reads; what names a folder.
Line = Annotated[str, Field(max_length=LONGEST_LINE), AfterValidator(_one_line)]
Words = Annotated[str, Field(max_length=LONGEST_TEXT), AfterValidator(_no_control)]
FolderName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=LONGEST_NAME)]
# Marks a key that changes no number: nothing is done again when it changes, and runs that differ in it are compared.
NoResult = Field(json_schema_extra={"changes_result": False})


def _number_or_auto(value: Any) -> Any:
    # By hand: a plain union would report the faults of both readings.
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MOST):
        return value
    what = f"the number {value}" if isinstance(value, int | float) else repr(value)
    raise ValueError(f"must be auto, or a whole number from 1 to {MOST:,}, found {what}")


NumberOrAuto = Annotated[
    Positive | Literal["auto"],
    PlainValidator(_number_or_auto),
    WithJsonSchema({"anyOf": [{"const": "auto"}, {"type": "integer", "exclusiveMinimum": 0, "maximum": MOST}]}),
]


def _whole_keys(value: Any) -> Any:
    """The mapping with numbers as keys: YAML and JSON give them as texts."""
    if not isinstance(value, dict):
        return value
    odd = [key for key in value if isinstance(key, str) and not re.fullmatch(r"[0-9]{1,7}", key)]
    if odd:
        raise ValueError(f"each label must be a whole number from 0 to {MOST_GRADE:,}, found {odd[0]!r}")
    return {int(key) if isinstance(key, str) else key: gain for key, gain in value.items()}


MOST_GRADE = 10**6
Grade = Annotated[int, Field(ge=0, le=MOST_GRADE)]
# The gain of each grade.
Gains = Annotated[dict[Grade, Annotated[float, Field(ge=0, le=10**6)]], BeforeValidator(_whole_keys)]


def tuple_of_list(value: Any) -> Any:
    """A list as a tuple: a section under a validator of its own is read as Python values, where no list is one."""
    return tuple(value) if isinstance(value, list) else value


class Section(BaseModel):
    """Base of every section: frozen, no unknown keys, no guessing of types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


def given_beside(section: Section, allowed: Container[str]) -> list[str]:
    """The keys, beside those that are allowed, whose value is not their default; the recipe.json of a run has all."""
    fields = type(section).model_fields
    return sorted(key for key, field in fields.items() if key not in allowed and getattr(section, key) != field.default)

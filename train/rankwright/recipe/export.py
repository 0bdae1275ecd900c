"""The keys of `gate`, `licence` and `export`: what a model must pass, and which folders are written of it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from rankwright.recipe.kinds import Line, Section, Words


class Gate(Section):
    """What tuned must reach before it may be exported."""

    metric: Line = "nDCG@10"
    """The measure that decides."""
    system: Literal["tuned", "combined"] = "tuned"
    """What must pass: tuned alone, or its combination with the first stage (`evaluate.combine`)."""
    against: tuple[Literal["base", "first_stage"], ...] = ("base",)
    """What it must be better than: the base, the search whose lists are reordered, or both."""
    at_least: tuple[Literal["base", "first_stage"], ...] = ()
    """What it must not be worse than by more than one standard error."""
    min_gain: Annotated[float, Field(ge=-(10**6), le=10**6)] = 0.0
    """The lower end of the interval of the difference, over all test sets except guard sets, must exceed this."""
    confidence: Annotated[float, Field(ge=0.5, le=0.9999)] = 0.95
    """Confidence of the interval; the randomisation test must have a p value of at most 1 less this."""
    guard: tuple[Line, ...] = ()
    """Names of test sets, such as another domain's, on which it must not be worse than the base."""

    @model_validator(mode="after")
    def _asks_for_something(self) -> Gate:
        if not self.against and not self.at_least:
            raise ValueError("against: names nothing, and neither does at_least: name base, first_stage or both")
        return self


class Decision(Section):
    """Who decided that an input may be used, although its licence does not settle it, and why."""

    input: Line
    """The input: its name, card, hub id or path."""
    by: Annotated[Words, Field(min_length=1)]
    """Who decided."""
    why: Annotated[Words, Field(min_length=1)]
    """The reason, for the model card."""


class LicenceRule(Section):
    """What all inputs of the weights must permit, and what a person decided about those that are not clear."""

    require: Literal["commercial", "commercial-strict"] | None = None
    """All inputs of the weights must permit commercial use; `-strict`: so must the data behind base and teachers."""
    decisions: tuple[Decision, ...] = ()
    """What a person decided about inputs whose licence does not settle it."""


def _with_defaults(targets: Any) -> Any:
    names = isinstance(targets, list) and all(isinstance(name, str) for name in targets)
    return {name: {} for name in targets} if names else targets


# NAME -> options; a list of names gives them their defaults.
Targets = Annotated[dict[str, dict[str, Any]], BeforeValidator(_with_defaults)]


class Export(Section):
    """What is written for other programs, and how it is proven."""

    targets: Targets | None = None
    """A list of targets, or targets with options; without it, `hf` and, with LoRA, `adapter`. `[]`: no exports."""
    instruction: Words | None = None
    """The instruction that the exports contain; it must be chosen when training sets have several."""
    golden_pairs: Annotated[int, Field(ge=20, le=10**4)] = 24
    """Number of test pairs that every export must score like the trainer."""
    tolerance: Annotated[float, Field(gt=0, le=10)] = 1e-4
    """The largest difference of a logit from the trainer's that is allowed in fp32."""

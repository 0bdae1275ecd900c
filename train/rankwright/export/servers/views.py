"""What a server may do to a model's logits before it answers: activations, right and wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rankwright.export.runtimes import sigmoid
from rankwright.export.servers.asking import Scale

Values = Sequence[float]


@dataclass(frozen=True, slots=True)
class View:
    """expected(scale, logits): what the server answers. cause and fix are empty for the right one."""

    key: str
    expected: Callable[[Scale, Values], list[float]]
    cause: str = ""
    fix: str = ""


def _right(scale: Scale, logits: Values) -> list[float]:
    return sigmoid(logits) if scale == "probability" else list(logits)


def _none(scale: Scale, logits: Values) -> list[float]:
    return list(logits)


def _twice(scale: Scale, logits: Values) -> list[float]:
    return sigmoid(sigmoid(logits)) if scale == "probability" else list(logits)


def _twice_always(scale: Scale, logits: Values) -> list[float]:
    return sigmoid(sigmoid(logits)) if scale == "probability" else sigmoid(logits)


def _softmax(scale: Scale, logits: Values) -> list[float]:
    return [1.0] * len(logits) if scale == "probability" else list(logits)


ONE_ACTIVATION = "config.json: sentence_transformers.activation_fn must be Sigmoid, and the server must apply it once"
TWICE = "wrong activation: sigmoid is applied twice, so every score lies between 0.5 and 0.73"
# The right one first; each is one fault more.
RIGHT = View("right", _right)
VIEWS = (
    RIGHT,
    View(
        "softmax over one label",
        _softmax,
        "wrong activation: softmax over one label, which is 1 for every pair",
        "a one-label head needs sigmoid (a GGUF file two classifier rows): " + ONE_ACTIVATION,
    ),
    View(
        "no activation",
        _none,
        "wrong activation: none is applied, logits come where probabilities are expected",
        ONE_ACTIVATION,
    ),
    View("sigmoid twice", _twice, TWICE, ONE_ACTIVATION),
    View("sigmoid twice", _twice_always, TWICE, ONE_ACTIVATION),
)

"""A registry finds functions by name and checks the options that a recipe gives them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from rankwright.common.errors import UserError
from rankwright.common.registry import Records, Registry, parameters


def example() -> Registry[Callable[..., float]]:
    registry: Registry[Callable[..., float]] = Registry("loss")

    @registry.register
    def softmax(scores: list[float], *, temperature: float = 1.0, hard: bool = False) -> float:
        return sum(scores) / temperature + hard

    @registry.register
    def margin(scores: list[float], *, width: int) -> float:
        return len(scores) * width

    return registry


def test_iterates_in_the_order_of_registration() -> None:
    assert list(example()) == ["softmax", "margin"]


def test_keyword_only_parameters_are_the_keys() -> None:
    assert list(parameters(example()["softmax"])) == ["temperature", "hard"]


def test_bind_fixes_options_and_keeps_defaults() -> None:
    assert example().bind("softmax", {"temperature": 2.0})([1.0, 3.0]) == 2.0
    assert example().bind("softmax", {})([1.0, 3.0]) == 4.0
    assert example().bind("softmax", {"hard": True})([1.0]) == 2.0


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("softmx", {}, ["unknown loss 'softmx'", "did you mean 'softmax'?", "(known: margin, softmax)"]),
        ("zzz", {}, ["unknown loss 'zzz'", "(known: margin, softmax)"]),
        ("softmax", {"temprature": 1}, ["'temprature'", "did you mean 'temperature'?", "temperature, hard"]),
        ("softmax", {"temperature": "warm"}, ["loss 'softmax'", "temperature", "number"]),
        ("margin", {}, ["loss 'margin'", "width"]),
    ],
)
def test_mistakes_name_the_word_and_the_known_ones(name: str, options: dict[str, object], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        example().bind(name, options)
    assert [word for word in words if word not in str(caught.value)] == []


def test_registering_twice_is_our_fault() -> None:
    registry = example()

    def margin(scores: list[float]) -> float:
        return 0.0

    with pytest.raises(AssertionError, match="registered twice"):
        registry.register(margin)


@dataclass(frozen=True)
class Thing:
    name: str


def test_records_are_found_by_name_and_remember_modules_outside_the_package() -> None:
    records: Records[Thing] = Records("prompt mode")
    records.add(Thing("plain"), "rankwright.model.frames")
    records.add(Thing("mine"), "acme.frames")
    records.add(Thing("other"), "acme.frames")
    assert list(records) == ["plain", "mine", "other"] and records["mine"] == Thing("mine") in records.values()
    assert records.extensions == ["acme.frames"] and "mine" in records and len([*records]) == 3
    with pytest.raises(
        UserError, match=r"unknown prompt mode 'plane', did you mean 'plain'\? \(known: mine, other, plain\)"
    ):
        records["plane"]

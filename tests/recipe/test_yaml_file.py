"""A YAML file gives values, the line of every key, and mistakes in words; never another exception."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rankwright.common.errors import UserError, UserErrors
from rankwright.recipe.schema import Recipe, recipe_keys
from rankwright.recipe.yaml_file import parse_value, read_yaml, scalar, validate

GOOD = "name: mine\nmodel: {base: some/base}\ndata: {test: [{card: fiqa, split: test}]}\n"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def read(content: bytes) -> Recipe:
    Path("a.yaml").write_bytes(content)
    return validate(Recipe, read_yaml(Path("a.yaml")))


def mistakes(content: bytes) -> list[str]:
    with pytest.raises(UserErrors) as caught:
        read(content)
    return caught.value.messages


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("seed: 1.5", "seed: must be a whole number, found the number 1.5"),
        ("seed: ", "seed: must be a whole number, found nothing (null)"),
        ("description: 12", "description: must be text, found the number 12: put it in quotes"),
        ("train: {trackers: wandb}", "train.trackers: must be a list, found text 'wandb': put it in [ ]"),
        ("train: {trackers: [1]}", "train.trackers.0: must be text, found the number 1: put it in quotes"),
        ("train: {shuffle_labels: yes}", "train.shuffle_labels: must be true or false, found text 'yes'"),
        ("train: {warmup_fraction: 1}", "train.warmup_fraction: must be less than 1.0, found the number 1"),
        ("export: {golden_pairs: 3}", "export.golden_pairs: must be at least 20, found the number 3"),
        ("train: {epochs: .inf}", "train.epochs: must be a finite number, found .inf"),
        ("train: {precision: bf61}", "found text 'bf61', did you mean 'bf16'?"),
        ("prompt:", "prompt: must be a mapping, found nothing (null): give it keys, or delete the line"),
        ("loss: bce", "loss: must be a mapping, found text 'bce'"),
        ("learning_rate: 1", "learning_rate: unknown key here, it belongs to pretrain or train"),
        ("extend: quickstart", "extend: unknown key, did you mean 'extends'?"),
        ("zzz: 1", "zzz: unknown key, known: name, description"),
        ("1: 2", "1: unknown key, known: "),
        ("<<: {seed: 1}", "<<: unknown key, known: "),
        ("? [a]\n: 1", "a key must be plain text"),
        ("loss: &x {options: *x}", "loss.options: aliases (*name) are not supported"),
        ("\tseed: 1", "not valid YAML: a tab, indent with spaces"),
        ("train: [1", "not valid YAML: "),
        ("seed: 1\nname: b", "name: given twice, first on line 1: keep one"),
        ('description: "\\ud800"', "description: holds half of a surrogate pair, which is not text"),
    ],
)  # fmt: skip
def test_a_mistake_has_its_line_and_words(line: str, what: str) -> None:
    found = mistakes(f"{GOOD}{line}\n".encode())
    assert len(found) == 1
    assert found[0].startswith(("a.yaml:4: ", "a.yaml:5: ")) and what in found[0]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "is empty"),
        (b"# only a comment\n", "is empty"),
        (b"- 1\n", "must be a mapping (key: value) at the top level"),
        (b"\xff\xfe\xff", "cannot be read"),
        (b"a: \x00", "not valid YAML"),
        (b"a: 1\n---\nb: 2\n", "not valid YAML: but found another document"),
        (b"[" * 5000, "is nested too deeply"),
        (b'a: "\\UFFFFFFFF"', "not valid YAML"),
    ],
)
def test_a_file_that_is_no_recipe(content: bytes, what: str) -> None:
    [message] = mistakes(content)
    assert message.startswith("a.yaml:") and what in message


words = st.sampled_from([*(k.rpartition(".")[2] for k in recipe_keys()), "zzz", "2e-5", "null"])
leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | words
trees = st.recursive(leaves, lambda t: st.lists(t, max_size=3) | st.dictionaries(words, t, max_size=4), max_leaves=20)


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode) | trees.map(lambda t: yaml.dump(t).encode()))
def test_garbage_is_a_user_error(content: bytes) -> None:
    with pytest.raises(UserError):
        read(content)


# Numbers


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**200), 10**200) | st.booleans() | st.none())
def test_a_scalar_means_what_json_means(value: Any) -> None:
    assert scalar(json.dumps(value)) == value
    assert type(scalar(json.dumps(value))) is type(value)


@pytest.mark.parametrize(("text", "value"), [("2e-5", 2e-5), ("1E5", 1e5), ("1_000", 1000), ("+3", 3), (".5", 0.5)])
def test_numbers(text: str, value: float) -> None:
    assert scalar(text) == value


@pytest.mark.parametrize("text", ["no", "yes", "on", "1:30", "2026-11-25", "1_00", "e5", "0x", "."])
def test_what_yaml_1_1_would_change_is_text(text: str) -> None:
    assert scalar(text) == text


@pytest.mark.parametrize("text", [".inf", "-.inf", ".nan", "1e999", "9" * 400])
def test_numbers_are_finite(text: str) -> None:
    with pytest.raises(ValueError, match="must be a finite number"):
        scalar(text)


def test_a_learning_rate_without_a_point() -> None:
    assert read(f"{GOOD}train: {{learning_rate: 2e-5}}".encode()).train.learning_rate == 2e-5


@given(st.recursive(
    st.none() | st.booleans() | st.integers(-10**9, 10**9) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=8),
    lambda t: st.lists(t, max_size=3) | st.dictionaries(st.text("abc", min_size=1), t, max_size=3),
    max_leaves=8,
))  # fmt: skip
def test_an_override_in_json_means_what_json_means(value: Any) -> None:
    assert parse_value(json.dumps(value)) == value

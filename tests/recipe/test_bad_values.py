"""Any value under any key, and any file in place of a recipe: taken, or refused in lines that name key and value."""

from __future__ import annotations

import itertools
import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bad_recipes
import jobs
import pytest
import yaml
from bad_recipes import KEYS, VALUES, with_value

from rankwright import Pipeline, UserError, load_recipe
from rankwright.common.errors import UserErrors
from rankwright.recipe import yaml_file

# No recipe takes as long as this, not on a busy machine.
SECONDS = 30.0


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, tiny_qwen3: Path) -> tuple[Path, dict[str, Any]]:
    """(folder, recipe) of a job that works."""
    folder = tmp_path_factory.mktemp("bad") / "job"
    recipe: dict[str, Any] = yaml.safe_load(jobs.job(folder, tiny_qwen3).read_text())
    return folder, recipe


def checked(path: Path, *overrides: str) -> list[str]:
    """The mistakes that `rankwright check --offline` reports; anything but a UserError fails the test."""
    start = time.monotonic()
    try:
        Pipeline(load_recipe(path, overrides), progress=False).check(offline=True)
        return []
    except UserErrors as error:
        return error.messages
    except UserError as error:
        return [str(error)]
    finally:
        assert time.monotonic() - start < SECONDS


def try_values(job: tuple[Path, dict[str, Any]], key: str, values: list[Any]) -> None:
    folder, recipe = job
    path = folder / "tried.yaml"
    last = key.split(".")[-1].removesuffix("[]")
    for value in values:
        path.write_text(json.dumps(with_value(recipe, key, value, model=recipe["model"]["base"])))
        found = checked(path)
        for line in found:
            assert "\n" not in line and "Traceback" not in line and len(line) < 4000, line
        # A fault names the key, or the section that does not fit together, or the set that it stands in.
        parts = [part.removesuffix("[]") for part in key.split(".")]
        assert not found or any(part in line for part in (last, *parts) for line in found), (key, value, found)


@pytest.mark.parametrize("key", KEYS)
def test_a_value_of_every_kind(key: str, job: tuple[Path, dict[str, Any]]) -> None:
    """Three values for each key, others for each; the slow test tries all."""
    turn = list(KEYS).index(key)
    others = list(itertools.islice(itertools.cycle(VALUES), turn * 7 % len(VALUES), turn * 7 % len(VALUES) + 3))
    try_values(job, key, others)


@pytest.mark.slow
@pytest.mark.parametrize("key", KEYS)
def test_every_value(key: str, job: tuple[Path, dict[str, Any]]) -> None:
    try_values(job, key, VALUES)


NUMERIC = [
    (key, kind, bad_recipes.bounds(found))
    for key, field in KEYS.items()
    for kind, found in bad_recipes.numbers_of(field)
]


@pytest.mark.parametrize(("key", "kind", "bounds"), NUMERIC, ids=[key for key, *_ in NUMERIC])
def test_every_number_has_bounds(
    key: str, kind: type, bounds: dict[str, Any], job: tuple[Path, dict[str, Any]]
) -> None:
    """Written in the schema, refused beyond them with key and value, and taken at the largest."""
    assert {"gt", "ge"} & set(bounds) and {"lt", "le"} & set(bounds), f"{key} has no bound: {bounds}"
    folder, recipe = job
    low = bounds["gt"] if "gt" in bounds else bounds["ge"] - 1
    high = bounds["lt"] if "lt" in bounds else bounds["le"] + 1
    for value in (low, high, -(10**30), 10**30):
        path = folder / "tried.yaml"
        path.write_text(json.dumps(with_value(recipe, key, kind(value), model=recipe["model"]["base"])))
        found = checked(path)
        name = key.split(".")[-1]
        assert any(f"{name}: must be" in line and "found the number" in line for line in found), found


def test_numbers_are_found_in_the_schema() -> None:
    """The two tests above would pass on an empty list."""
    numeric = {key for key, *_ in NUMERIC}
    assert {"train.groups_per_step", "gate.min_gain", "seed", "data.train[].limit", "data.dev.fraction"} <= numeric
    assert len(numeric) > 30 and len(KEYS) > 80


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.groups_per_step=1e12", "train.groups_per_step: must be a whole number, found the number 1000000000000"),
        ("train.groups_per_step=1000000000000", "train.groups_per_step: must be at most 100000, found the number 1000"),
        ("evaluate.measures=[]", "evaluate.measures: must hold at least 1"),
        ("gate={min_gain: 5}", "gate.min_gain: 5, must be below 1: nDCG@10 is from 0 to 1"),
        ("prompt.query_tokens=160", "query_tokens: 160 must be less than max_tokens, 160"),
        ("prompt.query_tokens=150", "prompt.max_tokens: 160 is too small"),
        ("name=" + "a" * 255, "name: must have at most 100 characters, found text 'aaa"),
        ("name=a/b", "name: must match"),
        ("name=..", "name: must match"),
        ("run_dir=" + "a" * 300, "run_dir: a name in aaa"),
        ("run_dir=/dev/null/x", "/dev/null is a pipe or a device"),
        ('run_dir=""', "run_dir: must not be empty"),
        ('model.base=""', "model.base: must not be empty"),
        ('data.train.0.path=""', "data.train.0.path: must not be empty"),
        ("data.train.0.path=/dev/zero", "/dev/zero: is a pipe or a device"),
        ("dense={model: /etc}", "dense.model: '/etc' holds none of config.json"),
        ("export.targets=[[]]", "export.targets: must be a mapping, found a list"),
        ("seed=-1", "seed: must be at least 0, found the number -1"),
        ("=1", "'=1' must be KEY=VALUE"),
        (".".join("a" * 1000) + "=1", "names a key in more than 32 sections"),
        ("a" * 10_000, "must be KEY=VALUE"),
    ],
)
def test_values_that_cannot_work(override: str, words: str, job: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = job
    section, text = ("dense=", ["evaluate.first_stage=dense"]) if override.startswith("dense=") else ("", [])
    found = checked(folder / "recipe.yaml", override, *(text if section else []))
    assert any(words in line for line in found), found


def nested(opening: str, closing: str, depth: int) -> bytes:
    return (opening * depth + "1" + closing * depth).encode()


HEAD = b"name: x\nmodel: {base: b}\ndata: {train: [{path: a}], test: [{path: b}]}\n"
FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "nothing but spaces": (b" \n \n", "is empty"),
    "a list": (b"- 1", "must be a mapping"),
    "a text": (b"hello", "must be a mapping"),
    "binary": (bytes(range(256)), "cannot be read|not valid YAML"),
    "zeros": (b"\0" * 1000, "not valid YAML"),
    "utf-16": ("name: x".encode("utf-16"), "cannot be read|not valid YAML"),
    "too large": (b"#" * (yaml_file.LARGEST_BYTES + 1), "has more than 262,144 bytes"),
    "200,000 keys": (b"".join(b"k%d: 1\n" % n for n in range(200_000)), "has more than 262,144 bytes"),
    "20,000 keys": (HEAD + b"".join(b"k%d: 1\n" % n for n in range(20_000)), "and 19,9.. more mistakes"),
    "5,000 keys twice": (HEAD + b"".join(b"k%d: 1\n" % (n // 2) for n in range(10_000)), "more mistakes"),
    "lists in lists": (HEAD + b"seed: " + nested("[", "]", 5_000), "nested too deeply"),
    "mappings in mappings": (HEAD + b"loss: " + nested("{a: ", "}", 400), "nested too deeply"),
    "33 levels": (HEAD + b"loss: {options: " + nested("{a: ", "}", 33) + b"}", "nested too deeply"),
    "a long key": (HEAD + b"a" * 1_000 + b": 1", "a key must be plain text of at most 500"),
    "a key that acts": (HEAD + b'"\\x1b[31m": 1', "a key must be plain text"),
    "aliases of aliases": (
        HEAD
        + b"loss:\n  options:\n    a: &a [1,1]\n"
        + b"".join(b"    %c: &%c [*%c,*%c]\n" % (c, c, c - 1, c - 1) for c in b"bcdef"),
        "aliases",
    ),
    "an alias of itself": (HEAD + b"loss: {options: &a {b: *a}}", "aliases"),
    "merged keys": (HEAD + b"train: &t {epochs: 1}\nevaluate: {<<: *t}", "aliases"),
    "a tag that builds an object": (HEAD + b"seed: !!python/object/apply:os.system ['true']", "seed: must be a whole"),
    "two documents": (b"name: x\n---\nname: y\n", "not valid YAML"),
    "a long number": (HEAD + b"seed: " + b"9" * 5_000, "seed: must be a finite number"),
    "a long float": (HEAD + b"train: {epochs: " + b"9" * 5_000 + b".0}", "finite number"),
    "not a number": (HEAD + b"train: {epochs: .nan}", "train.epochs: must be a finite number"),
    "extends itself": (b"extends: ./tried.yaml\nname: x", "extends: goes round in a circle"),
    "extends nothing": (b"extends: ./nowhere.yaml\nname: x", "extends: .*no such file"),
    "extends a number": (b"extends: 3\nname: x", "extends: must be the name"),
    "extends a device": (b"extends: /dev/zero.yaml\nname: x", "extends: .*no such file"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_not_recipes(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content, words = FILES[name]
    monkeypatch.chdir(tmp_path)
    Path("tried.yaml").write_bytes(content)
    found = checked(Path("tried.yaml"))
    assert any(re.search(words, line) for line in found), found[:3]
    assert len(found) <= yaml_file.MOST_MISTAKES + 1 and all(len(line) < 2000 and "\n" not in line for line in found)


def a_pipe(folder: Path) -> None:
    os.mkfifo(folder / "tried.yaml")


def a_folder(folder: Path) -> None:
    (folder / "tried.yaml").mkdir()


def a_chain(folder: Path) -> None:
    for n in range(300):
        (folder / f"{n}.yaml").write_text(f"name: x\nextends: ./{n + 1}.yaml\n")
    (folder / "tried.yaml").write_text("name: x\nextends: ./0.yaml\n")


def a_link_to_itself(folder: Path) -> None:
    (folder / "tried.yaml").symlink_to(folder / "tried.yaml")


@pytest.mark.parametrize("make", [a_pipe, a_folder, a_chain, a_link_to_itself])
def test_places_that_are_not_files(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path)
    assert checked(tmp_path / "tried.yaml")


def test_a_large_recipe_that_extends_a_large_one_is_read_in_seconds(tmp_path: Path) -> None:
    """Each key of the first file replaces one of the second: once the work grew with the square of the keys."""
    for name, extends in (("base", ""), ("tried", "extends: ./base.yaml\n")):
        options = "".join(f"    o{n}: {{v: {len(name)}}}\n" for n in range(8_000))
        (tmp_path / f"{name}.yaml").write_text(f"name: {name}\n{extends}loss:\n  options:\n{options}")
    assert any("model: missing" in line for line in checked(tmp_path / "tried.yaml"))


@pytest.mark.parametrize("key", ["prompt.instruction", "export.instruction", "data.train.0.instruction"])
def test_what_exports_refuse_is_refused_by_check(key: str, job: tuple[Path, dict[str, Any]]) -> None:
    """The home folder and a token in the instruction that the exports hold; not in one that they do not hold."""
    folder, _ = job
    for text, what in {
        f"Find what stands in {Path.home() / 'notes'}": "the home folder",
        "use hf_" + "a" * 34: "a Hugging Face token",
    }.items():
        (line,) = checked(folder / "recipe.yaml", f"{key}={json.dumps(text)}")
        assert line.startswith(f"{key}: holds {what}")
        assert not checked(folder / "recipe.yaml", f"{key}={json.dumps(text)}", "export.targets=[]")
    other = [f"prompt.instruction={json.dumps(str(Path.home() / 'x'))}", "export.instruction=Find passages"]
    assert not checked(folder / "recipe.yaml", *other)


OPTIONS = bad_recipes.options()
# No option takes them: a number is not guessed from a text or from true, and has a size that can be computed with.
NEVER = [True, 10**30, -(10**30), 1e300, [[]], {"nope": {}}]


def try_options(job: tuple[Path, dict[str, Any]], option: str, values: list[Any]) -> list[list[str]]:
    folder, recipe = job
    key, shape = OPTIONS[option]
    found = []
    for value in values:
        whole = with_value(recipe, key, bad_recipes.placed(shape, value), model=recipe["model"]["base"])
        if key == "evaluate.baselines":
            whole["evaluate"]["baselines"][0]["model"] = recipe["model"]["base"]
        path = folder / "tried.yaml"
        path.write_text(json.dumps(whole))
        found.append(checked(path))
        assert all("\n" not in line and len(line) < 4000 for line in found[-1]), found[-1]
    return found


@pytest.mark.parametrize("option", OPTIONS)
def test_options_that_never_work(option: str, job: tuple[Path, dict[str, Any]]) -> None:
    values = [
        value for value in NEVER if value is not True or not option.endswith(("remote_code", "lowest", "symlink"))
    ]
    # Any mapping may be sent to a server.
    values = [value for value in values if not (isinstance(value, dict) and option.endswith(" extra"))]
    for value, found in zip(values, try_options(job, option, values), strict=True):
        assert any(option.split()[-1] in line for line in found), (value, found)


@pytest.mark.slow
@pytest.mark.parametrize("option", OPTIONS)
def test_every_value_of_an_option(option: str, job: tuple[Path, dict[str, Any]]) -> None:
    assert len(OPTIONS) > 20
    try_options(job, option, VALUES)

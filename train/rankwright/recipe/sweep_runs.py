"""The runs of a sweep: ordinary recipes with short names, each checked, and all mistakes of all of them at once."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import itertools
import json
import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwright.common import resources
from rankwright.common.errors import UserError, UserErrors, no_such
from rankwright.common.hashing import content_hash
from rankwright.common.plurals import counted
from rankwright.common.values import list_of_texts
from rankwright.recipe.loading import WHOLE, LoadedRecipe, apply_override, extend, merge_under, recipe_json
from rankwright.recipe.paths import start_paths
from rankwright.recipe.schema import Key, Recipe
from rankwright.recipe.sources import DevFromTrain
from rankwright.recipe.sweep import OF_RUNGS, UNDECAYED, Factor, Sweep, factors_of
from rankwright.recipe.sweep_trials import Proposal, proposed, read_proposals
from rankwright.recipe.yaml_file import Place, YamlFile, read_yaml, validate

# More runs than this may be a slip of a grid: they are asked for with --yes.
MOST_RUNS = 1000
# More are not even listed.
MOST_LISTED = 100_000
DEFAULT = "default"
# A name of a folder beyond this is cut, and told from others by a hash.
LONGEST_NAME = 60


# By identity: a recipe holds mappings, which have no hash.
@dataclass(frozen=True, slots=True, eq=False)
class Configuration:
    """One way of training. The default is the recipe as it stands.

    settings: swept key -> its value, those of the recipe where it is not changed; changed: the keys that are
    """

    name: str
    settings: Mapping[str, Any]
    changed: tuple[str, ...]
    recipe: Recipe


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One training: a configuration with a seed. loaded: its recipe, whose run_dir is its folder."""

    name: str
    configuration: Configuration
    seed: int
    folder: Path
    loaded: LoadedRecipe


@dataclass(frozen=True, slots=True)
class Trials:
    """The trials of a sweep whose configurations are proposed.

    of: hash of what they are proposed for; names: the configuration of each proposal, None where it makes no recipe
    """

    factors: tuple[Factor, ...]
    build: _Builder
    of: str
    proposals: tuple[Proposal, ...] = ()
    names: tuple[str | None, ...] = ()


@dataclass(frozen=True, slots=True)
class LoadedSweep:
    """A sweep with its configurations, the default first; the others in the order of the file.

    in_design: whether the default is one of the design's own combinations
    trials: of a design that proposes configurations; those proposed so far are among the configurations
    """

    sweep: Sweep
    path: Path
    folder: Path
    factors: tuple[str, ...]
    configurations: tuple[Configuration, ...]
    in_design: bool
    sources: tuple[Path, ...]
    overrides: tuple[str, ...]
    trials: Trials | None = None

    @property
    def default(self) -> Configuration:
        return self.configurations[0]

    @property
    def runs(self) -> list[PlannedRun]:
        """All runs: every configuration with the first seed, then with the second, as far as budget.runs goes.

        Configurations that are proposed get all seeds one after the other: the next proposal follows from their mean.
        """
        pairs = [(one, seed) for seed in self.sweep.seeds for one in self.configurations]
        if self.trials is not None:
            pairs = [(one, seed) for one in self.configurations for seed in self.sweep.seeds]
        made = [self._run(one, seed) for one, seed in pairs]
        return made[: self.sweep.budget.runs]

    def with_proposals(self, proposals: Sequence[Proposal]) -> LoadedSweep:
        """The sweep with these proposals, the whole list of them. One that makes no valid recipe has no runs."""
        assert self.trials is not None
        made, names = [self.default], list[str | None]()
        known = {recipe_json(self.default.recipe): DEFAULT}
        for number, proposal in enumerate(proposals, start=1):
            try:
                recipe = self.trials.build.recipe(proposed(self.trials.factors, proposal))
            except UserErrors:
                names.append(None)
                continue
            text = recipe_json(recipe)
            if text not in known:
                known[text] = f"trial-{number}"
                settings = _settings(recipe, self.trials.factors)
                changed = tuple(key for key, value in settings.items() if value != self.default.settings[key])
                made.append(Configuration(known[text], settings, changed, recipe))
            names.append(known[text])
        trials = dataclasses.replace(self.trials, proposals=tuple(proposals), names=tuple(names))
        return dataclasses.replace(self, configurations=tuple(made), trials=trials)

    def _run(self, one: Configuration, seed: int) -> PlannedRun:
        name = f"{one.name}-s{seed}"
        folder = self.folder / name
        train = one.recipe.train.model_copy(update={"seed": seed})
        names = {"name": f"{self.sweep.name}-{name}"[:100], "run_dir": str(folder), "train": train}
        recipe = one.recipe.model_copy(update=names)
        return PlannedRun(name, one, seed, folder, LoadedRecipe(recipe, self.path, self.sources, self.overrides))


def load_sweep(name_or_path: str | Path, overrides: Sequence[str] = (), *, yes: bool = False) -> LoadedSweep:
    """Read a sweep by its name in recipes/ or by its path; overrides change the recipe below all runs.

    yes: more than MOST_RUNS runs are wanted. Raises UserErrors with all mistakes of the file, of the recipe that it
    extends and of all runs, each once and with the line of the sweep's file that it comes from.
    """
    path = resources.find_yaml(str(name_or_path), resources.sweep_files(), kind="sweep")
    overrides = list_of_texts("overrides", overrides)
    tree = read_yaml(path)
    design = tree.data.get("design")
    factors = factors_of(tree, drawn=isinstance(design, dict) and not {"random", "optuna"}.isdisjoint(design))
    _check_overrides(tree, overrides, [factor.key for factor in factors])
    if isinstance(design, dict) and "optuna" in design and importlib.util.find_spec("optuna") is None:
        tree.blame(
            ("design", "optuna"), "optuna is not installed: `pip install 'rankwright[sweep]'`, or draw by random"
        )
    sweep = validate(Sweep, tree)
    folders = [text.partition("=")[2] for text in overrides if text.startswith("run_dir=")]
    overrides = [text for text in overrides if not text.startswith("run_dir=")]
    _count(tree, sweep, factors, yes=yes)
    base, sources = _base(sweep, path)
    build = _Builder(tree, base, sources, overrides, sweep.name)
    default = build.recipe({})
    _check_dev(tree, factors, base, default)
    configurations, in_design = _configurations(sweep, factors, default, build)
    _check_early(tree, sweep, factors, configurations)
    folder = resources.expand(folders[-1] if folders else f"runs/{sweep.name}")
    trials = None
    if sweep.design.optuna is not None:
        of = content_hash(
            recipe_json(default), [(f.key, f.values, f.low, f.high, f.log) for f in factors], sweep.design.optuna.seed
        )
        trials = Trials(tuple(factors), build, of)
    loaded = LoadedSweep(
        sweep,
        path,
        folder,
        tuple(factor.key for factor in factors),
        tuple(configurations),
        in_design,
        tuple(sources),
        tuple(overrides),
        trials,
    )
    return loaded if trials is None else loaded.with_proposals(read_proposals(folder, trials.of))


def _check_dev(tree: YamlFile, factors: Sequence[Factor], base: YamlFile, default: Recipe) -> None:
    """Raise UserErrors for a factor that would change dev."""
    dev = default.data.dev
    changing = _changing_sets(factors, base) if isinstance(dev, DevFromTrain) else []
    where = "taken out of train" if isinstance(dev, DevFromTrain) else "written"
    if any(one.synthesized for one in (default.data.train if isinstance(dev, DevFromTrain) else dev)):
        changing += [factor for factor in factors if factor.parts[0] == "synthesize"]
    for factor in changing:
        tree.blame(("over", factor.key), f"dev is {where} and would change with it: give data.dev sets of its own")
    validate(Sweep, tree)


def _changing_sets(factors: Sequence[Factor], base: YamlFile) -> list[Factor]:
    """The factors that change which training sets there are, and not only whether they have placeholders."""

    def sets(value: Any) -> Any:
        if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
            return None
        return [{k: v for k, v in one.items() if k != "abstract"} for one in value]

    own = sets(base.data.get("data", {}).get("train", []))
    found = [factor for factor in factors if factor.key.startswith("data.train")]
    return [f for f in found if f.key != "data.train" or any(sets(value) != own for value in f.values)]


def _check_overrides(tree: YamlFile, overrides: Sequence[str], swept: Sequence[str]) -> None:
    over = tree.data.get("over")
    swept = [*swept, *(key for key in over if isinstance(key, str))] if isinstance(over, dict) else swept
    for text in overrides:
        key = text.partition("=")[0].strip()
        place = Place(1, 0, "override")
        if any(f"{key}.".startswith(f"{name}.") or name.startswith(f"{key}.") for name in swept):
            tree.blame((), f"{key}: is swept: change the file", place)
        if key in ("name", "seeds", "train.seed", "over", "design", "budget", "early", "choose"):
            tree.blame((), f"{key}: is of the sweep, not of its recipe: change the file", place)


def _count(tree: YamlFile, sweep: Sweep, factors: Sequence[Factor], *, yes: bool) -> None:
    """Raise UserError for more runs than are wanted without a question, before any is made."""
    sizes = [len(factor.values) for factor in factors]
    number = math.prod(sizes) if sweep.design.kind == "grid" else 1 + sum(sizes)
    drawn = sweep.design.random or sweep.design.optuna
    number = 1 + drawn.runs if drawn else number
    runs = min(number * len(sweep.seeds), sweep.budget.runs or number * len(sweep.seeds))
    if number > MOST_LISTED or (runs > MOST_RUNS and not yes):
        advice = "" if number > MOST_LISTED else ", or give --yes"
        raise UserError(
            f"{tree.places[('over',)]}: over: {counted(runs, 'run')} ({counted(number, 'configuration')} x "
            f"{counted(len(sweep.seeds), 'seed')}): more than {MOST_RUNS:,}: leave values out, use design: {{random: "
            f"{{runs: 24}}}} or one_at_a_time{advice}"
        )


def _check_early(
    tree: YamlFile, sweep: Sweep, factors: Sequence[Factor], configurations: Sequence[Configuration]
) -> None:
    """Raise UserErrors where runs at a rung would not be comparable."""
    if sweep.early is None:
        return
    names = dict.fromkeys(one.recipe.train.schedule for one in configurations)
    decayed = [name for name in names if name not in UNDECAYED]
    longer = [factor.key for factor in factors if factor.key in OF_RUNGS]
    if sweep.design.optuna is not None:
        tree.blame(
            ("early",), "a rung compares all configurations, and optuna proposes one after the other: leave one out"
        )
    if sweep.design.learning_curve is not None:
        tree.blame(("early",), "would end the smaller shares, which the learning curve is made of: leave one out")
    elif longer:
        tree.blame(
            ("early",),
            f"{longer[0]} is swept: at a rung some runs would have trained longer than others: leave one out",
        )
    if decayed:
        tree.blame(
            ("early",),
            f"train.schedule is {' or '.join(decayed)}: at a rung the learning rate would be half decayed, and no run "
            f"comparable: set train.schedule={UNDECAYED[0]} or {UNDECAYED[1]} for all runs, or leave `early` out",
        )
    validate(Sweep, tree)


def _base(sweep: Sweep, path: Path) -> tuple[YamlFile, list[Path]]:
    """All of the recipe that is extended, as the second file of `sources`."""
    known = resources.recipe_files()
    file = resources.find_yaml(sweep.extends, known, kind="recipe", folder=path.parent)
    sources = [path, file]
    tree = read_yaml(file, rank=1)
    if "over" in tree.data:
        raise UserError(f"{path}: extends: {sweep.extends!r} is a sweep: name a recipe")
    extend(tree, sources, known)
    return tree, sources


@dataclass(frozen=True, slots=True)
class _Builder:
    """Makes recipes of one sweep."""

    tree: YamlFile
    base: YamlFile
    sources: Sequence[Path]
    overrides: Sequence[str]
    name: str

    def recipe(self, changes: Mapping[Factor, Any]) -> Recipe:
        """The recipe with these values. Raises UserErrors, with the lines of the sweep's file."""
        made = YamlFile(0, self.tree.file)
        made.data["name"], made.places["name",] = self.name, self.tree.places.get(("name",), Place(0, 1, made.file))
        for factor, value in changes.items():
            self._put(made, factor, copy.deepcopy(value))
        merge_under(made, copy.deepcopy(self.base), WHOLE | {factor.parts for factor in changes})
        for override in self.overrides:
            apply_override(made, override, rank=len(self.sources))
        start_paths(made, self.sources)
        return validate(Recipe, made)

    def _put(self, made: YamlFile, factor: Factor, value: Any) -> None:
        inner = made.data
        for part in factor.parts[:-1]:
            inner = inner.setdefault(str(part), {})
        inner[str(factor.parts[-1])] = value
        here = factor.place
        # A value of a list has a line of its own, and so have the keys of a section.
        number = next(
            (n for n, one in enumerate(factor.values) if one == value and (*here, n) in self.tree.places), None
        )
        here = here if number is None else (*here, number)
        made.places[factor.parts] = self.tree.places[here]
        for key, place in self.tree.places.items():
            if number is not None and len(key) > len(here) and key[: len(here)] == here:
                made.places[*factor.parts, *key[len(here) :]] = place


def _configurations(
    sweep: Sweep, factors: Sequence[Factor], default: Recipe, build: _Builder
) -> tuple[list[Configuration], bool]:
    """The default and every other configuration once; whether the design holds the default itself."""
    own = _settings(default, factors)
    seen, in_design = {recipe_json(default)}, sweep.design.kind == "one_at_a_time" and sweep.design.random is None
    found: list[tuple[dict[Factor, Any], Recipe]] = []
    # Message -> the first changes that gave it, and how many did.
    faults: dict[str, list[Mapping[Factor, Any]]] = {}
    number = 0
    for changes in _combinations(sweep, factors):
        number += 1
        try:
            recipe = build.recipe(changes)
        except UserErrors as error:
            for message in error.messages:
                faults.setdefault(message, []).append(changes)
            continue
        text = recipe_json(recipe)
        if text == recipe_json(default):
            in_design = True
        if text not in seen:
            seen.add(text)
            found.append((changes, recipe))
    if faults:
        raise UserErrors([_with_settings(message, made, number) for message, made in faults.items()])
    made = [Configuration(DEFAULT, own, (), default)]
    if sweep.design.optuna is not None:
        # The values are valid, each by itself; which are trained together is proposed later.
        return made, False
    settings = [_settings(recipe, factors) for _, recipe in found]
    differ = [tuple(key for key in own if one[key] != own[key]) for one in settings]
    names = _names(
        [{f.key: v for f, v in changes.items() if f.key in d} for (changes, _), d in zip(found, differ, strict=True)]
    )
    for name, one, changed, (_, recipe) in zip(names, settings, differ, found, strict=True):
        made.append(Configuration(name, one, changed, recipe))
    return made, in_design


def _settings(recipe: Recipe, factors: Sequence[Factor]) -> dict[str, Any]:
    """Swept key -> its value with all defaults, so that equal values are equal however they were written."""
    plain = json.loads(recipe_json(recipe))
    return {factor.key: _value_at(plain, factor.parts) for factor in factors}


def _with_settings(message: str, made: Sequence[Mapping[Factor, Any]], number: int) -> str:
    """The message, with the settings of its first run where it does not concern all of them."""
    if len(made) == number:
        return message
    settings = ", ".join(f"{factor.key}: {shown_value(value)}" for factor, value in made[0].items())
    more = f" and {counted(len(made) - 1, 'more configuration')}" if len(made) > 1 else ""
    return f"{message} (with {settings}{more})"


def _combinations(sweep: Sweep, factors: Sequence[Factor]) -> Iterator[dict[Factor, Any]]:
    if sweep.design.random is not None:
        rng = random.Random(sweep.design.random.seed)
        for _ in range(sweep.design.random.runs):
            shares = [rng.random() for _ in factors]
            yield {f: _drawn(f, share) for f, share in zip(factors, shares, strict=True)}
    elif sweep.design.kind == "one_at_a_time" or sweep.design.optuna is not None:
        for factor in factors:
            yield from ({factor: value} for value in factor.values or (factor.at(0), factor.at(1)))
    else:
        for values in itertools.product(*(factor.values for factor in factors)):
            yield dict(zip(factors, values, strict=True))


def _drawn(factor: Factor, share: float) -> Any:
    return factor.values[int(share * len(factor.values))] if factor.values else factor.at(share)


def _value_at(plain: Any, key: Key) -> Any:
    for part in key:
        plain = plain.get(part) if isinstance(plain, dict) else None
    return plain


def shown_value(value: Any) -> str:
    """A value in one short word: a section by its name, or its only key."""
    if isinstance(value, dict):
        # A section by its name, and by what it states beside it.
        words = [f"{k}-{shown_value(v)}" for k, v in value.items() if k != "name" and v not in ({}, [], None)]
        empty = [k for k, v in value.items() if v == {}] if len(value) == 1 else []
        return "-".join([*([value["name"]] if isinstance(value.get("name"), str) else []), *words, *empty]) or "none"
    if isinstance(value, list):
        return "-".join(map(shown_value, value)) or "none"
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value)


def _names(changes: Sequence[Mapping[str, Any]]) -> list[str]:
    """A short name for each configuration, which depends on its own settings and on nothing that is drawn."""
    keys = dict.fromkeys(key for one in changes for key in one)
    texts = ["_".join(f"{_short(key, keys)}-{shown_value(value)}" for key, value in one.items()) for one in changes]
    slugs = [re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._") or "x" for text in texts]
    lowered = [slug.lower() for slug in slugs]
    names = []
    for slug, one in zip(slugs, changes, strict=True):
        # Some file systems do not tell case apart.
        unclear = len(slug) > LONGEST_NAME or lowered.count(slug.lower()) > 1 or slug.lower() == DEFAULT
        names.append(f"{slug[: LONGEST_NAME - 7]}-{content_hash(dict(one))[:6]}" if unclear else slug)
    return names


def _short(key: str, keys: Mapping[str, Any]) -> str:
    """The end of a key that tells it from the others; `loss` for loss.name."""
    parts = key.removesuffix(".name").split(".")
    for length in range(1, len(parts)):
        end = ".".join(parts[-length:])
        if not any(other != key and other.removesuffix(".name").endswith(end) for other in keys):
            return end
    return ".".join(parts)


def named_runs(sweep: LoadedSweep, wanted: str) -> list[PlannedRun]:
    """The runs that a name means: of a run, or all seeds of a configuration. Raises UserError for no such name."""
    runs = sweep.runs
    found = [run for run in runs if wanted in (run.name, run.configuration.name)]
    if not found:
        raise UserError(f"--only: {no_such('run', wanted, [run.name for run in runs])}")
    return found

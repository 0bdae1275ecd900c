"""What a sweep file may contain, without torch: recipe keys with several values, seeds, a budget."""

from __future__ import annotations

import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from rankwright.common.errors import did_you_mean
from rankwright.recipe.kinds import MOST, FolderName, Line, Positive, Section, Words, tuple_of_list
from rankwright.recipe.schema import Key, walk_keys
from rankwright.recipe.yaml_file import YamlFile, describe

MOST_POINTS = 1000
NOT_COMPARABLE = "changes the queries, the lists or the measure of dev or test, so that runs are not comparable"
NO_RESULT_ON_DEV = "changes nothing that is compared on dev: set it in the recipe"
NAMED_BY_US = "a sweep names its runs and their folders itself"
# Sections and keys that are not swept -> why; what lies below them neither.
REFUSED = {
    "extends": "not a key of the finished recipe: give the keys or whole sections that differ",
    "name": NAMED_BY_US,
    "description": NAMED_BY_US,
    "run_dir": NAMED_BY_US,
    "seed": "it also draws data and dev: give `seeds`, which vary train.seed",
    "train.seed": "give `seeds`",
    "train.dev_queries": NOT_COMPARABLE,
    "data.test": NOT_COMPARABLE,
    "data.dev": NOT_COMPARABLE,
    "data.root": NOT_COMPARABLE,
    "data.on_leak": NOT_COMPARABLE,
    "data.on_fault": NOT_COMPARABLE,
    "data.ignore_identical_ids": NOT_COMPARABLE,
    "bm25": NOT_COMPARABLE,
    "dense": NOT_COMPARABLE,
    "evaluate": NOT_COMPARABLE,
    "gate": NO_RESULT_ON_DEV,
    "export": NO_RESULT_ON_DEV,
    "licence": NO_RESULT_ON_DEV,
    "model.merge_with_base": "works after training, which dev does not see: set it in the recipe",
}
# What a learning curve changes.
QUERIES_SHARE = "train.queries_share"
# Schedules whose learning rate is the same in all runs at a rung.
UNDECAYED = ("wsd", "constant")
# Keys that change how long a run has trained at a rung.
OF_RUNGS = (QUERIES_SHARE, "train.epochs", "train.max_steps", "train.evaluate_every")
# Refused as a whole only.
REFUSED_WHOLE = {"data": NOT_COMPARABLE, "train": "holds dev_queries and the seed: give its keys"}


class RandomDesign(Section):
    """Configurations that are drawn."""

    runs: Positive
    """So many configurations are drawn, beside the default."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of the draw."""


QueriesShare = Annotated[float, Field(gt=0, le=1)]


class OptunaDesign(Section):
    """Configurations that Optuna's TPE proposes, each from the results of those before; needs `rankwright[sweep]`."""

    runs: Positive
    """So many configurations are proposed, beside the default."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of the proposals."""


class Design(Section):
    """Which combinations of the values are trained."""

    kind: Literal["grid", "one_at_a_time"] = "grid"
    """`grid`: every combination; `one_at_a_time`: the recipe, and each single change of it."""
    random: RandomDesign | None = None
    """Draws configurations in place of a grid."""
    learning_curve: Annotated[tuple[QueriesShare, ...], BeforeValidator(tuple_of_list)] | None = None
    """Shares of the training queries, each trained for as many epochs: would more data help? With `over: {}`."""
    optuna: OptunaDesign | None = None
    """Proposes configurations in place of a grid, by what the earlier ones reached on dev."""

    @model_validator(mode="after")
    def _one_design(self) -> Design:
        if self.learning_curve is not None and len(self.learning_curve) < 2:
            raise ValueError("learning_curve: give two shares or more, such as [0.1, 0.25, 0.5, 1]")
        given = [name for name in ("random", "learning_curve", "optuna") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{', '.join(given)}: give one of them")
        return self


class Asha(Section):
    """Successive halving: at rungs, the evaluations first, first x eta, first x eta^2 ..., the worst are pruned.

    All configurations reach a rung before it is decided, so the decisions do not depend on how many workers there are.
    """

    eta: Annotated[int, Field(ge=2, le=100)] = 3
    """One of so many configurations goes on at each rung, and the default."""
    first: Annotated[int, Field(gt=0, le=10**4)] = 1
    """The evaluation on dev that is the first rung; choose one after the warm-up."""
    keep_within_se: Annotated[float, Field(ge=0, le=100)] = 1.0
    """So many standard errors below the last that goes on, paired over dev queries, a configuration goes on too."""


class Early(Section):
    """How runs that are clearly worse end early. They are kept as `pruned`, and choose nothing."""

    asha: Asha = Asha()
    """Successive halving."""


class Budget(Section):
    """Where the sweep ends before all runs are done. Every configuration gets its first seed before any its second."""

    runs: Positive | None = None
    """At most this many runs are trained."""
    hours: Annotated[float, Field(gt=0, le=10**6)] | None = None
    """No run begins after the finished ones took this many hours of this sweep, all workers together."""
    cost: Annotated[float, Field(gt=0, le=MOST)] | None = None
    """No run begins after the finished ones cost this much, by `per_hour`."""
    per_hour: Annotated[float, Field(gt=0, le=10**6)] | None = None
    """What an hour of training costs on the machine of one worker, in the currency of `cost`."""

    @model_validator(mode="after")
    def _priced(self) -> Budget:
        if (self.cost is None) != (self.per_hour is None):
            missing = "per_hour: missing, the price of an hour" if self.per_hour is None else "cost: missing"
            raise ValueError(f"{missing}: give both, such as {{cost: 50, per_hour: 2.5}}")
        return self

    @property
    def most_seconds(self) -> float | None:
        """Seconds of training after which no run begins; None without such a bound."""
        bounds = [] if self.hours is None else [self.hours]
        bounds += [] if self.cost is None or self.per_hour is None else [self.cost / self.per_hour]
        return 3600 * min(bounds) if bounds else None


class Choose(Section):
    """By what the best configuration is chosen."""

    metric: Literal["nDCG@10"] = "nDCG@10"
    """The measure, as in training."""
    on: Literal["dev"] = "dev"
    """Test sets choose nothing: they are opened for the chosen configuration and the default alone."""


Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Sweep(Section):
    """A recipe, what is changed in it, and how often each change is trained."""

    extends: Line
    """Name or path of the recipe that is changed; as it stands it is the default that all are compared with."""
    name: FolderName
    """Name of the sweep, and of its folder in `runs/`."""
    description: Words = ""
    """One line for `rankwright recipes`."""
    over: dict[str, Any]
    """Key or section -> a list of values, `{log: [a, b], points: n}` or `{linear: ...}`; `{}`: the seeds alone."""
    design: Annotated[Design, BeforeValidator(lambda value: {"kind": value} if isinstance(value, str) else value)] = (
        Design()
    )
    """`grid`, `one_at_a_time`, `{random: {runs: 24}}`, `{optuna: {runs: 24}}` or `{learning_curve: [0.25, 0.5, 1]}`."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1, max_length=100)] = (0, 1, 2)
    """Each configuration is trained with each of them as train.seed; data, dev and mining stay those of the recipe."""
    budget: Budget = Budget()
    early: Early | None = None
    """`{asha: {}}` stops training what is clearly worse at rungs; without it, all runs are trained to their end."""
    choose: Choose = Choose()

    @field_validator("seeds")
    @classmethod
    def _once(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("a seed is given twice: each counts once")
        return seeds


# A key of mappings: by identity, since values may be lists and sections.
@dataclass(frozen=True, slots=True, eq=False)
class Factor:
    """One key that is swept. values: all of them; empty for a range to draw from. section: of the file."""

    key: str
    values: tuple[Any, ...]
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False
    section: str = "over"

    @property
    def parts(self) -> Key:
        return tuple(self.key.split("."))

    @property
    def place(self) -> Key:
        """Where the file states it."""
        return ("over", self.key) if self.section == "over" else (self.section, "learning_curve")

    def at(self, share: float) -> Any:
        """The value at a share, from 0 to 1, of the range."""
        ends = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        value = ends[0] + share * (ends[1] - ends[0])
        # Three digits can be read, and typed again.
        value = float(f"{math.exp(value) if self.log else value:.3g}")
        return round(value) if self.whole else min(max(value, self.low), self.high)

    def share(self, value: float) -> float | None:
        """The share of the range at which a value lies; None outside it."""
        if not self.low <= value <= self.high:
            return None
        low, high, at = (math.log(x) if self.log else x for x in (self.low, self.high, value))
        return min(max((at - low) / (high - low), 0.0), 1.0)


def factors_of(tree: YamlFile, *, drawn: bool) -> list[Factor]:
    """The factors of a sweep file that can be understood; the mistakes of the others are noted in the tree.

    drawn: for a design that draws or proposes values, which needs no points.
    """
    given = tree.data.get("over")
    over: dict[str, Any] = given if isinstance(given, dict) else {}
    if (curve := _learning_curve(tree)) is not None:
        if over:
            tree.blame(("over",), "must be {} with design.learning_curve, which changes the number of queries alone")
        return [curve]
    if drawn and given == {}:
        tree.blame(("over",), "must hold a key: there is nothing to draw or propose")
    found = []
    for key, value in over.items():
        if (why := _refusal(key)) is not None:
            tree.blame(("over", key), why)
            continue
        inside = [other for other in over if key.startswith(f"{other}.")]
        if inside:
            tree.blame(("over", key), f"lies in {inside[0]}, which is swept too: leave one of them out")
        factor = _factor(tree, key, value, drawn=drawn)
        if factor is not None:
            found.append(factor)
    return found


def _learning_curve(tree: YamlFile) -> Factor | None:
    """The factor of design.learning_curve; None without one."""
    design = tree.data.get("design")
    shares = design.get("learning_curve") if isinstance(design, dict) else None
    if not isinstance(shares, list) or not shares:
        return None
    _blame_twice(tree, ("design", "learning_curve"), shares)
    return Factor(QUERIES_SHARE, tuple(shares), section="design")


def _blame_twice(tree: YamlFile, place: Key, values: list[Any]) -> None:
    for number, one in enumerate(values):
        if one in values[:number]:
            tree.blame((*place, number), "this value is given twice: each is trained once")


def _refusal(key: str) -> str | None:
    if not all(key.split(".")):
        return "must be a key of a recipe, such as train.learning_rate"
    whole = REFUSED_WHOLE.get(key)
    return whole or next((why for name, why in REFUSED.items() if f"{key}.".startswith(f"{name}.")), None)


def _factor(tree: YamlFile, key: str, value: Any, *, drawn: bool) -> Factor | None:
    place: Key = ("over", key)
    if isinstance(value, list):
        if not value:
            tree.blame(place, "must hold at least one value")
        _blame_twice(tree, place, value)
        return Factor(key, tuple(value)) if value else None
    kinds = [kind for kind in ("log", "linear") if isinstance(value, dict) and kind in value]
    if len(kinds) != 1 or not isinstance(value, dict):
        names = [str(name) for name in value] if isinstance(value, dict) else []
        near = did_you_mean(names[0], ["log", "linear"]) if names else ""
        form = "must be a list of values, {log: [a, b], points: n} or {linear: [a, b], points: n}"
        tree.blame(place, f"{form}, found {describe(value)}{near}")
        return None
    kind = kinds[0]
    if odd := [name for name in value if name not in (kind, "points")]:
        tree.blame((*place, odd[0]), f"unknown key{did_you_mean(odd[0], ['points'])}, known: {kind}, points")
        return None
    return _range(tree, key, kind, value, drawn=drawn)


def _range(tree: YamlFile, key: str, kind: str, value: Mapping[str, Any], *, drawn: bool) -> Factor | None:
    place: Key = ("over", key)
    ends, points = value[kind], value.get("points")
    fits = isinstance(ends, list) and len(ends) == 2 and all(_is_number(end) for end in ends)
    if not fits or not ends[0] < ends[1] or (kind == "log" and ends[0] <= 0):
        more = ", both above 0" if kind == "log" else ""
        tree.blame((*place, kind), f"must be two numbers, the lower first{more}: {kind}: [a, b]")
        return None
    if points is None and not drawn:
        tree.blame(place, f"points: missing, must be given: {{{kind}: [a, b], points: 4}}")
        return None
    if points is not None and not (isinstance(points, int) and points is not True and 2 <= points <= MOST_POINTS):
        tree.blame((*place, "points"), f"must be a whole number from 2 to {MOST_POINTS:,}, found {describe(points)}")
        return None
    factor = Factor(key, (), float(ends[0]), float(ends[1]), kind == "log", _takes_whole(key))
    if points is None:
        return factor
    values = dict.fromkeys(factor.at(n / (points - 1)) for n in range(points))
    return Factor(key, tuple(values), factor.low, factor.high, factor.log, factor.whole)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MOST


def _takes_whole(key: str) -> bool:
    """Whether a recipe takes whole numbers alone for a key."""
    field = dict(walk_keys()).get(key)
    kinds = set(_leaves(field.annotation)) if field is not None else set()
    return int in kinds and float not in kinds


def _leaves(annotation: Any) -> list[Any]:
    inner = typing.get_args(annotation)
    return [leaf for one in inner for leaf in _leaves(one)] if inner else [annotation]

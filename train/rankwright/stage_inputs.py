"""What each stage depends on, as hashes of recipe sections, files and code: unchanged stages are skipped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from rankwright.recipe import Recipe
from rankwright.resources import resolve_base
from rankwright.run_folder import code_version, content_hash, files_hash
from rankwright.sources import Located


class StageInputs:
    """A hash a stage, made when it is asked for (files are read for it); located: split -> the recipe's sets."""

    def __init__(self, recipe: Recipe, located: Mapping[str, Sequence[Located]]) -> None:
        self.recipe = recipe
        self.located = located

    def section(self, name: str) -> Any:
        """A section of the recipe as plain values."""
        return self.recipe.model_dump(mode="json")[name]

    @cached_property
    def data(self) -> str:
        paths = sorted({e.path for entries in self.located.values() for e in entries if e.path is not None})
        entries = [
            (split, e.name, e.split, e.hub, e.revision, e.card and e.card.model_dump(mode="json"))
            for split, found in self.located.items()
            for e in found
        ]
        return content_hash(self.section("data"), entries, self.recipe.seed, files_hash(paths), code_version())

    @cached_property
    def mine(self) -> str:
        return content_hash(self.data, self.section("mine"), self.recipe.evaluate.depth)

    @cached_property
    def model(self) -> str:
        base = resolve_base(self.recipe.model.base)
        weights = files_hash([Path(base)]) if Path(base).is_dir() else self.recipe.model.revision
        # How activations are computed or kept changes memory and speed, and no score beyond rounding; merging with
        # the base comes after training.
        other = ("gradient_checkpointing", "attention", "merge_with_base")
        model = {k: v for k, v in self.section("model").items() if k not in other}
        return content_hash(
            model, self.section("prompt"), "instruction" in self.recipe.prompt.model_fields_set, weights
        )

    @cached_property
    def train(self) -> str:
        # Where numbers are logged and how often weights are saved changes no weight.
        train = {k: v for k, v in self.section("train").items() if k not in ("trackers", "save_every")}
        return content_hash(self.mine, self.model, self.section("loss"), train)

    @property
    def systems(self) -> dict[str, str]:
        """System -> what its numbers depend on."""
        evaluation = self.section("evaluate")
        first = content_hash(self.data, evaluation, self.recipe.mine.language, self.recipe.mine.code)
        base = content_hash(first, self.model, self.recipe.train.precision)
        tuned = content_hash(first, self.train, self.recipe.model.merge_with_base)
        return {"bm25": first, "base": base, "tuned": tuned}

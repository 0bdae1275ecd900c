"""What each stage depends on, as hashes of recipe sections, files and code: unchanged stages are skipped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from rankwright.common.hashing import content_hash, files_hash
from rankwright.common.resources import resolve_base
from rankwright.common.run_folder import code_version
from rankwright.data.sources import Located
from rankwright.evaluation.evaluate import system_names
from rankwright.mining.filters import split_filters
from rankwright.model.instructions import frozen_instruction, is_read_otherwise
from rankwright.recipe.schema import EXPORTED, Recipe
from rankwright.retrieval.first_stages import possible_stages, training_stage
from rankwright.retrieval.retriever import retrievers
from rankwright.training.losses import scores_candidates


class StageInputs:
    """A hash a stage, made when it is asked for (files are read for it); located: split -> the recipe's sets."""

    def __init__(self, recipe: Recipe, located: Mapping[str, Sequence[Located]]) -> None:
        self.recipe = recipe
        self.located = located
        self._contents: dict[Path, str] = {}

    def section(self, name: str) -> Any:
        """A section of the recipe as plain values."""
        return self.recipe.model_dump(mode="json")[name]

    def _content(self, path: Path) -> str:
        if path not in self._contents:
            self._contents[path] = files_hash([path])
        return self._contents[path]

    def _set(self, entry: Located) -> str:
        """A set by content; its run file, its weight and its licence are not part of it."""
        # What is read; a note or a licence of the card changes no row.
        card = entry.card and entry.card.model_dump(mode="json", include={"hub", "path", "splits", "group_key"})
        content = entry.path and self._content(entry.path)
        reading = entry.source.model_dump(include={"format", "columns", "config", "group_key"})
        # The seed chooses the queries of a limit.
        limit = entry.source.limit and (entry.source.limit, self.recipe.seed)
        where = (entry.name, entry.split, entry.hub, entry.revision)
        return content_hash(*where, reading, limit, card, content, code_version())

    def _sets(self, split: str) -> list[str]:
        return [self._set(entry) for entry in self.located.get(split, ())]

    @cached_property
    def _training_data(self) -> str:
        on_leak = self.recipe.data.on_leak
        # What is dropped from train and dev depends on the test sets; where a leak stops, they change nothing of it.
        held_out = self._sets("test") if on_leak == "drop" else None
        dev = self.section("data")["dev"]
        return content_hash(self._sets("train"), self._sets("dev"), dev, self.recipe.seed, held_out)

    @cached_property
    def data(self) -> str:
        data = self.recipe.data
        # Files that are read at all are read alike whatever on_fault says: what comes after the data stage depends on
        # the files alone, and the data stage decides anew whether their faults stop it.
        # bm25.code: how data_report.json counts duplicates.
        said = (self._mixture, self._instructions("test"), self.recipe.bm25.code)
        return content_hash(self._training_data, self._sets("test"), data.on_fault, data.on_leak, *said)

    def _instructions(self, split: str) -> list[str | None]:
        return [entry.source.instruction for entry in self.located.get(split, ())]

    @property
    def _mixture(self) -> Any:
        """What is said of the training sets beside their content: mining does not depend on it."""
        weights = [entry.source.weight for entry in self.located.get("train", ())]
        return weights, self._instructions("train"), self._instructions("dev")

    def _retriever(self, name: str, run_file: Path | None = None) -> str:
        """What a first stage's lists depend on, beside texts and depth."""
        return content_hash(name, self._by_content(retrievers()[name].depends_on(self.recipe, run_file)))

    def _by_content(self, value: Any) -> Any:
        """The value with the content of each path in its place."""
        if isinstance(value, Path):
            return self._content(value)
        return {k: self._by_content(v) for k, v in value.items()} if isinstance(value, dict) else value

    @cached_property
    def shards(self) -> str:
        """What mining reads and decides a query at a time: candidates, and the filters before those across queries."""
        mine = self.recipe.mine
        alone, _ = split_filters(mine.filters)
        found = [self._retriever(mine.retriever, entry.run) for entry in self.located.get("train", ())]
        dev = self._retriever(training_stage(self.recipe))
        teacher = None
        if mine.teacher is not None:
            from rankwright.rerankers.kinds import TEACHER, baseline_inputs

            # It scores a set under the set's own instruction.
            scores = baseline_inputs(mine.teacher, self.recipe.prompt, key=TEACHER)
            teacher = (scores, self._instructions("train"))
        options = [(name, mine.filters[name]) for name in alone]
        depths = (mine.depth, self.recipe.evaluate.depth)
        return content_hash(
            self._training_data, found, dev, depths, options, self.recipe.bm25.code, teacher, code_version()
        )

    @cached_property
    def mine(self) -> str:
        mine = self.recipe.mine
        # In their order, which a section's hash does not keep. How a pool is drawn from comes with training.
        scored = scores_candidates(self.recipe)
        return content_hash(self.shards, list(mine.filters.items()), mine.fill, mine.negatives, scored)

    @cached_property
    def _base(self) -> str:
        """The base as it is, which is scored in its own frame whatever prompt.mode is trained in."""
        base = resolve_base(self.recipe.model.base)
        weights = self._content(Path(base)) if Path(base).is_dir() else self.recipe.model.revision
        prompt = {k: v for k, v in self.section("prompt").items() if k != "mode"}
        stated = "instruction" in self.recipe.prompt.model_fields_set
        return content_hash(self.recipe.model.base, weights, prompt, stated)

    @cached_property
    def model(self) -> str:
        # How activations are computed or kept changes memory and speed, and no score beyond rounding; merging with
        # the base comes after training.
        other = ("gradient_checkpointing", "attention", "merge_with_base")
        model = {k: v for k, v in self.section("model").items() if k not in other}
        return content_hash(model, self.recipe.prompt.mode, self._base)

    @cached_property
    def train(self) -> str:
        # Where numbers are logged and how often weights are saved changes no weight.
        train = {k: v for k, v in self.section("train").items() if k not in ("trackers", "save_every")}
        return content_hash(self.mine, self.section("mine"), self.model, self.section("loss"), train, self._mixture)

    @cached_property
    def scores(self) -> dict[str, dict[str, str]]:
        """Test set -> system -> what its scores there depend on: a set more leaves those of the others as they are."""
        rerankers = {
            "base": content_hash(self._base, self.recipe.train.precision),
            "tuned": content_hash(self.train, self.recipe.model.merge_with_base),
            **self._baselines,
        }
        evaluation = self.recipe.evaluate
        # The seed chooses the queries of a limit, and nothing else of a test set.
        limit = evaluation.limit_queries and (evaluation.limit_queries, self.recipe.seed)
        found = {}
        for entry in self.located["test"]:
            chosen = content_hash(self._set(entry), limit, evaluation.depth)
            stages = {
                name: content_hash(chosen, self._retriever(name, entry.run)) for name in possible_stages(self.recipe)
            }
            lists = stages[evaluation.first_stage]
            own = entry.source.instruction
            found[entry.name] = stages | {name: content_hash(lists, of, own) for name, of in rerankers.items()}
            if is_read_otherwise(self.recipe, own):
                frozen = frozen_instruction(self.recipe)
                found[entry.name][EXPORTED] = content_hash(lists, rerankers["tuned"], EXPORTED, frozen)
        return found

    @property
    def _baselines(self) -> dict[str, str]:
        if not self.recipe.evaluate.baselines:
            return {}
        from rankwright.rerankers.kinds import baseline_inputs

        return {b.name: baseline_inputs(b, self.recipe.prompt) for b in self.recipe.evaluate.baselines}

    @property
    def systems(self) -> dict[str, str]:
        """System -> what its numbers depend on: its scores on all test sets, and the measures taken of them."""
        measures = list(self.recipe.evaluate.measures)
        names = system_names(self.recipe)
        return {name: content_hash([own.get(name) for own in self.scores.values()], measures) for name in names}

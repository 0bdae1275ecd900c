"""What the stages of a run work with: recipe, folder, processes, what each stage depends on, the best checkpoint."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from rankwright.common import resources
from rankwright.common.errors import UserError
from rankwright.common.processes import Processes, launched
from rankwright.common.run_folder import RunFolder
from rankwright.common.values import path_text
from rankwright.data.licences.derived import settle_licences
from rankwright.data.licences.ledger import Roles
from rankwright.data.sources import Located, locate_all
from rankwright.pipeline.inputs import StageInputs
from rankwright.pipeline.train import make_accelerator
from rankwright.recipe.loading import LoadedRecipe
from rankwright.recipe.pretrain import CONTROL
from rankwright.recipe.schema import COMBINED, EXPORTED, Recipe
from rankwright.retrieval.first_stages import ordering_models
from rankwright.training.checkpoint import read_state
from rankwright.training.loop import Further
from rankwright.training.loss_terms import reads_teacher


class Context(ABC):
    """A recipe with its run folder, as every stage gets it. The arguments are those of Pipeline."""

    def __init__(
        self,
        loaded: LoadedRecipe,
        folder: RunFolder | str | Path | None = None,
        override: str | None = None,
        *,
        progress: bool = True,
        command: Sequence[str] = (),
        verify: bool = False,
    ) -> None:
        if not isinstance(loaded, LoadedRecipe):
            raise UserError(f"Pipeline: must be given what load_recipe returns, found {type(loaded).__name__}")
        if folder is not None and not isinstance(folder, RunFolder):
            folder = RunFolder(Path(path_text("folder", folder)))
        self.loaded = loaded
        self.recipe = loaded.recipe
        self.folder = folder or RunFolder(resources.expand(self.recipe.run_dir or f"runs/{self.recipe.name}"))
        self.override = override
        self.progress = progress
        self.verify = verify
        self.command = command or ("rankwright", "run", resources.shown(loaded.path), *loaded.overrides)
        # What the evaluate stage looks at.
        self.systems: Sequence[str] = ()
        # A sweep sets them: the group of the run in wandb, and so many evaluations after which training pauses.
        self.group: str | None = None
        self.pause_after: int | None = None
        # Further objectives of the training: a run inside another one may have some.
        self.further: Further | None = None
        # The verdict that let the model through, as gate.json has it.
        self.gate: dict[str, Any] | None = None
        self._started = False

    @cached_property
    def processes(self) -> Processes:
        """The processes that the launcher started, once they know each other."""
        if launched() == 1:
            return Processes()
        make_accelerator(self.recipe)
        return Processes.of_group()

    @cached_property
    def inputs(self) -> StageInputs:
        """What each stage depends on."""
        return StageInputs(self.recipe, self.located)

    @cached_property
    def located(self) -> dict[str, list[Located]]:
        """Split -> its entries; `pretrain`: the weak pairs. Raises UserErrors with every entry that is not there."""
        pretrain = self.recipe.pretrain
        pairs = None if pretrain is None else [one.as_source for one in pretrain.pairs]
        return locate_all(self.recipe.data, self.folder.synthetic, pairs=pairs)

    @property
    def test_sets(self) -> list[str]:
        """Names of the test sets, in the recipe's order."""
        return [located.name for located in self.located["test"]]

    def ledger(self) -> dict[str, Any]:
        """The licence ledger of all files that were read so far."""
        return settle_licences(self.recipe, self.located, roles(self.recipe), self.folder)

    @property
    def needs_training(self) -> bool:
        """Whether the systems to evaluate need a trained model."""
        return not {"tuned", EXPORTED, COMBINED, CONTROL}.isdisjoint(self.systems)

    @abstractmethod
    def nested(self, recipe: Recipe, folder: RunFolder, inputs: str) -> Context:
        """A run of another recipe inside this one, which has checked it. inputs: what it depends on in this one."""

    @abstractmethod
    def run_to(self, last: str) -> Context:
        """Run the stages up to `last`."""

    def best_checkpoint(self) -> Path | None:
        """The checkpoint that the train stage chose, if it is whole and of this training."""
        step = self.folder.facts("train").get("best_step")
        folder = self.folder.checkpoint(step if isinstance(step, int) else 0)
        state = read_state(folder)
        return folder if state is not None and state.inputs == self.inputs.train else None

    def trained_checkpoint(self) -> Path:
        """The best checkpoint, for the stages after training."""
        checkpoint = self.best_checkpoint()
        if checkpoint is None:
            raise UserError(
                f"{self.folder.checkpoints}: the best checkpoint is gone or damaged: give the command again"
            )
        return checkpoint


def roles(recipe: Recipe) -> Roles:
    """What the licence ledger has to know of the recipe's loss and first stages."""
    distils = recipe.mine.teacher is not None and reads_teacher(recipe.loss)
    return Roles(distils, ordering_models(recipe))

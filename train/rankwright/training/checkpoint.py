"""Checkpoints: written whole or not at all, verified before use; the newest two and the best are kept."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from rankwright.common import console
from rankwright.common.errors import UserError
from rankwright.common.files import atomic_folder
from rankwright.common.hashing import file_sha256
from rankwright.common.outputs import content_of, put_aside, read_sealed, remove, sealed
from rankwright.common.processes import Processes
from rankwright.model.prompt import CONTRACT_FILE, PromptContract
from rankwright.model.rank_model import RankModel
from rankwright.model.sharding import load_optimizer_state, whole_optimizer_state
from rankwright.model.trainable import load_trainable_state, trainable_state

WEIGHTS, OPTIMIZER, STATE = "model.safetensors", "optimizer.pt", "state.json"
KEEP_NEWEST = 2


@dataclass(frozen=True, slots=True)
class TrainState:
    """Where training stands. Values are nDCG@10 on dev; best_step is 0 and best_value None until a step is evaluated.

    inputs: hash of the recipe's sections and files that this training depends on.
    since_best: evaluations since the last one that was better than all before it, including the base's.
    pool: the refreshed negatives that this step was drawn from (refresh.Refresh); None: those mined before training.
    """

    step: int
    inputs: str
    base_value: float
    best_step: int = 0
    best_value: float | None = None
    since_best: int = 0
    pool: str | None = None

    def evaluated(self, value: float) -> TrainState:
        """This state after an evaluation of its step."""
        if self.best_value is not None and value <= self.best_value:
            return dataclasses.replace(self, since_best=self.since_best + 1)
        # best_step counts trained steps only, even below the base; patience compares with the base too.
        since_best = 0 if value > self.base_value else self.since_best + 1
        return dataclasses.replace(self, best_step=self.step, best_value=value, since_best=since_best)

    def out_of_patience(self, patience: int | None) -> bool:
        """Whether `patience` evaluations in a row gave no new best.

        It depends on the state alone, so all ranks agree, and so does a process that continues from a checkpoint.
        """
        return patience is not None and self.since_best >= patience

    @property
    def value_so_far(self) -> float:
        """The value of the best step, or the base's before a step was evaluated."""
        return self.base_value if self.best_value is None else self.best_value


class Checkpoints:
    """The checkpoints of one training: folders step-N under `root`, which the first process writes.

    inputs: hash of what this training depends on, see TrainState. contract: stored with every checkpoint.
    """

    def __init__(
        self, root: Path, inputs: str, contract: PromptContract, say: Callable[[str], None] = console.say
    ) -> None:
        self.root = root
        self.inputs = inputs
        self._contract = contract
        self._say = say

    def prepare(self) -> None:
        """Rename what training cannot continue from, and move checkpoints of other inputs out of the way.

        damaged-step-N: damaged or incomplete. passed-over-step-N: whole, but the checkpoint that it names as the best
        so far is not, so that training could not end with it. Both are kept, but take no place among the others. For
        one process alone.
        """
        if os.path.lexists(self.root) and not self.root.is_dir():
            self._say(f"{self.root} is not a folder: kept as {put_aside(self.root)}")
        states = {folder: read_state(folder) for folder in self._steps()}
        whole = {state.step for state in states.values() if state is not None}
        for folder, state in states.items():
            if state is None:
                aside = self._rename(folder, "damaged")
                self._say(f"checkpoint {folder.name} is damaged or incomplete: passed over, and kept as {aside}")
            elif state.best_step and state.best_step not in whole:
                aside = self._rename(folder, "passed-over")
                self._say(f"checkpoint {folder.name} needs step-{state.best_step}, the best: kept as {aside}")
        found = self.newest()
        if found is None or found[1].inputs == self.inputs:
            return
        name = f"{self.root.name}-{found[1].inputs}"
        names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
        kept = next(path for path in map(self.root.with_name, names) if not path.exists())
        self.root.rename(kept)
        self._say(f"the recipe, the data or the code changed: earlier checkpoints are kept in {kept.name}")

    def _rename(self, folder: Path, why: str) -> str:
        kept = self.root / f"{why}-{folder.name}"
        remove(kept)
        folder.rename(kept)
        return kept.name

    def newest(self) -> tuple[Path, TrainState] | None:
        """The newest checkpoint that is whole."""
        states = ((folder, read_state(folder)) for folder in self._steps())
        return next(((folder, state) for folder, state in states if state is not None), None)

    def load_newest(self, model: RankModel, optimizer: torch.optim.Optimizer) -> TrainState | None:
        """Continue from the newest checkpoint: its state, or None where there is none."""
        found = self.newest()
        if found is None:
            return None
        load_checkpoint(found[0], model, optimizer, inputs=self.inputs)
        return found[1]

    def save(self, state: TrainState, model: RankModel, optimizer: torch.optim.Optimizer) -> Path:
        """Write root/step-N atomically, then remove older ones that are neither among the newest nor the best.

        The best that each of the newest names is kept: whoever falls back to the one before finds its best too. All
        processes call this, because a sharded model is gathered.
        """
        folder = self.root / f"step-{state.step}"
        is_first = Processes.of_group().is_first
        if not (is_first or model.sharded):
            return folder
        weights, optimizer_state = trainable_state(model), whole_optimizer_state(optimizer)
        if not is_first:
            return folder
        self.root.mkdir(parents=True, exist_ok=True)
        tensors = [*weights.values(), *(v for s in optimizer_state["state"].values() for v in s.values())]
        needed = sum(value.nbytes for value in tensors if isinstance(value, torch.Tensor))
        with atomic_folder(folder, needed) as draft:
            save_file(weights, draft / WEIGHTS)
            torch.save(optimizer_state, draft / OPTIMIZER)
            self._contract.save(draft)
            hashes = {name: file_sha256(draft / name) for name in (WEIGHTS, OPTIMIZER, CONTRACT_FILE)}
            values = sealed({**dataclasses.asdict(state), "sha256": hashes})
            text = json.dumps(values, indent=2, allow_nan=False)
            (draft / STATE).write_text(text + "\n", encoding="utf-8")
        self._prune()
        return folder

    def _steps(self) -> list[Path]:
        """Checkpoint folders, newest first."""
        found = [p for p in self.root.glob("step-*") if p.name[5:].isdigit()]
        return sorted(found, key=lambda p: -int(p.name[5:]))

    def _prune(self) -> None:
        folders = self._steps()
        best = {f"step-{_best_step(folder)}" for folder in folders[:KEEP_NEWEST]}
        for folder in folders[KEEP_NEWEST:]:
            if folder.name not in best:
                shutil.rmtree(folder)


def _best_step(folder: Path) -> int | None:
    try:
        return int(json.loads((folder / STATE).read_text(encoding="utf-8"))["best_step"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def newest_step(root: Path) -> int:
    """The step of the newest checkpoint under root, whole or not; 0 where there is none."""
    return max((int(path.name[5:]) for path in root.glob("step-*") if path.name[5:].isdigit()), default=0)


def read_state(folder: Path) -> TrainState | None:
    """The state of a checkpoint whose files are whole, or None.

    Raises UserError for a file that the disk does not give: the checkpoint may be whole.
    """
    # Asked for first: a record that is missing for another reason must not look like a damaged one.
    values = read_sealed(folder / STATE) if content_of(folder / STATE) is not None else None
    try:
        if values is None:
            return None
        hashes = values.pop("sha256")
        whole = all(content_of(folder / name) == digest for name, digest in hashes.items())
        return TrainState(**values) if whole else None
    except (KeyError, TypeError, AttributeError):
        return None


def load_checkpoint(
    folder: Path,
    model: RankModel,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    inputs: str | None = None,
    base_share: float = 0.0,
) -> None:
    """Restore the weights, and the state of an optimizer if given, bit for bit.

    inputs: of the training that the checkpoint must be of; None: of any.
    base_share: how far the weights go back towards the base's, see trainable.load_trainable_state; not in training.
    Raises UserError when names or shapes differ from the model's, and for a damaged checkpoint or another training's.
    """
    state = read_state(folder)
    if state is None or inputs not in (None, state.inputs):
        what = "damaged or incomplete" if state is None else "of another training"
        raise UserError(f"{folder}: the checkpoint is {what}: give `rankwright train` again")
    load_trainable_state(model, load_file(folder / WEIGHTS), base_share=base_share)
    if optimizer is not None:
        assert not base_share, "an optimizer's state belongs to the weights as they were trained"
        # Not onto the device it was saved from: another machine may lack it, and here it is the first rank's.
        values = torch.load(folder / OPTIMIZER, weights_only=True, map_location="cpu")
        load_optimizer_state(optimizer, values)

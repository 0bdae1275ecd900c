"""The recipes of the runs inside a run with `pretrain`: that of its training, from the merged base, control."""

from __future__ import annotations

import math
from pathlib import Path

from rankwright.common.errors import UserError
from rankwright.common.run_folder import RunFolder
from rankwright.recipe.export import Export
from rankwright.recipe.pretrain import Pretrain
from rankwright.recipe.schema import Evaluate, Loss, Mine, Model, Prompt, Recipe, Train
from rankwright.recipe.sources import Data, DevFromTrain, Source
from rankwright.training.checkpoint import read_state

WARMUP = 0.03
# Candidates of a held-out query: enough to choose a step by.
DEV_DEPTH = 20
# Held-out queries, where a tenth of the pairs gives as many.
LEAST_HELD_OUT = 50
# The rank's share in the scale of the adapters, as in the defaults of `model`.
ALPHA_OF_RANK = 2


def settings_of(recipe: Recipe) -> Pretrain:
    """The section of a recipe that has it."""
    assert recipe.pretrain is not None, "the stage is wanted only where the recipe has the section"
    return recipe.pretrain


def pretraining_recipe(recipe: Recipe, run: RunFolder, pairs: tuple[Source, ...] = (), held_out: float = 0.1) -> Recipe:
    """The recipe that trains on the weak pairs, in the run's folder `pretrain`; it needs no test set and no gate.

    pairs: the pairs as they were prepared. held_out: the share of them that chooses the checkpoint. Prompt, device
    settings and seed are those of the main recipe.
    """
    settings = settings_of(recipe)
    model = {key: getattr(recipe.model, key) for key in ("base", "revision", "gradient_checkpointing", "attention")}
    kept = ("budget_tokens", "precision", "save_every", "dev_queries", "trackers", "track_report")
    train = {key: getattr(recipe.train, key) for key in (*kept, "clip_norm", "weight_decay", "seed")}
    stated = {key: getattr(recipe.prompt, key) for key in recipe.prompt.model_fields_set - {"first_stage_score"}}
    # The positive is among the candidates of most queries.
    mined = Mine(depth=settings.negatives + 1, negatives=settings.negatives + settings.in_batch, positives=1)
    return Recipe(
        name=f"{recipe.name[:80]}-pretrain",
        description=f"The pre-training of {recipe.name[:200]}",
        seed=recipe.seed,
        run_dir=str(run.pretraining),
        model=Model(**model, rank=settings.rank, alpha=ALPHA_OF_RANK * settings.rank),
        data=Data(train=pairs, dev=DevFromTrain(fraction=held_out), on_fault="stop", on_leak="drop"),
        prompt=Prompt(**stated),
        bm25=recipe.bm25,
        mine=mined.model_copy(update={"fill": "random"}),
        loss=Loss(),
        train=Train(
            **train,
            epochs=settings.epochs,
            max_steps=settings.steps,
            groups_per_step=settings.groups_per_step,
            learning_rate=settings.learning_rate,
            warmup_fraction=WARMUP,
        ),
        evaluate=Evaluate(combine=None, depth=min(DEV_DEPTH, recipe.evaluate.depth)),
        export=Export(targets={}),
    )


def with_steps(recipe: Recipe, steps: int) -> Recipe:
    """The recipe with a number of steps that no epochs end before, whatever share of the queries it trains on."""
    # What setup.most_steps takes of it is the share of the queries.
    most = math.floor(round(steps / recipe.train.queries_share, 6))
    train = recipe.train.model_copy(update={"max_steps": most, "epochs": float(10**6)})
    return recipe.model_copy(update={"train": train})


def from_pretrained(recipe: Recipe, run: RunFolder) -> Recipe:
    """The recipe whose base is the one that the stage pretrain wrote; the recipe itself where it has no such stage."""
    if recipe.pretrain is None:
        return recipe
    model = recipe.model.model_copy(update={"base": str(run.pretrained.resolve()), "revision": None})
    return recipe.model_copy(update={"model": model})


def control_recipe(recipe: Recipe, run: RunFolder, steps: int | None = None) -> Recipe:
    """The recipe without pretrain, from the base as it was. steps: how many it trains; None: as the main recipe."""
    names = {"name": f"{recipe.name[:80]}-control", "run_dir": str(run.control), "pretrain": None, "gate": None}
    control = recipe.model_copy(update=names)
    return control if steps is None else with_steps(control, steps)


def control_checkpoint(run: RunFolder) -> Path:
    """The best checkpoint of the control. Raises UserError where it is gone."""
    step = RunFolder(run.control).facts("train").get("best_step")
    folder = RunFolder(run.control).checkpoint(step if isinstance(step, int) else 0)
    if read_state(folder) is None:
        raise UserError(f"{folder}: the control's checkpoint is gone or damaged: give the command again")
    return folder


def has_control_checkpoint(run: RunFolder) -> bool:
    """Whether the control's best checkpoint is there and whole."""
    try:
        return control_checkpoint(run).is_dir()
    except UserError:
        return False


def share_held_out(settings: Pretrain, queries: int, most: int) -> float:
    """The share of the pairs that is held out: `held_out`, at most `most` queries, and few of few pairs."""
    wanted = min(math.ceil(settings.held_out * queries), most)
    return min(max(wanted, min(LEAST_HELD_OUT, queries // 10), 1) / max(queries, 1), 0.5)

"""fit(): the only training loop, over Accelerate. Step, log, every N steps evaluate and save."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from rankwright.common.errors import Stopped, UserError
from rankwright.model.prompt import PromptContract
from rankwright.model.rank_model import RankModel
from rankwright.recipe.schema import Train
from rankwright.training.checkpoint import TrainState, load_checkpoint, newest_checkpoint, save_checkpoint
from rankwright.training.estimate.cost import Utilisation
from rankwright.training.gradients import accumulate, clip, prepare
from rankwright.training.guards import NOT_FINITE_FILE, SpreadWatch, StopSignal, check_first_group, refuse_not_finite
from rankwright.training.losses import RecipeLoss
from rankwright.training.optim import make_optimizer, set_learning_rate
from rankwright.training.sampling import GroupSource, TrainGroup
from rankwright.training.tracking import Trackers


class Refreshing(Protocol):
    """refresh.Refresh, or NoRefresh."""

    def due(self, step: int) -> bool: ...

    def __call__(self, state: TrainState) -> str | None: ...


def fit(
    model: RankModel,
    source: GroupSource,
    *,
    settings: Train,
    loss: RecipeLoss,
    total_steps: int,
    budget_tokens: int,
    seed: int,
    contract: PromptContract,
    root: Path,
    inputs: str,
    accelerator: Any,
    evaluate: Callable[[], float],
    open_trackers: Callable[[int], Trackers],
    advance: Callable[..., None],
    say: Callable[[str], None],
    stop: StopSignal,
    refresh: Refreshing,
) -> TrainState:
    """Train to total_steps, or out of patience, from the newest whole checkpoint under `root` where there is one.

    evaluate() scores the dev queries with the model as it stands (on all ranks together) and returns nDCG@10.
    refresh(state) has the source draw the next step from its pool of negatives, mined now where due; returns its name.
    Killing the process at any moment and calling again gives the same weights, bit for bit on a CPU.
    Raises Stopped after saving, when `stop` is requested on any rank.
    """
    optimizer = make_optimizer(
        model.named_parameters(), learning_rate=settings.learning_rate, weight_decay=settings.weight_decay
    )
    found = newest_checkpoint(root, say)
    if found is not None:
        folder, state = found
        load_checkpoint(folder, model, optimizer)
        say(f"continuing after step {state.step} of {total_steps}")
    if not model.sharded:
        prepare(model, accelerator)
    if found is None:
        state = TrainState(step=0, inputs=inputs, base_value=evaluate())
        say(f"before step 1: dev nDCG@10 {state.base_value:.3f}")
    trackers = _trackers(open_trackers, state)
    utilisation = _utilisation(model, accelerator, budget_tokens, say)
    spread, first = SpreadWatch(say), state.step + 1
    advance(state.step)
    model.train()
    for step in range(first, total_steps + 1):
        if state.out_of_patience(settings.patience):
            _say_early_end(state, total_steps, say, advance)
            break
        state = dataclasses.replace(state, pool=refresh(state))
        started = time.perf_counter()
        groups = source.step(step, settings.groups_per_step)
        if step == first:
            check_first_group(model, groups[0].encoded)
        optimizer.zero_grad(set_to_none=True)
        sums = accumulate(
            model,
            groups,
            loss,
            budget_tokens=budget_tokens,
            one_by_one=model.has_dropout,
            seed=seed,
            step=step,
            accelerator=accelerator,
            stop=stop.requested,
        )
        norm = clip(model.parameters(), settings.clip_norm)
        refuse_not_finite(sums, norm, groups, step, root.parent / NOT_FINITE_FILE, accelerator.is_main_process)
        spread.look(sums.spread, step)
        rate = set_learning_rate(optimizer, settings, step, total_steps)
        optimizer.step()
        speed = _speed(groups, time.perf_counter() - started, utilisation)
        values = {"loss": sums.loss, "score_margin": sums.margin, "score_spread": sums.spread}
        values |= {"gradient_norm": norm, "learning_rate": rate}
        state = dataclasses.replace(state, step=step)
        if step % settings.evaluate_every == 0 or step == total_steps:
            values["dev_nDCG@10"] = evaluate()
            state = state.evaluated(values["dev_nDCG@10"])
        trackers.log(values | speed, step=step)
        due = step % settings.save_every == 0 or "dev_nDCG@10" in values or refresh.due(step) or sums.stop
        if due and (accelerator.is_main_process or model.sharded):
            save_checkpoint(root, state, model, optimizer, contract, write=accelerator.is_main_process)
        if sums.stop and step < total_steps:
            # A launcher kills all processes soon after the first has ended: not while one of them still writes.
            accelerator.wait_for_everyone()
            raise Stopped(step, interrupted=stop.interrupted)
        advance(1, loss=sums.loss, dev=state.value_so_far, **speed)
    accelerator.wait_for_everyone()
    return state


def _trackers(open_trackers: Callable[[int], Trackers], state: TrainState) -> Trackers:
    trackers = open_trackers(state.step)
    if state.step == 0:
        trackers.log({"dev_nDCG@10": state.base_value}, step=0)
    return trackers


def _say_early_end(
    state: TrainState, total_steps: int, say: Callable[[str], None], advance: Callable[..., None]
) -> None:
    advance(0, total=state.step)
    say(
        f"train.patience: {state.since_best} evaluation{'s' if state.since_best > 1 else ''} on dev without a new "
        f"best: ended after step {state.step} of {total_steps}"
    )


def _utilisation(
    model: RankModel, accelerator: Any, budget_tokens: int, say: Callable[[str], None]
) -> Utilisation | None:
    try:
        found = Utilisation(model, accelerator, budget_tokens)
    except UserError as error:
        say(f"no MFU: {error}")
        return None
    say(f"MFU is the share of {found.peak / 1e12:.3g} TFLOP/s, measured here on a product of matrices")
    return found


def _speed(groups: Sequence[TrainGroup], seconds: float, utilisation: Utilisation | None) -> dict[str, float]:
    values = {"pairs_per_s": sum(len(g.labels) for g in groups) / seconds}
    values["tokens_per_s"] = sum(g.encoded.tokens for g in groups) / seconds
    if utilisation is not None:
        values["mfu"] = utilisation.share([g.encoded for g in groups], seconds)
    return values

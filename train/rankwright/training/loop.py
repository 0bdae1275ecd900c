"""fit(): the only training loop. Step, log; every N steps evaluate and save."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

from rankwright.common.errors import Paused, Stopped, UserError
from rankwright.common.processes import Processes
from rankwright.model.prompt import PromptEncoder
from rankwright.model.rank_model import RankModel
from rankwright.recipe.schema import Train
from rankwright.training.checkpoint import Checkpoints, TrainState
from rankwright.training.estimate.cost import Utilisation
from rankwright.training.eta import DEV_SECONDS, EVALUATION, REFRESH, SAVE, STEP_SECONDS, Eta
from rankwright.training.gradients import StepSums, accumulate, clip, prepare
from rankwright.training.guards import NOT_FINITE_FILE, SpreadWatch, StopSignal, check_first_group, refuse_not_finite
from rankwright.training.language import Auxiliary
from rankwright.training.loss_terms import RecipeLoss
from rankwright.training.optim import make_optimizer, set_learning_rate
from rankwright.training.refresh import Refresh
from rankwright.training.sampling import TrainGroup
from rankwright.training.tracking import Reports

# FLOPs of a step, which is what two trainings of the same cost share.
TFLOP = "tflop"
# `train.evaluate_every: auto`: so many evaluations at least, and so many steps between them at most.
LEAST_EVALUATIONS, MOST_STEPS = 5, 100


def evaluation_interval(settings: Train, total_steps: int) -> int:
    """Steps between evaluations on dev, as `train.evaluate_every` has it. The last step is evaluated in any case."""
    if settings.evaluate_every != "auto":
        return settings.evaluate_every
    return max(1, min(MOST_STEPS, total_steps // LEAST_EVALUATIONS))


class Source(Protocol):
    """Where the groups of each step come from: a GroupSource, or nothing where only text is trained on."""

    def step(self, step: int, groups_per_step: int) -> list[TrainGroup]:
        """The groups of step `step` (from 1), tokenised."""


@dataclass(frozen=True, slots=True)
class Further:
    """Further objectives of a training. make: for a model that is about to be trained.

    list_weight: the weight of the recipe's own loss beside them.
    """

    make: Callable[[RankModel, PromptEncoder], Auxiliary]
    list_weight: float = 1.0

    def weighted(self, loss: RecipeLoss) -> RecipeLoss:
        """The recipe's loss with its weight."""
        return lambda *arguments: self.list_weight * loss(*arguments)


@dataclass(frozen=True, slots=True)
class Job:
    """What is trained, on which groups and how.

    budget_tokens: of a micro-batch. accelerator: Accelerate's, for precision and the device.
    auxiliary: further objectives, whose gradients are added to those of the groups; with them a step may have none.
    measure: what evaluate() gives, as it is logged; more is better.
    pause_after: so many evaluations after which training pauses, if it has not ended; None: it does not.
    """

    model: RankModel
    source: Source
    loss: RecipeLoss
    settings: Train
    total_steps: int
    budget_tokens: int
    seed: int
    accelerator: Any
    auxiliary: Auxiliary | None = None
    measure: str = "dev_nDCG@10"
    pause_after: int | None = None


def fit(
    job: Job,
    checkpoints: Checkpoints,
    reports: Reports,
    *,
    evaluate: Callable[[int], float],
    untrained: Callable[[], float],
    refresh: Refresh | None,
    stop: StopSignal,
) -> TrainState:
    """Train to total_steps, or out of patience, from the newest whole checkpoint where there is one.

    evaluate(step), and untrained() before step 1, return the job's measure on dev of the model as it is, on all ranks
    together.
    refresh: sets the pool that the next step draws negatives from, and mines it first if it is due.
    Killing the process at any moment and calling again gives the same weights, bit for bit on a CPU.
    Raises Stopped after saving if a stop is requested on any rank, and Paused after job.pause_after evaluations.
    """
    model, settings, total_steps = job.model, job.settings, job.total_steps
    processes, every = Processes.of_group(), evaluation_interval(settings, total_steps)
    pause = None if job.pause_after is None else job.pause_after * every
    optimizer = make_optimizer(
        model.named_parameters(), learning_rate=settings.learning_rate, weight_decay=settings.weight_decay
    )
    found = checkpoints.load_newest(model, optimizer)
    if found is not None:
        reports.say(f"continuing after step {found.step} of {total_steps}")
    if not model.sharded:
        prepare(model, job.accelerator)
    eta = _eta(job, every, refresh, reports.earlier if found is not None else ())
    state = found or _begin(job, checkpoints.inputs, untrained, eta, reports.say)
    reports.start(state, job.measure)
    utilisation = _utilisation(job, reports.say)
    spread, first = SpreadWatch(reports.say), state.step + 1
    model.train()
    eta.start()
    for step in range(first, total_steps + 1):
        if state.out_of_patience(settings.patience):
            reports.end_early(state, total_steps)
            break
        if pause is not None and state.step >= pause:
            processes.meet()
            raise Paused(state.step)
        if refresh is not None:
            with eta.timing(REFRESH) if refresh.due(state.step) else nullcontext():
                state = dataclasses.replace(state, pool=refresh(state))
        started = time.perf_counter()
        groups = job.source.step(step, settings.groups_per_step)
        if step == first and groups:
            check_first_group(model, groups[0].encoded, job.accelerator)
        optimizer.zero_grad(set_to_none=True)
        sums, more = _gradients(job, groups, step, stop=stop.requested)
        norm = clip(model.parameters(), settings.clip_norm)
        refuse_not_finite(sums, norm, groups, step, checkpoints.root.parent / NOT_FINITE_FILE, processes.is_first)
        if groups:
            spread.look(sums.spread, step)
        rate = set_learning_rate(optimizer, settings, step, total_steps)
        optimizer.step()
        seconds = time.perf_counter() - started
        speed = _speed(job, groups, seconds, utilisation)
        values = {"loss": sums.loss, "score_margin": sums.margin, "score_spread": sums.spread} if groups else {}
        values |= {**more, "gradient_norm": norm, "learning_rate": rate, STEP_SECONDS: seconds}
        state = dataclasses.replace(state, step=step)
        if step % every == 0 or step == total_steps:
            with eta.timing(EVALUATION):
                values[job.measure] = evaluate(step)
            values[DEV_SECONDS] = eta.last(EVALUATION)
            state = state.evaluated(values[job.measure])
        reports.log(values | speed, step=step)
        refreshes = refresh is not None and refresh.due(step)
        if step % settings.save_every == 0 or job.measure in values or refreshes or sums.stop:
            with eta.timing(SAVE):
                checkpoints.save(state, model, optimizer)
        if sums.stop and step < total_steps:
            # A launcher kills all processes soon after the first has ended: wait while one of them still writes.
            processes.meet()
            raise Stopped(step, interrupted=stop.interrupted)
        eta.step()
        reports.advance(1, left=eta.left(step), loss=values["loss"], dev=state.value_so_far, **speed)
    # Asked for in the last step, or while it was evaluated: the stages that follow must not begin.
    if any(processes.gather(stop.requested)):
        raise Stopped(state.step, interrupted=stop.interrupted)
    return state


def _begin(job: Job, inputs: str, untrained: Callable[[], float], eta: Eta, say: Callable[[str], None]) -> TrainState:
    """The state before step 1."""
    with eta.timing(EVALUATION):
        value = untrained()
    say(f"before step 1: {job.measure.replace('_', ' ')} {value:.3f}")
    return TrainState(step=0, inputs=inputs, base_value=value)


def _gradients(job: Job, groups: Sequence[TrainGroup], step: int, *, stop: bool) -> tuple[StepSums, dict[str, float]]:
    """Add the gradients of a step; returns the sums of the groups, and the values of the further objectives."""
    shared: dict[str, Any] = {"accelerator": job.accelerator, "budget_tokens": job.budget_tokens}
    sums = accumulate(job.model, groups, job.loss, seed=job.seed, step=step, stop=stop, **shared)
    if job.auxiliary is None:
        return sums, {}
    return sums, job.auxiliary.accumulate(job.model, step, groups, **shared)


def _eta(job: Job, every: int, refresh: Refresh | None, earlier: Sequence[Mapping[str, Any]]) -> Eta:
    events = {EVALUATION: every, SAVE: job.settings.save_every}
    return Eta(job.total_steps, events if refresh is None else {**events, REFRESH: refresh.every}, earlier)


def _utilisation(job: Job, say: Callable[[str], None]) -> Utilisation | None:
    try:
        found = Utilisation(job.model, job.accelerator, job.budget_tokens)
    except UserError as error:
        say(f"no MFU: {error}")
        return None
    say(f"MFU is the share of {found.peak / 1e12:.3g} TFLOP/s, measured here on a product of matrices")
    return found


def _speed(job: Job, groups: Sequence[TrainGroup], seconds: float, utilisation: Utilisation | None) -> dict[str, float]:
    passed = [] if job.auxiliary is None else job.auxiliary.passed
    values = {"pairs_per_s": sum(len(g.labels) for g in groups) / seconds} if groups else {}
    values["tokens_per_s"] = (sum(g.encoded.tokens for g in groups) + sum(passed)) / seconds
    if utilisation is not None:
        flops = utilisation.flops([g.encoded for g in groups], passed)
        values |= {"mfu": utilisation.share(flops, seconds), TFLOP: flops / 1e12}
    return values

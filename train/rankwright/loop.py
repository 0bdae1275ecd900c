"""fit(): the only training loop, over Accelerate. Step, log, every N steps evaluate and save."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rankwright.batching import pad_chunks, plan_step
from rankwright.checkpoint import TrainState, load_checkpoint, newest_checkpoint, save_checkpoint
from rankwright.errors import UserError
from rankwright.losses import Loss
from rankwright.model import RankModel
from rankwright.optim import SCHEDULES, learning_rate_factor, make_optimizer
from rankwright.prompts import PromptContract
from rankwright.ranking import stable_hash
from rankwright.recipe import Train
from rankwright.sampling import GroupSource, TrainGroup
from rankwright.tracking import Trackers


@dataclass(frozen=True, slots=True)
class StepSums:
    """Sums over all ranks of one step."""

    loss: float
    pairs: int
    tokens: int


def fit(
    model: RankModel,
    source: GroupSource,
    *,
    settings: Train,
    loss: Loss,
    total_steps: int,
    seed: int,
    contract: PromptContract,
    root: Path,
    inputs: str,
    accelerator: Any,
    evaluate: Callable[[], float],
    open_trackers: Callable[[int], Trackers],
    advance: Callable[..., None],
    say: Callable[[str], None],
) -> TrainState:
    """Train to total_steps, from the newest whole checkpoint under `root` where there is one.

    evaluate() scores the dev queries with the model as it stands (on all ranks together) and returns nDCG@10.
    Killing the process at any moment and calling again gives the same weights, bit for bit on a CPU.
    """
    optimizer = make_optimizer(
        model.named_parameters(), learning_rate=settings.learning_rate, weight_decay=settings.weight_decay
    )
    found = newest_checkpoint(root, say)
    if found is not None:
        folder, state = found
        load_checkpoint(folder, model, optimizer)
        say(f"continuing after step {state.step} of {total_steps}")
    module = accelerator.prepare(model)
    if found is None:
        state = TrainState(step=0, inputs=inputs, base_value=evaluate())
        say(f"before step 1: dev nDCG@10 {state.base_value:.3f}")
    trackers = open_trackers(state.step)
    if state.step == 0:
        trackers.log({"dev_nDCG@10": state.base_value}, step=0)
    schedule = SCHEDULES[settings.schedule]
    advance(state.step)
    model.train()
    for step in range(state.step + 1, total_steps + 1):
        started = time.perf_counter()
        groups = source.step(step, settings.groups_per_step)
        optimizer.zero_grad(set_to_none=True)
        sums = accumulate(module, model, groups, settings, loss, seed=seed, step=step, accelerator=accelerator)
        norm = clip(model, settings.clip_norm, step, groups)
        factor = learning_rate_factor(step, total_steps, warmup_fraction=settings.warmup_fraction, schedule=schedule)
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * factor
        optimizer.step()
        seconds = time.perf_counter() - started
        values = {"loss": sums.loss, "gradient_norm": norm, "learning_rate": settings.learning_rate * factor}
        values |= {"pairs_per_s": sums.pairs / seconds, "tokens_per_s": sums.tokens / seconds}
        state = dataclasses.replace(state, step=step)
        if step % settings.evaluate_every == 0 or step == total_steps:
            values["dev_nDCG@10"] = evaluate()
            if state.best_value is None or values["dev_nDCG@10"] > state.best_value:
                state = dataclasses.replace(state, best_step=step, best_value=values["dev_nDCG@10"])
        trackers.log(values, step=step)
        due = step % settings.save_every == 0 or "dev_nDCG@10" in values
        if due and accelerator.is_main_process:
            save_checkpoint(root, state, model, optimizer, contract)
        dev = state.base_value if state.best_value is None else state.best_value
        advance(1, loss=sums.loss, dev=dev, pairs_per_s=values["pairs_per_s"])
    accelerator.wait_for_everyone()
    return state


def accumulate(
    module: nn.Module,
    model: RankModel,
    groups: Sequence[TrainGroup],
    settings: Train,
    loss: Loss,
    *,
    seed: int,
    step: int,
    accelerator: Any,
) -> StepSums:
    """Add the gradient of one global step to the parameters, the same on every rank.

    Every rank computes the plan of all ranks; each loss is divided by the GLOBAL number of groups, so that
    gradients are summed, never averaged; a rank without groups contributes zeros.
    """
    plan = plan_step([g.tokens for g in groups], ranks=accelerator.num_processes, budget_tokens=settings.budget_tokens)
    total, bad = torch.zeros((), dtype=torch.float64), set[str]()
    for micro_batch in plan[accelerator.process_index]:
        mine = [groups[i] for i in micro_batch]
        torch.manual_seed(stable_hash("dropout", seed, step, mine[0].query_id) % 2**63)
        with accelerator.no_sync(module):
            chunks = pad_chunks([p for g in mine for p in g.prompts], pad_id=model.pad_id)
            scores_QD, labels_QD, mask_QD = to_lists(module(chunks), mine)
            loss_Q = loss(scores_QD, labels_QD, mask_QD)
            accelerator.backward(loss_Q.sum() / len(groups))
        bad |= {g.query_id for g, ok in zip(mine, loss_Q.isfinite().tolist(), strict=True) if not ok}
        total += loss_Q.detach().double().sum().cpu() / len(groups)
    refuse_not_finite(bad, step)
    reduce_gradients(model.parameters())
    if dist.is_initialized():
        shared = total.to(model.device)
        dist.all_reduce(shared)
        total = shared.cpu()
    return StepSums(float(total), sum(len(g.prompts) for g in groups), sum(g.tokens for g in groups))


def to_lists(scores_N: Tensor, groups: Sequence[TrainGroup]) -> tuple[Tensor, Tensor, Tensor]:
    """(scores_QD, labels_QD, mask_QD) from the scores of all prompts of the groups in order."""
    lengths = [len(g.prompts) for g in groups]
    scores_QD = nn.utils.rnn.pad_sequence(list(torch.split(scores_N, lengths)), batch_first=True)
    labels = [torch.tensor(g.labels, dtype=torch.float32, device=scores_N.device) for g in groups]
    labels_QD = nn.utils.rnn.pad_sequence(labels, batch_first=True)
    places_D = torch.arange(scores_QD.shape[1], device=scores_N.device)
    mask_QD = places_D < torch.tensor(lengths, device=scores_N.device).unsqueeze(1)
    return scores_QD, labels_QD, mask_QD


def refuse_not_finite(query_ids: set[str], step: int) -> None:
    """Stop on all ranks when any rank met a loss that is not a finite number. Raises UserError."""
    everywhere: list[Any] = [sorted(query_ids)]
    if dist.is_initialized():
        everywhere = [None] * dist.get_world_size()
        dist.all_gather_object(everywhere, sorted(query_ids))
    found = sorted({q for ids in everywhere for q in ids})
    if found:
        raise UserError(
            f"train: step {step}: the loss of {len(found)} groups is not a finite number (queries "
            f"{', '.join(found[:5])}): lower train.learning_rate, or look at these rows; earlier checkpoints are kept"
        )


def reduce_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Sum the gradients over the ranks in one all-reduce a dtype; a missing gradient counts as zeros."""
    if not dist.is_initialized():
        return
    by_dtype: dict[torch.dtype, list[nn.Parameter]] = {}
    for parameter in parameters:
        if parameter.requires_grad:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            by_dtype.setdefault(parameter.dtype, []).append(parameter)
    for trained in by_dtype.values():
        flat = torch.cat([p.grad.flatten() for p in trained if p.grad is not None])
        dist.all_reduce(flat)
        for parameter, part in zip(trained, torch.split(flat, [p.numel() for p in trained]), strict=True):
            parameter.grad = part.view_as(parameter)


def clip(model: RankModel, limit: float, step: int, groups: Sequence[TrainGroup]) -> float:
    """Scale the gradient to a norm of at most `limit`; returns the norm before. Raises UserError if not finite."""
    trained = [p for p in model.parameters() if p.requires_grad]
    norm = float(nn.utils.clip_grad_norm_(trained, limit))
    if not math.isfinite(norm):
        ids = ", ".join(g.query_id for g in groups[:5])
        raise UserError(
            f"train: step {step}: the gradient is not finite (queries {ids}, ...): lower train.learning_rate; "
            "earlier checkpoints are kept"
        )
    return norm

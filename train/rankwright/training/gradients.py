"""The gradient of one global step over all ranks, in bounded memory for lists of any length."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import chain, repeat, zip_longest
from typing import Any, cast

import torch
from torch import Tensor, nn

from rankwright.common.hashing import stable_hash
from rankwright.common.processes import Processes
from rankwright.model.layout import batch_parts, plan_step
from rankwright.model.prompt import EncodedGroup
from rankwright.model.rank_model import RankModel
from rankwright.model.sharding import is_shard
from rankwright.training.loss_terms import RecipeLoss
from rankwright.training.sampling import TrainGroup

# Q groups, D documents (padded), N scored prompts.
# Gradients are summed over the ranks in pieces of about this many numbers (100 MB in fp32).
REDUCE_NUMBERS = 25_000_000


@dataclass(frozen=True, slots=True)
class StepSums:
    """The loss of one step over all ranks, and how far scores are apart, as means over the groups.

    margin: mean score of the documents with the highest label minus that of the others. spread: standard deviation
    of a group's scores. not_finite: queries whose loss is not a finite number. stop: some rank was asked to stop.
    """

    loss: float
    margin: float
    spread: float
    stop: bool
    not_finite: tuple[str, ...]


def accumulate(
    model: RankModel,
    groups: Sequence[TrainGroup],
    loss: RecipeLoss,
    *,
    budget_tokens: int,
    seed: int,
    step: int,
    accelerator: Any,
    stop: bool = False,
) -> StepSums:
    """Add the gradient of one global step to the parameters, the same on every rank.

    Every rank computes the plan of all ranks. Each loss is weighted and divided by the GLOBAL sum of the weights, so
    that gradients are summed, never averaged; a rank without groups contributes zeros. With dropout each group is a
    micro-batch of its own, so that its masks do not depend on its neighbours. A sharded model needs the same number of
    passes on every rank: a rank that has fewer adds passes of no weight.
    """
    processes = Processes.of_group()
    budget = 0 if model.has_dropout else budget_tokens
    plan = plan_step([g.encoded.tokens for g in groups], ranks=processes.count, budget_tokens=budget)
    divisor = sum(g.weight for g in groups)
    totals, bad = torch.zeros(4, dtype=torch.float64), list[str]()
    own = [[groups[i] for i in micro_batch] for micro_batch in plan[processes.rank]]
    idle = _idle_passes(plan, groups, budget_tokens, processes.rank) if model.sharded else [(0, 0)] * len(own)
    for number, (first, second) in enumerate(idle):
        _run_idle(model, groups[0], first)
        if number < len(own):
            mine = own[number]
            key = (seed, step, mine[0].query_id)
            scores_N, loss_Q = _backward(model, mine, loss, divisor, budget_tokens, key, accelerator)
            bad += [g.query_id for g, ok in zip(mine, loss_Q.isfinite().tolist(), strict=True) if not ok]
            totals[0] += sum(g.weight * one for g, one in zip(mine, loss_Q.tolist(), strict=True)) / divisor
            totals[1:3] += score_distances(*to_lists(scores_N, mine)).cpu() / len(groups)
        _run_idle(model, groups[0], second, accelerator)
    totals[3] = stop
    everywhere = processes.gather((totals.tolist(), bad))
    values = torch.tensor([sums for sums, _ in everywhere], dtype=torch.float64).sum(dim=0).tolist()
    reduce_gradients(model.parameters())
    not_finite = tuple(sorted(query_id for _, found in everywhere for query_id in found))
    return StepSums(values[0], values[1], values[2], values[3] > 0, not_finite)


def _backward(
    model: RankModel,
    groups: Sequence[TrainGroup],
    loss: RecipeLoss,
    divisor: float,
    budget_tokens: int,
    key: tuple[int, int, str],
    accelerator: Any,
) -> tuple[Tensor, Tensor]:
    """Forward and backward of one micro-batch; (scores_N, loss_Q), both detached.

    A group beyond the budget goes in two passes: scores without a graph, the loss's gradient for each score, and
    then part by part the model's gradient for it. Both passes see the same dropout.
    """
    parts = batch_parts([g.encoded for g in groups], budget_tokens)
    weights_Q = torch.tensor([g.weight / divisor for g in groups])
    if len(parts) == 1:
        _seed(key, 0)
        scores_N = model(parts[0])
        loss_Q = _losses(loss, scores_N, groups)
        accelerator.backward((loss_Q * weights_Q.to(loss_Q)).sum())
        return scores_N.detach(), loss_Q.detach()
    scores = []
    for number, part in enumerate(parts):
        _seed(key, number)
        with torch.no_grad():
            scores.append(model(part))
    scores_N = torch.cat(scores).requires_grad_()
    loss_Q = _losses(loss, scores_N, groups)
    (gradient_N,) = torch.autograd.grad((loss_Q * weights_Q.to(loss_Q)).sum(), scores_N)
    gradients = torch.split(gradient_N, [len(s) for s in scores])
    for number, (part, gradient) in enumerate(zip(parts, gradients, strict=True)):
        _seed(key, number)
        accelerator.backward((model(part) * gradient).sum())
    return scores_N.detach(), loss_Q.detach()


def _idle_passes(
    plan: Sequence[Sequence[Sequence[int]]], groups: Sequence[TrainGroup], budget_tokens: int, rank: int
) -> list[tuple[int, int]]:
    """For each micro-batch: how many passes (without a graph, with one) `rank` runs fewer than the busiest rank."""
    passes = []
    for micro_batches in plan:
        parts = [
            len(batch_parts([groups[i].encoded for i in micro_batch], budget_tokens)) for micro_batch in micro_batches
        ]
        passes.append([(count if count > 1 else 0, count) for count in parts])
    most = [list(map(max, zip(*one, strict=True))) for one in zip_longest(*passes, fillvalue=(0, 0))]
    own = chain(passes[rank], repeat((0, 0)))
    return [(first - had[0], second - had[1]) for (first, second), had in zip(most, own, strict=False)]


def _run_idle(model: RankModel, group: TrainGroup, passes: int, accelerator: Any = None) -> None:
    """Passes over two tokens that add nothing to the gradient; with a backward pass if an accelerator is given."""
    smallest = EncodedGroup(group.encoded.head_ids[:1], [group.encoded.tail_ids[0][:1]], False, 0)
    for _ in range(passes):
        with nullcontext() if accelerator else torch.no_grad():
            scores_N = model([smallest])
        if accelerator:
            accelerator.backward((scores_N * 0.0).sum())


def _seed(key: tuple[int, int, str], part: int) -> None:
    torch.manual_seed(stable_hash("dropout", *key, part) % 2**63)


def to_lists(scores_N: Tensor, groups: Sequence[TrainGroup]) -> tuple[Tensor, Tensor, Tensor]:
    """(scores_QD, labels_QD, mask_QD) from the scores of all documents of the groups in order."""
    lengths = [len(g.labels) for g in groups]
    scores_QD = nn.utils.rnn.pad_sequence(list(torch.split(scores_N, lengths)), batch_first=True)
    labels = [torch.tensor(g.labels, dtype=torch.float32, device=scores_N.device) for g in groups]
    labels_QD = nn.utils.rnn.pad_sequence(labels, batch_first=True)
    places_D = torch.arange(scores_QD.shape[1], device=scores_N.device)
    mask_QD = places_D < torch.tensor(lengths, device=scores_N.device).unsqueeze(1)
    return scores_QD, labels_QD, mask_QD


def _losses(loss: RecipeLoss, scores_N: Tensor, groups: Sequence[TrainGroup]) -> Tensor:
    """loss_Q of scores and offsets, from labels and, if the groups have them, a teacher's scores."""
    if groups[0].offset is not None:
        scores_N = scores_N + torch.tensor([one for g in groups for one in g.offset or ()]).to(scores_N)
    lists = to_lists(scores_N, groups)
    if groups[0].teacher is None:
        return loss(*lists)
    teacher = [torch.tensor(g.teacher, dtype=torch.float32, device=scores_N.device) for g in groups]
    return loss(*lists, nn.utils.rnn.pad_sequence(teacher, batch_first=True))


def score_distances(scores_QD: Tensor, labels_QD: Tensor, mask_QD: Tensor) -> Tensor:
    """Sums over the groups of (margin, spread), see StepSums; 0 for a group with nothing to compare.

    A document with an unknown label (NaN) does not count in the margin.
    """
    scores_QD = scores_QD.double()
    known_QD = mask_QD & ~labels_QD.isnan()
    best_Q1 = labels_QD.masked_fill(~known_QD, -torch.inf).amax(dim=1, keepdim=True)
    best_QD, rest_QD = known_QD & (labels_QD == best_Q1), known_QD & (labels_QD < best_Q1)
    margin_Q = _mean(scores_QD, best_QD) - _mean(scores_QD, rest_QD)
    margin_Q = margin_Q.masked_fill(~rest_QD.any(dim=1), 0.0)
    centred_QD = scores_QD - _mean(scores_QD, mask_QD).unsqueeze(1)
    return torch.stack((margin_Q.sum(), _mean(centred_QD.square(), mask_QD).sqrt().sum()))


def _mean(values_QD: Tensor, mask_QD: Tensor) -> Tensor:
    return values_QD.masked_fill(~mask_QD, 0.0).sum(dim=1) / mask_QD.sum(dim=1).clamp(min=1)


def prepare(model: RankModel, accelerator: Any) -> None:
    """Autocast by Accelerate, and the first rank's weights on every rank.

    Without DistributedDataParallel, which would hold the gradients a second time: see reduce_gradients.
    """
    accelerator.prepare_model(model, evaluation_mode=True)
    processes = Processes.of_group()
    for tensor in chain(model.parameters(), model.buffers()):
        processes.copy_from_first(tensor.detach())


def reduce_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Sum the gradients over the ranks, REDUCE_NUMBERS at a time; a missing gradient counts as zeros.

    Gradients of sharded parameters are already summed in the backward pass.
    """
    processes = Processes.of_group()
    if processes.count == 1:
        return
    pieces: dict[torch.dtype, list[list[nn.Parameter]]] = {}
    for parameter in parameters:
        if parameter.requires_grad and not is_shard(parameter):
            of_type = pieces.setdefault(parameter.dtype, [[]])
            if sum(p.numel() for p in of_type[-1]) + parameter.numel() > REDUCE_NUMBERS and of_type[-1]:
                of_type.append([])
            of_type[-1].append(parameter)
    for trained in chain.from_iterable(pieces.values()):
        found = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
        flat = torch.cat([gradient.flatten() for gradient in found])
        processes.sum_up(flat)
        for parameter, part in zip(trained, torch.split(flat, [p.numel() for p in trained]), strict=True):
            parameter.grad = part.view_as(parameter)


@contextmanager
def added(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Inside, gradients are made on each rank; they are summed over the ranks and added to those before.

    The gradients before are already sums, as accumulate() leaves them.
    """
    own = [p for p in parameters if p.requires_grad and not is_shard(p)]
    if Processes.of_group().count == 1:
        yield
        return
    before = [p.grad for p in own]
    for parameter in own:
        parameter.grad = None
    yield
    reduce_gradients(own)
    for parameter, gradient in zip(own, before, strict=True):
        if gradient is not None and parameter.grad is not None:
            parameter.grad += gradient


def clip(parameters: Iterable[nn.Parameter], limit: float) -> float:
    """Scale the gradient to a norm of at most `limit`; returns the norm before, which may not be finite.

    The norm is that of the whole gradient, including sharded parameters.
    """
    trained = [p for p in parameters if p.requires_grad]
    shards = [cast(Any, p.grad).to_local() for p in trained if is_shard(p) and p.grad is not None]
    if not shards:
        return float(nn.utils.clip_grad_norm_(trained, limit))
    kept = [p.grad for p in trained if not is_shard(p) and p.grad is not None]
    squared = nn.utils.get_total_norm(shards).double().square()
    Processes.of_group().sum_up(squared)
    norm = (squared + nn.utils.get_total_norm(kept).double().square()).sqrt()
    for gradient in (*shards, *kept):
        gradient.mul_((limit / (norm + 1e-6)).clamp(max=1.0))
    return float(norm)

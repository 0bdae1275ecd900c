"""FLOPs of a training step from shapes alone, as the engine computes it, and the share of the device's peak.

A product of (a, b) and (b, c) is 2 a b c FLOPs; norms, rotations, gates and softmaxes are not counted. A query's head
counts once, the last layer for scored tokens only but for its keys and values, attention by segment over its keys.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from rankwright.model import RankModel
from rankwright.prompts import EncodedGroup
from rankwright.shapes import Architecture, Target, Work, architecture_of, row_work, rows_of, step_parts, tokens_through

FIRST_INPUTS = ("q_proj", "k_proj", "v_proj")
PEAK_SECONDS = 0.15
PEAK_SIZES = (512, 1024, 2048, 4096, 8192)


def forward_flops(shape: Architecture, work: Work) -> int:
    """FLOPs of the decoder's forward over a row; the head's single row is not counted, nor are embeddings."""
    total = 0
    for last, layers in ((False, shape.layers - 1), (True, 1)):
        pairs = work.scored_pairs if last else work.pairs
        layer = 4 * shape.heads * shape.head_size * pairs
        for name, linear in shape.linears.items():
            layer += 2 * tokens_through(name, work, last) * (linear.base + linear.adapter)
        total += layers * layer
    return total


def backward_flops(shape: Architecture, work: Work) -> int:
    """FLOPs of the backward pass: gradients of inputs, and of the weights that are trained.

    Fused attention computes its probabilities again: 5 products where the forward pass has 2; Dao et al. 2022,
    arXiv 2205.14135. The first layer's inputs need no gradient while embeddings and norms are frozen,
    unless transformers asks for it, as it does for gradient checkpointing.
    """
    size = shape.heads * shape.head_size
    total = 0
    for last, layers in ((False, shape.layers - 1), (True, 1)):
        pairs = work.scored_pairs if last else work.pairs
        layer = 10 * size * pairs - (0 if last else 2 * size * work.kept_pairs)
        for name, linear in shape.linears.items():
            products = (2 if shape.full else 1) * linear.base + 2 * linear.adapter
            layer += 2 * tokens_through(name, work, last) * products
        total += layers * layer
    if not (shape.full or shape.recompute):
        for name in FIRST_INPUTS:
            linear, tokens = shape.linears[name], tokens_through(name, work, shape.layers == 1)
            total -= 2 * tokens * (linear.base + linear.rank * linear.inputs)
    return total


def recompute_flops(shape: Architecture, work: Work) -> int:
    """FLOPs of the second forward under gradient checkpointing, which ends with the last tensor that is kept."""
    down = shape.linears["down_proj"]
    left_out = down.rank * down.outputs if down.rank else down.base
    return forward_flops(shape, work) - 2 * left_out * ((shape.layers - 1) * work.tokens + work.scored)


def step_flops(
    shape: Architecture,
    groups: Sequence[EncodedGroup],
    target: Target,
    *,
    budget_tokens: int,
    ranks: int = 1,
    again: bool = True,
) -> list[int]:
    """FLOPs of each rank in one optimizer step over these groups; well under a millisecond for a hundred documents.

    again: count also what is computed twice (gradient checkpointing, the first of two passes), as the device does;
    without it these are the model's FLOPs by which utilisation is defined.
    """
    plan = step_parts(groups, ranks=ranks, budget_tokens=budget_tokens, one_by_one=shape.dropout)
    return [sum(_batch_flops(shape, parts, target, again) for parts in batches) for batches in plan]


def _batch_flops(shape: Architecture, parts: list[list[EncodedGroup]], target: Target, again: bool) -> int:
    works = [row_work(row, target) for part in parts for row in rows_of(part, target)]
    total = 0
    for work in works:
        forward = forward_flops(shape, work)
        total += forward + backward_flops(shape, work)
        if again:
            total += forward if len(parts) > 1 else 0
            total += recompute_flops(shape, work) if shape.recompute else 0
    return total


class Utilisation:
    """The share of the peak that training reaches (MFU); Chowdhery et al. 2022, arXiv 2204.02311, appendix B.

    Made once, which takes under half a second: it measures the peak. As there, nothing counts twice; heads count
    once, since that is what the model is given. peak: FLOP/s of one rank. Raises UserError as architecture_of does.
    """

    def __init__(self, model: RankModel, accelerator: Any, budget_tokens: int) -> None:
        bits16 = accelerator.mixed_precision == "bf16"
        with torch.autocast(model.device.type, torch.bfloat16, enabled=bits16):
            self._target = Target(model.route()[0], model.device.type == "cpu", bits16)
        self._shape = architecture_of(model)
        self._budget_tokens = budget_tokens
        self._ranks: int = accelerator.num_processes
        self.peak = matmul_peak(torch.bfloat16 if bits16 else torch.float32, model.device)

    def share(self, groups: Sequence[EncodedGroup], seconds: float) -> float:
        """FLOP/s over the peak of all ranks, for one step over `groups` that took `seconds`."""
        ranks, budget_tokens = self._ranks, self._budget_tokens
        by_rank = step_flops(self._shape, groups, self._target, budget_tokens=budget_tokens, ranks=ranks, again=False)
        return sum(by_rank) / (seconds * ranks * self.peak)


def matmul_peak(dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of the fastest square product found on this device, with the threads it has, in about 0.3 s."""
    # The first product loads the library's kernels, which takes long on a GPU.
    _timed_product(torch.ones(PEAK_SIZES[0], PEAK_SIZES[0], dtype=dtype, device=device))
    best, deadline = 0.0, time.perf_counter() + PEAK_SECONDS
    for size in PEAK_SIZES:
        a = torch.ones(size, size, dtype=dtype, device=device)
        seconds = min(_timed_product(a) for _ in range(3))
        best = max(best, 2 * size**3 / seconds)
        # The next size takes eight times as long, three times.
        if time.perf_counter() + 30 * seconds > deadline:
            break
    while time.perf_counter() < deadline:
        best = max(best, 2 * len(a) ** 3 / _timed_product(a))
    return best


def _timed_product(a: torch.Tensor) -> float:
    _wait(a.device)
    started = time.perf_counter()
    torch.mm(a, a)
    _wait(a.device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

"""FLOPs and memory of a training step, from shapes alone; the share of the device's peak that training reaches."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rankwright.common.processes import Processes
from rankwright.model.attention import LONG_KEYS, SCORED_AT_ONCE
from rankwright.model.prompt import EncodedGroup
from rankwright.model.rank_model import RankModel
from rankwright.training.estimate.shapes import (
    Architecture,
    Target,
    Work,
    architecture_of,
    row_work,
    rows_of,
    step_parts,
    tokens_through,
)

FIRST_INPUTS = ("q_proj", "k_proj", "v_proj")
PEAK_SECONDS = 0.15
PEAK_SIZES = (512, 1024, 2048, 4096, 8192)
FP32 = 4
INDEX_BYTES = 32  # ids, positions, group and document of a token, int64


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


@dataclass(frozen=True, slots=True)
class Types:
    """Bytes of a number: of the hidden states, and of what products read and give."""

    hidden: int
    compute: int

    @staticmethod
    def of(*, full: bool, bits16: bool) -> Types:
        """LoRA in bf16 is bf16 throughout; full fine-tuning has fp32 weights and hidden states under autocast."""
        return Types(hidden=2 if bits16 and not full else FP32, compute=2 if bits16 else FP32)

    @property
    def casts(self) -> bool:
        """Whether products read copies of their inputs and weights (autocast)."""
        return self.hidden != self.compute


@dataclass(frozen=True, slots=True)
class Step:
    """Bytes at the peak of a micro-batch, beyond weights, gradients and optimizer.

    activations: kept for the backward pass, and what stands beside it at the worst moment. tokens: ids, positions,
    masks. head: scores in fp32; there are no logits over the vocabulary.
    """

    activations: int
    tokens: int
    head: int

    @property
    def total(self) -> int:
        return self.activations + self.tokens + self.head


def _attention_bytes(shape: Architecture, work: Work, target: Target, types: Types) -> int:
    """What one attention route keeps: queries, keys, values, output, log-sums or probabilities."""
    tokens, number = work.tokens, types.compute
    queries, keys = (heads * shape.head_size * number for heads in (shape.heads, shape.key_heads))
    copied = 2 * keys * work.copied_keys
    log_sums = FP32 * shape.heads * tokens
    if target.route == "documents" and target.bits16:
        # Everything is copied to be filled up; up to SHORT_KEYS keys the probabilities are kept, not the log-sums.
        return 2 * queries * tokens + copied + number * shape.heads * work.kept_pairs
    if target.route == "varlen":
        # Copies of keys and values alone; the output is read as it is.
        return 2 * queries * tokens + copied + log_sums
    # Queries, output and its copy in the order of the tokens; keys and values, and their copies where there are any.
    return 3 * queries * tokens + 2 * keys * tokens + copied + log_sums


def _adapters_bytes(shape: Architecture, work: Work, types: Types, *, last: bool) -> int:
    """What adapters keep: their low-rank products; with dropout also a mask and the input under it."""
    total = 0
    for name, linear in shape.linears.items():
        if linear.rank:
            kept = linear.rank * types.compute
            kept += linear.inputs * (types.compute + 1) if shape.dropout else 0
            total += tokens_through(name, work, last) * kept
    return total


def layer_bytes(shape: Architecture, work: Work, target: Target, types: Types) -> int:
    """Kept of a layer that runs for all tokens, its input included."""
    tokens, number = work.tokens, types.compute
    # Inputs of the two norms with their inverse lengths; normed states, of which autocast makes one copy a product.
    norms = tokens * 2 * (shape.hidden * types.hidden + FP32)
    normed = tokens * shape.hidden * number * (5 if types.casts else 2)
    inner = shape.linears["gate_proj"].outputs
    # transformers' own forward keeps also what our Gate computes again.
    gates = tokens * inner * number * (4 if target.whole_last else 3)
    attention = _attention_bytes(shape, work, target, types)
    if shape.qk_norm:
        # What q_norm and k_norm keep: their inputs, and the inverse lengths.
        attention += tokens * (shape.heads + shape.key_heads) * (shape.head_size * number + FP32)
    kept = norms + normed + gates + attention + _adapters_bytes(shape, work, types, last=False)
    return kept - _remade_bytes(shape, work, target, types)


def _remade_bytes(shape: Architecture, work: Work, target: Target, types: Types) -> int:
    """What of layer_bytes a `cheap` Block computes again: tensors that would be kept themselves, not copies of them."""
    if not shape.cheap:
        return 0
    numbers = shape.linears["gate_proj"].outputs + (0 if types.casts else 2 * shape.hidden)
    if shape.qk_norm and not (target.route == "documents" and target.bits16):
        numbers += (shape.heads + (0 if target.route == "varlen" else shape.key_heads)) * shape.head_size
    return numbers * types.compute * work.tokens


def last_layer_bytes(shape: Architecture, work: Work, target: Target, types: Types) -> int:
    """Kept of the last layer: keys and values of all tokens, all else of the scored ones."""
    if target.whole_last:
        return layer_bytes(shape, work, target, types)
    number, tokens, scored = types.compute, work.tokens, work.scored
    keys = shape.key_heads * shape.head_size
    whole = shape.hidden * types.hidden + FP32 + shape.hidden * number * (2 if types.casts else 1)
    whole -= shape.hidden * number if shape.cheap and not types.casts else 0
    whole += 2 * keys * number + (keys * number + shape.key_heads * FP32 if shape.qk_norm else 0)
    queries = shape.heads * shape.head_size
    few = 3 * shape.hidden * types.hidden + 4 * queries * number + 3 * shape.linears["gate_proj"].outputs * number
    # A mask on a CPU; elsewhere masks, probabilities and copies of the keys that a part sees.
    mask = work.scored_pairs * number
    if not target.on_cpu:
        mask += 2 * number * (work.scored_pairs * shape.heads + work.scored_pairs // SCORED_AT_ONCE * keys)
    return whole * tokens + few * scored + mask + _adapters_bytes(shape, work, types, last=True)


def _backward_bytes(shape: Architecture, work: Work, types: Types) -> int:
    """Beside what is kept, in the middle of the gated MLP's backward pass, where most stands at once.

    There the output's gradient, its product with `up` and the gradients of `gate` and `up` are, and what `down` read
    is gone; and the gradient of the layer's output.
    """
    inner = shape.linears["gate_proj"].outputs
    states = work.tokens * (3 * inner * types.compute + shape.hidden * types.hidden)
    return states + _dequantized_bytes(shape, types)


def _dequantized_bytes(shape: Architecture, types: Types) -> int:
    """The largest weight for the moment of its product, where weights are in 4 bits."""
    return types.compute * max(linear.base for linear in shape.linears.values()) * shape.quantized


def _weights_bytes(shape: Architecture, types: Types) -> int:
    """One layer's weights in the type of products, of which autocast makes copies."""
    return types.compute * sum(linear.base for linear in shape.linears.values())


def step_bytes(shape: Architecture, works: Sequence[Work], target: Target, types: Types) -> Step:
    """The peak of the forward and backward pass of one micro-batch, whose rows go through the model one by one.

    With gradient checkpointing (shape.recompute) only the layers' inputs are kept, and one layer at a time is whole.
    """
    peak = _recomputed_peak if shape.recompute else _kept_peak
    activations = peak(shape, works, target, types)
    return Step(activations, _token_bytes(shape, works, target, types), sum(w.scored for w in works) * 2 * FP32)


def _waiting_bytes(shape: Architecture, types: Types, works: Sequence[Work], row: int) -> int:
    """Gradients of weights that wait for the rows still to come: autograd adds up all uses before it stores them."""
    if row == len(works) - 1:
        return 0
    return shape.layers * sum(m.base if shape.full else m.adapter for m in shape.linears.values()) * types.compute


def _kept_peak(shape: Architecture, works: Sequence[Work], target: Target, types: Types) -> int:
    # Embeddings are frozen: without trained norms the first layer keeps its input only to compute the norm again.
    first = 0 if shape.full or shape.cheap else shape.hidden * types.hidden
    total = shape.layers * _weights_bytes(shape, types) if types.casts and not target.sharded else 0
    peak = 0
    for row, work in enumerate(works):
        total += (shape.layers - 1) * layer_bytes(shape, work, target, types) - first * work.tokens
        # The backward pass of a row begins with the last layer; the one before it is where most stands.
        begun = total + _backward_bytes(shape, work, types) + _waiting_bytes(shape, types, works, row)
        total += last_layer_bytes(shape, work, target, types)
        peak = max(peak, begun, total)
    return peak


def _recomputed_peak(shape: Architecture, works: Sequence[Work], target: Target, types: Types) -> int:
    inputs = shape.hidden * types.hidden
    casts = _weights_bytes(shape, types) if types.casts and not target.sharded else 0
    kept = peak = 0
    for row, work in enumerate(works):
        # The layer before the last: its own input is among those that are kept, the last layer's no longer.
        one = layer_bytes(shape, work, target, types) - inputs * work.tokens + _backward_bytes(shape, work, types)
        begun = kept + (shape.layers - 1) * inputs * work.tokens + one + casts
        kept += shape.layers * inputs * work.tokens
        peak = max(peak, begun + _waiting_bytes(shape, types, works, row))
    # At the end of the forward pass all weights have been cast.
    return max(peak, kept + shape.layers * casts)


def scoring_bytes(shape: Architecture, work: Work, types: Types) -> int:
    """The peak of a forward pass without a graph over a row: the fullest moment of one layer."""
    queries, keys = shape.heads * shape.head_size, shape.key_heads * shape.head_size
    # Queries are normalised in fp32; queries, keys and values then stand beside the attention's output and its copies.
    normed = 2 * queries * FP32 + 2 * (queries + keys) * types.compute if shape.qk_norm else 0
    attention = types.compute * (3 * (queries + keys) * work.tokens + 2 * keys * work.copied_keys)
    gates = types.compute * 3 * shape.linears["gate_proj"].outputs * work.tokens
    states = work.tokens * (2 * shape.hidden * types.hidden + types.compute * shape.hidden)
    return states + max(normed * work.tokens, attention, gates) + _dequantized_bytes(shape, types)


def _token_bytes(shape: Architecture, works: Sequence[Work], target: Target, types: Types) -> int:
    """Ids and positions, rotations, and the masks of the routes that have them."""
    tokens = sum(w.tokens for w in works)
    total = tokens * (INDEX_BYTES + 2 * shape.head_size * types.hidden)
    if target.route == "documents":
        # Causal squares are made once for each power of two and kept: 1 + 1/4 + 1/16 + ... of the largest.
        side = 1 << (min(max(w.longest_keys for w in works), LONG_KEYS) - 1).bit_length()
        total += side * side * FP32 * 4 // 3
    if target.route == "dense":
        total += max(w.tokens for w in works) ** 2 * (1 + types.compute)
    return total


class Utilisation:
    """The share of the peak that training reaches (MFU); Chowdhery et al. 2022, arXiv 2204.02311, appendix B.

    Made once, which takes under half a second: it measures the peak. As there, nothing counts twice; heads count
    once, since that is what the model is given. peak: FLOP/s of one rank. Raises UserError as architecture_of does.
    """

    def __init__(self, model: RankModel, accelerator: Any, budget_tokens: int) -> None:
        bits16 = accelerator.mixed_precision == "bf16"
        with torch.autocast(model.device.type, torch.bfloat16, enabled=bits16):
            on_cpu = model.device.type == "cpu"
            self._target = Target(model.route()[0], on_cpu, bits16, own_layers=model.has_own_layers)
        self._shape = architecture_of(model)
        embeddings = model.causal_lm.get_input_embeddings()
        # The head has as many rows.
        self._head = 0 if embeddings is None else embeddings.weight.numel()
        self._budget_tokens = budget_tokens
        self._ranks = Processes.of_group().count
        self.peak = matmul_peak(torch.bfloat16 if bits16 else torch.float32, model.device)

    def flops(self, groups: Sequence[EncodedGroup], texts: Sequence[int] = ()) -> int:
        """FLOPs of one step over `groups`, of all ranks together; texts: lengths of texts whose tokens are predicted.

        A text also goes through the head and back: two products, since the head is not trained.
        """
        ranks, budget_tokens = self._ranks, self._budget_tokens
        rows = [*groups, *(EncodedGroup([0] * (length - 1), [[0]], False, 0) for length in texts if length > 1)]
        body = step_flops(self._shape, rows, self._target, budget_tokens=budget_tokens, ranks=ranks, again=False)
        return sum(body) + 4 * self._head * sum(texts)

    def share(self, flops: int, seconds: float) -> float:
        """FLOP/s over the peak of all ranks, for one step of these FLOPs that took `seconds`."""
        return flops / (seconds * self._ranks * self.peak)


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

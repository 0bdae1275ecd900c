"""Shapes of a model and of the rows of a step, from which FLOPs and memory are counted; nothing is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from rankwright.common.errors import UserError
from rankwright.model.attention import FEW_SHAPES, PLAIN, SHORT_KEYS, scored_parts
from rankwright.model.layout import (
    SHAPE_MULTIPLE,
    Segment,
    batch_parts,
    chunk_rows,
    chunk_tokens,
    place,
    plan_step,
    row_tokens,
)
from rankwright.model.prompt import EncodedGroup
from rankwright.model.quantization import is_quantized
from rankwright.model.rank_model import UNLIMITED, RankModel

NAMES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# The last layer computes these for every token, and everything else for scored tokens only.
LAST_FOR_ALL = ("k_proj", "v_proj")

# (tokens, tokens of the head before them) of the segments of one row.
Segments = list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear layer of `inputs` to `outputs`; rank of its adapter, 0 for none."""

    inputs: int
    outputs: int
    rank: int

    @property
    def base(self) -> int:
        """Multiplications a token with the weight."""
        return self.inputs * self.outputs

    @property
    def adapter(self) -> int:
        """Multiplications a token with both parts of the adapter."""
        return self.rank * (self.inputs + self.outputs)


@dataclass(frozen=True)
class Architecture:
    """What the counts need to know about a model; `linears` are those of one layer; all layers are equal.

    full: the weights of the layers are trained. qk_norm: queries and keys are normalised. recompute: the layers are
    computed again in the backward pass (gradient checkpointing). dropout: adapters draw masks. quantized: weights are
    in 4 bits, and dequantised one by one. cheap: of the layers all but products is computed again.
    """

    layers: int
    hidden: int
    heads: int
    key_heads: int
    head_size: int
    linears: dict[str, Linear]
    full: bool
    qk_norm: bool
    recompute: bool
    dropout: bool
    quantized: bool = False
    cheap: bool = False


@dataclass(frozen=True, slots=True)
class Work:
    """The size of one row: its tokens, its scored tokens, and the work of one layer's attention on it.

    pairs: products of a query with a key; scored_pairs: the same in the last layer; copied_keys: keys that are
    copied into a document's own run of keys; kept_pairs: pairs whose probability is kept for the backward
    pass; longest_keys: keys of the segment that sees the most.
    """

    tokens: int
    scored: int
    pairs: int
    scored_pairs: int
    copied_keys: int
    kept_pairs: int
    longest_keys: int


@dataclass(frozen=True, slots=True)
class Target:
    """Where rows are computed: by which attention route, on a CPU or not, in 16 bits or not.

    sharded: a micro-batch is one row or chunk, and weights come in the type of products (sharding.shard). own_layers:
    rows go through Block, and not through transformers' own layers (RankModel.has_own_layers).
    """

    route: str
    on_cpu: bool
    bits16: bool
    sharded: bool = False
    own_layers: bool = True

    @property
    def whole_last(self) -> bool:
        """Whether the last layer computes all tokens, not the scored ones alone."""
        return self.route == PLAIN or not self.own_layers

    @property
    def row_tokens(self) -> int | None:
        """Tokens of a row at most; None: a micro-batch is one row."""
        return None if self.sharded else row_tokens(self.on_cpu)

    @property
    def multiple(self) -> int:
        """Rows are filled up to a multiple of this many tokens."""
        return 1 if self.route == PLAIN or (self.on_cpu and not self.bits16) else SHAPE_MULTIPLE


def architecture_of(model: RankModel) -> Architecture:
    """The shapes of a model, on whatever device (`meta` too), its adapters included.

    Raises UserError for layers that are not all of queries, keys, values, output and a gated MLP, and nothing else.
    """
    decoder, config = cast(Any, model.text_decoder), model.causal_lm.config
    layers = list(getattr(decoder, "layers", ()))
    known = list(map(_known_linears, layers))
    layer = layers[0] if layers else None
    if not all(known) or len(set(map(_sizes, known))) != 1 or not hasattr(getattr(layer, "self_attn", 0), "head_dim"):
        raise UserError(
            f"model.base: layers of the architecture {config.model_type} are not counted here: plan knows those with "
            f"{', '.join(NAMES)} and nothing else; try `rankwright train` with train.max_steps=2 instead"
        )
    found = known[0]
    assert layer is not None
    head_size = layer.self_attn.head_dim
    return Architecture(
        layers=len(layers),
        hidden=config.get_text_config().hidden_size,
        heads=found["q_proj"].out_features // head_size,
        key_heads=found["k_proj"].out_features // head_size,
        head_size=head_size,
        linears={name: _linear(found[name]) for name in NAMES},
        full=getattr(found["q_proj"], "base_layer", found["q_proj"]).weight.requires_grad,
        qk_norm=hasattr(layer.self_attn, "q_norm"),
        recompute=getattr(decoder, "gradient_checkpointing", False) is True,
        dropout=model.has_dropout,
        quantized=is_quantized(model),
        cheap=model.has_own_layers and any(block.cheap for block in model.blocks),
    )


def _known_linears(layer: Any) -> dict[str, Any]:
    """The linear layers of a layer by their names in NAMES; empty where it has other matrices too, or lacks some."""
    found = {n.rsplit(".", 1)[-1]: m for n, m in layer.named_modules() if n.endswith(NAMES)}
    if set(found) != set(NAMES):
        return {}
    counted = {id(p) for module in found.values() for p in module.parameters()}
    others = [p for p in layer.parameters() if p.ndim > 1 and id(p) not in counted]
    return {} if others or not all(hasattr(m, "in_features") for m in found.values()) else found


def _sizes(linears: dict[str, Any]) -> tuple[tuple[int, int], ...]:
    return tuple((linears[name].in_features, linears[name].out_features) for name in sorted(linears))


def _linear(module: Any) -> Linear:
    adapters = getattr(module, "lora_A", None) or {}
    return Linear(module.in_features, module.out_features, sum(a.out_features for a in adapters.values()))


def rows_of(groups: Sequence[EncodedGroup], target: Target) -> list[Segments]:
    """The segments of the rows that layout.pack makes of these groups, from their lengths alone.

    `plain`: the chunks of layout.pad_chunks, each prompt a segment as long as the padding makes it.
    """
    if target.route == PLAIN:
        lengths = [len(g.head_ids) + len(tail) for g in groups for tail in g.tail_ids]
        limit = UNLIMITED if target.sharded else chunk_tokens(target.on_cpu)
        return [[(lengths[chunk[0]], 0)] * len(chunk) for chunk in chunk_rows(lengths, chunk_tokens=limit)]
    rows: list[Segments] = []
    for placed in place(groups, target.row_tokens):
        row: Segments = []
        for group, tails in placed:
            head = len(group.head_ids)
            row += [(head, 0), *((len(tail), head) for tail in tails)]
        if missing := -sum(tokens for tokens, _ in row) % target.multiple:
            row.append((missing, 0))
        rows.append(row)
    return rows


def row_work(row: Segments, target: Target) -> Work:
    """What the attention route does with the segments of a row."""
    tokens = sum(length for length, _ in row)
    if target.route == PLAIN:
        # As usual, pairs behind the causal mask count too: a kernel may or may not skip them.
        pairs = sum(length**2 for length, _ in row)
        return Work(tokens, tokens, pairs, pairs, 0, 0, max(length for length, _ in row))
    scored = sum(head > 0 for _, head in row)
    keys = [length + head for length, head in row]
    kept = copied = 0
    if target.route == "documents":
        # Whole rectangles, filled up in 16 bits.
        tile = FEW_SHAPES if target.bits16 else 1
        wide = [k + -k % tile for k in keys]
        products = [(length + -length % tile) * w for (length, _), w in zip(row, wide, strict=True)]
        pairs = sum(products)
        copied = sum(w for w, (_, head) in zip(wide, row, strict=True) if target.bits16 or head)
        if target.bits16:
            kept = sum(p for p, k in zip(products, keys, strict=True) if k <= SHORT_KEYS)
    elif target.route == "dense":
        pairs = tokens * tokens
    else:
        # Pairs behind the mask are skipped.
        pairs = sum(length * head + length * (length + 1) // 2 for length, head in row)
        copied = sum(keys) if target.route == "varlen" else 0
    if target.whole_last:
        return Work(tokens, tokens, pairs, pairs, copied, kept, max(keys))
    scored_pairs = scored * tokens if target.on_cpu else _scored_pairs(row)
    return Work(tokens, scored, pairs, scored_pairs, copied, kept, max(keys))


def _scored_pairs(row: Segments) -> int:
    """Pairs of the last layer where attention.attend_scored computes it in parts."""
    documents, start, head_start = [], 0, 0
    for length, head in row:
        if head:
            documents.append(Segment(start, start + length, head_start, head_start + head))
        else:
            head_start = start
        start += length
    parts = scored_parts(documents, len(documents))
    return sum((end - first) * sum(last - begin for begin, last in runs) for first, end, runs in parts)


def tokens_through(name: str, work: Work, last: bool) -> int:
    """Tokens that go through a linear layer, in the last layer or another."""
    return work.scored if last and name not in LAST_FOR_ALL else work.tokens


def step_parts(
    groups: Sequence[EncodedGroup], *, ranks: int, budget_tokens: int, one_by_one: bool
) -> list[list[list[list[EncodedGroup]]]]:
    """Rank -> micro-batches -> parts -> groups, as gradients.accumulate computes a step; several parts: two passes."""
    plan = plan_step([g.tokens for g in groups], ranks=ranks, budget_tokens=0 if one_by_one else budget_tokens)
    return [[batch_parts([groups[i] for i in batch], budget_tokens) for batch in batches] for batches in plan]

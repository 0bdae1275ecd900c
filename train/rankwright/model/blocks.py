"""The decoder's forward over packed rows: layer by layer, for scores the last layer for scored tokens only.

It runs the modules of the transformers model (weights, norms, adapters) in the same order as transformers does.
Two things differ: the attention's route, and that only values are computed on which a score depends. Equality with
transformers' own forward is tested for every family in FAMILIES, gradients included.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rankwright.model.attention import ROUTES, attend_scored
from rankwright.model.kernels import gated, remade, rms_norm, rotate
from rankwright.model.layout import Row
from rankwright.model.quantization import NF4Linear

# T tokens, N scored tokens, C hidden size, H query heads, K key heads, D head size, R rank of adapters.
# Families whose layers are norm, attention, norm, gated MLP with rotary positions, as Block runs them.
FAMILIES = ("qwen3", "qwen2", "llama")


def why_not(config: Any) -> str | None:
    """Why a decoder cannot run here, or None when it can."""
    if config.model_type not in FAMILIES:
        return f"the architecture {config.model_type} is not among {', '.join(FAMILIES)}"
    if any(kind != "full_attention" for kind in getattr(config, "layer_types", None) or ()):
        return "the base has sliding-window layers"
    if config.hidden_act != "silu":
        return f"its activation is {config.hidden_act}, not silu"
    if getattr(config, "attention_dropout", 0.0):
        return "the base has dropout inside its attention"
    return None


class Block(nn.Module):
    """One decoder layer as a module of its own, so that hooks (sharding, checkpointing) have a place.

    cheap: in training, norms, rotations and activations are computed again in the backward pass: their inputs are kept
    anyway, and products are not repeated.
    """

    cheap = False

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, hidden_TC: Tensor, cos_TD: Tensor, sin_TD: Tensor, row: Row, route: str, last: bool) -> Tensor:
        """The layer's output for all tokens, or for the scored ones (N, C) of the last layer."""
        # Apart, so that without a graph queries, keys and values are gone while the MLP has its wide states.
        return self._with_mlp(self._with_attention(hidden_TC, cos_TD, sin_TD, row, route, last))

    def _with_attention(
        self, hidden_TC: Tensor, cos_TD: Tensor, sin_TD: Tensor, row: Row, route: str, last: bool
    ) -> Tensor:
        layer = cast(Any, self.layer)
        attention = layer.self_attn
        normed_TC = rms_norm(layer.input_layernorm, hidden_TC)
        normed_again = partial(rms_norm, layer.input_layernorm, hidden_TC.detach())
        if last:
            scored_N = row.scored_N.to(hidden_TC.device)
            with self._without((normed_TC, normed_again)):
                key_TX, value_TX = project(normed_TC, [attention.k_proj, attention.v_proj])
            (query_NX,) = project(normed_TC[scored_N], [attention.q_proj])
            q_HND = _heads(query_NX, attention, "q_norm", cos_TD[scored_N], sin_TD[scored_N])
            k_KTD = _heads(key_TX, attention, "k_norm", cos_TD, sin_TD)
            mixed = attend_scored(q_HND, k_KTD, _heads(value_TX, attention), row, attention.scaling)
            hidden_TC = hidden_TC[scored_N]
        else:
            projections = [attention.q_proj, attention.k_proj, attention.v_proj]
            with self._without((normed_TC, normed_again)):
                query_TX, key_TX, value_TX = project(normed_TC, projections)
            q_again, k_again = (
                partial(_heads, x_TX.detach(), attention, norm, cos_TD, sin_TD)
                for x_TX, norm in ((query_TX, "q_norm"), (key_TX, "k_norm"))
            )
            q_HTD = _heads(query_TX, attention, "q_norm", cos_TD, sin_TD)
            k_KTD = _heads(key_TX, attention, "k_norm", cos_TD, sin_TD)
            # Without norms nothing else would keep their inputs.
            rotated = [(q_HTD, q_again), (k_KTD, k_again)] if hasattr(attention, "q_norm") else []
            with self._without(*rotated):
                mixed = ROUTES[route](q_HTD, k_KTD, _heads(value_TX, attention), row, attention.scaling)
        (output_TC,) = project(mixed.flatten(1), [attention.o_proj])
        return hidden_TC + output_TC

    def _with_mlp(self, hidden_TC: Tensor) -> Tensor:
        layer = cast(Any, self.layer)
        normed_TC = rms_norm(layer.post_attention_layernorm, hidden_TC)
        with self._without((normed_TC, partial(rms_norm, layer.post_attention_layernorm, hidden_TC.detach()))):
            gate_TX, up_TX = project(normed_TC, [layer.mlp.gate_proj, layer.mlp.up_proj])
        gated_TX = gated(gate_TX, up_TX)
        with self._without((gated_TX, partial(gated, gate_TX.detach(), up_TX.detach()))):
            (output_TC,) = project(gated_TX, [layer.mlp.down_proj])
        return hidden_TC + output_TC

    def _without(self, *made: tuple[Tensor, Callable[[], Tensor]]) -> contextlib.AbstractContextManager[None]:
        """Where autograd keeps none of these tensors, if `cheap`."""
        wanted = self.cheap and made and self.layer.training and torch.is_grad_enabled()
        return remade(made) if wanted else contextlib.nullcontext()


def _heads(
    x_TX: Tensor, attention: Any, norm: str | None = None, cos_TD: Tensor | None = None, sin_TD: Tensor | None = None
) -> Tensor:
    """Split into heads (H, T, D), normalise where the family does, rotate where positions are given."""
    x_THD = x_TX.view(len(x_TX), -1, attention.head_dim)
    if norm is not None and hasattr(attention, norm):
        x_THD = rms_norm(getattr(attention, norm), x_THD)
    x_HTD = x_THD.transpose(0, 1)
    if cos_TD is None or sin_TD is None:
        return x_HTD
    # Under autocast a normalisation gives fp32 again.
    return rotate(x_HTD, cos_TD, sin_TD).to(x_TX.dtype)


def project(x_TC: Tensor, linears: Sequence[Any]) -> list[Tensor]:
    """The outputs of linear layers that read the same input; plain LoRA adapters share one product with all A."""
    if not all(map(_is_plain_lora, linears)):
        return [linear(x_TC) for linear in linears]
    names = [linear.active_adapters[0] for linear in linears]
    down = [linear.lora_A[name].weight for linear, name in zip(linears, names, strict=True)]
    stacked = down[0] if len(down) == 1 else torch.cat(down)
    low = torch.split(x_TC @ stacked.to(x_TC.dtype).T, [len(a) for a in down], dim=-1)
    found = []
    for linear, name, low_TR in zip(linears, names, low, strict=True):
        base_TX = linear.base_layer(x_TC)
        up = linear.lora_B[name].weight.to(base_TX.dtype)
        # In place: nothing else uses the base's product, and its backward pass does not need it.
        found.append(base_TX.addmm_(low_TR.to(base_TX.dtype), up.T, alpha=linear.scaling[name]))
    return found


def _is_plain_lora(linear: Any) -> bool:
    """Whether the layer is x W + s (x A) B and nothing else: one adapter, no dropout, no DoRA, not merged."""
    if not hasattr(linear, "lora_A") or linear.disable_adapters or linear.merged or len(linear.active_adapters) != 1:
        return False
    name = linear.active_adapters[0]
    return (
        name in linear.lora_A
        and name in linear.lora_dropout
        # Both give a fresh tensor, to which the low-rank product may be added in place.
        and type(linear.base_layer) in (nn.Linear, NF4Linear)
        and linear.lora_B[name].bias is None
        and not linear.lora_variant.get(name)
        and not (linear.training and getattr(linear.lora_dropout[name], "p", 0.0))
    )


def score_states(decoder: Any, blocks: Sequence[Block], row: Row, route: str) -> Tensor:
    """Normed hidden states (N, C) of the row's scored tokens."""
    scored = _hidden(decoder, blocks, row, route, blocks[-1])[: len(row.documents)]
    return rms_norm(decoder.norm, scored)


def token_states(decoder: Any, blocks: Sequence[Block], row: Row, route: str) -> Tensor:
    """Normed hidden states (T, C) of all tokens of the row."""
    return rms_norm(decoder.norm, _hidden(decoder, blocks, row, route, None))


def _hidden(decoder: Any, blocks: Sequence[Block], row: Row, route: str, last: Block | None) -> Tensor:
    """What the layers make of the row; `last`: the one that is computed for scored tokens only."""
    device = decoder.embed_tokens.weight.device
    hidden_TC = decoder.embed_tokens(row.ids_T.to(device))
    cos_1TD, sin_1TD = decoder.rotary_emb(hidden_TC[None], row.positions_T.to(device)[None])
    recompute = getattr(decoder, "gradient_checkpointing", False) and decoder.training and torch.is_grad_enabled()
    for block in blocks:
        arguments = (hidden_TC, cos_1TD[0], sin_1TD[0], row, route, block is last)
        hidden_TC = checkpoint(block, *arguments, use_reentrant=False) if recompute else block(*arguments)
    return cast(Tensor, hidden_TC)

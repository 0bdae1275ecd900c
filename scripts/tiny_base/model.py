"""The tiny Qwen3 of make.py and a forward pass that is fast on CPUs."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from groups import Batch
from torch import Tensor, nn
from transformers import Qwen3Config, Qwen3ForCausalLM

# B documents, G groups, H head tokens, D document tokens, C channels, A attention heads, S head size.
MATCH_LAYER = 3  # the match head reads what this many layers give


def new_model(tokenizer: Any) -> Qwen3ForCausalLM:
    """A Qwen3 of 3.8 million parameters, ready to match words."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=192,
        num_hidden_layers=6,
        intermediate_size=448,
        num_attention_heads=6,
        num_key_value_heads=3,
        head_dim=32,
        max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        tie_word_embeddings=True,
        initializer_range=0.03,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen3ForCausalLM(config).float()
    start_matching(model, tokenizer)
    return model


@torch.no_grad()
def start_matching(model: Qwen3ForCausalLM, tokenizer: Any) -> None:
    """Start values from which matching is quickly found; random ones take it thousands of steps.

    Layer 0, first key head: every token attends to the role words of the turns before it, and so is marked
    as standing in the query or in the document. Layers 1 to 3: queries equal keys, blind to the marks, so
    that equal tokens attend to each other; the first key head reads the mark there and writes it along `hit`,
    which tells a document's token that the query has it too. All of it goes on learning.
    """
    config, layers = model.config, model.model.layers
    table = model.model.embed_tokens.weight.normal_(0, 0.2)
    yes, no = tokenizer.convert_tokens_to_ids(["yes", "no"])
    table[[yes, no]] *= 0.1  # scores start near 0
    always, role, hit = nn.init.orthogonal_(torch.empty(3, config.hidden_size))
    basis = torch.stack((always, role, hit))
    table -= table @ basis.T @ basis
    table += always
    role_ids = tokenizer.convert_tokens_to_ids(["query", "document"])
    table[role_ids] += 4 * role
    first = layers[0].self_attn
    mark = torch.randn(config.head_dim)
    first.k_proj.weight[: config.head_dim] += mark[:, None] * role
    first.q_proj.weight[: 2 * config.head_dim] += mark.repeat(2)[:, None] * always
    roles = rms(table[role_ids], torch.ones(config.hidden_size))
    values = F.linear(roles, first.v_proj.weight[: config.head_dim])
    written = F.linear(values.repeat(1, 2), first.o_proj.weight[:, : 2 * config.head_dim])
    first.o_proj.weight[:, : 2 * config.head_dim] *= 1.5 / written.norm(dim=1).mean()
    written *= 1.5 / written.norm(dim=1).mean()
    blind = torch.linalg.qr(torch.cat((basis, written)).T)[0]
    contrast = written[0] - written[1]
    contrast /= contrast.norm()
    # Fast rotations would hide an equal token a few words away: only the slow ones take part.
    slow = (torch.arange(config.head_dim) % (config.head_dim // 2) >= 5).float()
    for layer in layers[:4]:
        layer.self_attn.q_norm.weight.copy_(1.6 * slow + 0.1)
        layer.self_attn.k_norm.weight.copy_(1.6 * slow + 0.1)
    for layer in layers[1:4]:
        attention = layer.self_attn
        keys = attention.k_proj.weight.normal_(0, config.hidden_size**-0.5)
        keys -= keys @ blind @ blind.T
        queries = attention.q_proj.weight.view(3, 2, config.head_dim, -1)
        queries.copy_(keys.view(3, 1, config.head_dim, -1).expand_as(queries))
        attention.v_proj.weight[:4] = contrast
        for column in (0, config.head_dim):
            attention.o_proj.weight[:, column : column + 4] = hit[:, None] / 8


def rotate(x_BASD: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary positions as in transformers, the halves of a head as pairs."""
    left, right = x_BASD.chunk(2, -1)
    cos, sin = angles
    return torch.cat((left * cos - right * sin, right * cos + left * sin), -1)


class Trunk:
    """Qwen3's forward pass with a group's head computed once, and the last layer for one position only.

    Products run in bf16 (AMX: five times faster), attention in fp32 (its bf16 backward is slow on CPUs).
    """

    def __init__(self, model: Qwen3ForCausalLM, yes: int, no: int, compiled: bool) -> None:
        self.model, self.yes, self.no = model, yes, no
        self.rates = 1e6 ** (-torch.arange(16) / 16)
        if compiled:  # fuses what lies between the products: a third less time
            self._qkv = torch.compile(self._qkv, dynamic=True)  # type: ignore[method-assign]
            self._finish = torch.compile(self._finish, dynamic=True)  # type: ignore[method-assign]

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(scores_B, hidden states of the documents after MATCH_LAYER layers)."""
        table = self.model.model.embed_tokens.weight
        groups, head = batch.heads_GH.shape
        rows, width = batch.documents_BD.shape
        each = rows // groups
        real_GH = batch.real_GH
        at_GH = (real_GH.cumsum(1) - 1).clamp(min=0)
        at_BD = real_GH.sum(1).repeat_interleave(each)[:, None] + torch.arange(width)
        heads_angles, documents_angles = self._angles(at_GH), self._angles(at_BD)
        # A padding position sees itself, or its softmax would be over nothing.
        before = torch.ones(head, head, dtype=torch.bool).tril() & real_GH[:, None]
        heads_mask = self._additive(before | torch.eye(head, dtype=torch.bool))
        shared = real_GH.repeat_interleave(each, 0)[:, None].expand(rows, width, head)
        own = torch.ones(width, width, dtype=torch.bool).tril().expand(rows, width, width)
        documents_mask = self._additive(torch.cat((shared, own), -1))
        x, y = (F.embedding(ids, table).bfloat16() for ids in (batch.heads_GH, batch.documents_BD))
        at_last = torch.arange(rows), batch.last_B
        middle = y
        for number, layer in enumerate(self.model.model.layers):
            final = number == len(self.model.model.layers) - 1
            _, k_head, v_head = qkv_head = self._qkv(layer, x, heads_angles)
            q, k, v = self._qkv(layer, y, documents_angles)
            k, v = (torch.cat((repeat(a, 0, each), b), 2) for a, b in ((k_head, k), (v_head, v)))
            if final:
                q, y = q.transpose(1, 2)[at_last][:, :, None], y[at_last][:, None]
                documents_mask = documents_mask[torch.arange(rows), :, batch.last_B][:, :, None]
            else:
                x = self._finish(layer, x, self._attend(*qkv_head, heads_mask))
            y = self._finish(layer, y, self._attend(q, k, v, documents_mask))
            if number + 1 == MATCH_LAYER:
                middle = y
        last_BC = rms(y[:, 0].float(), self.model.model.norm.weight)
        return last_BC @ (table[self.yes] - table[self.no]), middle

    def _angles(self, at: Tensor) -> tuple[Tensor, Tensor]:
        angles = at[:, None, :, None] * self.rates
        return angles.cos(), angles.sin()

    def _additive(self, seen: Tensor) -> Tensor:
        return torch.zeros(seen.shape).masked_fill(~seen, float("-inf"))[:, None]

    def _qkv(self, layer: Any, x: Tensor, angles: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        attention, normal = layer.self_attn, rms(x, layer.input_layernorm.weight)
        q, k, v = (
            linear(normal, part.weight).unflatten(-1, (-1, 32))
            for part in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        q = rotate(rms(q.float(), attention.q_norm.weight).transpose(1, 2), angles)
        k = rotate(rms(k.float(), attention.k_norm.weight).transpose(1, 2), angles)
        return q, k, v.float().transpose(1, 2)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        share = q.shape[1] // k.shape[1]
        seen = F.scaled_dot_product_attention(q, repeat(k, 1, share), repeat(v, 1, share), attn_mask=mask)
        return seen.transpose(1, 2).flatten(2).bfloat16()

    def _finish(self, layer: Any, x: Tensor, seen: Tensor) -> Tensor:
        x = x + linear(seen, layer.self_attn.o_proj.weight)
        normal, mlp = rms(x, layer.post_attention_layernorm.weight), layer.mlp
        gated = F.silu(linear(normal, mlp.gate_proj.weight)) * linear(normal, mlp.up_proj.weight)
        return x + linear(gated, mlp.down_proj.weight)


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), weight.to(x.dtype), 1e-6)


def linear(x: Tensor, weight: Tensor) -> Tensor:
    return F.linear(x, weight.bfloat16())


def repeat(x: Tensor, axis: int, times: int) -> Tensor:
    """repeat_interleave whose backward pass is a sum: much faster than scattering."""
    shape = [*x.shape[: axis + 1], times, *x.shape[axis + 1 :]]
    return x.unsqueeze(axis + 1).expand(shape).flatten(axis, axis + 1)

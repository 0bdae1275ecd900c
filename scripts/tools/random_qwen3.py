"""For bench/models.py and cluster/gpu_check.py: a Qwen3 of a given shape with random weights."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch


class Shape(NamedTuple):
    """What decides time and memory of a decoder; vocabulary and tokens are the caller's."""

    hidden: int
    layers: int
    heads: int
    key_heads: int
    head_dim: int
    mlp: int


def random_qwen3(shape: Shape, *, vocabulary: int, pad_token_id: int, seed: int = 0, **tokens: Any) -> Any:
    """A Qwen3ForCausalLM with tied embeddings in fp32; tokens: other token ids of its config."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads,
        head_dim=shape.head_dim,
        intermediate_size=shape.mlp,
        tie_word_embeddings=True,
        pad_token_id=pad_token_id,
        **tokens,
    )
    torch.manual_seed(seed)
    return Qwen3ForCausalLM(config)

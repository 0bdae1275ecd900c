"""Tiny random bases of every family of decoders in transformers, with a ChatML tokenizer: make_base(folder, family)."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from tiny import make_tiny_qwen3

# Rows of the embeddings that tiny's tokenizer of Qwen3 needs.
ROWS = 704
SIZES: dict[str, Any] = {
    # Decoders in general, under the names that families give these sizes.
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim", "lru_width"), 64),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim"), 96),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "decoder_layers", "encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "decoder_attention_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx"), 2048),
    "vocab_size": ROWS,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "sliding_window": 8,
    "rotary_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.3,
    "init_std": 0.3,
    # Experts.
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 32),
    **dict.fromkeys(("n_group", "topk_group", "num_shared_experts", "n_shared_experts", "first_k_dense_replace"), 1),
    # Latent attention.
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    "qk_head_dim": 16,
    "dim_model_base": 16,
    "index_n_heads": 2,
    "index_head_dim": 16,
    "index_topk": 2048,
    # State spaces and linear attention.
    "mamba_d_ssm": 64,
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_n_groups": 1,
    "mamba_d_state": 16,
    "mamba_chunk_size": 8,
    "mamba_expand": 1,
    "num_heads": 4,
    "state_size": 16,
    "n_groups": 1,
    "expand": 1,
    "chunk_size": 8,
    "time_step_rank": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "attention_window_size": 8,
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
    "expert_layer_period": 2,
    "expert_layer_offset": 1,
}
# Families whose own sizes depend on each other; None: the default of the family.
OWN: dict[str, dict[str, Any]] = {
    **{key: {"head_dim": None} for key in ("deepseek_v3", "axk1", "glm4_moe_lite", "youtu", "sarvam_mla", "falcon")},
    **{key: {"head_dim": 8} for key in ("deepseek_v32", "axk2", "glm_moe_dsa", "longcat_flash")},
    "bamba": {"attn_layer_indices": [1]},
    "falcon_h1": {"lm_head_multiplier": 0.5},
    "gemma4_text": {"vocab_size_per_layer_input": ROWS, "hidden_size_per_layer_input": 8, "sliding_window": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2},
    "granite": {"logits_scaling": 8.0},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "zaya": {"num_experts_per_tok": None},
}
LARGEST = 4_000_000


def _sizes_of(default: Any, own: dict[str, Any]) -> dict[str, Any]:
    wanted = {**SIZES, **own}
    found = {}
    for key, value in wanted.items():
        try:
            known = hasattr(default, key)
        except Exception:
            # A size that differs by layer.
            known = False
        if value is not None and (known or key in own):
            found[key] = value
    kinds = list(dict.fromkeys(getattr(default, "layer_types", None) or ()))
    if len(kinds) > 1 and "layer_types" in type(default).__dataclass_fields__ and "layer_types" not in own:
        found["layer_types"] = kinds[:2]
    return found


def make_config(family: str, **more: Any) -> Any:
    """A config of few and small layers, one of each kind that the family has."""
    from transformers import CONFIG_MAPPING

    kind, own = CONFIG_MAPPING[family], {**OWN.get(family, {}), **more}
    default = kind()
    if "text_config" not in getattr(default, "sub_configs", {}):
        return kind(**_sizes_of(default, own))
    parts: dict[str, Any] = {"text_config": _sizes_of(default.text_config, own)}
    for part in default.sub_configs:
        if part != "text_config" and getattr(default, part, None) is not None:
            sizes = _sizes_of(getattr(default, part), {})
            parts[part] = {k: v for k, v in sizes.items() if not k.endswith(("_token_id", "vocab_size"))}
    return kind(**parts)


def make_base(folder: Path, family: str, tokenizer: Path | None = None, **more: Any) -> Any:
    """Write a base of the family into `folder`; returns the class of transformers. Raises what the family raises."""
    import transformers
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    )

    config = make_config(family, **more)
    # A base that sees is published whole, whatever class reads its texts.
    named = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(family) or MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family]
    kind = getattr(transformers, named if isinstance(named, str) else named[0])
    with torch.device("meta"):
        size = sum(p.numel() for p in kind(config).parameters())
    if size > LARGEST:
        raise ValueError(f"{family}: {size} parameters: name the sizes that make it small")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind(config).float()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim == 1 and "norm" in name:
                    parameter.uniform_(0.5, 1.5)
    model.save_pretrained(folder)
    tokenizer = tokenizer or make_tiny_qwen3(folder.with_name(f"{folder.name}-tokenizer"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / name, folder / name)
    return kind

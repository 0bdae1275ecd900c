"""Target `gguf`: files for llama.cpp, one for each type of weights; a two-row classifier and a rerank template."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import Field

from rankwright import console
from rankwright.errors import UserErrors
from rankwright.export.gguf_vocab import (
    normalised,
    rerank_template,
    vocabulary_of,
    why_no_template,
    why_no_vocabulary,
)
from rankwright.export.golden import Row, make_golden, write_golden
from rankwright.export.merging import merge, merge_figures
from rankwright.export.trained import NEEDS, REFUSALS, TARGETS, Figures, Trained, is_hub_id, portable_name
from rankwright.model import RankModel
from rankwright.prompts import PromptContract, PromptEncoder
from rankwright.reranker import Reranker

Type = Literal["f32", "bf16", "f16", "q8_0"]
ARCHITECTURE = "qwen3"
CLASSIFIER = "cls.output.weight"
# Values in a row of which q8_0 makes one block.
Q8_BLOCK = 32
ROPE_KEYS = {
    "default": {"rope_type", "rope_theta"},
    "linear": {"rope_type", "rope_theta", "factor"},
    "yarn": {"rope_type", "rope_theta", "factor", "original_max_position_embeddings"},
}
# What llama.cpp takes where it reads no key, as it does for Qwen3.
ROPE_DEFAULTS = {"beta_fast": 32, "beta_slow": 1, "truncate": True}
NEEDS["gguf"] = ("gguf",)


@TARGETS.register
def gguf(
    trained: Trained, folder: Path, *, types: Annotated[tuple[Type, ...], Field(min_length=1)] = ("f16", "q8_0")
) -> Figures:
    """NAME-f16.gguf and so on: llama.cpp (llama-server, llama-cpp-python, node-llama-cpp) and what is built on it."""
    faults = why_no_gguf(trained.model.causal_lm.config, trained.tokenizer, trained.contract)
    if faults:
        raise UserErrors([f"export.targets: gguf: {fault}" for fault in faults])
    merged = merge(trained.model)
    figures = merge_figures(trained, merged)
    files = {}
    for kind in dict.fromkeys(types):
        path = folder / f"{trained.name}-{kind}.gguf"
        write_gguf(merged, trained, path, kind)
        files[path.name] = {"bytes": path.stat().st_size}
    trained.contract.save(folder)
    reranker = Reranker(merged, trained.tokenizer, trained.contract)
    rows = make_golden(reranker, trained.golden_pairs)
    for row in rows:
        row["gate"] = _is_plain(reranker.encoder, row)
    write_golden(folder, rows)
    return {**figures, "files": files, "architecture": ARCHITECTURE}


def why_no_gguf(config: Any, tokenizer: Any, contract: PromptContract) -> list[str]:
    """Every reason, with a way out, why llama.cpp would not score as this model does; empty where it does."""
    way_out = "export it as hf or onnx, or start from a Qwen3 base"
    if config.model_type != "qwen3":
        # A `llama` file with cls.output has a tensor too many and is not loaded; without it llama-server answers the
        # hidden state's first number (tried; src/models/*.cpp).
        return [f"llama.cpp has a causal reranker's classifier for Qwen3 only, not for {config.model_type}: {way_out}"]
    faults = []
    rope = dict(getattr(config, "rope_parameters", None) or {"rope_type": "default"})
    kind = str(rope.get("rope_type", "default"))
    stated = {k for k, v in rope.items() if v is not None and v != ROPE_DEFAULTS.get(k)}
    odd = sorted(stated - ROPE_KEYS.get(kind, set()))
    if kind not in ROPE_KEYS:
        faults.append(f"llama.cpp does not scale positions by {kind} for Qwen3 (known: {', '.join(ROPE_KEYS)})")
    elif odd:
        faults.append(f"llama.cpp does not read {', '.join(odd)} of the rope scaling {kind} as transformers does")
    if config.attention_bias:
        faults.append("llama.cpp reads no bias of Qwen3's attention")
    if config.hidden_act != "silu":
        faults.append(f"llama.cpp computes silu in Qwen3's layers, not {config.hidden_act}")
    if any(layer != "full_attention" for layer in config.layer_types or ()):
        faults.append("llama.cpp has no sliding window for Qwen3")
    faults += why_no_vocabulary(tokenizer, config.vocab_size)
    faults = [f"{fault}: {way_out}" for fault in faults]
    return faults + [f"{fault}: or export it as hf" for fault in why_no_template(contract)]


REFUSALS["gguf"] = why_no_gguf


def write_gguf(merged: RankModel, trained: Trained, path: Path, kind: Type) -> None:
    """One file. Each weight is converted when it is written, so that no second model lies in memory."""
    from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType
    from gguf.quants import quant_shape_to_byte_shape

    file_types: dict[Type, LlamaFileType] = {
        "f32": LlamaFileType.ALL_F32,
        "bf16": LlamaFileType.MOSTLY_BF16,
        "f16": LlamaFileType.MOSTLY_F16,
        "q8_0": LlamaFileType.MOSTLY_Q8_0,
    }
    writer = GGUFWriter(path, ARCHITECTURE)
    config = merged.causal_lm.config
    _add_origin(writer, trained)
    writer.add_file_type(file_types[kind])
    _add_architecture(writer, config)
    _add_tokenizer(writer, trained, config)
    weights = [(name, tensor, _stored(name, tensor, kind)) for name, tensor in _weights(merged)]
    import numpy as np

    for name, tensor, stored in weights:
        raw = GGMLQuantizationType[stored.upper()]
        whole = {"f32": np.float32, "f16": np.float16}.get(stored)
        shape = tuple(tensor.shape) if whole else quant_shape_to_byte_shape(tensor.shape, raw)
        data_type: np.dtype[Any] = np.dtype(whole or np.uint8)
        writer.add_tensor_info(name, shape, data_type, int(np.prod(shape)) * data_type.itemsize, raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    with console.progress(f"gguf {kind}", len(weights)) as advance:
        for _, tensor, stored in weights:
            writer.write_tensor_data(_converted(tensor, stored))
            advance()
    writer.close()


def _weights(merged: RankModel) -> Iterator[tuple[str, torch.Tensor]]:
    """(name in the file, weight): views, nothing is copied."""
    from gguf import MODEL_ARCH, get_tensor_name_map

    names = get_tensor_name_map(MODEL_ARCH.QWEN3, merged.causal_lm.config.num_hidden_layers)
    for key, tensor in cast(Any, merged.lm).state_dict().items():
        if key == "score.weight":
            continue
        name = names.get_name(key, try_suffixes=(".weight",))
        assert name is not None, f"{key} has no place in a file of {ARCHITECTURE}"
        yield name, tensor
    # llama.cpp applies softmax over the rows: of (score, 0) the first is sigmoid(score), of one row it would be 1.
    score_H = merged.score_weight_H
    yield CLASSIFIER, torch.stack([score_H, torch.zeros_like(score_H)])


def _stored(name: str, tensor: torch.Tensor, kind: Type) -> Type:
    """The type of one weight: norms and the classifier stay f32, as they are small and every score hangs on them."""
    if tensor.ndim == 1 or name == CLASSIFIER:
        return "f32"
    return "f16" if kind == "q8_0" and tensor.shape[-1] % Q8_BLOCK else kind


def _converted(tensor: torch.Tensor, stored: Type) -> Any:
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    return quantize(tensor.detach().float().contiguous().numpy(), GGMLQuantizationType[stored.upper()])


def _add_origin(writer: Any, trained: Trained) -> None:
    """What it is and what it was made from, without a path of this machine."""
    writer.add_type("model")
    writer.add_name(trained.title)
    if trained.licence is not None:
        hub, name = trained.licence
        writer.add_license(hub)
        if name:
            writer.add_license_name(name)
    writer.add_tags(["reranker", "cross-encoder", "text-ranking", "rankwright"])
    base = portable_name(trained.base_name)
    writer.add_base_model_count(1)
    writer.add_base_model_name(0, base.rpartition("/")[2])
    if is_hub_id(base):
        writer.add_base_model_organization(0, base.partition("/")[0])
        writer.add_base_model_repo_url(0, f"https://huggingface.co/{base}")
    if trained.revision:
        writer.add_base_model_version(0, trained.revision)


def _add_architecture(writer: Any, config: Any) -> None:
    from gguf import GGML_QUANT_VERSION, PoolingType, RopeScalingType

    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope.get("rope_type", "default") != "default":
        writer.add_rope_scaling_type(RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
    if rope.get("rope_type") == "yarn":
        original = rope.get("original_max_position_embeddings") or config.max_position_embeddings
        writer.add_rope_scaling_orig_ctx_len(original)
    writer.add_pooling_type(PoolingType.RANK)
    writer.add_classifier_output_labels(["yes", "no"])


def _add_tokenizer(writer: Any, trained: Trained, config: Any) -> None:
    tokenizer, pad = trained.tokenizer, trained.model.pad_id
    vocabulary = vocabulary_of(tokenizer, config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    # llama.cpp refuses to rerank without one; it is not put in front of a prompt.
    writer.add_bos_token_id(pad if tokenizer.bos_token_id is None else tokenizer.bos_token_id)
    writer.add_eos_token_id(pad if tokenizer.eos_token_id is None else tokenizer.eos_token_id)
    writer.add_pad_token_id(pad)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_chat_template([{"name": "rerank", "template": rerank_template(trained.contract)}])


def _is_plain(encoder: PromptEncoder, row: Row) -> bool:
    """Whether llama.cpp must get the row's ids: it strips, cuts, normalises and breaks nothing."""
    query, document = row["query"], row["document"]
    encoded = encoder.encode(query, [document])
    if encoded.query_cut or encoded.documents_cut or "{document}" in query:
        return False
    return all(encoder.clean(text) == text == normalised(encoder.tokenizer, text) for text in (query, document))

"""Target `gguf`: files for llama.cpp, one for each type of weights; a two-row classifier and a rerank template."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import Field

from rankwright.common import console
from rankwright.export.golden import Row, make_golden, write_golden
from rankwright.export.proof.runtimes.llama_cpp import RUNTIMES
from rankwright.export.target import TARGETS, Card, Figures, Target, Trained, is_hub_id, portable_name
from rankwright.export.tokenizer import steps_of
from rankwright.export.weights import merge, merge_figures
from rankwright.model.prompt import PromptContract, PromptEncoder
from rankwright.model.rank_model import RankModel
from rankwright.rerankers.reranker import Reranker

Type = Literal["f32", "bf16", "f16", "q8_0"]
ARCHITECTURE = "qwen3"
CLASSIFIER = "cls.output.weight"
# q8_0 makes one block of so many values in a row.
Q8_BLOCK = 32
ROPE_KEYS = {
    "default": {"rope_type", "rope_theta"},
    "linear": {"rope_type", "rope_theta", "factor"},
    "yarn": {"rope_type", "rope_theta", "factor", "original_max_position_embeddings"},
}
# The values that llama.cpp uses for Qwen3, whose files it reads no such keys from.
ROPE_DEFAULTS = {"beta_fast": 32, "beta_slow": 1, "truncate": True}
# The values of llama.cpp's token types.
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
BYTES = "bytes"
# (what a tokenizer does before it merges, whether a word of the vocabulary needs no merges) -> llama.cpp's name for the
# same (src/llama-vocab.cpp). Its other names are close to their originals, not equal.
PRE_TOKENIZERS = {
    ((rf"{WORDS}|\p{{N}}|{REST}", BYTES), False): "qwen2",
    ((rf"{WORDS}|\p{{N}}{{1,3}}|{REST}", BYTES), True): "llama-bpe",
    ((rf"{WORDS}|\p{{N}}{{1,3}}|{REST}", BYTES), False): "smaug-bpe",
    (("gpt-2",), False): "gpt-2",
    (("digits", "gpt-2"), False): "smollm",
}
FAMILIES = "Qwen 2 and 3, Llama 3, GPT-2, SmolLM"


def gguf(
    trained: Trained, folder: Path, *, types: Annotated[tuple[Type, ...], Field(min_length=1)] = ("f16", "q8_0")
) -> Figures:
    """NAME-f16.gguf and so on: llama.cpp (llama-server, llama-cpp-python, node-llama-cpp) and what is built on it."""
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
    """Every reason, with a way out, why llama.cpp would not score exactly as this model does."""
    way_out = "export it as hf or onnx, or start from a Qwen3 base"
    if config.model_type != "qwen3":
        # Tried (src/models/*.cpp): a `llama` file with cls.output has a tensor too many and is not loaded; without it
        # llama-server answers with the first number of the hidden state.
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


def write_gguf(merged: RankModel, trained: Trained, path: Path, kind: Type) -> None:
    """Write one file. Each weight is converted when it is written, so that no second model lies in memory."""
    import numpy as np
    from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType
    from gguf.quants import quant_shape_to_byte_shape, quantize

    writer = GGUFWriter(path, ARCHITECTURE)
    config = merged.causal_lm.config
    _add_origin(writer, trained)
    writer.add_file_type(LlamaFileType["ALL_F32" if kind == "f32" else f"MOSTLY_{kind.upper()}"])
    _add_architecture(writer, config)
    _add_tokenizer(writer, trained, config)
    weights = [(name, tensor, _stored(name, tensor, kind)) for name, tensor in _weights(merged)]
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
            values = tensor.detach().float().contiguous().numpy()
            writer.write_tensor_data(quantize(values, GGMLQuantizationType[stored.upper()]))
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
    # llama.cpp applies softmax over the rows. The first of (score, 0) becomes sigmoid(score); a row alone becomes 1.
    score_H = merged.score_weight_H
    yield CLASSIFIER, torch.stack([score_H, torch.zeros_like(score_H)])


def _stored(name: str, tensor: torch.Tensor, kind: Type) -> Type:
    """The type of one weight: norms and the classifier stay f32, as they are small and every score hangs on them."""
    if tensor.ndim == 1 or name == CLASSIFIER:
        return "f32"
    return "f16" if kind == "q8_0" and tensor.shape[-1] % Q8_BLOCK else kind


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
    """One token for each row of the embeddings; for a tokenizer that why_no_vocabulary() has no fault with."""
    tokenizer, pad = trained.tokenizer, trained.model.pad_id
    state = _state(tokenizer)
    special = {token["id"]: token["special"] for token in state["added_tokens"]}
    named = {number: token for token, number in tokenizer.get_vocab().items()}
    places = range(config.vocab_size)
    types = [
        UNUSED if i not in named else NORMAL if i not in special else CONTROL if special[i] else USER_DEFINED
        for i in places
    ]
    pre = _pre_tokenizer(state)
    assert pre is not None, "why_no_vocabulary() is asked first"
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([named.get(i, f"[PAD{i}]") for i in places])
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(merge) for merge in state["model"]["merges"]])
    # llama.cpp refuses to rerank without one; it is not put in front of a prompt.
    writer.add_bos_token_id(pad if tokenizer.bos_token_id is None else tokenizer.bos_token_id)
    writer.add_eos_token_id(pad if tokenizer.eos_token_id is None else tokenizer.eos_token_id)
    writer.add_pad_token_id(pad)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_chat_template([{"name": "rerank", "template": rerank_template(trained.contract)}])


def _is_plain(encoder: PromptEncoder, row: Row) -> bool:
    """Whether llama.cpp must get the row's ids. It does not strip, cut or normalise texts, nor break control tokens."""
    query, document = row["query"], row["document"]
    encoded = encoder.encode(query, [document])
    if encoded.query_cut or encoded.documents_cut or "{document}" in query:
        return False
    normalizer = encoder.tokenizer.backend_tokenizer.normalizer
    return all(
        encoder.clean(text) == text and (normalizer is None or normalizer.normalize_str(text) == text)
        for text in (query, document)
    )


def why_no_vocabulary(tokenizer: Any, size: int) -> list[str]:
    """Why llama.cpp would not read texts exactly as this tokenizer does; size: rows of the embeddings."""
    if not hasattr(tokenizer, "backend_tokenizer"):
        return ["its tokenizer has no tokenizer.json"]
    state = _state(tokenizer)
    model = state["model"]
    if model["type"] != "BPE" or model.get("byte_fallback"):
        return ["its tokenizer is not a byte-level BPE (but SentencePiece or words): llama.cpp would split differently"]
    faults = []
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix") or model.get("dropout"):
        faults.append("its tokenizer marks the parts of words or drops merges at random, which llama.cpp does not")
    if _pre_tokenizer(state) is None:
        found = " + ".join(_steps(state["pre_tokenizer"])) or "none"
        ignored = ", whole words of the vocabulary without merges" if model.get("ignore_merges") else ""
        faults.append(
            f"its pre-tokenizer ({found}{ignored}) is not one that llama.cpp has exactly (known: "
            f"{', '.join(PRE_TOKENIZERS.values())}, as in {FAMILIES})"
        )
    changed = [s["type"] for s in steps_of(state["normalizer"], "normalizers") if s["type"] != "NFC"]
    if changed:
        faults.append(f"its tokenizer normalises texts ({', '.join(changed)}), which llama.cpp does not")
    odd = [t["content"] for t in state["added_tokens"] if t["lstrip"] or t["rstrip"] or t["single_word"]]
    if odd:
        faults.append(f"its token {odd[0]!r} takes white space or whole words only, which llama.cpp does not")
    if any(" " in part for merge in model["merges"] for part in merge):
        faults.append("its merges hold spaces, which separate them in the file")
    vocabulary = tokenizer.get_vocab()
    if max(vocabulary.values()) >= size:
        faults.append(f"its tokenizer has ids up to {max(vocabulary.values())}, its embeddings {size} rows")
    taken = set(range(size)) - set(vocabulary.values())
    if any(f"[PAD{i}]" in vocabulary for i in taken):
        faults.append("its vocabulary has tokens like [PAD0], which stand for rows without a token in the file")
    return faults


def rerank_template(contract: PromptContract) -> str:
    """tokenizer.chat_template.rerank: plain text with {query} and {document}, the instruction frozen in it."""
    return f"{contract.head_text('{query}')}{contract.document_prefix}{{document}}{contract.suffix}"


def why_no_template(contract: PromptContract) -> list[str]:
    """Why llama.cpp's plain text with two places cannot hold this prompt."""
    if contract.in_pieces:
        return [f"a prompt of the frame {contract.mode} is tokenised in pieces, llama.cpp tokenises one text"]
    template = rerank_template(contract)
    twice = [place for place in ("{query}", "{document}") if template.count(place) != 1]
    if twice:
        return [f"the instruction holds {twice[0]}, which llama.cpp would fill in: word it differently"]
    return []


def _state(tokenizer: Any) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    return state


def _pre_tokenizer(state: dict[str, Any]) -> str | None:
    key = (_steps(state["pre_tokenizer"]), bool(state["model"].get("ignore_merges")))
    return PRE_TOKENIZERS.get(key)


def _steps(pre: dict[str, Any] | None) -> tuple[str, ...]:
    """What a pre-tokenizer does, one word or regular expression per step."""
    return tuple(map(_step, steps_of(pre, "pretokenizers")))


def _step(step: dict[str, Any]) -> str:
    kind = step["type"]
    if kind == "Split" and step["behavior"] == "Isolated" and not step["invert"] and "Regex" in step["pattern"]:
        return str(step["pattern"]["Regex"])
    if kind == "ByteLevel" and not step["add_prefix_space"]:
        return "gpt-2" if step["use_regex"] else BYTES
    if kind == "Digits" and step["individual_digits"]:
        return "digits"
    return json.dumps(step, ensure_ascii=False)


TARGETS.add(
    Target(
        "gguf",
        gguf,
        recognises=lambda folder: any(folder.glob("*.gguf")),
        runtimes=RUNTIMES,
        card=Card(
            library="gguf",
            relation="quantized",
            holds="; this folder holds it as GGUF, for llama.cpp",
            use="use_gguf.md.j2",
            serve="serve_gguf.md.j2",
            prompt="prompt_gguf.md.j2",
            values=lambda folder, contract: {"gguf_files": sorted(path.name for path in folder.glob("*.gguf"))},
        ),
        refusals=why_no_gguf,
        modules=("gguf",),
        extra="gguf",
    ),
    __name__,
)
